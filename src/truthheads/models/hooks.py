"""Read or scale the outputs of heads: the only code of the package that changes a running model.

Activations, attribution, gates and learned gates all use it. Nothing in a model is replaced or written to: hooks are
put on the output projections and taken off again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from truthheads.choices import Site
from truthheads.errors import ArchitectureError, GateError, ModelError, ShapeError
from truthheads.models.architectures import HeadLayer, HeadLayout, locate_heads, widths
from truthheads.models.held import unwrapped
from truthheads.models.load import Model
from truthheads.models.offload import execution_device

if TYPE_CHECKING:
    NetworkLike: TypeAlias = Model | nn.Module
else:  # what is no network is answered in our words, not in those of a type checker at run time
    NetworkLike = object

Visit = Callable[[int, Float[Tensor, "batch seq num_heads head_dim"]], Tensor | None]
"""Called with (layer, z) at every forward pass; returns the z to use instead, or None to leave it."""


@runtime_checkable
class Intervention(Protocol):
    """What changes chosen heads of a running model, such as a gate."""

    def apply(self, model: NetworkLike) -> AbstractContextManager[object]:
        """Apply the intervention to a model until the returned context ends; the model is then restored bit for bit."""
        ...


class Anatomy(NamedTuple):
    """A network and where its heads are."""

    network: PreTrainedModel
    layout: HeadLayout


def anatomy(model: NetworkLike) -> Anatomy:
    """Return the network and the heads of a Model or of a plain transformers model, also inside a PEFT model.

    Raises:
        ArchitectureError: The heads of a plain model could not be located.
        ModelError: It is no model, or only the name of one.
    """
    if isinstance(model, Model):
        return Anatomy(model.network, model.layout)
    if isinstance(model, PreTrainedModel):
        return Anatomy(model, locate_heads(model))
    if isinstance(model, str | Path):
        raise ModelError(
            f"{str(model)!r} is the name of a model, and nothing is loaded",
            expected="a model that is loaded, so that it can run while it is changed",
            got="a name",
            fix=f"model = truthheads.load({str(model)!r}), and give that model",
        )
    network, _ = unwrapped(model)
    return Anatomy(network, locate_heads(network))


@contextmanager
def intercepted(model: NetworkLike, visit: Visit, *, site: Site = "z") -> Iterator[None]:
    """Let ``visit`` read or replace z, the input of every output projection, inside the block.

    Hooks are removed on exit, also after an error.

    Args:
        model: The model.
        visit: Called with the layer and z as ``[batch, seq, num_heads, head_dim]``.
        site: ``output`` lets it see the projection's output in ``num_heads`` blocks instead.
    """
    network, layout = anatomy(model)
    with ExitStack() as undo:
        for head in layout.layers:
            projection = network.get_submodule(head.path)
            handle: Any
            if site == "z":
                handle = projection.register_forward_pre_hook(_before(head.index, head.num_heads, visit))
            else:
                check_blocks(projection, head)
                handle = projection.register_forward_hook(_after(head.index, head.num_heads, visit))
            undo.callback(handle.remove)
        yield


def _before(layer: int, num_heads: int, visit: Visit) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changed = visit(layer, inputs[0].unflatten(-1, (num_heads, -1)))
        return None if changed is None else (changed.flatten(-2), *inputs[1:])

    return before


def _after(layer: int, num_heads: int, visit: Visit) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    def after(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        changed = visit(layer, output.unflatten(-1, (num_heads, -1)))  # type: ignore[no-untyped-call]
        return None if changed is None else changed.flatten(-2)

    return after


class Scaling:
    """Factors that are at work on a model until :meth:`remove`; also a context manager."""

    def __init__(self) -> None:
        self._undo = ExitStack()

    def remove(self) -> None:
        """Take the factors off; the model is bit for bit what it was. A second call does nothing."""
        self._undo.close()
        forget_compiled()

    def __enter__(self) -> "Scaling":
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.remove()


class _Scale:
    """The hook of one layer; its class is how a model at work under a gate is known.

    The product is taken in fp32 and rounded once: bf16 knows nothing between 1 and 1.0078.
    """

    def __init__(self, factors: Float[Tensor, " num_heads"], width: int, projection: nn.Module) -> None:
        self.vector = factors.repeat_interleave(width // len(factors)).to(execution_device(projection))

    def scaled(self, values: Tensor) -> Tensor:
        return (values * self.vector.to(values.device)).to(values.dtype)


class _ScaleInput(_Scale):
    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.scaled(inputs[0]), *inputs[1:]


class _ScaleOutput(_Scale):
    def __call__(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return self.scaled(output)


def scale(model: NetworkLike, factors: Float[Tensor, "num_layers num_heads"], *, site: Site = "z") -> Scaling:
    """Multiply every head by its factor at every position, prompt and new tokens alike, until removed.

    A layer whose factors are all 1 gets no hook.

    Args:
        model: A Model, or any transformers model with a text decoder.
        factors: One per head; 1 where a layer has no such head.
        site: What a head's factor scales.

    Raises:
        ShapeError: The factors are not the model's shape.
        GateError: The model is at work under other factors, or there is a factor for a head that is not there.
        ArchitectureError: ``output`` where the projection's width is no multiple of the heads.
    """
    network, layout = anatomy(model)
    check_factors(factors, layout)
    projections = [(head, network.get_submodule(head.path)) for head in layout.layers]
    if any(_is_scaled(projection) for _, projection in projections):
        raise GateError(
            f"{type(network).__name__} is at work under a gate already",
            expected="a model without a gate; gates do not nest",
            got="a second gate",
            fix="leave the first `with gated(…)` block, call remove(), or multiply the two gates into one",
        )
    scaling = Scaling()
    with ExitStack() as undo:
        for head, projection in projections:
            own = factors[head.index, : head.num_heads]
            if bool((own == 1).all()):
                continue
            handle: Any
            if site == "z":
                hook: Any = _ScaleInput(own, head.num_heads * head.head_dim, projection)
                handle = projection.register_forward_pre_hook(hook)
            else:
                hook = _ScaleOutput(own, check_blocks(projection, head), projection)
                handle = projection.register_forward_hook(hook)
            undo.callback(handle.remove)
        scaling._undo = undo.pop_all()
    forget_compiled()
    return scaling


def forget_compiled() -> None:
    """Force what ``torch.compile`` made to be compiled again at its next call.

    Compiled code does not look for hooks that came or went later (``skip_nnmodule_hook_guards``): without this, a model
    that was compiled before would go on as if there were no gate, or as if it were still there.
    """
    torch.compiler.reset()


def check_factors(factors: Float[Tensor, "num_layers num_heads"], layout: HeadLayout) -> None:
    """Raise where factors cannot be put on these heads.

    Raises:
        ShapeError: Another shape.
        GateError: A factor other than 1 for a head that is not there.
    """
    if tuple(factors.shape) != layout.shape:
        raise ShapeError(
            "the gate does not fit the model",
            expected=f"{layout.num_layers} layers x {layout.num_heads} heads ({layout.architecture})",
            got=" x ".join(map(str, factors.shape)),
            fix="give a gate made from this model's scores, or from a relative of the same shape",
        )
    there = torch.zeros(layout.shape, dtype=torch.bool)
    for head in layout.layers:
        there[head.index, : head.num_heads] = True
    lost = ((factors.cpu() != 1) & ~there).nonzero()
    if len(lost):
        layer, missing = map(int, lost[0])
        raise GateError(
            "the gate has factors for heads that the model lacks",
            expected=f"1 at L{layer}H{missing}: {layout.skipped.get(layer, 'the layer has fewer heads')}",
            got=f"{float(factors[layer, missing]):g} ({len(lost)} such heads)",
            fix="make the gate from scores of a model with the same layers",
        )


def check_blocks(projection: nn.Module, head: HeadLayer) -> int:
    """Return the width of a projection's output.

    Raises:
        ArchitectureError: It cannot be cut into as many blocks as there are heads.
    """
    wide = widths(projection)
    if wide is None or wide[1] % head.num_heads:
        raise ArchitectureError(
            f"{head.path} has no block of output for each head",
            expected=f"an output width that is a multiple of {head.num_heads} heads",
            got=str(wide[1]) if wide else type(projection).__name__,
            fix="use site z",
        )
    return wide[1]


def _is_scaled(projection: nn.Module) -> bool:
    hooks = (*projection._forward_pre_hooks.values(), *projection._forward_hooks.values())
    return any(isinstance(hook, _Scale) for hook in hooks)
