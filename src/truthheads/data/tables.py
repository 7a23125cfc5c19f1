"""Rows of a JSONL, JSON, CSV or Parquet file, or of a data set on the hub, one at a time.

What a file holds decides how it is read, not its name: HaluEval's and POPE's ``.json`` files hold JSON lines.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet

from truthheads.data import lines
from truthheads.data.delimited import csv_rows, looks_delimited
from truthheads.data.hub import hub_rows, on_hub
from truthheads.data.lines import Row, check_encoding, made_row, read_text, text_lines, too_large
from truthheads.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

TABLES = (".csv", ".tsv")
"""Suffixes of files that are read as CSV without a look at their header."""

LARGEST_ARRAY = 2**30
"""Bytes of a JSON array, which has to be read whole."""

UNPACKED = 1000
"""How many times its own size a Parquet file may unpack to: text shrinks to a tenth, a bomb to a millionth."""

UNPACKED_FREELY = 2**28

BATCH = 1024

DECODED = 2**31

CELL = 8
"""Bytes that an empty cell counts: a file may claim any number of rows that hold nothing."""

Kind = Literal["lines", "json", "csv", "parquet"]
"""JSON lines, one JSON value, CSV, Parquet."""

ASKED = ("question", "query", "user_input")
"""Columns of a row that stands alone: an object with one of them is a row, not what rows are wrapped in."""


def read_rows(path: Path, *, encoding: str | None = None, tell: Callable[[str], None] | None = None) -> Iterator[Row]:
    """Yield the rows of a table file in order, reading as they are asked for (JSON arrays are read whole).

    Args:
        path: A file of JSON lines, a JSON array, CSV or Parquet, whatever its name ends in; or ``hf://datasets/…``.
        encoding: Encoding of text files; None: UTF-8.
        tell: Gets in a few words what was found out about the file and is not as usual: semicolons between columns.

    Yields:
        Rows; a line that cannot be parsed comes with ``fields`` None and the fault, so that a caller may go on.

    Raises:
        DataError: The file is missing, empty, of another type, or cannot be parsed as a whole.
    """
    if on_hub(path):
        yield from (_object(f"row {number}", fields) for number, fields in enumerate(hub_rows(path), start=1))
        return
    told = tell or (lambda _: None)
    check_encoding(encoding)
    check_there(path)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", expected="at least one row", got="0 bytes", fix="write rows into it")
    try:
        kind = kind_of(path, encoding)
        if encoding is not None and kind != "parquet":
            told(f"read as {encoding}")
        if kind == "lines":
            yield from _jsonl(path, encoding)
        elif kind == "json":
            yield from _json(path, encoding)
        elif kind == "csv":
            yield from csv_rows(path, encoding, told)
        else:
            yield from _parquet(path)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read",
            expected=f"a whole {path.suffix} file",
            got=f"{type(error).__name__}: {error}",
            fix="write it again, or download it again",
        ) from error


def check_there(path: Path) -> None:
    """Raise DataError where a file of rows is not there."""
    if not path.is_file():
        raise DataError(
            f"{path} is not there",
            expected=f"a file ending in {', '.join(SUFFIXES)}",
            got="a folder" if path.is_dir() else "no such file",
            fix="check the path",
        )


def kind_of(path: Path, encoding: str | None = None) -> Kind:
    """Tell what a file holds, by its first lines; its name decides where they leave it open.

    Raises:
        DataError: It holds nothing that is known, or bytes that the encoding does not have.
    """
    suffix = path.suffix.lower()
    with path.open("rb") as opened:
        magic = opened.read(4)
    if magic == b"PAR1" or (suffix == ".parquet" and magic[:1] not in (b"{", b"[")):
        return "parquet"
    if magic[:2] == b"PK" or (suffix and suffix not in (*SUFFIXES, *TABLES, ".txt", ".ndjson") and b"\0" in magic):
        raise _unknown_type(path)
    texts = (text.strip() for text in text_lines(path, encoding))
    first = next(filter(None, texts), "")
    if first[:1] in ("{", "["):
        return _kind_of_json(first, next(filter(None, texts), None) is not None, suffix)
    if suffix in TABLES:
        return "csv"
    if looks_delimited(first):
        return "csv"
    if suffix in (".jsonl", ".json", ".ndjson"):
        return "json" if suffix == ".json" else "lines"
    raise _unknown_type(path)


def _unknown_type(path: Path) -> DataError:
    return DataError(
        f"{path} has an unknown type",
        expected=f"a file ending in {', '.join(SUFFIXES)}",
        got=path.suffix or "no suffix",
        fix="save it as one of these",
    )


def _kind_of_json(first: str, more: bool, suffix: str) -> Kind:
    """Tell JSON lines from one value.

    Args:
        first: The first line that is not blank.
        more: Whether there is another one.
        suffix: End of the file's name.
    """
    try:
        value = json.loads(first)
    except RecursionError:
        return "lines"
    except ValueError:
        if first[0] == "[" or first == "{":
            return "json"
        return "csv" if suffix in TABLES else "json" if suffix == ".json" else "lines"
    return "lines" if more or (isinstance(value, dict) and suffix != ".json") else "json"


def _jsonl(path: Path, encoding: str | None) -> Iterator[Row]:
    for number, line in enumerate(text_lines(path, encoding), start=1):
        if text := line.strip():
            yield _parsed(f"line {number}", text)


def _parsed(place: str, text: str) -> Row:
    try:
        fields = json.loads(text)
    except ValueError as error:
        return Row(place, None, f"not JSON: {error}")
    except RecursionError:
        return Row(place, None, "JSON that is nested too deeply")
    return _object(place, fields)


def _object(place: str, fields: Any) -> Row:
    if not isinstance(fields, dict):
        return Row(place, None, f"a JSON {type(fields).__name__}, not an object")
    return made_row(place, {name: _cell(value) for name, value in fields.items()})


def _cell(value: Any) -> Any:
    """Return a cell with arrays as lists, and None for NaN."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _json(path: Path, encoding: str | None) -> Iterator[Row]:
    if path.stat().st_size > LARGEST_ARRAY:
        raise DataError(
            f"{path} is too large to be read as one JSON value",
            expected=f"at most {LARGEST_ARRAY // 2**20} MiB",
            got=f"{path.stat().st_size // 2**20} MiB",
            fix="write it as .jsonl, one object per line, which is read line by line",
        )
    try:
        whole = json.loads(read_text(path, encoding))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON",
            expected="an array of objects",
            got=str(error),
            fix="correct that line; one object per line belongs into a .jsonl file",
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets in brackets
        raise DataError(f"{path} is not JSON", expected="an array", got=str(error), fix="correct the file") from error
    rows = rows_of_value(whole)
    if rows is None:
        raise DataError(
            f"{path} holds no rows",
            expected="an array of objects, or an object with one array",
            got=f"a JSON {type(whole).__name__}",
            fix="wrap the rows in [ ]",
        )
    for number, fields in enumerate(rows, start=1):
        yield _object(f"row {number}", fields)


def rows_of_value(whole: Any) -> list[Any] | None:
    """Return the rows that a JSON value holds: an array, an object with one array of objects, or one row alone."""
    if not isinstance(whole, dict):
        return whole if isinstance(whole, list) else None
    nested = any(isinstance(value, list | dict) for value in whole.values())
    if any(plain in ASKED for plain in map(lines.plain_name, whole)) or (whole and not nested):
        return [whole]
    arrays = [value for value in whole.values() if isinstance(value, list)]
    of_objects = [value for value in arrays if value and isinstance(value[0], dict)]
    found = of_objects if len(of_objects) == 1 else arrays
    return found[0] if len(found) == 1 else None


def _parquet(path: Path) -> Iterator[Row]:
    size = path.stat().st_size
    with pyarrow.parquet.ParquetFile(path) as opened:
        told = opened.metadata
        # Of a row group, not of its columns: the library ends the process where a column's entry is damaged.
        largest = max((told.row_group(at).total_byte_size for at in range(told.num_row_groups)), default=0)
        if largest > max(UNPACKED_FREELY, UNPACKED * size):
            raise _bomb(path, f"{largest // 2**20} MiB in a file of {size} bytes")
        flat = [field.name for field in opened.schema_arrow if pyarrow.types.is_string(field.type)]
        heavy = not all(pyarrow.types.is_primitive(one.type) or one.name in flat for one in opened.schema_arrow)
        number = unpacked = 0
    # Text stays in its dictionary until its row is asked for: one value may stand in a million rows. Inside of lists
    # there are no dictionaries, so that fewer rows are read at a time the larger a value may be.
    rows = max(1, min(BATCH, DECODED // max(1, largest))) if heavy else BATCH
    with pyarrow.parquet.ParquetFile(path, read_dictionary=flat) as opened:
        for batch in opened.iter_batches(batch_size=rows):
            for at in range(batch.num_rows):
                number += 1
                fields = {name: batch.column(column)[at].as_py() for column, name in enumerate(batch.schema.names)}
                row = sum(map(_size, fields.values()))
                unpacked += row
                if row > lines.LARGEST_ROW:
                    raise too_large(path, f"row {number}", f"{row // 2**20} MiB")
                if unpacked > max(UNPACKED_FREELY, UNPACKED * size):
                    raise _bomb(path, f"{unpacked // 2**20} MiB up to row {number}, in a file of {size} bytes")
                yield _object(f"row {number}", fields)


def _size(value: Any) -> int:
    """Return about how many bytes a cell takes."""
    if isinstance(value, str | bytes):
        return CELL + len(value)
    if isinstance(value, list | tuple):
        return CELL + sum(map(_size, value))
    return CELL + (sum(map(_size, value.values())) if isinstance(value, dict) else 0)


def _bomb(path: Path, got: str) -> DataError:
    return DataError(
        f"{path} unpacks to far more than its size allows",
        expected=f"at most {UNPACKED} times the size of the file, or {UNPACKED_FREELY // 2**20} MiB",
        got=got,
        fix="do not use this file; if it is your own, write it as .jsonl",
    )
