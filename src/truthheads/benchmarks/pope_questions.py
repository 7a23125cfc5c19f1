"""POPE's question files: what they ask, in which split, and what is to be known of them."""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypedDict

from truthheads.benchmarks.rows import LeaveOut, benchmark_rows, digest, text_of
from truthheads.data.lines import Row
from truthheads.errors import DataError, RowError
from truthheads.storage.files import FileSummary, describe_file

SPLITS = ("random", "popular", "adversarial")

EDITIONS = {2910: "2,910-row", 3000: "3,000-row"}
"""The random split of COCO circulates in two editions, which are not comparable."""


@dataclass(frozen=True, slots=True)
class PopeQuestion:
    """One question about one image.

    Attributes:
        id: Unique in its split.
        split: ``random``, ``popular``, ``adversarial``, or empty where the file does not say.
        image: Name of the image as in the file.
        text: The question.
        gold: ``yes`` or ``no``.
    """

    id: str
    split: str
    image: str
    text: str
    gold: str

    @property
    def key(self) -> str:
        """Equal for the same question about the same image in any split."""
        return digest(Path(self.image).name, self.text.strip())


def read_pope(
    paths: Sequence[Path],
    *,
    limit: int | None = None,
    encoding: str | None = None,
    leave_out: LeaveOut | None = None,
) -> list[PopeQuestion]:
    """Read POPE files: rows of ``question_id``, ``image``, ``text``, ``label``, one split a file.

    The released A-OKVQA file (``image_path``, ``question``, ``answer``; its splits one after another) is read too.

    Args:
        paths: One file, or one for each split; the split is found in the row, else in the file's name.
        limit: Questions of each file, at most.
        encoding: Encoding of text files; None: UTF-8.
        leave_out: What becomes of bad rows; None: they are errors.

    Raises:
        DataError: No labels, a label other than yes or no, a question id twice in one split, one question with two
            labels, or one split twice.
    """
    questions: list[PopeQuestion] = []
    seen: dict[tuple[str, str], str] = {}
    labels: dict[str, tuple[str, str]] = {}
    leave_out = leave_out or LeaveOut()
    for path in paths:
        named = split_of(path)
        for row in islice(benchmark_rows(path, encoding=encoding, leave_out=leave_out), limit):
            with leave_out.bad_rows():
                question = _question(path, row, named, seen)
                place = f"{path}:{row.place}"
                if (question.split, question.id) in seen:
                    raise RowError(
                        f"{place}: question {question.id} is there twice",
                        expected=f"each question_id once{f' in {question.split}' if question.split else ''}",
                        got=f"the same id at {seen[question.split, question.id]}",
                        fix="remove one of the two; give each split in a file of its own, named for it",
                    )
                before = labels.setdefault(question.key, (question.gold, place))
                if before[0] != question.gold:
                    raise DataError(
                        f"{place}: one question has two labels",
                        expected=f"{before[0]}, as at {before[1]}",
                        got=f"{question.gold} for {question.text!r} about {question.image}",
                        fix="correct one of the two rows",
                    )
                seen[question.split, question.id] = place
                questions.append(question)
    if not questions:
        raise DataError(f"{paths[0]} holds no question", expected="one row or more", got="none", fix="check the file")
    return questions


def _question(path: Path, row: Row, named: str, seen: Container[tuple[str, str]]) -> PopeQuestion:
    """Return the question of a row.

    Args:
        path: Its file.
        row: The row.
        named: The split that the file's name tells.
        seen: Split and id of the questions before.
    """
    fields = row.fields or {}
    split = str(fields.get("split") or fields.get("category") or named)
    own = "label" in fields
    if not own and "answer" not in fields:
        raise DataError(
            f"{path}:{row.place}: label is missing: a file of questions without labels",
            expected="POPE's own file: question_id, image, text and label, which is yes or no",
            got=f"columns {', '.join(row.columns)}",
            fix="give the POPE file that the questions come from, such as coco_pope_adversarial.json",
        )
    if not split and not own:  # the released file: one split after another, ids from 1 in each
        number = text_of(path, row, "question_id")
        split = next((name for name in SPLITS if (name, number) not in seen), "")
    gold = text_of(path, row, "label" if own else "answer").strip().casefold()
    if gold not in ("yes", "no"):
        raise RowError(
            f"{path}:{row.place}: field {'label' if own else 'answer'!r}",
            expected="yes or no",
            got=repr(gold)[:80],
            fix="give a POPE file; its gold answers are yes or no",
        )
    text = text_of(path, row, "text", "question")
    return PopeQuestion(text_of(path, row, "question_id"), split, text_of(path, row, "image", "image_path"), text, gold)


def split_of(path: Path) -> str:
    """Return the split that a file's name tells, or an empty text."""
    found = [split for split in SPLITS if split in path.name.casefold()]
    return found[0] if len(found) == 1 else ""


class SplitSummary(TypedDict):
    """One split of POPE: its rows, which edition it is, and its digest."""

    rows: int
    edition: str | None
    sha256: str


class PopeSummary(TypedDict):
    """What a result says about the questions.

    Attributes:
        files: Path and SHA-256 of each file.
        splits: Each split by name; ``all`` where the files name none.
        distinct: How many different questions there are.
        repeated_within_split: How many rows repeat a question of their own split.
    """

    files: list[FileSummary]
    splits: dict[str, SplitSummary]
    distinct: int
    repeated_within_split: int


def describe_pope(paths: Sequence[Path], questions: Sequence[PopeQuestion]) -> PopeSummary:
    """Describe the questions for a result: for each split rows, edition and digest, and what repeats."""
    splits: dict[str, SplitSummary] = {}
    for split in dict.fromkeys(question.split for question in questions):
        part = [question for question in questions if question.split == split]
        splits[split or "all"] = {
            "rows": len(part),
            "edition": EDITIONS.get(len(part), "other") if split == "random" else None,
            "sha256": digest(*sorted(f"{q.id}\x1e{q.key}\x1e{q.gold}" for q in part)),
        }
    within = Counter((question.split, question.key) for question in questions)
    return {
        "files": [describe_file(path) for path in paths],
        "splits": splits,
        "distinct": len({question.key for question in questions}),
        "repeated_within_split": sum(count - 1 for count in within.values()),
    }


def pope_notes(description: PopeSummary) -> list[str]:
    """List the caveats about the questions, in sentences."""
    notes = []
    splits = description["splits"]
    rows = sum(part["rows"] for part in splits.values())
    if (again := rows - description["distinct"]) > 0:
        notes.append(
            f"{again} of {rows} rows repeat a question about the same image; figures count each question once, "
            "those named released or original count every row, as those evaluators do"
        )
    if description["repeated_within_split"]:
        notes.append(f"{description['repeated_within_split']} of the repeated questions stand twice in one split")
    if (edition := "random" in splits and splits["random"]["edition"]) == "2,910-row":
        notes.append(f"the random split is the {edition} edition: not comparable with the 3,000-row one")
    return notes
