"""POPE: is there such an object in the image? Question files, and answers that were made elsewhere."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypedDict

from truthheads.benchmarks.base import (
    AnswerOptions,
    AnswersElsewhere,
    AnswersRead,
    Benchmark,
    Item,
    Items,
    Prediction,
    QuestionOptions,
    begin_line,
    help_text,
)
from truthheads.benchmarks.rows import benchmark_rows, digest, placed_image, text_of
from truthheads.benchmarks.yes_no import POPE_PARSERS, measure_yesno, parse_with
from truthheads.data.questions import Question
from truthheads.errors import DataError
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


def read_pope(paths: Sequence[Path], *, limit: int | None = None) -> list[PopeQuestion]:
    """Read POPE files: rows of ``question_id``, ``image``, ``text``, ``label``, one split a file.

    The released A-OKVQA file (``image_path``, ``question``, ``answer``; its splits one after another) is read too.

    Args:
        paths: One file, or one for each split; the split is found in the row, else in the file's name.
        limit: Questions of each file, at most.

    Raises:
        DataError: A label other than yes or no, a question id twice in one split, one question with two labels, or
            one split twice.
    """
    questions: list[PopeQuestion] = []
    seen: dict[tuple[str, str], str] = {}
    labels: dict[str, tuple[str, str]] = {}
    for path in paths:
        named = split_of(path)
        for row in islice(benchmark_rows(path), limit):
            fields = row.fields or {}
            split = str(fields.get("split") or fields.get("category") or named)
            own = "label" in fields
            if not split and not own:  # the released file: one split after another, ids from 1 in each
                number = text_of(path, row, "question_id")
                split = next((name for name in SPLITS if (name, number) not in seen), "")
            gold = text_of(path, row, "label" if own else "answer").strip().casefold()
            place = f"{path}:{row.place}"
            if gold not in ("yes", "no"):
                raise DataError(
                    f"{place}: field {'label' if own else 'answer'!r}",
                    expected="yes or no",
                    got=repr(gold)[:80],
                    fix="give a POPE file; its gold answers are yes or no",
                )
            text = text_of(path, row, "text", "question")
            question = PopeQuestion(
                text_of(path, row, "question_id"), split, text_of(path, row, "image", "image_path"), text, gold
            )
            if (split, question.id) in seen:
                raise DataError(
                    f"{place}: question {question.id} is there twice",
                    expected=f"each question_id once{f' in {split}' if split else ''}",
                    got=f"the same id at {seen[split, question.id]}",
                    fix="remove one of the two; give each split in a file of its own, named for it",
                )
            seen[split, question.id] = place
            before = labels.setdefault(question.key, (gold, place))
            if before[0] != gold:
                raise DataError(
                    f"{place}: one question has two labels",
                    expected=f"{before[0]}, as at {before[1]}",
                    got=f"{gold} for {text!r} about {question.image}",
                    fix="correct one of the two rows",
                )
            questions.append(question)
    if not questions:
        raise DataError(f"{paths[0]} holds no question", expected="one row or more", got="none", fix="check the file")
    return questions


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


def read_answers(paths: Sequence[Path], questions: Sequence[PopeQuestion]) -> list[str]:
    """Return the answers of files (rows of ``question_id``, ``answer``) in the order of the questions.

    A row may name its ``split``, or the file does; where there is one split, nobody need. Where a row repeats the
    question (``text`` or ``question``), the ``image`` or the ``label``, it must be the question's own.

    Raises:
        DataError: Ids that do not match one to one, an answer twice, or answers to other questions.
    """
    splits = {question.split for question in questions}
    wanted = {(question.split, question.id): question for question in questions}
    found: dict[tuple[str, str], str] = {}
    for path in paths:
        named = split_of(path)
        for row in benchmark_rows(path):
            fields = row.fields or {}
            split = str(fields.get("split") or named)
            split = split if split in splits else next(iter(splits)) if len(splits) == 1 else split
            key = (split, text_of(path, row, "question_id"))
            if key in found:
                raise DataError(
                    f"{path}:{row.place}: question {key[1]} is answered twice",
                    expected="one answer to each question",
                    got="a second one",
                    fix="remove one; answers to several splits go in one file each, named for its split",
                )
            if key in wanted:
                _same(path, row.place, fields, wanted[key])
            found[key] = text_of(path, row, "answer")
    missing, foreign = [key for key in wanted if key not in found], [key for key in found if key not in wanted]
    if missing or foreign:
        editions = {len(wanted), len(found)}
        hint = "; these are the two editions of the random split" if editions == set(EDITIONS) else ""
        raise DataError(
            f"the answers do not belong to the questions: {len(missing)} without an answer, {len(foreign)} unknown",
            expected=f"answers to all of the {len(wanted)} question ids and no other{hint}",
            got=f"{len(found)} answers, the first that does not fit: {' '.join((missing or foreign)[0]).strip()}",
            fix="give the POPE file that the answers were made on",
        )
    return [found[question.split, question.id] for question in questions]


def _same(path: Path, place: str, fields: Mapping[str, object], question: PopeQuestion) -> None:
    told = {
        "text": (fields.get("text", fields.get("question")), question.text),
        "image": (Path(str(fields["image"])).name if fields.get("image") else None, Path(question.image).name),
        "label": (fields.get("label"), question.gold),
    }
    for name, (given, own) in told.items():
        if given is not None and _folded(str(given)) != _folded(own):
            raise DataError(
                f"{path}:{place}: the answer is to another question",
                expected=f"{name} {own!r} for question {question.id}",
                got=repr(given)[:80],
                fix="give the POPE file that the answers were made on",
            )


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip()).casefold()


@dataclass(frozen=True)
class PopeOptions(QuestionOptions):
    """How POPE is asked.

    Attributes:
        instruction: Text put after each question.
        new_tokens: Greedy tokens of each answer; 1 is a single forward pass.
    """

    instruction: str | None = field(
        default=None, metadata=help_text("File with a text to put after each question.", text_file=True)
    )
    new_tokens: int = field(default=1, metadata=help_text("Greedy tokens per answer (1: a single pass)."))


def read_items(data: Sequence[Path], how: PopeOptions) -> Items:
    """Return the questions as prompts; one that stands in several splits is asked once."""
    questions = read_pope(data, limit=how.limit)
    ending = f"\n{how.instruction.strip()}" if how.instruction else ""
    lines: dict[str, list[Prediction]] = {}
    for one in questions:
        line = begin_line(one.id, Path(one.image).name, digest(one.key, ending), one.gold, one.split)
        lines.setdefault(one.key, []).append(line)
    described = describe_pope(data, questions)
    items = []
    for key, one in {one.key: one for one in questions}.items():
        image = placed_image(one.image, data[0], how.images)
        asked = Question(one.id, "", one.text + ending, None, None, image=image, group=one.image)
        items.append(Item(asked, one.image, lines[key]))
    settings = {
        "data": described,
        "instruction": how.instruction,
        "new_tokens": how.new_tokens,
        "parsers": list(POPE_PARSERS),
    }
    return Items(items, settings, pope_notes(described))


def read_answered(answers: Sequence[Path], data: Sequence[Path], how: AnswerOptions) -> AnswersRead:
    """Return the lines of answers that were made elsewhere."""
    questions = read_pope(data, limit=how.limit)
    texts = read_answers(answers, questions)
    lines: list[Prediction] = [
        {
            **begin_line(question.id, Path(question.image).name, question.key, question.gold, question.split),
            "answer": text,
            "yes": None,
            "no": None,
            "parsed": {name: parse(text) for name, parse in POPE_PARSERS.items()},
        }
        for question, text in zip(questions, texts, strict=True)
    ]
    described = describe_pope(data, questions)
    told = [describe_file(path) for path in answers]
    settings = {"data": described, "answers": told, "parsers": list(POPE_PARSERS), "limit": how.limit}
    return AnswersRead(lines, settings, pope_notes(described))


POPE = Benchmark(
    name="pope",
    label="POPE",
    about="POPE: is there such an object in the image, yes or no? Give --data once for each split.",
    asks="yes_no",
    options=PopeOptions,
    read=read_items,
    parse=parse_with(POPE_PARSERS),
    measure=measure_yesno,
    primary="accuracy",
    shown_beside=("yes_rate",),
    several_files=True,
    shows_images=True,
    scene_files=tuple(f"pope_{split}.jsonl" for split in SPLITS),
    elsewhere=AnswersElsewhere("Answers to POPE: rows of question_id and answer.", AnswerOptions, read_answered),
)
