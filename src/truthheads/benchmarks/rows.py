"""Rows of benchmark files, which are JSON lines under any of several names, or one JSON value, gzipped or not."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truthheads.data.images import image_path
from truthheads.data.lines import Row
from truthheads.data.passages import join_passages
from truthheads.data.readers import IMAGE_PATH_RULE
from truthheads.data.tables import read_rows
from truthheads.errors import DataError, RowError
from truthheads.storage.files import SURROGATE

LEAVE_OUT = "correct the row, or pass --skip-bad-rows to leave it out"

LARGEST = 2**30
"""Bytes of a file that is read whole; COCO's largest has 470 MB."""

UNPACKED, UNPACKED_FREELY = 100, 2**26
"""A gzip file may unpack to so many times its size, or to so many bytes: JSON shrinks to a tenth, zeros to a 1000th."""


class LeaveOut:
    """Bad rows are left out and counted, or raise.

    Attributes:
        skip: Whether they are left out.
        count: How many were.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip, self.count = skip, 0

    @contextmanager
    def bad_rows(self) -> Iterator[None]:
        """Count a RowError that is raised in the block, where bad rows are to be left out."""
        try:
            yield
        except RowError:
            if not self.skip:
                raise
            self.count += 1


def benchmark_rows(path: Path, *, encoding: str | None = None, leave_out: LeaveOut | None = None) -> Iterator[Row]:
    """Yield the rows of a file, read as the files of every command are: what it holds decides, not its name.

    Args:
        path: The file.
        encoding: Encoding of text files; None: UTF-8.
        leave_out: What becomes of a row that cannot be parsed; None: it is an error.

    Raises:
        DataError: The file is missing or cannot be read; a bad row.
    """
    leave_out = leave_out or LeaveOut()
    for row in read_rows(path, encoding=encoding):
        if row.fields is not None:
            yield row
            continue
        with leave_out.bad_rows():
            raise RowError(f"{path}:{row.place}: the row", expected="one row", got=row.fault, fix=LEAVE_OUT)


def read_value(path: Path) -> Any:
    """Return the JSON value of a file, gzipped where its name ends in ``.gz``.

    Raises:
        DataError: The file is missing, damaged or no JSON.
    """
    try:
        return json.loads(_bytes(path))
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read",
            expected="a whole JSON file, gzipped if it ends in .gz",
            got="no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}",
            fix="check the path, or download it again",
        ) from error


def _bytes(path: Path) -> bytes:
    """Read a whole file, unpacked where its name ends in ``.gz``.

    Raises:
        OSError: It is missing, damaged, no regular file, or unpacks to too much.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device read without end
        raise OSError("no regular file")
    packed = path.suffix == ".gz"
    most = min(LARGEST, max(UNPACKED_FREELY, UNPACKED * path.stat().st_size)) if packed else LARGEST
    with gzip.open(path) if packed else path.open("rb") as opened:
        whole: bytes = opened.read(most + 1)
    if len(whole) > most:
        raise OSError(f"more than {most // 2**20} MiB of JSON")
    return whole


def text_of(path: Path, row: Row, *names: str) -> str:
    """Return the text (or whole number) under the first of several names that a row has.

    Raises:
        DataError: It has none of them, or what it has is no text.
    """
    fields = row.fields or {}
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or SURROGATE.search(value):
        raise RowError(
            f"{path}:{row.place}: field {names[0]!r}",
            expected=f"text in valid Unicode under {' or '.join(names)}",
            got=f"columns {', '.join(row.columns)}" if value is None else repr(value)[:80],
            fix=LEAVE_OUT,
        )
    return value


def context_of(path: Path, row: Row, name: str) -> str:
    """Return the text of a field that may come as a list of passages, which are joined as in question files.

    Raises:
        DataError: It is missing, or neither text nor passages.
    """
    value = (row.fields or {}).get(name)
    try:
        joined = join_passages(value).text if isinstance(value, list | dict) else None
    except ValueError as error:
        raise RowError(
            f"{path}:{row.place}: field {name!r}", expected=str(error), got=repr(value)[:80], fix=LEAVE_OUT
        ) from error
    return text_of(path, Row(row.place, {**(row.fields or {}), **({} if joined is None else {name: joined})}), name)


def digest(*parts: str) -> str:
    """Return a hexadecimal digest of texts in their order."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:24]


def placed_image(name: str, path: Path, images: Path | None) -> str:
    """Return where an image lies that a file names.

    Args:
        name: As in the file.
        path: The file.
        images: Folder that image paths start from; None: the file's own.

    Raises:
        DataError: It lies where no file may send us.
    """
    try:
        return image_path(name, beside=path.parent, images=images)
    except ValueError as error:
        raise DataError(
            f"{path}: the image {name!r} lies elsewhere",
            expected=IMAGE_PATH_RULE,
            got=str(error),
            fix="give the folder of the images as --images, or correct the row",
        ) from error
