"""An adapter inside a GGUF file, or beside it as llama.cpp's own LoRA file."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFType, GGUFWriter, Keys, quants
from gguf import GGMLQuantizationType as Type
from jaxtyping import Bool, Float, UInt8

from truthheads.errors import ModelError, ShapeError
from truthheads.exporting.gguf import ADAPTER, architecture_in, check_matrix, check_unchanged, unknown_order
from truthheads.exporting.gguf_names import ROWS, GgufNames
from truthheads.models.gguf_header import GgufHeader, GgufTensor, tensor_bytes
from truthheads.models.gguf_parts import Rewritten, join, read_parts, read_rows
from truthheads.models.hooks import LowRank
from truthheads.results.head_adapter import HeadAdapter
from truthheads.storage.files import dumps

NOTE = "truthheads.adapter"

KEPT = (Type.F32, Type.F16, Type.BF16, Type.Q8_0)
"""Types that a changed tensor keeps whatever the update."""

INSTEAD = (Type.Q8_0, Type.F16)
"""Tried in this order for a tensor that cannot keep its type; F16 takes any width."""

LOST = 0.25
"""Largest rounding error of a changed tensor, as a share of the update, at which it keeps a type of fewer bits."""


class Requantised(TypedDict):
    """How a changed tensor of a GGUF file was stored before, and how it is stored now.

    Attributes:
        tensor: Its name.
        before: Its type in the model.
        after: Its type in what was written.
    """

    tensor: str
    before: str
    after: str


def gguf_names(header: GgufHeader) -> GgufNames:
    """Return the names that a GGUF model gives the modules of its network.

    Raises:
        ModelError: Its architecture is not known here.
        GateError: This package has changed its weights before.
    """
    check_unchanged(header)
    return names_in(header)


def names_in(header: GgufHeader) -> GgufNames:
    """Return the names that a GGUF model gives the modules of its network, whether this package has changed it or not.

    Raises:
        ModelError: Its architecture is not known here.
    """
    architecture = architecture_in(header)
    if architecture not in ROWS:
        raise unknown_order(header.path, architecture, ROWS)
    heads = header.number(f"{architecture}.attention.head_count", 0)
    kv_heads = header.number(f"{architecture}.attention.head_count_kv", heads)
    return GgufNames(architecture, header.number(f"{architecture}.block_count", 0), heads, kv_heads)


def merge_gguf(source: Path, adapter: HeadAdapter, out: Path) -> list[Requantised]:
    """Write a GGUF model with an adapter inside into one file; other tensors and their order keep their bytes.

    A changed tensor is dequantised, changed, and quantised to the type it had; blocks in which nothing changes keep
    their bytes. It becomes Q8_0 where the gguf library cannot write the type it had, as of all K-quants, or where that
    has so few bits that rounding would undo the update (see ``LOST``).

    Args:
        source: The file, of a split model any part.
        adapter: The adapter.
        out: Where to write; two keys are added to the metadata: the adapter's digest, and what it did as JSON.

    Returns:
        The changed tensors and their types, in the file's order.

    Raises:
        ModelError: The file is damaged, of an unknown architecture, or a type of a changed tensor cannot be read.
        ShapeError: The adapter does not fit the model.
        GateError: The file holds a gate or an adapter already.
    """
    parts = read_parts(source)
    names = gguf_names(parts[0])
    updates = {names.tensor(module): (module, update) for module, update in adapter.updates.items()}
    rewritten: dict[str, Rewritten] = {}
    said: list[Requantised] = []
    for part in parts:
        for tensor in part.tensors:
            if tensor.name not in updates:
                continue
            module, update = updates.pop(tensor.name)
            check_matrix(tensor, part.path)
            wanted = update.a.shape[1], update.b.shape[0]
            if tensor.shape != wanted:
                raise misfit(module, wanted, (tensor.shape[0], tensor.shape[1]))
            order = names.order(tensor.name, wanted[1])
            placed = update if order is None else LowRank(update.a, update.b[order])
            kind = _target(part, tensor, placed)
            rewritten[tensor.name] = Rewritten(int(kind), partial(_changed, part, tensor, placed, kind))
            said.append({"tensor": tensor.name, "before": Type(tensor.kind).name, "after": kind.name})
    if updates:
        name, (module, _) = next(iter(updates.items()))
        raise ModelError(
            f"{source} has no weight of its own for {module}",
            expected=f"a tensor {name}",
            got="none: an output head without one shares the embedding's weights" if "output" in name else "none",
            fix="give the model that the adapter was trained on, or train it without this module",
        )
    note = dumps({"base": adapter.base, "tensors": said})
    join(parts, out, rewritten=rewritten, added={ADAPTER: adapter.digest, NOTE: note})
    return said


def write_lora(adapter: HeadAdapter, names: GgufNames, out: Path) -> None:
    """Write an adapter as llama.cpp's LoRA file, which ``llama-cli --lora`` and ``llama-server --lora`` read.

    Args:
        adapter: The adapter.
        names: Those of the model that it is for.
        out: Where to write.

    Raises:
        ModelError: llama.cpp has no tensor for one of its modules.
    """
    alpha = float(adapter.rank)
    writer = GGUFWriter(str(out), names.architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_string(ADAPTER, adapter.digest)
    for module, update in adapter.updates.items():
        tensor = names.tensor(module)
        b = update.b.numpy() * np.float32(update.b.shape[1] / alpha)  # llama.cpp multiplies by alpha over each rank
        order = names.order(tensor, len(b))
        writer.add_tensor(f"{tensor}.lora_a", update.a.numpy())
        writer.add_tensor(f"{tensor}.lora_b", np.ascontiguousarray(b if order is None else b[order]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def misfit(module: str, wanted: tuple[int, int], got: tuple[int, int]) -> ShapeError:
    """Return the error for an adapter whose update of a module has another shape than the module."""
    return ShapeError(
        f"the adapter does not fit the model: {module}",
        expected=f"{wanted[0]} inputs and {wanted[1]} outputs, as the adapter's",
        got=f"{got[0]} inputs and {got[1]} outputs in the model",
        fix="give the model that the adapter was trained on, or a relative of the same shape",
    )


def values_of(part: GgufHeader, tensor: GgufTensor) -> Float[np.ndarray, "rows columns"]:
    """Return a whole tensor as numbers, in the order of the file."""
    return np.concatenate([_numbers(_rows(data, tensor), tensor, part.path) for data in read_rows(part, tensor)])


class _Block(NamedTuple):
    """Some rows of a tensor while it is changed."""

    raw: UInt8[np.ndarray, "rows bytes"]
    change: Float[np.ndarray, "rows columns"]
    new: UInt8[np.ndarray, "rows new_bytes"]
    error: Float[np.ndarray, "rows columns"]


def _target(part: GgufHeader, tensor: GgufTensor, update: LowRank) -> Type:
    """Return the type that a changed tensor is to be stored in."""
    own = Type(tensor.kind)
    if _writes(own, tensor.shape[0]):
        if own in KEPT:
            return own
        size = lost = 0.0
        for block in _blocks(part, tensor, update, own):
            size += float((block.change**2).sum())
            lost += float((block.error[_touched(block.change, own)] ** 2).sum())
        if lost <= LOST**2 * size:
            return own
    return next(kind for kind in INSTEAD if _writes(kind, tensor.shape[0]))


def _writes(kind: Type, columns: int) -> bool:
    """Return whether the gguf library can store rows of a width in a type."""
    block = GGML_QUANT_SIZES[kind][0]
    if columns % block:
        return False
    try:
        quants.quantize(np.zeros((1, block), np.float32), kind)
    except NotImplementedError:
        return False
    return True


def _touched(change: Float[np.ndarray, "rows columns"], kind: Type) -> Bool[np.ndarray, "rows columns"]:
    """Return where the blocks lie in which something changes."""
    block = GGML_QUANT_SIZES[kind][0]
    found: Bool[np.ndarray, "rows columns"] = (
        (change.reshape(len(change), -1, block) != 0).any(-1).repeat(block, axis=1)
    )
    return found


def _blocks(part: GgufHeader, tensor: GgufTensor, update: LowRank, kind: Type) -> Iterator[_Block]:
    """Yield some rows of a tensor at a time, quantised with their update."""
    a, b = update.a.numpy(), update.b.numpy()
    first = 0
    for data in read_rows(part, tensor):
        raw = _rows(data, tensor)
        change = b[first : first + len(raw)] @ a
        wanted = _numbers(raw, tensor, part.path) + change
        with np.errstate(over="ignore"):
            new = quants.quantize(wanted, kind).view(np.uint8)
            written = quants.dequantize(new, kind)
        if not np.isfinite(written).all():
            raise ModelError(
                f"{tensor.name} of {part.path} cannot be changed by this adapter",
                expected=f"finite numbers in {kind.name}",
                got="NaN or infinity",
                fix="check the model and the adapter, or make the adapter weaker",
            )
        yield _Block(raw, change, new, written - wanted)
        first += len(raw)


def _changed(part: GgufHeader, tensor: GgufTensor, update: LowRank, kind: Type) -> Iterator[bytes]:
    """Yield the bytes of one tensor with its update, some rows at a time."""
    block, size = GGML_QUANT_SIZES[kind]
    for rows in _blocks(part, tensor, update, kind):
        new = rows.new.reshape(len(rows.raw), -1, size)
        if kind == tensor.kind:  # what does not change keeps its bytes: rounding twice need not give the same
            still = ~_touched(rows.change, kind)[:, ::block]
            new[still] = rows.raw.reshape(new.shape)[still]
        yield new.tobytes()


def _rows(data: bytes, tensor: GgufTensor) -> UInt8[np.ndarray, "rows bytes"]:
    return np.frombuffer(data, np.uint8).reshape(-1, tensor_bytes(tensor) // tensor.shape[1])


def _numbers(
    raw: UInt8[np.ndarray, "rows bytes"], tensor: GgufTensor, source: Path
) -> Float[np.ndarray, "rows columns"]:
    kind = Type(tensor.kind)
    try:
        values: Float[np.ndarray, "rows columns"] = quants.dequantize(raw, kind).astype(np.float32)
    except NotImplementedError as error:
        raise ModelError(
            f"{tensor.name} of {source} cannot be read as numbers",
            expected="a type that the gguf package dequantises",
            got=kind.name,
            fix="use --to gguf-lora, which leaves the model as it is, or give the unquantised model",
        ) from error
    return values
