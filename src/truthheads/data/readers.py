"""Read questions in our layout and in those of the field: HaluEval, NQ-Swap, RLHF-V, PhD, POPE, TruthfulQA."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from truthheads.data.contradictions import Said, hashed
from truthheads.data.held import QuestionsLike, RowsLike, held_rows
from truthheads.data.images import image_path
from truthheads.data.passages import Joined, join_passages
from truthheads.data.questions import Question, QuestionRows, Questions, normalised_text, occurrences
from truthheads.data.same_answers import same_answer
from truthheads.data.tables import Row, address, on_hub, read_rows
from truthheads.errors import DataError
from truthheads.storage.files import file_sha256


class Layout(NamedTuple):
    """A known set of columns and how a row of it becomes a question."""

    name: str
    columns: frozenset[str]
    convert: Callable[[Mapping[str, object], str], Question]
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
    return replace(question, group=question.image or normalised_text(question.question) or question.id)


MISSING = "text (an empty cell is none, nor is nan; in a CSV answer neither is None, null or NA)"


def _text(row: Mapping[str, object], field: str, default: str | None = None) -> str:
    """Return the one text of a field; a list must hold one text, however often."""
    values = _listed(row, field)
    if len(values) > 1 and not all(value == values[0] for value in values):
        raise BadField(field, "one text, not a list of several", values)
    if not values and default is not None:
        return default
    return _string(values[0], field) if values else _string(None, field)


def _listed(row: Mapping[str, object], field: str) -> list[object]:
    """Read a field as a list; missing items are left out."""
    value = row.get(field)
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [one for one in values if one is not None]


def _string(value: object, field: str) -> str:
    if value is None:
        raise BadField(field, MISSING, value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        raise BadField(field, "text", value)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadField(field, "text that is valid Unicode", value)
    return value


class _Forms(NamedTuple):
    """An answer that a field gives in one or several forms."""

    text: str
    aliases: tuple[str, ...]


def _forms(row: Mapping[str, object], field: str) -> _Forms:
    """Return an answer of which a list holds several forms: the first that is not blank is scored, the others match."""
    values = list(dict.fromkeys(_string(value, field) for value in _listed(row, field)))
    filled = [value for value in values if value.strip()]
    if not filled:
        return _Forms(values[0] if values else _string(None, field), ())
    return _Forms(filled[0], tuple(filled[1:]))


def _untruthful(row: Mapping[str, object], field: str) -> _Forms:
    """Return an untruthful answer; a list may hold forms of one, since of several none is more untruthful."""
    found = _forms(row, field)
    if not all(same_answer(found.text, other) for other in found.aliases):
        raise BadField(field, "one untruthful answer (write a row for each of several, with one `group`)", row[field])
    return found


def _context(row: Mapping[str, object], field: str) -> Joined:
    """Return the text of a context and where its passages stand in it."""
    value = row.get(field)
    if isinstance(value, bool | int | float):
        return Joined(_string(value, field), ())
    try:
        found = join_passages(value)
    except ValueError as error:
        raise BadField(field, str(error), value) from error
    _string(found.text, field)
    return found


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


def _label(row: Mapping[str, object], field: str) -> bool:
    value = row.get(field)
    number = value if isinstance(value, bool | int | float | str) else None
    key = str(int(number)) if isinstance(number, float) and number in (0.0, 1.0) else str(number).strip().casefold()
    if key not in LABELS:
        raise BadField(field, "1 (truthful) or 0 (not)", value)
    return LABELS[key]


LARGEST = 2**53
"""Positions and pixels stay below: every whole number up to here is exact as a float."""


def _spans(row: Mapping[str, object], field: str, *widths: int) -> list[tuple[Any, ...]]:
    value = row.get(field)
    width = " or ".join(map(str, widths))
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadField(field, f"a list of lists of {width} numbers", value) from error
    if not isinstance(value, list) or not all(isinstance(item, list | tuple) and len(item) in widths for item in value):
        raise BadField(field, f"a list of lists of {width} numbers", value)
    spans = [tuple(item) for item in value]
    if not all(type(n) in (int, float) and abs(n) < LARGEST for span in spans for n in span):
        raise BadField(field, f"a list of lists of {width} numbers", value)
    return spans


def _evidence(row: Mapping[str, object], context: Joined) -> tuple[tuple[int, int], ...]:
    """Return evidence as spans of the joined context; ``[passage, start, end]`` counts inside of one passage."""
    spans = _spans(row, "evidence", 2) if isinstance(row.get("context"), str) else _spans(row, "evidence", 2, 3)
    if not all(isinstance(n, int) for span in spans for n in span):
        raise BadField("evidence", "whole character positions", spans)
    found = []
    for span in spans:
        *passage, start, end = span
        if passage:
            if not 0 <= passage[0] < len(context.spans):
                raise BadField("evidence", f"[passage, start, end] with a passage below {len(context.spans)}", span)
            first, last = context.spans[passage[0]]
            if not 0 <= start < end <= last - first:
                got = f"{list(span)}, where passage {passage[0]} has {last - first} characters"
                raise BadField("evidence", "[passage, start, end] inside that passage", got)
            start, end = start + first, end + first
        found.append((start, end))
    return tuple(found)


def _native(row: Mapping[str, object], place: str) -> Question:
    truthful: _Forms | None
    untruthful: _Forms | None
    if row.get("truthful") is not None or row.get("untruthful") is not None or "answer" not in row:
        truthful, untruthful = _forms(row, "truthful"), _untruthful(row, "untruthful")
    elif _label(row, "label"):
        truthful, untruthful = _forms(row, "answer"), None
    else:
        truthful, untruthful = None, _untruthful(row, "answer")
    for answer in (truthful, untruthful) if None in (truthful, untruthful) else ():
        if answer is not None and not answer.text.strip():
            raise BadField("answer", "an answer that is not empty", answer.text)
    image = _text(row, "image", "") or None
    boxes = _spans(row, "boxes", 4)
    if not all(x0 < x1 and y0 < y1 and x0 >= 0 and y0 >= 0 for x0, y0, x1, y1 in boxes):
        raise BadField("boxes", "[x0, y0, x1, y1] with x0 < x1 and y0 < y1", boxes)
    context = _context(row, "context")
    return Question(
        id=_text(row, "id", "") or place,
        context=context.text,
        question=_text(row, "question"),
        truthful=truthful.text if truthful else None,
        untruthful=untruthful.text if untruthful else None,
        evidence=_evidence(row, context),
        image=image,
        boxes=tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes),
        group=_text(row, "group", ""),
        kind=_text(row, "kind", "") or None,
        aliases=truthful.aliases if truthful else (),
        untruthful_aliases=untruthful.aliases if untruthful else (),
    )


def _single(answer: str, truthful: bool, field: str) -> tuple[str | None, str | None]:
    """Return (truthful, untruthful) of a row whose answer comes singly."""
    if not answer.strip():
        raise BadField(field, "an answer that is not empty", answer)
    return (answer, None) if truthful else (None, answer)


def _halueval(row: Mapping[str, object], place: str) -> Question:
    return _with_occurrences(
        Question(
            id=_text(row, "id", "") or place,
            context=_needed(row, "knowledge"),
            question=_text(row, "question"),
            truthful=None,
            untruthful=None,
        ),
        _forms(row, "right_answer"),
        _untruthful(row, "hallucinated_answer"),
    )


def _needed(row: Mapping[str, object], field: str) -> str:
    """Return a context that must be there, be it empty."""
    return _context(row, field).text if row.get(field) is not None else _string(None, field)


def _with_occurrences(question: Question, truthful: _Forms, untruthful: _Forms) -> Question:
    """Return a question with its answers; its evidence is where the truthful one stands in the context."""
    return replace(
        question,
        truthful=truthful.text,
        untruthful=untruthful.text,
        evidence=occurrences(question.context, truthful.text),
        aliases=truthful.aliases,
        untruthful_aliases=untruthful.aliases,
    )


def _nqswap(row: Mapping[str, object], place: str) -> Question:
    question = Question(place, _needed(row, "sub_context"), _text(row, "question"), None, None)
    return _with_occurrences(question, _forms(row, "sub_answer"), _forms(row, "org_answer"))


def _gold_or_hallucinated(row: Mapping[str, object], place: str) -> Question:
    truthful, untruthful = _single(_text(row, "answer"), _label(row, "label"), "answer")
    image = _text(row, "image_file", "") or _text(row, "image_id")
    return Question(place, "", _text(row, "question"), truthful, untruthful, image=image)


def _pope(row: Mapping[str, object], place: str) -> Question:
    label = _text(row, "label").strip().casefold()
    if label not in ("yes", "no"):
        raise BadField("label", "yes or no", row.get("label"))
    other = "no" if label == "yes" else "yes"
    image = _text(row, "image")
    return Question(place, "", _text(row, "text"), label, other, image=image)


def _truthfulqa(row: Mapping[str, object], place: str) -> Question:
    best, wrong = _text(row, "Best Answer"), _parts(row, "Incorrect Answers")
    if not wrong:
        raise BadField("Incorrect Answers", "at least one answer", row.get("Incorrect Answers"))
    worst = _text(row, "Best Incorrect Answer", "").strip() or wrong[0]
    right = tuple(text for text in _parts(row, "Correct Answers") if text != best.strip())
    return Question(place, "", _text(row, "Question"), best, worst, aliases=right)


def _parts(row: Mapping[str, object], field: str) -> list[str]:
    """Return answers with semicolons between them."""
    return [part.strip() for part in _text(row, field, "").split(";") if part.strip()]


POLARITY = (
    "Labels are taken as they stand: gold is truthful. PhD's are right (95.5 % of its 'is there a …' rows agree with "
    "COCO). RLHF-V's rows have opposite labels in the two released files, and neither is shown to be right: before a "
    "probe's direction is used, check them against RLHF-V's chosen answers."
)

ONE_OF_SEVERAL = (
    "TruthfulQA lists several incorrect answers: the one under 'Best Incorrect Answer' is taken as the untruthful one, "
    "or, where that column is missing, the first."
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
    Layout("TruthfulQA", frozenset({"Question", "Best Answer", "Incorrect Answers"}), _truthfulqa, ONE_OF_SEVERAL),
    Layout("pairs", frozenset({"question", "truthful", "untruthful"}), _native),
    Layout("singles", frozenset({"question", "answer", "label"}), _native),
)
"""Known layouts, the most telling columns first."""


def _half(row: Mapping[str, object], place: str) -> Question:
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

IMAGE_PATH_RULE = (
    "a path inside the folder that images start from (the question file's own, or --images) or the current one"
)


def as_questions(data: QuestionsLike, *, halves: bool = False) -> Sequence[Question]:
    """Return the questions that a person means: those given, or those of a file, a table or rows in memory.

    Args:
        data: Questions, or anything that :func:`read_questions` reads.
        halves: As there.

    Raises:
        DataError: It is none of these, or a row cannot be used.
    """
    paired = getattr(data, "questions", None)  # what make_pairs returned; a DataFrame may have such a column
    given = paired if isinstance(paired, list) else data
    if isinstance(given, QuestionRows):
        return given
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(one, Question) for one in given):
        return cast("Sequence[Question]", given)
    return read_questions(cast("RowsLike", given), halves=halves)


IN_MEMORY = Path("rows in memory")
"""What stands for the file where there is none; relative paths of images start from the current folder."""


def read_questions(
    path: RowsLike,
    *,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    images: str | Path | None = None,
    halves: bool = False,
) -> Questions:
    """Read questions from a file of any known layout, from a data set on the hub, or from rows in memory.

    Rows are read one at a time and, from 20,000 on, kept in a temporary file instead of memory.

    Args:
        path: A JSONL, JSON, CSV or Parquet file, or ``hf://datasets/OWNER/NAME[@REVISION][/FILE][?split=…&config=…]``,
            which is streamed. Or rows in memory: dictionaries, a DataFrame, a ``datasets.Dataset``.
        limit: Read the first so many good rows; None reads all.
        skip_bad_rows: Leave bad rows out and count them instead of raising.
        images: Folder that image paths start from; None: the file's own.
        halves: Accept rows with a truthful answer alone (``truthful``, or ``answer`` without ``label``), for
            :func:`truthheads.make_pairs`.

    Returns:
        A sequence of :class:`Question`; ``.layout`` names the layout found, ``.skipped`` counts the bad rows,
        ``.alike`` the rows whose two answers are one in two forms, and ``.cautions`` says so in words.

    Raises:
        DataError: No such file, no known layout, no usable row, two rows with one id, or a bad row (unless
            skipped); the message names file, line and field. Always where the same answer to the same question with
            the same context and image is truthful in one row and untruthful in another: both rows are named.
    """
    held = None if isinstance(path, str | Path) else held_rows(path)
    path = Path(path).expanduser() if isinstance(path, str | Path) else IN_MEMORY
    layout: Layout | None = None
    questions, streamed = Questions(path=address(path) if held is None else ""), held is not None or on_hub(path)
    seen: set[int] = set()
    said, word = Said(), "row"
    rows = hashlib.sha256()
    skipped = 0
    unknown: DataError | None = None
    for row in read_rows(path) if held is None else held:
        if limit is not None and len(questions) >= limit:
            break
        try:
            if row.fields is None:
                raise BadField("", "one row", row.fault)
            if layout is None:
                try:
                    layout = _recognise(path, row, WITH_HALVES if halves else LAYOUTS)
                except DataError as error:
                    if not skip_bad_rows:
                        raise
                    unknown = unknown or error
                    skipped += 1
                    continue
            question = checked(layout.convert(row.fields, row.place.rpartition(" ")[2]))
            name = hashed(question.id)
            if name in seen:
                raise BadField("id", "an id of its own", question.id)
            image = _image(question, path.parent, images)
        except BadField as bad:
            if not skip_bad_rows:
                raise DataError(
                    f"{path}:{row.place}: " + (f"field {bad.field!r}" if bad.field else "the row"),
                    expected=bad.expected,
                    got=bad.got,
                    fix="correct the row, or pass --skip-bad-rows to leave it out",
                ) from bad
            skipped += 1
        else:
            seen.add(name)
            word, _, number = row.place.rpartition(" ")
            said.add(question, int(number), len(questions))
            if image is not None:
                question = replace(question, image=image)
            if streamed:
                rows.update(question.digest.to_bytes(8, "big", signed=True))
            if question.alike:
                questions.alike = questions.alike.and_at(row.place)
            questions.append(question)
    if layout is None and unknown is not None:
        raise unknown
    if layout is None or not questions:
        raise DataError(
            f"{path} holds no usable row",
            expected="at least one row of a known layout",
            got=f"0 good rows, {skipped} bad ones",
            fix="see the layouts in the README",
        )
    said.check(questions, path, word)
    questions.layout, questions.note, questions.skipped = layout.name, layout.note, skipped
    questions.sha256 = rows.hexdigest() if streamed else file_sha256(path)
    return questions


def _image(question: Question, beside: Path, images: str | Path | None) -> str | None:
    if question.image is None:
        return None
    try:
        return image_path(question.image, beside=beside, images=None if images is None else Path(images))
    except ValueError as error:
        raise BadField("image", IMAGE_PATH_RULE, str(error)) from error


def _recognise(path: Path, row: Row, layouts: Sequence[Layout]) -> Layout:
    columns = set(row.fields or {})
    for layout in layouts:
        if layout.columns <= columns:
            return layout
    near = min(layouts, key=lambda layout: len(layout.columns - columns) / len(layout.columns))
    raise DataError(
        f"{path}:{row.place}: column {sorted(near.columns - columns)[0]!r} is missing",
        expected=" or ".join(f"{layout.name} ({', '.join(sorted(layout.columns))})" for layout in layouts),
        got=", ".join(sorted(map(str, columns))) or "no columns",
        fix="rename the columns, or add the missing one",
    )
