"""Rows of a CSV file; what stands between its columns (commas, semicolons, tabs, bars) is found by its header."""

import csv
import re
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from pathlib import Path

from truthheads.data import lines
from truthheads.data.lines import Row, made_row, plain_name, text_lines, too_large

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may stand between columns, the likeliest first."""

TOLD_BY = 5
"""Rows that tell which of two delimiters a header has."""

NOTHING = frozenset(("nan", "NaN", "NAN", "<NA>", "NaT", "#N/A"))
"""What stands in a CSV cell in which a data frame had nothing, and never stands for a text."""

NO_ANSWER = NOTHING | {"None", "null", "NULL", "NA", "N/A"}
"""The same in a column of answers; elsewhere (a group called NA) these may be names."""

ANSWERS = frozenset(
    (
        "truthful", "untruthful", "answer", "response", "output", "right_answer", "hallucinated_answer",
        "right_response", "hallucinated_response", "right_summary", "hallucinated_summary", "sub_answer", "org_answer",
        "best_answer", "best_incorrect_answer", "correct_answers", "incorrect_answers",
    )
)  # fmt: skip
"""Columns that hold answers, in any known layout."""


def find_delimiter(header: str, rows: list[str]) -> str:
    """Find what stands between the columns of a CSV file: what makes most columns of its header, and of its rows.

    Args:
        header: The first line.
        rows: Some of the lines after it.
    """

    def told(delimiter: str) -> tuple[int, int]:
        width = _width(header, delimiter)
        return width, sum(_width(row, delimiter) == width for row in rows)

    return max(DELIMITERS, key=told)


def _width(line: str, delimiter: str) -> int:
    return len(next(csv.reader([line], delimiter=delimiter), ()))


def looks_delimited(header: str) -> bool:
    """Return whether a line may be the header of a CSV file: two or more columns, each with a name of its own."""
    names = [plain_name(name) for name in next(csv.reader([header], delimiter=find_delimiter(header, [])), [])]
    known = all(len(name) <= 40 and re.fullmatch(r"[^\W\d]\w*(?:\.\w+)*", name) for name in names)
    return len(names) > 1 and known and len(set(names)) == len(names)


def csv_rows(path: Path, encoding: str | None, tell: Callable[[str], None]) -> Iterator[Row]:
    """Yield the rows of a CSV file; a line ``sep=;`` in front of the header, as spreadsheets write it, is obeyed.

    Args:
        path: The file.
        encoding: Its encoding; None: UTF-8.
        tell: Gets what stands between the columns where it is no comma.
    """
    skipped, start = 0, [line for line in islice(text_lines(path, encoding), 2 * TOLD_BY) if line.strip()]
    named = re.fullmatch(r"\"?sep=(.)\"?\s*", start[0]) if start else None
    if named:
        skipped, start = 1, start[1:]
    delimiter = named[1] if named else find_delimiter(start[0], start[1 : TOLD_BY + 1]) if start else ","
    if delimiter != ",":
        tell(f"columns separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    # Blanks in front of the names stand in front of the values as well; there they would keep quotes from being read.
    apart = bool(start) and re.search(rf"{re.escape(delimiter)} +\S", start[0]) is not None and delimiter != "\t"
    previous = csv.field_size_limit(lines.LARGEST_ROW)
    try:
        record = _Record(islice(text_lines(path, encoding), skipped, None), path, skipped)
        reader = csv.reader(record, delimiter=delimiter, skipinitialspace=apart)
        header = next(filter(None, reader), [])
        first = reader.line_num + 1 + skipped
        for values in reader:
            place, first = f"line {first}", reader.line_num + 1 + skipped
            record.begin()
            if len(values) > len(header):
                yield Row(place, None, f"{len(values) - len(header)} more fields than the header has")
            elif values:
                yield made_row(place, {name: _filled(name, cell) for name, cell in zip_longest(header, values)})
    finally:
        csv.field_size_limit(previous)


def _filled(column: str, cell: str | None) -> str | None:
    """Return a CSV cell, or None where it says that a data frame had nothing there."""
    nothing = NO_ANSWER if plain_name(column) in ANSWERS else NOTHING
    return None if cell is None or cell.strip() in nothing else cell


class _Record:
    """Lines of a CSV file; those of one record together are no longer than a row may be."""

    def __init__(self, texts: Iterator[str], path: Path, skipped: int) -> None:
        self.texts, self.path = texts, path
        self.number, self.size = skipped, 0

    def begin(self) -> None:
        self.size = 0

    def __iter__(self) -> "_Record":
        return self

    def __next__(self) -> str:
        line = next(self.texts)
        self.number += 1
        self.size += len(line)
        if self.size > lines.LARGEST_ROW:
            raise too_large(self.path, f"line {self.number}", "a longer record: is a closing quote missing?")
        return line
