"""Folders that appear under their name whole, or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from truthheads.artifacts import check_around, unwritable
from truthheads.aside import aside, put_in_place
from truthheads.errors import ArtifactError

OURS = ("config.json", "adapter_config.json")
"""A folder with one of these is a model or an adapter: nothing else is ever replaced, whatever ``--force`` says."""


def check_folder(out: Path, *, force: bool, source: Path | None = None) -> None:
    """Raise where a folder cannot be written under this name, before any work is done for it.

    Args:
        out: The final name.
        force: Allow a model or adapter folder of that name, which is to be replaced.
        source: Folder that is read from: it may not be ``out``, nor lie in it, nor hold it.

    Raises:
        ArtifactError: Something of that name is there, or the folder around it cannot be written to.
    """
    if source is not None:
        ours, theirs = out.resolve(), source.resolve()
        if ours == theirs or ours in theirs.parents or theirs in ours.parents:
            raise ArtifactError(
                f"{out} and the model it is made from overlap",
                expected="a folder beside the model's, not the same, around or inside",
                got=f"the model in {source}",
                fix="choose another --out",
            )
    if os.path.lexists(out) and not force:
        raise ArtifactError(
            f"{out} exists already",
            expected="a name that is not taken: old and new files are never mixed",
            got="a folder" if out.is_dir() else "a file",
            fix="choose another --out, or pass --force to replace it as a whole",
        )
    if os.path.lexists(out) and not _replaceable(out):
        raise ArtifactError(
            f"{out} is not replaced",
            expected=f"an empty folder, or one with {' or '.join(OURS)}",
            got="a folder of another kind" if out.is_dir() else "a file",
            fix="choose another --out, or move it away yourself",
        )
    check_around(out)


@contextlib.contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside ``out``; rename it to ``out`` only if the block succeeds.

    A folder that is there keeps its name until the new one is whole and on the disk; the two then change places, in
    one step where the file system can do that.

    Args:
        out: The final name. The folder around it is made where it is missing.

    Raises:
        ArtifactError: The folder cannot be written to, or the disk is full.
    """
    try:
        with aside(out) as temporary:
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            put_in_place(temporary, out)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from error


def _replaceable(out: Path) -> bool:
    if not out.is_dir():
        return False
    return not any(out.iterdir()) or any((out / name).is_file() for name in OURS)
