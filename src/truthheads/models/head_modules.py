"""Which modules of a running network make the queries of each head and take in its output, and which rows and columns.

The counterpart of :mod:`truthheads.models.head_weights` for a network in memory: one table serves both.
"""

from typing import NamedTuple

from torch import nn
from transformers import PreTrainedModel

from truthheads.errors import ArchitectureError
from truthheads.models.architectures import HeadLayer, HeadLayout, text_decoder, widths
from truthheads.models.head_weights import DEFAULTS, ROWS, Span, spans


class ModuleSpan(NamedTuple):
    """Rows of one linear module's output, or columns of its input, that belong to one head.

    Attributes:
        module: Full path in the network.
        start: The first of them.
        width: How many.
    """

    module: str
    start: int
    width: int


class HeadPlace(NamedTuple):
    """Where one head is in a network.

    Attributes:
        layer: Its layer, as the layout counts.
        head: Its number in the layer.
        query: The rows that make its queries.
        output: The columns of the output projection that read it.
    """

    layer: int
    head: int
    query: ModuleSpan
    output: ModuleSpan

    @property
    def name(self) -> str:
        """``L12H7``."""
        return f"L{self.layer}H{self.head}"


def locate_places(network: PreTrainedModel, layout: HeadLayout) -> tuple[HeadPlace, ...]:
    """Return where every head of a network has its query rows and output columns.

    Args:
        network: The network; its parameters may be on the meta device or quantised.
        layout: Its heads.

    Raises:
        ArchitectureError: The queries of a layer are kept in a way that the table does not know.
    """
    decoder = text_decoder(network)
    model_type = getattr(decoder.config.get_text_config(decoder=True), "model_type", "")
    found = []
    for head in layout.layers:
        module, span = _queries(network, head, model_type)
        for number, start in enumerate(span.starts):
            query = ModuleSpan(module, start, span.width)
            output = ModuleSpan(head.path, number * head.head_dim, head.head_dim)
            found.append(HeadPlace(head.index, number, query, output))
    return tuple(found)


def _queries(network: PreTrainedModel, head: HeadLayer, model_type: str) -> tuple[str, Span]:
    attention = head.path.rpartition(".")[0]
    modules = dict(network.get_submodule(attention).named_modules())
    choices = (ROWS[model_type],) if model_type in ROWS else DEFAULTS
    for choice in choices:
        stored = next(one for one in choice if "q" in one.holds)
        wide = widths(modules[stored.tensor]) if stored.tensor in modules else None
        found = None if wide is None else spans(stored, head, wide[1])
        if found is not None:
            return f"{attention}.{stored.tensor}", found["q"]
    linear = [name for name, module in modules.items() if isinstance(module, nn.Module) and widths(module)]
    raise ArchitectureError(
        f"the query rows of {attention} were not found",
        expected=" or ".join(stored.tensor for choice in choices for stored in choice if "q" in stored.holds)
        + f", a multiple of {head.num_heads} heads wide",
        got=", ".join(linear) or "no linear module",
        fix=f"add a row for model_type {model_type!r} to truthheads.models.head_weights.ROWS",
    )
