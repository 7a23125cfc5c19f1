"""Questions: one context, one question, a truthful and an untruthful answer."""

import hashlib
import json
import os
import re
import sqlite3
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, overload

from truthheads.data.cautions import data_cautions
from truthheads.data.numerals import inside_number, numerals, spans_of_equal
from truthheads.data.same_answers import any_same
from truthheads.errors import ArtifactError
from truthheads.storage.files import dumps, replaced

IN_MEMORY = 20_000
"""Rows of one file that are kept in memory, at most; where there are more, all lie in a temporary file."""

NAMED = 5
"""Rows that a warning names, at most."""


class Answer(NamedTuple):
    """One answer of a question and whether the context supports it."""

    text: str
    truthful: bool


@dataclass(frozen=True, slots=True, repr=False)
class Question:
    """One row of a question file.

    Attributes:
        id: Unique within a file.
        context: The evidence; empty where the row has none.
        question: What is asked about the context (or the image).
        truthful: The answer that agrees with the context, or None where answers come singly.
        untruthful: The answer that does not, or None where answers come singly.
        evidence: Character spans ``[start, end)`` in ``context`` that hold the truthful answer.
        image: Path of an image, or None.
        boxes: Evidence in the image: ``(x0, y0, x1, y1)`` in pixels.
        group: Rows of one group never straddle folds.
        kind: Where the untruthful answer comes from (``absent``, ``distractor``, ``memory`` …), or None.
        aliases: Other forms of the truthful answer, which are right, too; ``truthful`` is the one that is scored.
        untruthful_aliases: Other forms of the untruthful answer.
        labelled: False where nothing says whether the answer is truthful; it then stands under ``truthful``.
        columns: The row's own columns as the file spells them, where they were asked for.
    """

    id: str
    context: str
    question: str
    truthful: str | None
    untruthful: str | None
    evidence: tuple[tuple[int, int], ...] = ()
    image: str | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    group: str = ""
    kind: str | None = None
    aliases: tuple[str, ...] = field(default=(), compare=False)  # two rows are equal where what is scored is
    untruthful_aliases: tuple[str, ...] = field(default=(), compare=False)
    labelled: bool = field(default=True, compare=False)
    columns: Mapping[str, Any] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        told = {"question": self.question, "truthful": self.truthful, "untruthful": self.untruthful}
        parts = [f"{name}={_shortened(text)!r}" for name, text in told.items() if text is not None]
        about = [f"context of {len(self.context):,} characters"] if self.context else []
        return f"Question({', '.join([repr(self.id), *parts, *about, *([] if self.image is None else ['an image'])])})"

    @property
    def alike(self) -> bool:
        """Whether the untruthful answer is the truthful one, or an alias of it, but for case, punctuation, articles."""
        if self.truthful is None or self.untruthful is None:
            return False
        return any_same((self.truthful, *self.aliases), (self.untruthful, *self.untruthful_aliases))

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers of the row, the truthful one first: two for a pair, one for a single answer."""
        both = ((self.truthful, True), (self.untruthful, False))
        return tuple(Answer(text, truthful) for text, truthful in both if text is not None)

    @property
    def digest(self) -> int:
        """A signed 64-bit number from what is asked and answered: equal for the same row in two files."""
        parts = (self.context, self.question, self.truthful or "", self.untruthful or "", Path(self.image or "").name)
        text = "\x1f".join(parts).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


class RowsOnDisk:
    """Questions in a temporary SQLite database; one at a time is in memory, and about two megabytes of its pages.

    SQLite keeps the file in the temporary folder (``TMPDIR``) without a name, so a process that is killed leaves
    nothing behind.

    Raises:
        ArtifactError: The temporary folder is full or cannot be written to.
    """

    def __init__(self) -> None:
        self._count = 0
        self._rows = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._rows.close)
        with _room_for_rows():
            self._rows.execute("PRAGMA journal_mode = OFF")  # nobody reads the file after a process that broke off
            self._rows.execute("CREATE TABLE rows (record TEXT)")

    def __len__(self) -> int:
        return self._count

    def append(self, question: Question) -> None:
        """Add a question."""
        record = json.dumps([getattr(question, name) for name in Question.__slots__])
        with _room_for_rows():
            self._rows.execute("INSERT INTO rows VALUES (?)", (record,))
        self._count += 1

    def read(self, start: int, stop: int) -> Iterator[Question]:
        """Yield the questions from ``start`` to before ``stop``."""
        with _room_for_rows():  # reading may also write: pages that are not on the disk yet make room for others
            yield from map(_restored, self._rows.execute(_ROWS_BETWEEN, (start, stop)))


_ROWS_BETWEEN = "SELECT record FROM rows WHERE rowid > ? AND rowid <= ? ORDER BY rowid"


@contextmanager
def _room_for_rows() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise ArtifactError(
            "the rows could not be kept in the temporary folder",
            expected="room for the question file's rows there",
            got=str(error),
            fix="free some space, or set TMPDIR to a larger folder",
        ) from error


def _restored(row: tuple[str]) -> Question:
    fields = dict(zip(Question.__slots__, json.loads(row[0]), strict=True))
    evidence = tuple((int(start), int(end)) for start, end in fields["evidence"])
    boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in fields["boxes"])
    aliases = {name: tuple(fields[name]) for name in ("aliases", "untruthful_aliases")}
    return Question(**{**fields, "evidence": evidence, "boxes": boxes, **aliases})


class QuestionRows(Sequence[Question]):
    """Questions in order: in memory while they are few, in a temporary file when they are many."""

    def __init__(self, rows: Iterable[Question] = ()) -> None:
        self._few: list[Question] = []
        self._many: RowsOnDisk | None = None
        for question in rows:
            self.append(question)

    def append(self, question: Question) -> None:
        """Add a question.

        Raises:
            ArtifactError: The temporary folder is full.
        """
        if self._many is None and len(self._few) < IN_MEMORY:
            self._few.append(question)
            return
        if self._many is None:
            self._many = RowsOnDisk()
            for one in self._few:
                self._many.append(one)
            self._few = []
        self._many.append(question)

    def __len__(self) -> int:
        return len(self._few) if self._many is None else len(self._many)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._few) if self._many is None else self._many.read(0, len(self._many))

    @overload
    def __getitem__(self, at: SupportsIndex) -> Question: ...

    @overload
    def __getitem__(self, at: slice) -> list[Question]: ...

    def __getitem__(self, at: SupportsIndex | slice) -> Question | list[Question]:
        if self._many is None:
            return self._few[at]
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step == 1:
                return list(self._many.read(start, stop))
            return [self[i] for i in range(start, stop, step)]
        place = range(len(self))[at]
        return next(self._many.read(place, place + 1))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list has none


class Alike(NamedTuple):
    """Rows whose two answers are one answer in two forms (:attr:`Question.alike`).

    Attributes:
        rows: How many.
        first: Where the first few stand: ``line 17``, ``row 3``, or a row's id.
    """

    rows: int = 0
    first: tuple[str, ...] = ()

    def and_at(self, place: str) -> "Alike":
        """Return the same with one more row."""
        return Alike(self.rows + 1, self.first if len(self.first) == NAMED else (*self.first, place))


def alike_rows(questions: Iterable[Question]) -> Alike:
    """Find the rows whose untruthful answer is the truthful one but for its form, by their ids."""
    found = Alike()
    for question in questions:
        if question.alike:
            found = found.and_at(f"id {question.id}")
    return found


class Questions(QuestionRows):
    """The questions of one file, in order, with what the file was.

    Attributes:
        layout: Name of the layout that was recognised.
        path: The file as given.
        sha256: Digest of its bytes; of its rows where they were streamed from a hub.
        skipped: Bad rows left out.
        note: What a reader must know of such files.
        alike: Rows whose two answers are one but for its form.
        read_as: How the file was read where that is not a matter of course, and how its rows are grouped; a few words
            each.
    """

    def __init__(
        self,
        rows: Iterable[Question] = (),
        *,
        layout: str = "",
        path: str = "",
        sha256: str = "",
        skipped: int = 0,
        note: str = "",
        alike: Alike | None = None,
        read_as: Sequence[str] = (),
    ) -> None:
        super().__init__(rows)
        self.read_as = list(read_as)
        self.alike = alike_rows(self) if alike is None else alike
        self.layout, self.path, self.sha256, self.skipped, self.note = layout, path, sha256, skipped, note

    def __repr__(self) -> str:
        of = [self.layout or "questions", *([repr(Path(self.path).name)] if self.path else [])]
        left = [f"{self.skipped} bad rows left out"] if self.skipped else []
        return f"Questions({', '.join([f'{len(self)} rows', *of, *left])})"

    @property
    def reading(self) -> str:
        """How many rows of which layout there are, how the file was read, and how the rows are grouped."""
        rows = f"{len(self)} {'row' if len(self) == 1 else 'rows'}"
        return "; ".join([f"{rows} ({self.layout})", *self.read_as])

    @property
    def cautions(self) -> list[str]:
        """What must be said of the rows before figures are made from them, one sentence or two each."""
        alike = {"rows": self.alike.rows, "first": list(self.alike.first)}
        return data_cautions({"rows": len(self), "note": self.note, "skipped": self.skipped, "alike": alike})

    def without(self, gone: "Collection[Question]") -> "Questions":
        """Return the questions but for some, which count as skipped."""
        names = {question.id for question in gone}
        return Questions(
            (question for question in self if question.id not in names),
            layout=self.layout,
            path=self.path,
            sha256=self.sha256,
            skipped=self.skipped + len(names),
            note=self.note,
            read_as=self.read_as,
        )


def normalised_text(text: str) -> str:
    """Return text in one case, without punctuation, with single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def occurrences(context: str, answer: str) -> tuple[tuple[int, int], ...]:
    """Return the character spans where an answer stands in a context as whole words, in any case.

    A number is never found inside another one ("one" in "twenty-one", "3" in "3.5"). Where the answer does not stand
    there as it is, its numbers may be spelled otherwise: "21" is found at "twenty-one".
    """
    answer = answer.strip()
    found = re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", context, re.IGNORECASE) if answer else ()
    spans = tuple(match.span() for match in found)
    if not numerals(answer):
        return spans
    whole = tuple(span for span, inside in zip(spans, inside_number(context, spans), strict=True) if not inside)
    return whole or spans_of_equal(context, answer)


def answer_kind(question: Question) -> str | None:
    """Return the row's kind; where it names none, whether the untruthful answer stands in the context.

    Returns:
        The column ``kind``; else ``in context`` or ``not in context``; None without a context or an untruthful answer.
    """
    if question.kind is not None or not question.context or question.untruthful is None:
        return question.kind
    return "in context" if occurrences(question.context, question.untruthful) else "not in context"


def write_questions(path: Path, questions: Iterable[Question]) -> Path:
    """Write a question file (JSONL, one row a line, empty fields left out) and return its path.

    A question with one answer is written with ``answer`` and ``label``; an image's path relative to the file.

    Raises:
        ArtifactError: The file could not be written.
    """
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for question in questions:
            row = {name: value for name, value in asdict(question).items() if value not in (None, "", ())}
            row["question"] = question.question
            if others := row.pop("aliases", ()):
                row["truthful"] = [row["truthful"], *others]
            row.pop("labelled", None)
            row.pop("columns", None)
            if question.image is not None:
                row["image"] = os.path.relpath(question.image, path.parent)
            if len(question.answers) == 1:
                answer = question.answers[0]
                row = {name: row[name] for name in row if name not in ("truthful", "untruthful")}
                row["answer"] = (
                    [answer.text, *question.aliases] if answer.truthful and question.aliases else answer.text
                )
                row |= {"label": int(answer.truthful)} if question.labelled else {}
            lines.write(dumps(row) + "\n")
    return path
