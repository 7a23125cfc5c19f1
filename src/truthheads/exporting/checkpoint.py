"""A gate inside the weights: output projections are scaled, every other byte stays as it was."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.errors import ArchitectureError, ModelError
from truthheads.exporting.adapter import ExportNote, moved_layers, spread
from truthheads.exporting.card import CARD
from truthheads.models.architectures import HeadLayer, HeadLayout
from truthheads.models.head_weights import NON_DECODER_PATH, decoder_prefix
from truthheads.models.sources import local_folder
from truthheads.models.weight_files import DTYPES, INDEX, SINGLE, Entry, Shards, inside, read_header
from truthheads.results.gate import Gate
from truthheads.storage.artifacts import KEY

OTHER_WEIGHTS = (".bin", ".gguf", ".pth", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".ckpt")
"""Formats that do not get the gate, and are therefore left behind; ``.pt`` is not among them (Omni keeps its voices in
one)."""

NOT_FETCHED = [*(f"*{suffix}" for suffix in OTHER_WEIGHTS), "consolidated*"]


def source_folder(name: str) -> Path:
    """Return the folder with all of a model's files but other formats' weights; ModelError where there is none."""
    return local_folder(name, ignore_patterns=NOT_FETCHED)


def check_source(folder: Path) -> None:
    """Raise ModelError where a folder's weights cannot take a gate.

    Raises:
        ModelError: Its weights are quantised, or it has no configuration that can be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{folder} is not a model folder",
            expected="a folder with config.json",
            got=f"{type(error).__name__}: {error}",
            fix="give the folder that save_pretrained wrote",
        ) from error
    found = _quantisation(config)
    if found is not None:
        raise quantised(folder, f"{found.get('quant_method', 'quantised')} weights, as config.json says")


def check_ungated(folder: Path) -> None:
    """Raise ModelError where a checkpoint contains a gate of this package already."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            note = json.loads(read_header(file).meta.get(KEY, "null"))
        except (ValueError, OSError, RecursionError, TypeError):
            continue  # damaged: the reader of the tensors says it better
        if isinstance(note, dict) and "gate" in note:
            raise ModelError(
                f"{folder} has a gate inside already",
                expected="the model without a gate",
                got=f"gate {note['gate']} in {file.name}",
                fix="export from the base model; to have both gates, multiply them into one",
            )


def quantised(folder: Path, got: str) -> ModelError:
    """Return the error for weights that are no plain numbers."""
    return ModelError(
        f"the weights of {folder} are quantised and cannot be scaled column by column",
        expected="weights in bf16, fp16 or fp32: quantised ones share one scale in a block, which a gate would split",
        got=got,
        fix="gate the unquantised model and quantise that, or use --to adapter where `truthheads inspect` lists it",
    )


def _quantisation(config: object) -> Mapping[str, object] | None:
    """Find the settings of quantised weights in a configuration, or in one nested in it."""
    if not isinstance(config, dict):
        return None
    for key in ("quantization_config", "compression_config"):
        if isinstance(config.get(key), dict):
            return dict(config[key])
    return next((found for value in config.values() if (found := _quantisation(value)) is not None), None)


FLOATS = ("F16", "BF16", "F32", "F64")

CHUNK = 4 << 20

QUANTISED = (".qweight", ".qzeros", ".scales", ".SCB", ".absmax", ".quant_map", ".weight_scale", ".weight_scale_inv")

Advance = Callable[[int, int], None]


class Scaled(NamedTuple):
    """One tensor that is multiplied.

    Attributes:
        entry: Where it lies.
        factors: One for each place along ``axis``.
        axis: 0 or 1.
    """

    entry: Entry
    factors: Tensor
    axis: int


def plan(shards: Shards, layout: HeadLayout, gate: Gate) -> dict[str, Scaled]:
    """Return which tensors a gate changes, by name, and how.

    Files and modules call the decoder by different names, so tensors are looked up by what stands below the list of
    layers. A layer whose factors are all 1 is not changed.

    Raises:
        ArchitectureError: The decoder's tensors were not found, or not once each.
        ModelError: One of them is no plain float matrix of the shape that the configuration gives.
    """
    moved = moved_layers(gate, layout)
    if not moved:
        return {}
    inside = {f".{head.path.partition(f'.{head.index}.')[2]}." for head in moved}  # .self_attn.o_proj.
    packed = [name for name in shards.entries if name.endswith(QUANTISED) and any(path in name for path in inside)]
    if packed:
        raise quantised(shards.folder, f"the tensor {packed[0]}")
    prefix = decoder_prefix(shards, layout)
    result: dict[str, Scaled] = {}
    for head in moved:
        name = _stored_name(shards, prefix, head)
        entry = shards.entries[name]
        if entry.dtype not in FLOATS:
            raise quantised(shards.folder, f"{entry.dtype} in {name}")
        column = 0 if head.transposed else 1
        if len(entry.shape) != 2 or entry.shape[column] != head.num_heads * head.head_dim:
            raise _misfit(shards, name, f"{head.num_heads} heads of {head.head_dim} along axis {column}")
        width = entry.shape[1 - column]
        factors = spread(gate, head, width)
        result[name] = Scaled(entry, factors, column if gate.site == "z" else 1 - column)
        bias = f"{name.removesuffix('weight')}bias"
        if gate.site == "output" and bias in shards.entries:
            entry = shards.entries[bias]
            if entry.dtype not in FLOATS or entry.shape != (width,):
                raise _misfit(shards, bias, f"{width} floats")
            result[bias] = Scaled(entry, factors, 0)
    return result


def write_checkpoint(
    folder: Path, shards: Shards, scaled: dict[str, Scaled], note: ExportNote, *, progress: Advance | None = None
) -> None:
    """Write every file of a checkpoint anew, the scaled tensors multiplied, our note in the header of each shard.

    Bytes that do not change are copied a few megabytes at a time; a scaled tensor is read, multiplied in fp32, rounded
    back and written by blocks of rows. No tensor is ever whole in memory.

    Args:
        folder: Where to.
        shards: The source.
        scaled: From :func:`plan`.
        note: What was done; a JSON object.
        progress: Called with the bytes done and the total.

    Raises:
        ModelError: A shard has become shorter, or a product is too large for the type.
        OSError: The disk is full.
    """
    files = sorted({entry.file for entry in shards.entries.values()})
    total, done = sum(file.stat().st_size for file in files), 0
    for file in _beside(shards.folder, {file.name for file in files}):
        target = folder / file.relative_to(shards.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for file in files:
        own = {name: one for name, one in scaled.items() if one.entry.file == file}
        for count in _write_shard(shards, file, folder / file.name, own, note):
            done += count
            if progress is not None:
                progress(min(done, total), total)


def _write_shard(
    shards: Shards, file: Path, target: Path, scaled: dict[str, Scaled], note: ExportNote
) -> Iterator[int]:
    header = read_header(file)
    buffer = bytearray(CHUNK)
    with file.open("rb", buffering=0) as source, target.open("wb") as sink:
        sink.write(header.noted(note))
        place = header.begin
        for name, one in sorted(scaled.items(), key=lambda item: item[1].entry.start):
            yield from _copy(source, sink, place, one.entry.start, buffer, file)
            yield from _write_scaled(shards, name, one, sink)
            place = one.entry.stop
        yield from _copy(source, sink, place, file.stat().st_size, buffer, file)


def _copy(source: Any, sink: BinaryIO, start: int, stop: int, buffer: bytearray, file: Path) -> Iterator[int]:
    view = memoryview(buffer)
    source.seek(start)
    while start < stop:
        count = source.readinto(view[: min(len(buffer), stop - start)])
        if not count:
            raise ModelError(
                f"{file} became shorter while it was read",
                expected=f"{stop} bytes",
                got=str(start),
                fix="let no other program write to the model's folder, and run the same command again",
            )
        sink.write(view[:count])
        start += count
        yield count


def _write_scaled(shards: Shards, name: str, one: Scaled, sink: BinaryIO) -> Iterator[int]:
    rows, kind = one.entry.shape[0], DTYPES[one.entry.dtype]
    step = max(1, CHUNK * rows // max(1, one.entry.stop - one.entry.start))
    for first in range(0, rows, step):
        last = min(rows, first + step)
        block = shards.read(name, rows=(first, last))
        factors = one.factors[first:last] if one.axis == 0 else one.factors
        product = multiplied(block, factors, one.axis).to(kind)
        if not bool(torch.isfinite(product).all()):
            raise ModelError(
                f"{name} of {shards.folder} cannot be scaled",
                expected=f"finite numbers in {one.entry.dtype}",
                got="NaN or infinity in the weights" if not bool(torch.isfinite(block).all()) else "an overflow",
                fix="give whole weights; where they overflow, convert them to bf16 first",
            )
        raw = product.contiguous().view(torch.uint8).numpy()
        sink.write(memoryview(raw))  # type: ignore[arg-type]
        yield raw.nbytes


def multiplied(block: Tensor, factors: Float[Tensor, " count"], axis: int) -> Tensor:
    """Return rows of a matrix, or a vector, times one factor for each place along an axis, in fp32 or fp64."""
    wide = block if block.dtype == torch.float64 else block.float()
    return wide * (factors[:, None] if axis == 0 and block.ndim == 2 else factors)


def _beside(folder: Path, weights: set[str]) -> Iterator[Path]:
    """Yield every file that goes along: all but weights in other formats or of other files, and the old card."""
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder)
        # A link out of the folder could name anything on this machine, and the copy may be published.
        if not file.is_file() or not inside(file, folder) or any(part.startswith(".") for part in place.parts[:-1]):
            continue
        top = len(place.parts) == 1
        left = file.suffix in OTHER_WEIGHTS or file.name.startswith("consolidated")
        left |= file.name.endswith(tuple(f"{suffix}.index.json" for suffix in OTHER_WEIGHTS))
        # The shards are written apart. What else there is of weights at the top is a copy without the gate.
        left |= top and (file.suffix == ".safetensors" or file.name.lower() == CARD.lower())
        left |= top and file.name.endswith("safetensors.index.json") and (file.name != INDEX or weights == {SINGLE})
        if not left:
            yield file


def _stored_name(shards: Shards, prefix: str, head: HeadLayer) -> str:
    full = f".{head.path}.weight"
    found = [
        name for name in shards.entries if name.startswith(prefix) and full.endswith(f".{name.removeprefix(prefix)}")
    ]
    if len(found) != 1 or (NON_DECODER_PATH.search(prefix) and not NON_DECODER_PATH.search(head.path)):
        raise ArchitectureError(
            f"the output projection {head.path} was not found once among the tensors of {shards.folder}",
            expected="one tensor of the text decoder: a gate is put in whole or not at all",
            got=", ".join(found) or "none",
            fix="check that config.json belongs to these weights",
        )
    return found[0]


def _misfit(shards: Shards, name: str, expected: str) -> ModelError:
    return ModelError(
        f"{name} of {shards.folder} does not fit config.json",
        expected=expected,
        got=f"{shards.entries[name].dtype} of shape {list(shards.entries[name].shape)}",
        fix="check that config.json belongs to these weights",
    )
