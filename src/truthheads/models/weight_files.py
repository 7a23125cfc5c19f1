"""The tensors of a safetensors checkpoint by name, read one at a time or by blocks of rows, without a model."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from truthheads.errors import ModelError
from truthheads.storage.artifacts import KEY
from truthheads.storage.files import dumps, read_into

SINGLE = "model.safetensors"

INDEX = "model.safetensors.index.json"

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""The format's names of types that can be read here; a checkpoint may hold others as long as nobody reads them."""

PLAIN = re.compile(r"[^/\\\x00-\x1f\ud800-\udfff]{1,200}")
"""A file's name on any system."""


class Entry(NamedTuple):
    """Where one tensor lies.

    Attributes:
        file: The shard.
        dtype: The format's name of its type.
        shape: Its shape.
        start: First byte, counted from the start of the file.
        stop: Byte behind the last.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Shards:
    """The tensors of a checkpoint folder. Only the headers have been read.

    Bytes are read with plain reads, never mapped: what a mapped file has shown counts as the process's own memory
    until the system wants it back, so a walk through a mapped checkpoint would look as large as the checkpoint.

    Attributes:
        folder: The checkpoint.
        entries: Where each tensor lies, by name.
    """

    folder: Path
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, folder: str | Path) -> "Shards":
        """Read the headers of a checkpoint: ``model.safetensors``, else the shards that its index names.

        Raises:
            ModelError: There are no safetensors weights; the index is damaged or names a file outside the folder; a
                shard is missing or cut short, or lacks a tensor that the index says it has.
        """
        folder = Path(folder)
        for file in (SINGLE, INDEX):
            _check_inside(folder, file)
        if (folder / SINGLE).is_file():
            return cls(folder, _header(folder / SINGLE))
        if not (folder / INDEX).is_file():
            raise _no_weights(folder)
        names = _weight_map(folder)
        files = sorted(set(names.values()))
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of its {len(files)} shards",
                expected=f"every file that {INDEX} names",
                got=f"no {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
                fix="download or copy the missing files into the folder",
            )
        for file in files:
            _check_inside(folder, file)
        found = {file: _header(folder / file) for file in files}
        for name, file in names.items():
            if name not in found[file]:
                raise ModelError(
                    f"{folder / file} lacks the tensor {name}",
                    expected=f"the tensors that {INDEX} says are in this shard",
                    got=f"{len(found[file])} others",
                    fix="download the shard and the index again: they do not belong together",
                )
        return cls(folder, {name: found[file][name] for name, file in names.items()})

    def read(self, name: str, *, rows: tuple[int, int] | None = None, buffer: Tensor | None = None) -> Tensor:
        """Return a tensor, or some of its rows, in its own type.

        Args:
            name: As in the checkpoint.
            rows: First row and the one behind the last, along the first axis; all by default.
            buffer: One-dimensional bytes that may be overwritten; the result is a view of it where it is large enough.

        Raises:
            ModelError: There is no such tensor, its type cannot be read, or the file has become shorter.
        """
        entry = self.entries.get(name)
        if entry is None or entry.dtype not in DTYPES:
            raise ModelError(
                f"the tensor {name} of {self.folder} cannot be read",
                expected=f"a tensor in one of the types {', '.join(DTYPES)}",
                got="no such tensor" if entry is None else f"type {entry.dtype}",
                fix="check the name" if entry is None else "give the checkpoint in bf16, fp16 or fp32",
            )
        shape, start, stop = entry.shape, entry.start, entry.stop
        if rows is not None:
            first, last = rows
            if not shape or not 0 <= first <= last <= shape[0]:
                raise IndexError(f"rows {rows} of {name}, which has shape {shape}")
            size = (stop - start) // shape[0] if shape[0] else 0
            shape, start, stop = (last - first, *shape[1:]), start + first * size, start + last * size
        wanted = stop - start
        fits = buffer is not None and buffer.numel() >= wanted
        place = buffer[:wanted] if buffer is not None and fits else torch.empty(wanted, dtype=torch.uint8)
        _fill(entry.file, start, place)
        return place.view(DTYPES[entry.dtype]).reshape(shape)


def inside(file: Path, folder: Path) -> bool:
    """Return whether a file lies in a folder after links are followed; in a cache of the hub, in its repository."""
    own = folder.resolve()
    # The hub's cache keeps snapshots of links to files beside them: models--owner--name/{snapshots/REVISION,blobs}.
    root = own.parents[1] if own.parent.name == "snapshots" and own.parents[1].name.startswith("models--") else own
    return file.resolve().is_relative_to(root)


def _check_inside(folder: Path, file: str) -> None:
    if not inside(folder / file, folder):
        raise ModelError(
            f"{folder / file} is a link that leaves its folder",
            expected="files of the model, or links among them",
            got=f"a link to {(folder / file).resolve()}",
            fix="give the folder that the files lie in, or copy them into one",
        )


def _fill(file: Path, start: int, place: Tensor) -> None:
    view = memoryview(cast(Any, place.numpy()))
    try:
        got = read_into(file, start, [view])
    except OSError as error:
        raise _damaged(file, str(error)) from error
    if got < len(view):
        raise _damaged(file, f"{got} of {len(view)} bytes of a tensor")


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    try:
        names: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
            raise TypeError("weight_map is no object of file names")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read",
            expected='{"weight_map": {tensor: file}}',
            got=f"{type(error).__name__}: {error}",
            fix="download it again",
        ) from error
    for file in names.values():
        # An index comes with the checkpoint: it must not make us read what lies elsewhere on the machine.
        if Path(file).name != file or not PLAIN.fullmatch(file) or file in (".", ".."):
            raise ModelError(
                f"{path} names a file outside its folder",
                expected="plain names of files that lie beside the index",
                got=repr(file)[:120],
                fix="do not use this checkpoint, or correct its index",
            )
    return dict(names)


def _header(file: Path) -> dict[str, Entry]:
    try:
        # The library decides whether a file is whole and its offsets are sound; it keeps the offsets to itself.
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length), object_pairs_hook=_once)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    entries = {}
    for name, item in header.items():
        if name != "__metadata__":
            first, last = item["data_offsets"]
            shape = tuple(item["shape"])
            known = DTYPES.get(item["dtype"])
            if known is not None and last - first != math.prod(shape) * known.itemsize:
                raise _damaged(file, f"{last - first} bytes for {name} of shape {shape}")
            entries[name] = Entry(file, item["dtype"], shape, 8 + length + first, 8 + length + last)
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; two values under one name would be read differently by different programs."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


def _damaged(file: Path, got: str) -> ModelError:
    return ModelError(
        f"{file} is damaged or cut short",
        expected="a whole safetensors file",
        got=got,
        fix="download or copy it again",
    )


def _no_weights(folder: Path) -> ModelError:
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in there if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    ggufs = [name for name in there if name.endswith(".gguf")]
    fix = "give a folder that save_pretrained wrote"
    if pickled:
        fix = (
            "load it once with transformers and write it again with save_pretrained, which gives safetensors: "
            "the weights are pickles, which can run code"
        )
    elif ggufs:
        fix = f"give the file itself: {folder / ggufs[0]}"
    elif any(name.startswith("adapter_model") for name in there):
        fix = "merge the adapter into its base model first (merge_and_unload, then save_pretrained)"
    return ModelError(
        f"{folder} has no safetensors weights",
        expected=f"{SINGLE}, or {INDEX} and its shards",
        got=", ".join((pickled or ggufs or there)[:8]) or "no files",
        fix=fix,
    )


LARGEST = 100_000_000
"""Bytes; the format's own limit."""


class Header(NamedTuple):
    """The header of one file.

    Attributes:
        begin: Where the tensors' bytes begin.
        items: Each tensor's type, shape and offsets, and ``__metadata__``, in the file's order.
    """

    begin: int
    items: dict[str, Any]

    @property
    def meta(self) -> dict[str, str]:
        """The file's metadata."""
        return self.items.get("__metadata__") or {}

    def noted(self, note: Mapping[str, object]) -> bytes:
        """Return the first bytes of a file with these tensors and our note beside the metadata that was there.

        Written by hand, since the library writes several metadata keys in another order each time.
        """
        # Where there is metadata, transformers insists on the format.
        meta = {"format": "pt", **self.meta, KEY: dumps(note)}
        items = {name: item for name, item in self.items.items() if name != "__metadata__"}
        text = json.dumps({"__metadata__": meta, **items}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes, as the library writes them
        return len(text).to_bytes(8, "little") + text


def read_header(file: Path) -> Header:
    """Read a file's header.

    Raises:
        ValueError: It is damaged.
        OSError: The file cannot be read.
    """
    if not file.is_file():  # a pipe would be waited for
        raise ValueError("no regular file")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(file.stat().st_size, LARGEST):
            raise ValueError("the header is longer than the file, or than any is")
        items = json.loads(opened.read(length))
    if not isinstance(items, dict):
        raise ValueError("the header is no object")
    meta = items.get("__metadata__") or {}
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise ValueError("metadata that is no text")
    return Header(8 + length, items)
