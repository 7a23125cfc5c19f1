"""The folder of models that were made once and are kept: what lies in it, what may go, and room for more."""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import platformdirs

from truthheads.errors import ArtifactError, ModelError
from truthheads.storage.files import read_json, write_json

log = logging.getLogger(__name__)

FOLDER, LIMIT = "TRUTHHEADS_CACHE", "TRUTHHEADS_CACHE_LIMIT"

DEFAULT_LIMIT = 50.0
"""Gigabytes that the folder takes, at most."""

GIGABYTE = 10**9

KINDS = {"gguf-": "converted GGUF file", "smollm2-": "embedded model"}
"""Beginnings of names in the folder, and what they are. Nothing else is ever removed."""

DETECTORS = "detectors"

NOTE = "truthheads.json"


class CacheEntry(NamedTuple):
    """One thing that is kept.

    Attributes:
        path: The file or folder.
        kind: What it is.
        made_from: The file's name that it was made from; empty where that is not known.
        size: Bytes.
        used: When it was last used, in seconds since 1970.
    """

    path: Path
    kind: str
    made_from: str
    size: int
    used: float

    @property
    def name(self) -> str:
        """By what it is called."""
        return self.path.name


def cache_dir() -> Path:
    """Return the folder for converted and assembled models: ``$TRUTHHEADS_CACHE``, else the user's cache folder."""
    return Path(os.environ.get(FOLDER) or platformdirs.user_cache_dir("truthheads"))


def limit() -> int:
    """Return how many bytes the folder may take: ``$TRUTHHEADS_CACHE_LIMIT`` gigabytes, else 50.

    Raises:
        ModelError: The variable holds no number above 0.
    """
    said = os.environ.get(LIMIT) or str(DEFAULT_LIMIT)
    if not re.fullmatch(r"\d+(\.\d+)?", said.strip()) or float(said) == 0:
        raise ModelError(
            f"{LIMIT} is no size",
            expected="gigabytes, a number above 0",
            got=repr(said),
            fix=f"set it to {DEFAULT_LIMIT:g}, say, or unset it",
        )
    return int(float(said) * GIGABYTE)


def entries() -> list[CacheEntry]:
    """List the entries of the folder, the last used one first."""
    return sorted(_entries(cache_dir()), key=lambda entry: -entry.used)


def _entries(folder: Path) -> Iterator[CacheEntry]:
    detectors = folder / DETECTORS
    found = [
        path for place in (folder, detectors) if place.is_dir() for path in place.iterdir() if not path.is_symlink()
    ]
    for path in found:
        beginning = next((one for one in KINDS if path.name.startswith(one)), None)
        kind = "detector" if path.parent == detectors else KINDS[beginning] if beginning else None
        if kind is None:
            continue
        with suppress(OSError):  # another process may have removed it
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            size = sum(file.stat().st_size for file in files)
            yield CacheEntry(path, kind, _made_from(path), size, path.stat().st_mtime)


def _made_from(path: Path) -> str:
    with suppress(ArtifactError, KeyError, TypeError):
        return str(read_json(path / NOTE)["made_from"])
    return ""


def note_source(folder: Path, made_from: str) -> None:
    """Write down what a folder was made from."""
    write_json(folder / NOTE, {"made_from": made_from})


def mark_used(path: Path) -> None:
    """Note that something is in use now; what was not used for longest goes first."""
    with suppress(OSError):
        os.utime(path)


def remove(chosen: Iterable[CacheEntry]) -> int:
    """Remove entries and return how many bytes that freed.

    Raises:
        ModelError: One cannot be removed.
    """
    freed = 0
    for entry in chosen:
        try:
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ModelError(
                f"{entry.path} cannot be removed",
                expected="a folder that you may write to",
                got=str(error),
                fix="check who owns it",
            ) from error
        freed += entry.size
    return freed


def nearest(folder: Path) -> Path:
    """Find the folder, or the nearest one around it that is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def make_room(need: int, what: str) -> None:
    """Make sure that so many bytes fit below the limit and on the disk; what was unused for longest goes, by name.

    Args:
        need: Bytes to be written.
        what: What they are for, in an error.

    Raises:
        ModelError: They do not fit.
    """
    most, folder = limit(), cache_dir()
    kept = entries()
    while kept and sum(entry.size for entry in kept) + need > most:
        gone = kept.pop()
        remove([gone])
        log.warning(
            "removed from %s, unused for longest, to stay below %s GB: %s %s",
            folder,
            f"{most / GIGABYTE:g}",
            gone.name,
            f"({gone.made_from})" if gone.made_from else "",
        )
    free = shutil.disk_usage(nearest(folder)).free
    if need > most or need > free:
        raise ModelError(
            f"there is no room for {what} in {folder}",
            expected=f"{need / GIGABYTE:.1f} GB",
            got=f"{free / GIGABYTE:.1f} GB free on the disk" if need > free else f"{LIMIT} of {most / GIGABYTE:g} GB",
            fix=f"`truthheads cache clear --all`, or set {FOLDER} to a folder on another disk"
            if need > free
            else f"set {LIMIT} to {need / GIGABYTE + 1:.0f}",
        )


def unused_for(days: float, *, now: float | None = None) -> list[CacheEntry]:
    """List the entries that were not used for so many days."""
    before = (time.time() if now is None else now) - days * 86_400
    return [entry for entry in entries() if entry.used <= before]
