"""A gate or an adapter inside the weights: some tensors are changed, every other byte stays as it was."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from truthheads.errors import ArchitectureError, ModelError
from truthheads.exporting.adapter import AdapterNote, GateNote, moved_layers, spread
from truthheads.exporting.card import CARD
from truthheads.models.architectures import HeadLayer, HeadLayout
from truthheads.models.head_weights import NON_DECODER_PATH, below, decoder_prefix
from truthheads.models.hooks import LowRank
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
    """Raise ModelError where a folder's weights cannot take a gate or an adapter.

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
    """Raise ModelError where a checkpoint contains a gate or an adapter of this package already."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            note = json.loads(read_header(file).meta.get(KEY, "null"))
        except (ValueError, OSError, RecursionError, TypeError):
            continue  # damaged: the reader of the tensors says it better
        for what in ("gate", "adapter"):
            if isinstance(note, dict) and what in note:
                raise ModelError(
                    f"{folder} has {'a gate' if what == 'gate' else 'an adapter'} inside already",
                    expected="the model without a gate or an adapter",
                    got=f"{what} {note[what]} in {file.name}",
                    fix="export from the base model; to have two gates, multiply them into one",
                )


def quantised(folder: Path, got: str) -> ModelError:
    """Return the error for weights that are no plain numbers."""
    return ModelError(
        f"the weights of {folder} are quantised and cannot be changed one by one",
        expected="weights in bf16, fp16 or fp32: quantised ones share one scale in a block",
        got=got,
        fix="use --to adapter, which is served on top of them (a gate where `truthheads inspect` lists it); or export "
        "a checkpoint of the unquantised model, and quantise that",
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
    factors: Float[Tensor, " count"]
    axis: int

    def of(self, block: Tensor, first: int) -> Tensor:
        """Return some rows, beginning with row ``first``, times their factors; in fp32 or fp64."""
        factors = self.factors[first : first + len(block)] if self.axis == 0 else self.factors
        return _wide(block) * (factors[:, None] if self.axis == 0 and block.ndim == 2 else factors)


class Added(NamedTuple):
    """One matrix to which a product of two narrow ones is added.

    Attributes:
        entry: Where it lies.
        update: What is added.
        transposed: True where the matrix is stored as (in, out).
    """

    entry: Entry
    update: LowRank
    transposed: bool

    def of(self, block: Tensor, first: int) -> Tensor:
        """Return some rows, beginning with row ``first``, with their change; in fp32 or fp64."""
        left, right = (self.update.a.T, self.update.b.T) if self.transposed else (self.update.b, self.update.a)
        wide = _wide(block)
        change = (left[first : first + len(block)] @ right).to(wide.dtype)
        return torch.where(change == 0, wide, wide + change)  # 0 added to -0 would be 0


Change = Scaled | Added
"""What happens to one tensor of a checkpoint."""


def _wide(block: Tensor) -> Tensor:
    return block if block.dtype == torch.float64 else block.float()


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


def plan_updates(
    shards: Shards, network: PreTrainedModel, layout: HeadLayout, updates: Mapping[str, LowRank]
) -> dict[str, Added]:
    """Return which tensors an adapter changes, by name, and how.

    Args:
        shards: The checkpoint.
        network: Its network, which may be on the meta device.
        layout: The heads of the network.
        updates: By the paths of the modules in the network.

    Raises:
        ArchitectureError: A module has no tensor of its own, or it was not found.
        ModelError: The tensor is no plain float matrix of the shape that the configuration gives.
    """
    result: dict[str, Added] = {}
    prefix = decoder_prefix(shards, layout)
    embedding = network.get_input_embeddings()._parameters.get("weight")
    for path, update in updates.items():
        packed = [name for name in shards.entries if name.endswith(QUANTISED) and f"{path}." in name]
        if packed:
            raise quantised(shards.folder, f"the tensor {packed[0]}")
        module = network.get_submodule(path)
        found = [] if module._parameters.get("weight") is embedding else _names(shards, prefix, layout.layers[0], path)
        if len(found) != 1:
            raise ArchitectureError(
                f"{path} has no weight of its own among the tensors of {shards.folder}",
                expected="one tensor: an adapter is put in whole or not at all",
                got=", ".join(found[:3]) or "none, or one that is the embedding's too",
                fix="use --to adapter, or train the adapter without this module",
            )
        entry, wanted = shards.entries[found[0]], (update.b.shape[0], update.a.shape[1])
        if entry.dtype not in FLOATS:
            raise quantised(shards.folder, f"{entry.dtype} in {found[0]}")
        transposed = isinstance(module, Conv1D)
        if entry.shape != (wanted[::-1] if transposed else wanted):
            raise _misfit(shards, found[0], f"{wanted[0]} outputs and {wanted[1]} inputs")
        result[found[0]] = Added(entry, update, transposed)
    return result


def _names(shards: Shards, prefix: str, head: HeadLayer, path: str) -> list[str]:
    """Return which tensors may be a module's weight: in a checkpoint it may lie deeper than in the network, or less."""
    above = head.path.removesuffix(below(head))
    for name in (f"{path}.weight", f"{prefix}{path.removeprefix(above)}.weight"):
        if name in shards.entries and (name.startswith(path) or path.startswith(above)):
            return [name]
    layers = f"{prefix}{below(head).partition('.')[0]}."
    others = [name for name in shards.entries if not name.startswith(layers)]
    parts = path.split(".")
    ends = (f".{'.'.join(parts[at:])}.weight" for at in range(1, len(parts) - 1))
    return next((same for end in ends if (same := [one for one in others if f".{one}".endswith(end)])), [])


def write_checkpoint(
    folder: Path,
    shards: Shards,
    changes: Mapping[str, Change],
    note: GateNote | AdapterNote,
    *,
    progress: Advance | None = None,
) -> None:
    """Write every file of a checkpoint anew, some tensors changed, our note in the header of each shard.

    Bytes that do not change are copied a few megabytes at a time; a tensor that does is read, changed in fp32, rounded
    back and written by blocks of rows. No tensor is ever whole in memory.

    Args:
        folder: Where to.
        shards: The source.
        changes: From :func:`plan` or :func:`plan_updates`.
        note: What was done; a JSON object.
        progress: Called with the bytes done and the total.

    Raises:
        ModelError: A shard has become shorter, or a number is too large for the type.
        OSError: The disk is full.
    """
    files = sorted({entry.file for entry in shards.entries.values()})
    total, done = sum(file.stat().st_size for file in files), 0
    for file in _beside(shards.folder, {file.name for file in files}):
        target = folder / file.relative_to(shards.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for file in files:
        own = {name: one for name, one in changes.items() if one.entry.file == file}
        for count in _write_shard(shards, file, folder / file.name, own, note):
            done += count
            if progress is not None:
                progress(min(done, total), total)


def _write_shard(
    shards: Shards, file: Path, target: Path, changes: Mapping[str, Change], note: GateNote | AdapterNote
) -> Iterator[int]:
    header = read_header(file)
    buffer = bytearray(CHUNK)
    with file.open("rb", buffering=0) as source, target.open("wb") as sink:
        sink.write(header.noted(note))
        place = header.begin
        for name, one in sorted(changes.items(), key=lambda item: item[1].entry.start):
            yield from _copy(source, sink, place, one.entry.start, buffer, file)
            yield from _write_changed(shards, name, one, sink)
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


def _write_changed(shards: Shards, name: str, one: Change, sink: BinaryIO) -> Iterator[int]:
    rows, kind = one.entry.shape[0], DTYPES[one.entry.dtype]
    step = max(1, CHUNK * rows // max(1, one.entry.stop - one.entry.start))
    for first in range(0, rows, step):
        last = min(rows, first + step)
        block = shards.read(name, rows=(first, last))
        changed = one.of(block, first).to(kind)
        if not bool(torch.isfinite(changed).all()):
            raise ModelError(
                f"{name} of {shards.folder} cannot be changed",
                expected=f"finite numbers in {one.entry.dtype}",
                got="NaN or infinity in the weights" if not bool(torch.isfinite(block).all()) else "an overflow",
                fix="give whole weights; where they overflow, convert them to bf16 first",
            )
        raw = changed.contiguous().view(torch.uint8).numpy()
        sink.write(memoryview(raw))  # type: ignore[arg-type]
        yield raw.nbytes


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
