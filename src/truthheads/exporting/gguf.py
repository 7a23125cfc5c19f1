"""A gate inside a GGUF file: blocks of the output projections are rescaled through their own scales."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from jaxtyping import Float, UInt8

from truthheads.errors import GateError, ModelError, ShapeError
from truthheads.models.gguf_header import GgufHeader, GgufTensor, tensor_bytes
from truthheads.models.gguf_parts import Rewritten, join, read_parts, read_rows
from truthheads.results.gate import Gate
from truthheads.storage.files import dumps

DIGEST, FACTORS = "truthheads.gate.digest", "truthheads.gate"

ADAPTER = "truthheads.adapter.digest"

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


def export_gguf(source: Path, gate: Gate, out: Path) -> None:
    """Write a gated copy of a GGUF model into one file; metadata, other tensors and their order keep their bytes.

    Args:
        source: The file, of a split model any part.
        gate: At ``z`` it scales the output projections' columns, at ``output`` their rows, and the bias.
        out: Where to write; two keys are added to the metadata: the gate's digest, and its factors as JSON.

    Raises:
        ModelError: The file is damaged, of an unknown architecture, or its projections are of a type whose blocks have
            no scale of their own.
        ShapeError: The gate is of another shape.
        GateError: The file holds a gate or an adapter already.
    """
    parts = read_parts(source)
    check_unchanged(parts[0])
    architecture = architecture_in(parts[0])
    if architecture not in ARCHITECTURES:
        raise unknown_order(source, architecture, ARCHITECTURES)
    shape = _number(parts[0], f"{architecture}.block_count"), _number(parts[0], f"{architecture}.attention.head_count")
    if tuple(gate.gate.shape) != shape:
        raise ShapeError(
            "the gate does not fit the model",
            expected=f"{shape[0]} layers x {shape[1]} heads",
            got=" x ".join(map(str, gate.gate.shape)),
            fix="give a gate made from this model's scores, or from a relative of the same shape",
        )
    factors = dumps({"factors": gate.gate.tolist(), "site": gate.site})
    join(parts, out, rewritten=_plan(parts, gate), added={DIGEST: gate.digest, FACTORS: factors})


def check_unchanged(header: GgufHeader) -> None:
    """Raise GateError where this package has changed the weights of a GGUF model before."""
    for key, what in ((DIGEST, "gate"), (ADAPTER, "adapter")):
        if key in header.keys:
            raise GateError(
                f"{header.path} is {'gated' if what == 'gate' else 'adapted'} already",
                expected="a model without a gate or an adapter of this package in its weights",
                got=f"{what} {header.keys[key].value}",
                fix="export from the model that it was made from; two gates can be multiplied into one",
            )


def architecture_in(header: GgufHeader) -> str:
    """Return the architecture that a GGUF model names; ModelError where it names none."""
    found = header.keys.get("general.architecture")
    if found is None or not isinstance(found.value, str):
        raise ModelError(
            f"{header.path} does not say what it is",
            expected="a text under general.architecture",
            got=f"{len(header.keys)} other keys" if found is None else "another value",
            fix="download or convert it again",
        )
    return found.value


def unknown_order(source: Path, architecture: str, known: Iterable[str]) -> ModelError:
    """Return the error for an architecture whose converter may have reordered rows in a way that is not known."""
    return ModelError(
        f"{source} is of an architecture whose order of heads is not known here",
        expected=", ".join(known),
        got=architecture,
        fix="export a checkpoint of the transformers model, and convert that with llama.cpp",
    )


def check_matrix(tensor: GgufTensor, source: Path) -> None:
    """Raise ModelError where a tensor is no matrix."""
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise ModelError(
            f"{tensor.name} of {source} is no matrix",
            expected="two axes",
            got=" x ".join(map(str, tensor.shape)) or "one number",
            fix="download or convert it again",
        )


def _number(header: GgufHeader, key: str) -> int:
    found = header.keys.get(key)
    if found is not None and isinstance(found.value, int):
        return found.value
    raise ModelError(
        f"{key} of {header.path} is not one number",
        expected="one count for all layers",
        got="no such key" if found is None else "another value",
        fix="export a checkpoint of the transformers model, and convert that with llama.cpp",
    )


def _plan(parts: Sequence[GgufHeader], gate: Gate) -> dict[str, Rewritten]:
    """Return the tensors that are to be scaled; layers whose factors are all 1 are left out."""
    tensors = {tensor.name: (part, tensor) for part in parts for tensor in part.tensors}
    plan: dict[str, Rewritten] = {}
    for layer, row in enumerate(gate.gate.double().numpy()):
        if (row == 1).all():
            continue
        name, bias = (f"blk.{layer}.attn_output.{kind}" for kind in ("weight", "bias"))
        if name not in tensors:
            raise ModelError(
                f"{parts[0].path} lacks an output projection",
                expected=f"a tensor {name}",
                got=f"{len(tensors)} others",
                fix="export a checkpoint of the transformers model, and convert that with llama.cpp",
            )
        part, tensor = tensors[name]
        _check(tensor, len(row), gate.site, part.path)
        plan[name] = Rewritten(tensor.kind, partial(_scaled, part, tensor, row, gate.site))
        if gate.site == "output" and bias in tensors:
            part, tensor = tensors[bias]
            plan[bias] = Rewritten(tensor.kind, partial(_scaled, part, tensor, row, gate.site))
    return plan


def _check(tensor: GgufTensor, heads: int, site: str, source: Path) -> None:
    check_matrix(tensor, source)
    kind, (columns, rows) = Type(tensor.kind), tensor.shape
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


def _scaled(
    part: GgufHeader, tensor: GgufTensor, factors: Float[np.ndarray, " num_heads"], site: str
) -> Iterator[bytes]:
    """Scale one tensor, some rows at a time."""
    kind, columns, rows = Type(tensor.kind), tensor.shape[0], math.prod(tensor.shape[1:])
    size, first = tensor_bytes(tensor) // rows, 0
    for data in read_rows(part, tensor):
        raw = np.frombuffer(data, dtype=np.uint8).reshape(-1, size).copy()
        if site == "z" or len(tensor.shape) == 1:
            each = np.repeat(factors, columns // len(factors))[None]
        else:
            each = np.repeat(factors, rows // len(factors))[first : first + len(raw), None]
        with np.errstate(over="ignore"):
            done = _rescaled(raw, kind, each)
        if done is None:
            raise ModelError(
                f"a scale of {tensor.name} in {part.path} is too large for fp16 under this gate",
                expected="scales below 65,504",
                got="infinity",
                fix="use a weaker gate, or export a checkpoint",
            )
        yield done.tobytes()
        first += len(raw)


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
