"""Questions: one context, one question, a truthful and an untruthful answer."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from truthheads.artifacts import dumps, replaced


class Answer(NamedTuple):
    """One answer of a question and whether the context supports it."""

    text: str
    truthful: bool


@dataclass(frozen=True, slots=True)
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

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers at hand, the truthful one first: two for a pair, one where answers come singly."""
        both = ((self.truthful, True), (self.untruthful, False))
        return tuple(Answer(text, truthful) for text, truthful in both if text is not None)

    @property
    def digest(self) -> int:
        """A signed 64-bit number from what is asked and answered: equal for the same row in two files."""
        parts = (self.context, self.question, self.truthful or "", self.untruthful or "", Path(self.image or "").name)
        text = "\x1f".join(parts).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


class Questions(list[Question]):
    """The questions of one file, in order, with what the file was.

    Attributes:
        layout: Name of the layout that was recognised.
        path: The file as given.
        sha256: Digest of its bytes.
        skipped: Bad rows left out.
        note: What a reader must know of such files.
    """

    def __init__(
        self, rows: Iterable[Question], *, layout: str, path: str, sha256: str, skipped: int, note: str = ""
    ) -> None:
        super().__init__(rows)
        self.layout, self.path, self.sha256, self.skipped, self.note = layout, path, sha256, skipped, note

    def without(self, gone: "list[Question]") -> "Questions":
        """Return the questions but for some, which count as skipped."""
        names = {question.id for question in gone}
        return Questions(
            [question for question in self if question.id not in names],
            layout=self.layout,
            path=self.path,
            sha256=self.sha256,
            skipped=self.skipped + len(names),
            note=self.note,
        )


def normalised(text: str) -> str:
    """Return text in one case, without punctuation, with single spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def occurrences(context: str, answer: str) -> tuple[tuple[int, int], ...]:
    """Return the character spans where an answer stands in a context as whole words, in any case."""
    answer = answer.strip()
    found = re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", context, re.IGNORECASE) if answer else ()
    return tuple(match.span() for match in found)


def kind_of(question: Question) -> str | None:
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
            if question.image is not None:
                row["image"] = os.path.relpath(question.image, path.parent)
            if len(question.answers) == 1:
                answer = question.answers[0]
                row = {name: row[name] for name in row if name not in ("truthful", "untruthful")}
                row |= {"answer": answer.text, "label": int(answer.truthful)}
            lines.write(dumps(row) + "\n")
    return path
