"""The layouts of the field: how a row of each becomes a question."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from truthheads.data import Question, normalised, occurrences


class Layout(NamedTuple):
    """A known set of columns and how a row of it becomes a question."""

    name: str
    columns: frozenset[str]
    convert: Callable[[dict[str, Any], str], Question]
    note: str = ""


class BadField(ValueError):
    """A field of one row cannot be used; becomes a DataError with file and line."""

    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(field)
        self.field, self.expected, self.got = field, expected, repr(got)[:120]


def checked(question: Question) -> Question:
    """Return the question with its group filled in, or raise BadField."""
    if not question.question.strip() and not question.context.strip() and question.image is None:
        raise BadField("question", "a question that is not empty", question.question)
    for field, text in (("truthful", question.truthful), ("untruthful", question.untruthful)):
        if text is not None and not text.strip():
            raise BadField(field, "an answer that is not empty", text)
    texts = [answer.text.strip() for answer in question.answers]
    if len(texts) == 2 and texts[0] == texts[1]:
        raise BadField("untruthful", "an answer that differs from the truthful one", question.untruthful)
    for start, end in question.evidence:
        if not 0 <= start < end <= len(question.context):
            span = f"[{start}, {end}) in a context of {len(question.context)} characters"
            raise BadField("evidence", "spans [start, end) inside the context", span)
    if question.group:
        return question
    return replace(question, group=question.image or normalised(question.question) or question.id)


def _text(row: dict[str, Any], field: str, default: str | None = None) -> str:
    value = row.get(field)
    if isinstance(value, list) and len(value) > 0:
        value = value[0]
    if value is None and default is not None:
        return default
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        raise BadField(field, "text", value)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadField(field, "text that is valid Unicode", value)
    return value


LABELS = {
    "1": True,
    "true": True,
    "gold": True,
    "yes": True,
    "0": False,
    "false": False,
    "hallucinated": False,
    "no": False,
}


def _label(row: dict[str, Any], field: str) -> bool:
    value = row.get(field)
    number = value if isinstance(value, bool | int | float | str) else None
    key = str(int(number)) if isinstance(number, float) and number in (0.0, 1.0) else str(number).strip().casefold()
    if key not in LABELS:
        raise BadField(field, "1 (truthful) or 0 (not)", value)
    return LABELS[key]


LARGEST = 2**53
"""Positions and pixels stay below: every whole number up to here is exact as a float."""


def _spans(row: dict[str, Any], field: str, width: int) -> list[tuple[Any, ...]]:
    value = row.get(field)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadField(field, f"a list of lists of {width} numbers", value) from error
    if not isinstance(value, list) or not all(isinstance(item, list | tuple) and len(item) == width for item in value):
        raise BadField(field, f"a list of lists of {width} numbers", value)
    spans = [tuple(item) for item in value]
    if not all(type(n) in (int, float) and abs(n) < LARGEST for span in spans for n in span):
        raise BadField(field, f"a list of lists of {width} numbers", value)
    return spans


def _native(row: dict[str, Any], place: str) -> Question:
    pair = row.get("truthful") is not None or row.get("untruthful") is not None or "answer" not in row
    truthful: str | None
    untruthful: str | None
    if pair:
        truthful, untruthful = _text(row, "truthful"), _text(row, "untruthful")
    else:
        truthful, untruthful = _single(_text(row, "answer"), _label(row, "label"), "answer")
    image = _text(row, "image", "") or None
    boxes = _spans(row, "boxes", 4)
    if not all(x0 < x1 and y0 < y1 and x0 >= 0 and y0 >= 0 for x0, y0, x1, y1 in boxes):
        raise BadField("boxes", "[x0, y0, x1, y1] with x0 < x1 and y0 < y1", boxes)
    evidence = _spans(row, "evidence", 2)
    if not all(isinstance(n, int) for span in evidence for n in span):
        raise BadField("evidence", "whole character positions", evidence)
    return Question(
        id=_text(row, "id", "") or place,
        context=_text(row, "context", ""),
        question=_text(row, "question"),
        truthful=truthful,
        untruthful=untruthful,
        evidence=tuple((start, end) for start, end in evidence),
        image=image,
        boxes=tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes),
        group=_text(row, "group", ""),
        kind=_text(row, "kind", "") or None,
    )


def _single(answer: str, truthful: bool, field: str) -> tuple[str | None, str | None]:
    """Return (truthful, untruthful) of a row whose answer comes singly."""
    if not answer.strip():
        raise BadField(field, "an answer that is not empty", answer)
    return (answer, None) if truthful else (None, answer)


def _halueval(row: dict[str, Any], place: str) -> Question:
    context, truthful = _text(row, "knowledge"), _text(row, "right_answer")
    return Question(
        id=_text(row, "id", "") or place,
        context=context,
        question=_text(row, "question"),
        truthful=truthful,
        untruthful=_text(row, "hallucinated_answer"),
        evidence=occurrences(context, truthful),
    )


def _nqswap(row: dict[str, Any], place: str) -> Question:
    context, truthful = _text(row, "sub_context"), _text(row, "sub_answer")
    return Question(
        id=place,
        context=context,
        question=_text(row, "question"),
        truthful=truthful,
        untruthful=_text(row, "org_answer"),
        evidence=occurrences(context, truthful),
    )


def _gold_or_hallucinated(row: dict[str, Any], place: str) -> Question:
    truthful, untruthful = _single(_text(row, "answer"), _label(row, "label"), "answer")
    image = _text(row, "image_file", "") or _text(row, "image_id")
    return Question(place, "", _text(row, "question"), truthful, untruthful, image=image)


def _pope(row: dict[str, Any], place: str) -> Question:
    label = _text(row, "label").strip().casefold()
    if label not in ("yes", "no"):
        raise BadField("label", "yes or no", row.get("label"))
    other = "no" if label == "yes" else "yes"
    image = _text(row, "image")
    return Question(place, "", _text(row, "text"), label, other, image=image)


def _truthfulqa(row: dict[str, Any], place: str) -> Question:
    wrong = [part.strip() for part in _text(row, "Incorrect Answers").split(";") if part.strip()]
    if not wrong:
        raise BadField("Incorrect Answers", "at least one answer", row.get("Incorrect Answers"))
    return Question(place, "", _text(row, "Question"), _text(row, "Best Answer"), wrong[0])


POLARITY = (
    "Labels are taken as they stand: gold is truthful. PhD's are right (95.5 % of its 'is there a …' rows agree with "
    "COCO). RLHF-V's rows have opposite labels in the two released files, and neither is shown to be right: before a "
    "probe's direction is used, check them against RLHF-V's chosen answers."
)
LAYOUTS = (
    Layout("HaluEval", frozenset({"knowledge", "question", "right_answer", "hallucinated_answer"}), _halueval),
    Layout("NQ-Swap", frozenset({"question", "sub_context", "sub_answer", "org_answer"}), _nqswap),
    Layout(
        "RLHF-V / PhD",
        frozenset({"question_id", "question", "answer", "label", "image_id"}),
        _gold_or_hallucinated,
        POLARITY,
    ),
    Layout("POPE", frozenset({"question_id", "image", "text", "label"}), _pope),
    Layout("TruthfulQA", frozenset({"Question", "Best Answer", "Incorrect Answers"}), _truthfulqa),
    Layout("pairs", frozenset({"question", "truthful", "untruthful"}), _native),
    Layout("singles", frozenset({"question", "answer", "label"}), _native),
)
"""Known layouts, the most telling columns first."""


def _half(row: dict[str, Any], place: str) -> Question:
    if row.get("truthful") is not None and row.get("untruthful") not in (None, ""):
        return _native(row, place)
    answer = row.get("truthful") if row.get("truthful") is not None else row.get("answer")
    return _native({**row, "answer": answer, "label": 1, "truthful": None, "untruthful": None}, place)


WITH_HALVES = (
    Layout("pairs", frozenset({"question", "truthful"}), _half),
    *LAYOUTS,
    Layout("answers", frozenset({"question", "answer"}), _half),
)
"""As ``LAYOUTS``, but the untruthful answer may be missing, in all rows or in some."""
