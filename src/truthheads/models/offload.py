"""Weights that are not there between passes: accelerate keeps them on the CPU or on disk and fetches them by layer.

Outside a forward pass such a weight is on the meta device, which has a shape and no values.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def execution_device(module: nn.Module) -> torch.device:
    """Return where a module computes, wherever its weights are kept; the CPU for one that has no weights."""
    for hook in _hooks(module):
        if hook.execution_device is not None:
            return torch.device(hook.execution_device)
    weight = next((tensor for tensor in (*module.parameters(), *module.buffers())), None)
    return torch.device("cpu") if weight is None or weight.device.type == "meta" else weight.device


def is_spread(network: PreTrainedModel) -> bool:
    """Return whether the network's layers are on several devices, or fetched when they are needed."""
    return getattr(network, "hf_device_map", None) is not None


def is_offloaded(network: nn.Module) -> bool:
    """Return whether weights are fetched when they are needed."""
    return any(parameter.device.type == "meta" for parameter in network.parameters())


def stored_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values of every tensor of the network's state in the order of names, fetched one at a time."""
    for name, value in sorted(network.state_dict().items()):
        yield name, _fetched(network, name) if value.device.type == "meta" else value


@contextmanager
def fetched_again(network: nn.Module) -> Iterator[None]:
    """Have a graph that is built inside the block keep no offloaded weight: its backward pass fetches each again.

    A graph holds on to the weights that its backward pass needs, frozen ones too. Without this, one over an offloaded
    network would hold the whole network.
    """
    parts = [(module, hook) for module in network.modules() for hook in _hooks(module) if hook.offload]
    if not parts:
        yield
        return

    def pack(tensor: Tensor) -> "Tensor | _Absent":
        if tensor.requires_grad or tensor.device.type == "meta":
            return tensor
        at = tensor.data_ptr()
        for module, hook in parts:
            for name, weight in module.named_parameters(recurse=bool(hook.place_submodules)):
                if weight.device.type == "meta":
                    break  # a module's weights come and go together
                begin = weight.data_ptr()
                if begin <= at < begin + weight.numel() * weight.element_size():
                    offset = (at - begin) // weight.element_size()
                    return _Absent(hook.weights_map, name, weight.dtype, weight.device, offset, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
        yield


class _Absent:
    """Which part of which weight a graph needs."""

    def __init__(
        self,
        weights: Any,
        name: str,
        dtype: torch.dtype,
        device: torch.device,
        offset: int,
        like: Tensor,
    ) -> None:
        self.weights, self.name, self.dtype, self.device, self.offset = weights, name, dtype, device, offset
        self.size, self.stride = like.size(), like.stride()

    def fetched(self) -> Tensor:
        whole: Tensor = self.weights[self.name].to(self.device, self.dtype).contiguous()
        return whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)


def _unpack(kept: "Tensor | _Absent") -> Tensor:
    return kept.fetched() if isinstance(kept, _Absent) else kept


def _fetched(network: nn.Module, name: str) -> Tensor:
    """Return the values of an offloaded tensor on the device that they are kept on, the CPU for those on disk."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        below = ".".join(parts[cut:])
        for hook in _hooks(network.get_submodule(".".join(parts[:cut]))):
            with suppress(KeyError, TypeError):  # to ask whether it is there would read it
                found: Tensor = hook.weights_map[below]
                return found
    raise KeyError(name)


class _Hook(NamedTuple):
    """What is used of accelerate's hook."""

    execution_device: Any
    offload: bool
    weights_map: Any
    place_submodules: bool


def _hooks(module: nn.Module) -> Iterator[_Hook]:
    """Yield the hooks with which accelerate moves a module's weights and inputs."""
    own: Any = getattr(module, "_hf_hook", None)
    for hook in getattr(own, "hooks", (own,)):
        if hasattr(hook, "execution_device") and hasattr(hook, "weights_map"):
            yield _Hook(hook.execution_device, bool(hook.offload), hook.weights_map, bool(hook.place_submodules))


class Scratch:
    """A temporary folder that is there as long as a network that keeps weights in it."""

    def __init__(self) -> None:
        self.made: str | None = None

    def folder(self) -> str:
        """Return the folder, made at the first call."""
        self.made = self.made or tempfile.mkdtemp(prefix="truthheads-")
        return self.made

    def keep_for(self, network: PreTrainedModel) -> None:
        """Remove the folder when the network is garbage-collected."""
        if self.made is not None:
            weakref.finalize(network, shutil.rmtree, self.made, True)
            self.made = None


@contextmanager
def scratch_folder() -> Iterator[Scratch]:
    """Yield a folder that is removed with the network it is kept for, or at once where it is kept for none."""
    scratch = Scratch()
    try:
        yield scratch
    finally:
        if scratch.made is not None:
            shutil.rmtree(scratch.made, ignore_errors=True)
