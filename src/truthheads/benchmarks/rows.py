"""Rows of benchmark files, which are JSON lines under any of several names, or one JSON value, gzipped or not."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truthheads.errors import DataError
from truthheads.tables import Row, read_rows


def benchmark_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; a ``.json`` file may hold an array or, as POPE's do, one object a line.

    Raises:
        DataError: The file is missing or cannot be read; a bad row.
    """
    lines = path.suffix == ".json" and path.is_file() and _is_lines(path)
    for row in _lines(path) if lines else read_rows(path):
        if row.fields is None:
            raise DataError(f"{path}:{row.place}: the row", expected="one row", got=row.fault, fix="mend the row")
        yield row


def _is_lines(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"{"


def _lines(path: Path) -> Iterator[Row]:
    whole = path.read_bytes()
    try:
        yield from _rows_of_value(json.loads(whole))
        return
    except ValueError:
        pass
    for number, line in enumerate(whole.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            yield Row(f"line {number}", None, f"not JSON: {error}")
        else:
            yield Row(f"line {number}", value if isinstance(value, dict) else None, "no object")


def _rows_of_value(value: Any) -> Iterator[Row]:
    yield Row("row 1", value if isinstance(value, dict) else None, "no object")


def read_value(path: Path) -> Any:
    """Return the JSON value of a file, gzipped where its name ends in ``.gz``.

    Raises:
        DataError: The file is missing, damaged or no JSON.
    """
    try:
        whole = path.read_bytes()
        return json.loads(gzip.decompress(whole) if path.suffix == ".gz" else whole)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read",
            expected="a whole JSON file, gzipped if it ends in .gz",
            got="no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}",
            fix="check the path, or download it again",
        ) from error


def text_of(path: Path, row: Row, *names: str) -> str:
    """Return the text (or whole number) under the first of several names that a row has.

    Raises:
        DataError: It has none of them, or what it has is no text.
    """
    fields = row.fields or {}
    value = next((fields[name] for name in names if fields.get(name) is not None), None)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{path}:{row.place}: field {names[0]!r}",
            expected=f"text under {' or '.join(names)}",
            got=f"columns {', '.join(map(str, fields))}" if value is None else repr(value)[:80],
            fix="mend the row",
        )
    return value


def digest(*parts: str) -> str:
    """Return a hexadecimal digest of texts in their order."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:24]
