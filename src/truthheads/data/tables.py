"""Rows of a JSONL, JSON, CSV or Parquet file, or of a data set on the hub, one at a time."""

import csv
import importlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import parse_qs

import huggingface_hub
import numpy as np
import pyarrow.parquet

from truthheads.errors import DataError

FORM = "hf://datasets/OWNER/NAME[@REVISION][/FILE][?split=SPLIT&config=CONFIG]"

PATH = re.compile(
    r"hf:/+datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/?]+))?(?:/(?P<file>[^?]+))?(?:\?(?P<query>.*))?"
)


class HubData(NamedTuple):
    """Where rows lie on the hub.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None: the main one.
        file: One file, or a pattern of several; None: the whole data set.
        split: Split of the whole data set.
        config: Configuration of the whole data set.
    """

    repo: str
    revision: str | None
    file: str | None
    split: str | None
    config: str | None


def on_hub(path: str | Path) -> bool:
    """Return whether a path names a data set on the hub; a Path drops one of the two slashes."""
    return str(path).startswith("hf:/")


def address(path: str | Path) -> str:
    """Return a path as it was written, with both slashes."""
    return str(path).replace("hf:/", "hf://", 1).replace("hf:///", "hf://") if on_hub(path) else str(path)


def parse_hub(path: str | Path) -> HubData:
    """Return the parts of ``hf://datasets/…``.

    Raises:
        DataError: It has another form.
    """
    found = PATH.fullmatch(str(path))
    query = parse_qs(found["query"] or "", keep_blank_values=True) if found else {}
    if found is None or not set(query) <= {"split", "config"}:
        raise DataError(f"{address(path)} names no data set", expected=FORM, got=str(path), fix="correct the address")
    return HubData(
        found["repo"], found["revision"], found["file"], *(query.get(key, [None])[0] for key in ("split", "config"))
    )


def hub_rows(path: str | Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a data set on the hub in order, as they come; code that lies beside it is never run.

    Raises:
        DataError: The address has another form, the data set is not there or cannot be read, or has several splits
            and none was named.
    """
    data, name = parse_hub(path), address(path)
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{name} cannot be read",
            expected="the package datasets",
            got="it is not installed",
            fix="pip install 'truthheads[hub]', or download the file and give its path",
        ) from error
    try:
        with _quiet():
            found = library.load_dataset(
                data.repo,
                name=data.config,
                split="train" if data.file and not data.split else data.split,
                revision=data.revision,
                data_files=data.file,
                streaming=True,
            )
        if isinstance(found, dict):
            if len(found) > 1:
                raise DataError(
                    f"{name} has several splits",
                    expected="one of them, by ?split=NAME",
                    got=", ".join(map(str, found)),
                    fix=f"give {name}?split={next(iter(found))}",
                )
            found = next(iter(found.values()))
        yield from found
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # no network, no such data set, a damaged file: the library has an exception for each
        raise DataError(
            f"{name} cannot be read",
            expected=FORM,
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="check the address and the network; a private data set needs `hf auth login`",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's remarks about a data set's card."""
    logging: Any = huggingface_hub.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

LARGEST_ROW = 32 * 2**20
"""Bytes of one row; a file without line ends, or a column that unpacks to gigabytes, is refused there."""

LARGEST_ARRAY = 2**30
"""Bytes of a JSON array, which has to be read whole."""

UNPACKED = 1000
"""How many times its own size a Parquet file may unpack to: text shrinks to a tenth, a bomb to a millionth."""

UNPACKED_FREELY = 2**28

BATCH = 1024

DECODED = 2**31

NOTHING = frozenset(("nan", "NaN", "NAN", "<NA>", "NaT", "#N/A"))
"""What stands in a CSV cell in which a data frame had nothing, and never stands for a text."""

NO_ANSWER = NOTHING | {"None", "null", "NULL", "NA", "N/A"}
"""The same in a column of answers; elsewhere (a group called NA) these may be names."""

ANSWERS = frozenset(
    (
        "truthful", "untruthful", "answer", "response", "right_answer", "hallucinated_answer", "right_response",
        "hallucinated_response", "right_summary", "hallucinated_summary", "sub_answer", "org_answer", "Best Answer",
        "Best Incorrect Answer", "Correct Answers", "Incorrect Answers",
    )
)  # fmt: skip
"""Columns that hold answers, in any known layout."""

CELL = 8
"""Bytes that an empty cell counts: a file may claim any number of rows that hold nothing."""


class Row(NamedTuple):
    """One row: where it stands (``line 17``, ``row 3``) and its fields; None where the line cannot be parsed.

    A field is None where its cell holds nothing: JSON's null, a number that is NaN, and in a CSV file, whose cells are
    all text, what data frames write for nothing (``NOTHING``; in columns of answers ``NO_ANSWER``).
    """

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
    with path.open("rb") as opened:
        for number, line in enumerate(_lines(opened, path), start=1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield _parsed(f"line {number}", text)


def _lines(opened: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield lines, none longer than a row may be."""
    number = 1
    while line := opened.readline(LARGEST_ROW + 1):
        if len(line) > LARGEST_ROW:
            raise _too_large(path, f"line {number}", "a longer line")
        yield line
        number += 1


def _too_large(path: Path, place: str, got: str) -> DataError:
    return DataError(
        f"{path}:{place}: the row is too large",
        expected=f"rows of at most {LARGEST_ROW // 2**20} MiB",
        got=got,
        fix="check what the file is; one object per line belongs into .jsonl, an array into .json",
    )


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
    return Row(place, {name: _cell(value) for name, value in fields.items()})


def _cell(value: Any) -> Any:
    """Return a cell with arrays as lists, and None for NaN."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _json(path: Path) -> Iterator[Row]:
    if path.stat().st_size > LARGEST_ARRAY:
        raise DataError(
            f"{path} is too large to be read as one JSON value",
            expected=f"at most {LARGEST_ARRAY // 2**20} MiB",
            got=f"{path.stat().st_size // 2**20} MiB",
            fix="write it as .jsonl, one object per line, which is read line by line",
        )
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON",
            expected="an array of objects",
            got=str(error),
            fix="correct that line; one object per line belongs into a .jsonl file",
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON", expected="an array", got=str(error), fix="correct the file") from error
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
    previous = csv.field_size_limit(LARGEST_ROW)
    try:
        with path.open("rb") as opened:
            lines = _Counted(_lines(opened, path), path)
            reader = csv.reader(lines)
            header = next(filter(None, reader), [])
            start = reader.line_num + 1
            for values in reader:
                place, start = f"line {start}", reader.line_num + 1
                lines.begin()
                if len(values) > len(header):
                    yield Row(place, None, f"{len(values) - len(header)} more fields than the header has")
                elif values:
                    yield Row(place, {name: _filled(name, cell) for name, cell in zip_longest(header, values)})
    finally:
        csv.field_size_limit(previous)


def _filled(column: str, cell: str | None) -> str | None:
    """Return a CSV cell, or None where it says that a data frame had nothing there."""
    return None if cell is None or cell.strip() in (NO_ANSWER if column in ANSWERS else NOTHING) else cell


class _Counted:
    """Lines of a CSV file as text; those of one record together are no longer than a row may be."""

    def __init__(self, lines: Iterable[bytes], path: Path) -> None:
        self.lines, self.path = iter(lines), path
        self.number = self.size = 0

    def begin(self) -> None:
        self.size = 0

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        self.size += len(line)
        if self.size > LARGEST_ROW:
            raise _too_large(self.path, f"line {self.number}", "a longer record: is a closing quote missing?")
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8")


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
                if row > LARGEST_ROW:
                    raise _too_large(path, f"row {number}", f"{row // 2**20} MiB")
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
