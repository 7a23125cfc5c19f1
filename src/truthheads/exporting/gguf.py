"""A gate inside a GGUF file: blocks of the output projections are rescaled through their own scales."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType
from jaxtyping import Float, UInt8

from truthheads.errors import GateError, ModelError, ShapeError
from truthheads.models.gguf_header import check_gguf
from truthheads.results.gate import Gate
from truthheads.storage.files import dumps

CHUNK = 16 * 2**20

DIGEST, FACTORS = "truthheads.gate.digest", "truthheads.gate"

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "gpt2", "starcoder2", "stablelm", "olmo2",
)  # fmt: skip
"""Architectures whose files keep the heads of ``attn_output`` in transformers' order; llama.cpp's converter reorders
rows of queries and keys alone."""


@dataclass(frozen=True, slots=True)
class Block:
    """How a quantisation type stores 32 numbers of a row.

    Attributes:
        size: Bytes of a block.
        scales: How many fp16 numbers at its start every value is proportional to: the scale, and the offset if any.
    """

    size: int
    scales: int


BLOCKS = {
    Type.Q8_0: Block(34, 1),
    Type.Q4_0: Block(18, 1),
    Type.Q4_1: Block(20, 2),
    Type.Q5_0: Block(22, 1),
    Type.Q5_1: Block(24, 2),
}
"""Layouts of ggml's ``block_q8_0`` and so on; 32 numbers each."""

BLOCK = 32

PLAIN = (Type.F32, Type.F16, Type.BF16)


def export_gguf(source: Path, gate: Gate, out: Path, *, named: Path | None = None) -> None:
    """Write a gated copy of a GGUF file; metadata, other tensors and their order keep their bytes.

    Args:
        source: The file, whole.
        gate: At ``z`` it scales the output projections' columns, at ``output`` their rows, and the bias.
        out: Where to write; two keys are added to the metadata: the gate's digest, and its factors as JSON.
        named: What messages call the file; None: its own name.

    Raises:
        ModelError: The file is damaged, of an unknown architecture, or its projections are of a type whose blocks have
            no scale of their own.
        ShapeError: The gate is of another shape.
        GateError: The file holds a gate already.
    """
    reader, shown = _open(source), named or source
    architecture = _text(reader, "general.architecture")
    if DIGEST in reader.fields:
        raise GateError(
            f"{shown} is gated already",
            expected="a model without a gate in its weights",
            got=f"gate {_text(reader, DIGEST)}",
            fix="export from the model that it was made from, with the product of both gates",
        )
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{shown} is of an architecture whose order of heads is not known here",
            expected=", ".join(ARCHITECTURES),
            got=architecture,
            fix="export a checkpoint of the transformers model, and convert that with llama.cpp",
        )
    shape = _number(reader, f"{architecture}.block_count"), _number(reader, f"{architecture}.attention.head_count")
    if tuple(gate.gate.shape) != shape:
        raise ShapeError(
            "the gate does not fit the model",
            expected=f"{shape[0]} layers x {shape[1]} heads",
            got=" x ".join(map(str, gate.gate.shape)),
            fix="give a gate made from this model's scores, or from a relative of the same shape",
        )
    plan = _plan(reader, gate, shown)
    added = _string(DIGEST, gate.digest) + _string(FACTORS, dumps({"factors": gate.gate.tolist(), "site": gate.site}))
    with source.open("rb") as old, out.open("wb") as new:
        start = min(tensor.field.offset for tensor in reader.tensors)
        old.seek(0)
        head = bytearray(old.read(start))
        struct.pack_into("<Q", head, 16, struct.unpack_from("<Q", head, 16)[0] + 2)  # the count of key-values
        infos = old.read(_infos_end(reader) - start)
        new.write(bytes(head) + added + infos)
        new.write(b"\0" * (-new.tell() % int(reader.alignment)))
        old.seek(reader.data_offset)
        for tensor in sorted(reader.tensors, key=lambda one: one.data_offset):
            if tensor.name in plan:
                _copy(old, new, int(tensor.data_offset) - old.tell())
                _scale(old, new, tensor, plan[tensor.name], gate.site, shown)
        _copy(old, new, None)


def _open(source: Path) -> GGUFReader:
    check_gguf(source)
    try:
        reader = GGUFReader(str(source))
        if not reader.tensors or reader.byte_order == "S" or int(reader.fields["GGUF.version"].parts[0][0]) < 3:
            raise ValueError("no tensors, another byte order, or a version before 3")
    except Exception as error:  # the library raises whatever a damaged header makes numpy raise
        raise ModelError(
            f"{source} cannot be read as GGUF",
            expected="a whole GGUF file of version 3",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="download or copy it again",
        ) from error
    return reader


def _infos_end(reader: GGUFReader) -> int:
    last = max((tensor.field for tensor in reader.tensors), key=lambda field: field.offset)
    return int(last.offset + sum(int(part.nbytes) for part in last.parts))


def _plan(reader: GGUFReader, gate: Gate, source: Path) -> dict[str, Float[np.ndarray, " num_heads"]]:
    """Return the factors of every tensor that is to be scaled; layers whose factors are all 1 are left out."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    plan: dict[str, Float[np.ndarray, " num_heads"]] = {}
    for layer, row in enumerate(gate.gate.double().numpy()):
        if (row == 1).all():
            continue
        name = f"blk.{layer}.attn_output.weight"
        if name not in tensors:
            raise ModelError(
                f"{source} lacks an output projection",
                expected=f"a tensor {name}",
                got=f"{len(tensors)} others",
                fix="export a checkpoint of the transformers model, and convert that with llama.cpp",
            )
        _check(tensors[name], len(row), gate.site, source)
        plan[name] = row
        bias = f"blk.{layer}.attn_output.bias"
        if gate.site == "output" and bias in tensors:
            plan[bias] = row
    return plan


def _check(tensor: Any, heads: int, site: str, source: Path) -> None:
    kind, columns, rows = tensor.tensor_type, int(tensor.shape[0]), int(tensor.shape[1])
    if kind not in BLOCKS and kind not in PLAIN:
        names = ", ".join(one.name for one in (*PLAIN, *BLOCKS))
        raise ModelError(
            f"{tensor.name} of {source} is stored as {kind.name}, whose blocks cannot be rescaled head by head",
            expected=f"one of {names}",
            got=kind.name,
            fix="gate the unquantised model (--to checkpoint), convert it with llama.cpp, and quantise that",
        )
    width = columns if site == "z" else rows
    if width % heads:
        raise ModelError(
            f"{tensor.name} of {source} cannot be cut into {heads} heads",
            expected=f"a width that is a multiple of {heads}",
            got=str(width),
            fix="use --site z" if site == "output" and columns % heads == 0 else "check the file",
        )
    if site == "z" and kind in BLOCKS and (columns // heads) % BLOCK:
        raise ModelError(
            f"blocks of {tensor.name} in {source} lie across heads",
            expected=f"a head_dim that is a multiple of {BLOCK} for {kind.name}",
            got=str(columns // heads),
            fix="gate the unquantised model (--to checkpoint), convert it with llama.cpp, and quantise that",
        )


def _scale(
    old: BinaryIO, new: BinaryIO, tensor: Any, factors: Float[np.ndarray, " num_heads"], site: str, source: Path
) -> None:
    """Scale one tensor, some rows at a time."""
    kind, total = tensor.tensor_type, int(tensor.n_bytes)
    vector = len(tensor.shape) == 1
    rows = 1 if vector else int(tensor.shape[1])
    size = total // rows
    columns = int(tensor.shape[0])
    step = max(1, CHUNK // size)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        raw = np.frombuffer(old.read(size * count), dtype=np.uint8).reshape(count, size).copy()
        if site == "z" or vector:
            each = np.repeat(factors, columns // len(factors))[None]
        else:
            each = np.repeat(factors, rows // len(factors))[first : first + count, None]
        with np.errstate(over="ignore"):
            done = _rescaled(raw, kind, each)
        if done is None:
            raise ModelError(
                f"a scale of {tensor.name} in {source} is too large for fp16 under this gate",
                expected="scales below 65,504",
                got="infinity",
                fix="use a weaker gate, or export a checkpoint",
            )
        new.write(done.tobytes())


def _rescaled(
    raw: UInt8[np.ndarray, "rows bytes"], kind: Type, factors: Float[np.ndarray, "one_or_rows one_or_columns"]
) -> UInt8[np.ndarray, "rows bytes"] | None:
    """Return rows times factors, each product rounded once; None where fp16 overflows."""
    if kind in PLAIN:
        if kind is Type.BF16:
            wide = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            bits = (wide * factors).astype(np.float32).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, ties to even, as torch does
            half: UInt8[np.ndarray, "rows bytes"] = rounded.astype("<u2").view(np.uint8)
            return half
        values = raw.view("<f4" if kind is Type.F32 else "<f2")
        product = (values.astype(np.float64) * factors).astype(values.dtype)
        if np.isfinite(values).all() and not np.isfinite(product).all():
            return None
        same: UInt8[np.ndarray, "rows bytes"] = product.view(np.uint8)
        return same
    block = BLOCKS[kind]
    blocks = raw.reshape(len(raw), -1, block.size)
    scales = blocks[:, :, : 2 * block.scales].copy().view("<f2")
    own = factors[:, ::BLOCK, None] if factors.shape[1] > 1 else factors[:, :, None]
    product = (scales.astype(np.float64) * own).astype(np.float16)
    if not np.isfinite(product).all() and np.isfinite(scales).all():
        return None
    blocks[:, :, : 2 * block.scales] = product.view(np.uint8)
    return blocks.reshape(len(raw), -1)


def _copy(old: BinaryIO, new: BinaryIO, count: int | None) -> None:
    """Copy bytes, all that are left where ``count`` is None."""
    while count is None or count > 0:
        part = old.read(CHUNK if count is None else min(CHUNK, count))
        if not part:
            return
        new.write(part)
        count = None if count is None else count - len(part)


def _string(key: str, value: str) -> bytes:
    parts = [text.encode() for text in (key, value)]
    lengths = [struct.pack("<Q", len(part)) for part in parts]
    return lengths[0] + parts[0] + struct.pack("<I", GGUFValueType.STRING) + lengths[1] + parts[1]


def _text(reader: GGUFReader, key: str) -> str:
    return str(_value(reader.fields, key))


def _number(reader: GGUFReader, key: str) -> int:
    value = _value(reader.fields, key)
    if isinstance(value, int | np.integer):
        return int(value)
    raise ModelError(
        f"{key} is not one number",
        expected="one count for all layers",
        got=type(value).__name__,
        fix="export a checkpoint of the transformers model, and convert that with llama.cpp",
    )


def _value(fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise ModelError(
            "the GGUF file lacks a key", expected=key, got=f"{len(fields)} others", fix="download or convert it again"
        )
    try:
        return fields[key].contents()
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{key} of the GGUF file is damaged",
            expected="text in UTF-8, or numbers",
            got=str(error),
            fix="download it again",
        ) from error
