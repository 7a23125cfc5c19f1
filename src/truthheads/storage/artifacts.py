"""Artefact files: safetensors with one JSON metadata key that says how the file was made."""

import contextlib
import json
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from truthheads.errors import ArtifactError
from truthheads.storage.files import dumps, replaced

KEY = "truthheads"

FORMAT_VERSION = 1

KINDS = {
    "float": (torch.float16, torch.float32, torch.float64),
    "int": (torch.int8, torch.int16, torch.int32, torch.int64),
}


class Artifact(NamedTuple):
    """Tensors and metadata of one artefact file."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


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


def check_tensors(
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


PACKAGES = ("truthheads", "torch", "transformers", "safetensors", "numpy", "scipy")


class Provenance(TypedDict):
    """How an artefact was made: versions of the packages, and the command; None outside the program."""

    packages: dict[str, str]
    command: str | None


def without_folder(text: str) -> str:
    """Return the last part of a path that starts at a root, at home or at a dot; other text, hub ids too, unchanged.

    Artefacts are given away: where a file lay on somebody's disk means nothing to a reader, and may say what is not
    meant to be said.
    """
    rooted = text.startswith(("/", "~", "./", "../", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", text)
    return [part for part in re.split(r"[\\/]", text) if part][-1] if rooted and text.strip("/\\") else text


def named_alone(value: Any) -> Any:
    """Return JSON with every path in it without its folder."""
    if isinstance(value, dict):
        return {key: named_alone(one) for key, one in value.items()}
    if isinstance(value, list):
        return [named_alone(one) for one in value]
    return without_folder(value) if isinstance(value, str) else value


def provenance() -> Provenance:
    """Record how an artefact was made: package versions and the command line.

    The command is None outside the ``truthheads`` program. ``--out`` with its value and ``--force`` are left out, since
    where a file lies, and what lay there before, is no part of what it is: the same command with two names gives the
    same bytes. Of other paths the folders are left out (:func:`without_folder`).
    """
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"packages": versions, "command": _command(sys.argv)}


def _command(argv: list[str]) -> str | None:
    program = Path(argv[0]).name if argv else ""
    if program != "truthheads" and not argv[0].endswith(str(Path("truthheads") / "__main__.py")):
        return None
    words, skip = ["truthheads"], False
    for word in argv[1:]:
        if skip or word.startswith("--out=") or word == "--force":
            skip = False
        elif word == "--out":
            skip = True
        else:
            option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
            words.append(option + equals + ",".join(map(without_folder, value.split(","))))
    return " ".join(words)
