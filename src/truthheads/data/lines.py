"""What every kind of table file shares: a row, how large it may be, and the lines of a text in any encoding."""

import codecs
import io
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from truthheads.errors import DataError

LARGEST_ROW = 32 * 2**20
"""Bytes of one row; a file without line ends, or a column that unpacks to gigabytes, is refused there."""


class Row(NamedTuple):
    """One row: where it stands (``line 17``, ``row 3``) and its fields; None where the line cannot be parsed.

    A field is None where its cell holds nothing: JSON's null, a number that is NaN, and in a CSV file, whose cells are
    all text, what data frames write for nothing.

    Attributes:
        place: Where it stands.
        fields: Its values by the plain name of their column: see :func:`plain_name`.
        fault: Why it cannot be read, where ``fields`` is None.
        names: The columns as the file spells them, by their plain names, where one of them is spelled otherwise.
    """

    place: str
    fields: dict[str, Any] | None
    fault: str = ""
    names: Mapping[str, str] | None = None

    @property
    def columns(self) -> list[str]:
        """The columns as the file spells them."""
        return [self.spelled(name) for name in self.fields or {}]

    def spelled(self, name: str) -> str:
        """Return the name of a column as the file spells it."""
        return (self.names or {}).get(name, name)


@lru_cache(maxsize=4096)
def plain_name(column: str) -> str:
    """Return the name of a column in small letters, with ``_`` for blanks and hyphens: `` Best Answer`` is best_answer.

    Blanks around it and a byte order mark are left out.
    """
    return re.sub(r"[\s\-]+", "_", column.replace("\ufeff", "").strip()).casefold()


def made_row(place: str, fields: Mapping[str, Any]) -> Row:
    """Return a row whose columns have plain names; one that cannot be read where two columns share a plain name."""
    names = {name: plain_name(name) for name in fields}
    if all(name == plain for name, plain in names.items()):
        return Row(place, dict(fields))
    found: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, plain in names.items():
        if plain in found and name != plain and spelled[plain] == plain:
            continue  # the column that is spelled plainly counts, whatever stands beside it
        if plain in found and name != plain:
            return Row(place, None, f"two columns called {plain!r}: {spelled[plain]!r} and {name!r}")
        found[plain], spelled[plain] = fields[name], name
    return Row(place, found, names=spelled)


def too_large(path: Path, place: str, got: str) -> DataError:
    """Return the error for a row that is larger than a row may be."""
    return DataError(
        f"{path}:{place}: the row is too large",
        expected=f"rows of at most {LARGEST_ROW // 2**20} MiB",
        got=got,
        fix="check what the file is; one object per line belongs into .jsonl, an array into .json",
    )


def check_encoding(name: str | None) -> str:
    """Return the name of an encoding that can be read; UTF-8 where none is given.

    Raises:
        DataError: There is no such encoding of text.
    """
    if name is None:
        return "utf-8"
    try:
        "\n".encode(name)
    except (LookupError, UnicodeError, ValueError) as error:  # codecs that make no text are a LookupError, too
        raise DataError(
            f"--encoding {name} is not known",
            expected="an encoding of text that Python knows: utf-8, latin-1, cp1252, utf-16, gbk, shift_jis …",
            got=name,
            fix="correct --encoding, or leave it out for UTF-8",
        ) from error
    return name


def text_lines(path: Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a text file with their ends, none longer than a row may be; a byte order mark is left out.

    Raises:
        DataError: A line is too long, or holds bytes that the encoding does not have.
    """
    name = check_encoding(encoding)
    plain = "\n".encode(name) == b"\n"
    with path.open("rb") as opened:
        start = opened.read(4)
        opened.seek(0)
        if encoding is None and start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise _undecodable(path, 1, "utf-8", "a file that begins as UTF-16 does", "utf-16")
        wide = None if plain else io.TextIOWrapper(opened, encoding=name, newline="\n")
        number = 0
        while True:
            number += 1
            try:
                if wide is not None:
                    text = wide.readline(LARGEST_ROW + 1)
                else:
                    line = opened.readline(LARGEST_ROW + 1)
                    if len(line) > LARGEST_ROW:
                        raise too_large(path, f"line {number}", "a longer line")
                    text = line.decode("utf-8-sig" if number == 1 and codecs.lookup(name).name == "utf-8" else name)
            except UnicodeError as error:
                raise _undecodable(path, number, name, _bytes_of(error)) from error
            if len(text) > LARGEST_ROW:
                raise too_large(path, f"line {number}", "a longer line")
            if not text:
                return
            yield text.removeprefix("\ufeff") if number == 1 else text


def read_text(path: Path, encoding: str | None = None) -> str:
    """Return a whole text file; a byte order mark is left out.

    Raises:
        DataError: It holds bytes that the encoding does not have; the line is named.
    """
    name = check_encoding(encoding)
    whole = path.read_bytes()
    if encoding is None and whole[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise _undecodable(path, 1, "utf-8", "a file that begins as UTF-16 does", "utf-16")
    try:
        return whole.decode(name).removeprefix("\ufeff")
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        raise _undecodable(path, whole.count(b"\n", 0, at) + 1, name, _bytes_of(error)) from error


def _bytes_of(error: UnicodeError) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    around = error.object[max(0, error.start - 20) : error.end + 10]
    line = around.decode("ascii", "backslashreplace")
    return f"byte 0x{error.object[error.start]:02x} in {' '.join(line.split())!r}"


def _undecodable(path: Path, line: int, encoding: str, got: str, likely: str = "latin-1") -> DataError:
    shown = encoding.upper() if encoding.lower().startswith("utf") else encoding
    other = "" if likely == "utf-16" else " (cp1252 where a Windows program wrote it)"
    return DataError(
        f"{path} cannot be read: line {line} is not {shown}",
        expected=f"text in {shown}",
        got=got,
        fix=f"pass --encoding {likely}{other}, or save the file as UTF-8"
        if encoding == "utf-8"
        else "give the encoding that the file was written in as --encoding",
    )
