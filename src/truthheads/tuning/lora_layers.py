"""PEFT's LoRA layers in a network while they are trained, with everything outside chosen heads held at 0."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from truthheads.models.head_modules import HeadPlace
from truthheads.models.hooks import LowRank

ADAPTER = "default"


class LoraLayers:
    """LoRA layers at work in a network, one for each module that chosen heads have rows or columns in.

    Attributes:
        parameters: ``A`` and ``B`` of each module, fp32, in the order of ``names``.
        names: The modules.
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers
        self.names = list(layers)
        self.parameters: list[Float[nn.Parameter, "_ _"]] = []
        for layer in layers.values():
            self.parameters += [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the network be its untouched self inside the block; no graph may be waiting for its backward pass."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def updates(self, values: Sequence[Tensor]) -> dict[str, LowRank]:
        """Return values of ``parameters`` as the update of each module."""
        pairs = zip(values[::2], values[1::2], strict=True)
        return {name: LowRank(*(part.detach().cpu().clone() for part in pair))
                for name, pair in zip(self.names, pairs, strict=True)}  # fmt: skip


@contextmanager
def lora_layers(
    network: PreTrainedModel, places: Sequence[HeadPlace], *, rank: int, generator: torch.Generator
) -> Iterator[LoraLayers]:
    """Put PEFT's LoRA layers into a network for the length of the block; then it is as it was, bit for bit.

    Outside the chosen heads, rows of B (queries) and columns of A (output projections) start at 0 and get no gradient,
    so that no optimiser moves them: weight decay and averages of 0 are 0.

    Args:
        network: The network; the weights themselves are not trained.
        places: The chosen heads.
        rank: Rank of every module's update.
        generator: Draws A, uniformly, as PEFT does for so many inputs as the chosen heads have; B starts at 0.

    Source:
        Hu et al. (2021), https://arxiv.org/abs/2106.09685.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    queries, outputs = {place.query.module for place in places}, {place.output.module for place in places}
    names = sorted(
        queries | outputs, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")]
    )
    before = {name: network.get_submodule(name) for name in names}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=names,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in before.values()),
    )
    with ExitStack() as undo:
        for parameter in network.parameters():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
        for name, module in before.items():
            undo.callback(network.set_submodule, name, module)
        undo.callback(_forget, network, getattr(network, "peft_config", None))
        with torch.random.fork_rng(devices=[]):  # PEFT draws first values from the global generator
            LoraModel(network, config, ADAPTER)
        layers: dict[str, Any] = {name: network.get_submodule(name) for name in names}
        made = LoraLayers(layers)
        for name, a, b in zip(names, made.parameters[::2], made.parameters[1::2], strict=True):
            rows, columns = torch.ones(b.shape[0], 1), torch.ones(1, a.shape[1])
            if name in queries:
                rows = _own(rows, [place.query[1:] for place in places if place.query.module == name], 0)
            if name in outputs:
                columns = _own(columns, [place.output[1:] for place in places if place.output.module == name], 1)
            bound = 1 / math.sqrt(float(columns.sum()))
            drawn = (2 * torch.rand(a.shape, generator=generator) - 1) * bound
            a.data, b.data = (drawn * columns).to(a.device), torch.zeros(b.shape, device=b.device)
            a.register_hook(_times(columns.to(a.device)))  # type: ignore[no-untyped-call]
            b.register_hook(_times(rows.to(b.device)))  # type: ignore[no-untyped-call]
        yield made


def _own(mask: Tensor, spans: Sequence[tuple[int, int]], axis: int) -> Tensor:
    """Return 1 in the rows or columns of the chosen heads, else 0."""
    kept = torch.zeros_like(mask)
    for start, width in spans:
        kept.narrow(axis, start, width).fill_(1)
    return kept


def _times(mask: Tensor) -> Any:
    return lambda gradient: gradient * mask


def _forget(network: PreTrainedModel, before: object) -> None:
    """Take off what PEFT leaves at a network that it has wrapped."""
    with suppress(AttributeError):
        del network.peft_config
    if before is not None:
        network.peft_config = before
