"""Gradients that are whole: a layer that would stop them is an error, not a part that is missing from a sum."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from truthheads.errors import ModelError

NO_BACKWARD = "an autograd kernel was not registered"
"""How torch warns that it goes back through a product that has no backward pass, and passes nothing on."""


@contextmanager
def whole_gradients(network: nn.Module) -> Iterator[None]:
    """Raise where a linear layer passes no gradient on; around the forward and the backward pass.

    Kernels for quantised weights are often made for inference. A network with such a layer still has gradients, through
    its residual connections, and they are wrong: what went through the layer is missing.

    On a GPU attention runs in torch's plain kernel: behind padding on the left there are tokens that may look at
    nothing, and the backward pass of the memory-efficient kernel gives NaN there.

    Raises:
        ModelError: The output of a linear layer does not depend on its input as far as torch knows, or torch warns
            that it goes back through a product without a backward pass.

    Source:
        The kernel's NaN: https://github.com/pytorch/pytorch/issues/110213.
    """
    names = {module: name for name, module in network.named_modules() if hasattr(module, "in_features")}

    def check(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        asked = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
        if asked and torch.is_grad_enabled() and isinstance(output, Tensor) and not output.requires_grad:
            raise _stopped(names[module], f"{type(module).__name__}, whose output has no gradient")

    with ExitStack() as undo:
        if any(parameter.is_cuda for parameter in network.parameters()):
            undo.enter_context(sdpa_kernel(SDPBackend.MATH))
        for module in names:
            undo.callback(module.register_forward_hook(check).remove)
        undo.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("error", message=f".*{NO_BACKWARD}")
        try:
            yield
        except (UserWarning, RuntimeError) as error:
            if NO_BACKWARD not in str(error):
                raise
            raise _stopped("a layer", str(error).partition(": ")[0] or "a product") from error


def _stopped(where: str, got: str) -> ModelError:
    return ModelError(
        f"gradients stop at {where}",
        expected="layers with a backward pass",
        got=got,
        fix="use unquantised weights, --load-in 4bit or --load-in 8bit; scores by probes need no gradients",
    )
