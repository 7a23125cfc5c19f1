"""Rows of a JSONL, JSON, CSV or Parquet file, one at a time, with the place each came from."""

import csv
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from truthheads.errors import DataError
from truthheads.hubrows import hub_rows, on_hub

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
CSV_FIELD_LIMIT = 16 * 2**20


class Row(NamedTuple):
    """One row: where it stands (``line 17``, ``row 3``) and its fields; None where the line cannot be parsed."""

    place: str
    fields: dict[str, Any] | None
    fault: str = ""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table file in order, reading as they are asked for (JSON arrays are read whole).

    Args:
        path: A file whose suffix is ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``, or ``hf://datasets/…``.

    Yields:
        Rows; a line that cannot be parsed comes with ``fields`` None and the fault, so that a caller may go on.

    Raises:
        DataError: The file is missing, empty, of another type, or cannot be parsed as a whole.
    """
    if on_hub(path):
        yield from (_object(f"row {number}", fields) for number, fields in enumerate(hub_rows(path), start=1))
        return
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if not path.is_file():
        raise DataError(
            f"{path} is not there",
            expected=f"a file ending in {', '.join(SUFFIXES)}",
            got="a folder" if path.is_dir() else "no such file",
            fix="check the path",
        )
    if path.suffix.lower() not in readers:
        raise DataError(
            f"{path} has an unknown type",
            expected=f"a file ending in {', '.join(SUFFIXES)}",
            got=path.suffix or "no suffix",
            fix="convert it, or rename it to what it is",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", expected="at least one row", got="0 bytes", fix="write rows into it")
    try:
        yield from readers[path.suffix.lower()](path)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read",
            expected=f"a whole {path.suffix} file in UTF-8",
            got=f"{type(error).__name__}: {error}",
            fix="write it again, or download it again",
        ) from error


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield _parsed(f"line {number}", text)


def _parsed(place: str, text: str) -> Row:
    try:
        fields = json.loads(text)
    except ValueError as error:
        return Row(place, None, f"not JSON: {error}")
    return _object(place, fields)


def _object(place: str, fields: Any) -> Row:
    if not isinstance(fields, dict):
        return Row(place, None, f"a JSON {type(fields).__name__}, not an object")
    return Row(place, fields)


def _json(path: Path) -> Iterator[Row]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON",
            expected="an array of objects",
            got=str(error),
            fix="mend that line; one object per line belongs into a .jsonl file",
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON", expected="an array", got=str(error), fix="mend the file") from error
    if isinstance(whole, dict):
        arrays = [value for value in whole.values() if isinstance(value, list)]
        whole = arrays[0] if len(arrays) == 1 else whole
    if not isinstance(whole, list):
        raise DataError(
            f"{path} holds no rows",
            expected="an array of objects, or an object with one array",
            got=f"a JSON {type(whole).__name__}",
            fix="wrap the rows in [ ]",
        )
    for number, fields in enumerate(whole, start=1):
        yield _object(f"row {number}", fields)


def _csv(path: Path) -> Iterator[Row]:
    previous = csv.field_size_limit(CSV_FIELD_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = next(filter(None, reader), [])
            start = reader.line_num + 1
            for values in reader:
                place, start = f"line {start}", reader.line_num + 1
                if len(values) > len(header):
                    yield Row(place, None, f"{len(values) - len(header)} more fields than the header has")
                elif values:
                    yield Row(place, dict(zip_longest(header, values)))
    finally:
        csv.field_size_limit(previous)


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as opened:
        for batch in opened.iter_batches(batch_size=1024):
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", fields)
