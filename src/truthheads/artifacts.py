"""Artefact files: safetensors with one JSON metadata key, written aside and renamed."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from truthheads.aside import aside
from truthheads.errors import ArtifactError

KEY = "truthheads"
FORMAT_VERSION = 1
SURROGATE = re.compile("[\ud800-\udfff]")


KINDS = {
    "float": (torch.float16, torch.float32, torch.float64),
    "int": (torch.int8, torch.int16, torch.int32, torch.int64),
}


class Artifact(NamedTuple):
    """Tensors and metadata of one artefact file."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` only if the block succeeds.

    What a killed process has left of an earlier attempt is removed.

    Args:
        path: The final name. Its folder is made where it is missing.

    Raises:
        ArtifactError: The folder cannot be written to, or the disk is full.
    """
    try:
        with aside(path) as temporary:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error


def check_target(path: Path) -> None:
    """Raise ArtifactError where a file cannot be written under this name, before any work is done for it."""
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder", expected="the name of a file", got="a folder", fix="choose another --out"
        )
    check_around(path)


def check_around(path: Path) -> None:
    """Raise ArtifactError where nothing can be written beside a name, whatever has that name."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise unwritable(path, PermissionError(f"{folder} cannot be written to"))


def check_space(path: Path, size: int, *, what: str | None = None, note: str = "") -> None:
    """Raise ArtifactError where the disk has less than ``size`` bytes left: sooner than long work would find out.

    Args:
        path: What is to be written; it need not be there.
        size: In bytes.
        what: What is said not to fit; None: the path.
        note: Behind the size.
    """
    around = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(around).free
    if free < size:
        raise ArtifactError(
            f"{what or path} could not be written",
            expected=f"{size / 1e9:,.2f} GB of free space{note}",
            got=f"{free / 1e9:,.2f} GB",
            fix="free some space, or choose an --out on another disk",
        )


def unwritable(path: Path, error: Exception) -> ArtifactError:
    """Return the error for a file that could not be written, with the system's own reason."""
    code = getattr(error, "errno", None)
    full = code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return ArtifactError(
        f"{path} could not be written",
        expected="a folder that can be written to, with enough free space",
        got=("the disk is full" if full else f"{type(error).__name__}: {error}"),
        fix="free some space and run the same command again" if full else "choose another --out, or mend the folder",
    )


def save_artifact(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and metadata to one safetensors file, atomically and with the same bytes every time.

    Args:
        path: Final file name.
        tensors: Names to tensors; made contiguous and moved to the CPU.
        meta: JSON-serialisable; must hold ``kind``. Non-finite numbers become null.

    Raises:
        ArtifactError: The file could not be written.
    """
    header = {KEY: dumps({"format_version": FORMAT_VERSION, **meta})}
    # Cloned, since safetensors refuses tensors that share memory, as arrays of NaN for "not measured" may.
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replaced(path) as temporary:
        save_file(whole, temporary, header)


def load_artifact(path: Path, *, kind: str) -> Artifact:
    """Read an artefact written by :func:`save_artifact`.

    Args:
        path: The file.
        kind: The kind of artefact expected (``scores``, ``gate`` …).

    Raises:
        ArtifactError: The file is missing, damaged, not ours, of another kind, or of an unknown version.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is not there", expected=f"a {kind} file", got="no such file", fix="check the path")
    try:
        with safe_open(path, framework="pt") as opened:
            header = (opened.metadata() or {}).get(KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (not a mapping)
        meta = json.loads(header) if header is not None else None
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} cannot be read",
            expected=f"a whole safetensors file with the metadata key {KEY!r}",
            got=f"{type(error).__name__}: {error}",
            fix="write it again with the command that made it",
        ) from error
    if not isinstance(meta, dict):
        raise ArtifactError(
            f"{path} is not an artefact of truthheads",
            expected=f"the metadata key {KEY!r} with a JSON object",
            got="no such key" if meta is None else f"a JSON {type(meta).__name__}",
            fix=f"give a {kind} file written by truthheads",
        )
    if meta.get("kind") != kind or meta.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} is of another kind or version",
            expected=f"kind {kind!r}, format version {FORMAT_VERSION}",
            got=f"kind {meta.get('kind')!r}, format version {meta.get('format_version')!r}",
            fix=f"give a {kind} file, or write it again with this version",
        )
    return Artifact(tensors, meta)


def check_whole(
    path: Path, artifact: Artifact, axes: Mapping[str, str], told: Mapping[str, type], *, command: str
) -> None:
    """Raise ArtifactError where an artefact lacks a tensor, or its tensors or metadata are not of the right form.

    Args:
        path: Where it was read.
        artifact: What was read.
        axes: For each tensor its type (``float`` or ``int``) and axes by name; axes of one name are equally long, and
            ``num_layers`` and ``num_heads`` at least 1.
        told: For some keys of the metadata their type, where the key is there and not null.
        command: What writes such files.
    """
    tensors, meta = artifact
    known: dict[str, int] = {}
    wrong = [f"without {name}" for name in sorted(set(axes) - set(tensors))]
    for name, (kind, *named) in ((name, text.split()) for name, text in axes.items() if name in tensors):
        tensor = tensors[name]
        fits = len(named) == tensor.ndim and all(
            known.setdefault(axis, size) == size and (size > 0 or not axis.startswith("num_"))
            for axis, size in zip(named, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype not in KINDS[kind]:
            wrong.append(f"{name} of shape {list(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}")
    for key, wanted in told.items():
        if meta.get(key) is not None and not isinstance(meta[key], wanted):
            wrong.append(f"{key} is a JSON {type(meta[key]).__name__}")
    if wrong:
        raise ArtifactError(
            f"{path} is not whole",
            expected="; ".join(f"{name} ({text})" for name, text in axes.items()),
            got=", ".join(wrong[:4]),
            fix=f"write it again with `truthheads {command}`",
        )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: sorted keys, two spaces, NaN as null."""
    with replaced(path) as temporary:
        temporary.write_text(dumps(value, indent=2) + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; see :func:`as_text`."""
    with replaced(path) as temporary:
        temporary.write_text(as_text(text), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return a JSON result; null comes back as None.

    Raises:
        ArtifactError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} cannot be read",
            expected="a JSON result of truthheads",
            got=f"{type(error).__name__}: {error}",
            fix="check the path, or write the file again",
        ) from error


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return JSON with sorted keys; a number that is not finite ("not measured") becomes null.

    Names of files that are not in the encoding of the system's locale are read as UTF-8, as in :func:`as_text`; half a
    character, which JSON may hold and UTF-8 may not, stays escaped.
    """
    text = json.dumps(_finite(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def as_text(text: str) -> str:
    """Return what can be written as UTF-8: bytes that Python has smuggled into a string are read as UTF-8.

    Under an ASCII locale, that is every name of a file with other letters; what is no UTF-8 becomes a question mark
    in a box (U+FFFD).
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except UnicodeEncodeError:  # half a pair, which no file name holds
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_into(path: Path, start: int, views: Sequence[memoryview]) -> int:
    """Fill buffers, one after the other, with a file's bytes from ``start`` on; return how many there were.

    Raises:
        OSError: The file cannot be read.
    """
    total = 0
    with path.open("rb", buffering=0) as opened:
        opened.seek(start)
        for view in views:
            got = 0
            while got < len(view) and (count := opened.readinto(view[got:])):
                got += count
            total += got
    return total


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
