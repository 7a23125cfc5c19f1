"""Answers to POPE that were made elsewhere, matched to its questions: by id, or by order and question."""

import re
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

from truthheads.benchmarks.pope_questions import EDITIONS, PopeQuestion, split_of
from truthheads.benchmarks.rows import benchmark_rows, text_of
from truthheads.data.lines import Row
from truthheads.errors import DataError

ANSWERS = ("answer", "text", "response", "output", "caption", "prediction", "predict", "model_answer")
"""Columns that hold the answer; the first that a row has."""

ASKED = ("question", "prompt", "query")
"""Columns that repeat the question; beside ``answer`` it may also stand under ``text``, as in POPE's question files."""

NAMED = ("question_id", "id")

BY_ID = "question_id"


class GivenAnswer(NamedTuple):
    """One answer as its file has it.

    Attributes:
        place: File and line.
        id: The question's id, where the row has one.
        split: The question's split, where the row or the file's name tells it.
        asked: The question, where the row repeats it; a prompt may say more than that.
        image: The image's name, where the row has it.
        label: The right answer, where the row has it.
        text: The answer.
    """

    place: str
    id: str | None
    split: str
    asked: str | None
    image: str | None
    label: str | None
    text: str


class Matched(NamedTuple):
    """Questions with their answers, for each question file in its order, and what they were matched by."""

    pairs: list[list[tuple[PopeQuestion, str]]]
    by: str


def match_answers(
    paths: Sequence[Path], files: Sequence[Sequence[PopeQuestion]], *, encoding: str | None = None
) -> Matched:
    """Return the answers of files beside the questions that they answer.

    Where every row has an id, and the ids are those of the questions, answers belong to their ids. Otherwise (POPE's
    own answers have none; LLaVA's ids run through its three splits) they belong to the questions in their order, and
    the splits may come in any order; what a row repeats of its question must be the question's own.

    Args:
        paths: Files of answers: rows of ``answer`` (POPE), or ``text`` (LLaVA, VCD), with any of ``question_id``,
            ``question`` or ``prompt``, ``image``, ``label``, ``split``.
        files: The questions of each question file.
        encoding: Encoding of text files; None: UTF-8.

    Raises:
        DataError: Answers are missing, too many, twice there, or to other questions.
    """
    questions = [question for file in files for question in file]
    given = [answer for path in paths for answer in _given(path, encoding)]
    found = _by_id(given, questions)
    if found is not None:
        return Matched([[(one, found[one.split, one.id]) for one in file] for file in files], BY_ID)
    for order in permutations(range(len(files))):
        asked = [question for at in order for question in files[at]]
        if len(asked) == len(given) and all(map(_fits, given, asked)):
            texts = dict(zip(((one.split, one.id) for one in asked), (one.text for one in given), strict=True))
            told = all(one.asked is not None for one in given)
            by = "their order and the question" if told else "their order alone, since they do not repeat the question"
            return Matched([[(one, texts[one.split, one.id]) for one in file] for file in files], by)
    raise _mismatch(given, questions)


def _given(path: Path, encoding: str | None) -> Iterator[GivenAnswer]:
    """Yield the answers of a file."""
    named = split_of(path)
    for row in benchmark_rows(path, encoding=encoding):
        fields = row.fields or {}
        own = "answer" if fields.get("answer") is not None else ""
        asked = next((str(fields[name]) for name in (*ASKED, *(["text"] if own else [])) if fields.get(name)), None)
        question = fields.get("label") is not None and asked is None  # its text is what is asked
        names = [name for name in ANSWERS if fields.get(name) is not None and not (question and name == "text")]
        yield GivenAnswer(
            f"{path}:{row.place}",
            _first(row, NAMED),
            str(fields.get("split") or fields.get("category") or named),
            asked,
            Path(image).name if (image := _first(row, ("image", "image_path"))) else None,
            _first(row, ("label",)),
            text_of(path, row, *(names or ANSWERS[:1])),
        )


def _first(row: Row, names: Sequence[str]) -> str | None:
    value = next((value for name in names if (value := (row.fields or {}).get(name)) is not None), None)
    return None if value is None or isinstance(value, dict | list) else str(value)


def _by_id(given: Sequence[GivenAnswer], questions: Sequence[PopeQuestion]) -> dict[tuple[str, str], str] | None:
    """Return the answers by split and id; None where the ids are not those of the questions.

    Raises:
        DataError: A question is answered twice, or ids fit whose rows are about something else.
    """
    splits = {question.split for question in questions}
    wanted = {(question.split, question.id): question for question in questions}
    found: dict[tuple[str, str], str] = {}
    places: dict[tuple[str, str], GivenAnswer] = {}
    for answer in given:
        if answer.id is None:
            return None
        split = answer.split if answer.split in splits else next(iter(splits)) if len(splits) == 1 else answer.split
        key = (split, answer.id)
        if key not in wanted:
            return None
        if key in found:
            raise DataError(
                f"{answer.place}: question {answer.id} is answered twice",
                expected="one answer to each question",
                got="a second one",
                fix="remove one; answers to several splits go in one file each, named for its split",
            )
        found[key], places[key] = answer.text, answer
    if found.keys() != wanted.keys():
        return None
    if not all(_fits(places[key], question) for key, question in wanted.items()):
        return None
    return found


def _fits(answer: GivenAnswer, question: PopeQuestion) -> bool:
    """Return whether what an answer's row repeats is the question's own: a prompt holds it, and perhaps more."""
    return not _differs(answer, question)


def _differs(answer: GivenAnswer, question: PopeQuestion) -> str:
    """Return in what a row is about something else; an empty text where in nothing."""
    if answer.asked is not None:
        told, own = _folded(answer.asked), _folded(question.text)
        if own not in told and told not in own:
            return f"question {question.text!r}, not {answer.asked[:60]!r}"
    elif _folded(answer.text).startswith(_folded(question.text)):
        return f"an answer to {question.text!r}, not the question itself"
    if answer.image is not None and answer.image != Path(question.image).name:
        return f"image {Path(question.image).name!r}, not {answer.image[:60]!r}"
    if answer.label is not None and _folded(answer.label) != question.gold:
        return f"label {question.gold!r}, not {answer.label[:60]!r}"
    return ""


def _mismatch(given: Sequence[GivenAnswer], questions: Sequence[PopeQuestion]) -> DataError:
    """Return the error for answers that fit neither by their ids nor by their order."""
    by_id = {question.id: question for question in questions}
    ids = [answer.id for answer in given if answer.id is not None]
    fix = "give the POPE file that the answers were made on; of several splits, one --data for each"
    pairs = list(zip(given, questions, strict=False))
    if len(by_id) == len(questions):  # ids say which question was meant
        pairs = [(answer, by_id.get(answer.id or "", question)) for answer, question in pairs]
    odd = next((pair for pair in pairs if not _fits(*pair)), None)
    if odd is not None and (len(given) == len(questions) or odd[0].id == odd[1].id):
        return DataError(
            f"{odd[0].place}: the answer is to another question",
            expected=f"{_differs(*odd)} (question {odd[1].id})",
            got=odd[0].asked or odd[0].text[:80],
            fix=fix,
        )
    hint = "; these are the two editions of the random split" if {len(given), len(questions)} == set(EDITIONS) else ""
    missing, foreign = sorted(by_id.keys() - set(ids)), [one for one in ids if one not in by_id]
    counted = f": {len(missing)} without an answer, {len(foreign)} unknown" if ids else ""
    strange = [*foreign, *missing][:1] if ids else []
    return DataError(
        f"the answers do not belong to the questions{counted}",
        expected=f"{len(questions)} answers, one to each question{hint}",
        got=f"{len(given)} answers" + "".join(f", the first id that does not fit: {one}" for one in strange),
        fix=fix,
    )


def _folded(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("<image>", " ").strip()).casefold()
