"""Known layouts of question files, and how a row of each becomes a question."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from truthheads.data.fields import (
    BadField,
    Forms,
    context_of,
    evidence_of,
    forms_of,
    listed,
    spans_of,
    string_of,
    text_of,
    untruthful_of,
)
from truthheads.data.questions import Question, normalised_text, occurrences


class Layout(NamedTuple):
    """A known set of columns and how a row of it becomes a question.

    Attributes:
        name: As it is told to people.
        columns: Plain names of the columns that a row must have.
        convert: From a row, and its place in the file, to a question.
        note: What a reader must know of such files.
        labelled: Whether its column ``label`` says which answer is truthful, so that ``--label-true`` acts.
    """

    name: str
    columns: frozenset[str]
    convert: Callable[[Mapping[str, object], str], Question]
    note: str = ""
    labelled: bool = False


CONTEXTS = (
    "context", "contexts", "documents", "passages", "retrieved_contexts", "retrieved_documents", "source_documents",
    "docs", "ctxs", "chunks", "search_results", "knowledge",
)  # fmt: skip
"""Columns that hold what the answer should agree with, in our own layouts; the first that a row has is read."""

SPELLINGS = {
    "context": CONTEXTS,
    "question": ("question", "query", "user_input"),
    "answer": ("answer", "response", "output"),
}
"""Columns of our own layouts and the names under which retrievers and their logs keep them."""


def respelled(fields: Mapping[str, object]) -> dict[str, str]:
    """Return from which column of a row each of ours is read, where it has another name there."""
    found = {}
    for name, spellings in SPELLINGS.items():
        if fields.get(name) is None and (
            other := next((one for one in spellings if fields.get(one) is not None), None)
        ):
            found[name] = other
    return found


def checked(question: Question) -> Question:
    """Return the question, or raise BadField where it cannot be used."""
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
    return question


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


LABEL_WORDS = "1 (truthful) or 0 (not); true, yes, gold and false, no, hallucinated are read, too"


def _label(row: Mapping[str, object], field: str) -> bool:
    value = row.get(field)
    key = label_word(value if isinstance(value, bool | int | float | str) else None)
    if key not in LABELS:
        raise BadField(field, LABEL_WORDS, value)
    return LABELS[key]


def label_word(value: object) -> str:
    """Return a label in one spelling: small letters, and ``1`` for ``1.0``, whether it came as text or as a number."""
    text = str(value).strip().casefold()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number in (0.0, 1.0) else text


def _native(row: Mapping[str, object], place: str) -> Question:
    truthful: Forms | None
    untruthful: Forms | None
    if row.get("truthful") is not None or row.get("untruthful") is not None or "answer" not in row:
        truthful, untruthful = forms_of(row, "truthful"), untruthful_of(row, "untruthful")
    elif _label(row, "label"):
        truthful, untruthful = forms_of(row, "answer"), None
    else:
        truthful, untruthful = None, untruthful_of(row, "answer")
    for answer in (truthful, untruthful) if None in (truthful, untruthful) else ():
        if answer is not None and not answer.text.strip():
            raise BadField("answer", "an answer that is not empty", answer.text)
    image = text_of(row, "image", "") or None
    boxes = spans_of(row, "boxes", 4)
    if not all(x0 < x1 and y0 < y1 and x0 >= 0 and y0 >= 0 for x0, y0, x1, y1 in boxes):
        raise BadField("boxes", "[x0, y0, x1, y1] with x0 < x1 and y0 < y1", boxes)
    context = context_of(row, "context")
    return Question(
        id=text_of(row, "id", "") or place,
        context=context.text,
        question=text_of(row, "question"),
        truthful=truthful.text if truthful else None,
        untruthful=untruthful.text if untruthful else None,
        evidence=evidence_of(row, context),
        image=image,
        boxes=tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes),
        group=text_of(row, "group", ""),
        kind=text_of(row, "kind", "") or None,
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
            id=text_of(row, "id", "") or place,
            context=_needed(row, "knowledge"),
            question=text_of(row, "question"),
            truthful=None,
            untruthful=None,
        ),
        forms_of(row, "right_answer"),
        untruthful_of(row, "hallucinated_answer"),
    )


def _needed(row: Mapping[str, object], field: str) -> str:
    """Return a context that must be there, be it empty."""
    return context_of(row, field).text if row.get(field) is not None else string_of(None, field)


def _with_occurrences(question: Question, truthful: Forms, untruthful: Forms) -> Question:
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
    question = Question(place, _needed(row, "sub_context"), text_of(row, "question"), None, None)
    # Its contexts are made from one text with other names put in: rows of one question belong together.
    question = replace(question, group=normalised_text(question.question))
    return _with_occurrences(question, forms_of(row, "sub_answer"), forms_of(row, "org_answer"))


def _gold_or_hallucinated(row: Mapping[str, object], place: str) -> Question:
    truthful, untruthful = _single(text_of(row, "answer"), _label(row, "label"), "answer")
    image = text_of(row, "image_file", "") or text_of(row, "image_id")
    return Question(place, "", text_of(row, "question"), truthful, untruthful, image=image)


def _pope(row: Mapping[str, object], place: str) -> Question:
    label = text_of(row, "label").strip().casefold()
    if label not in ("yes", "no"):
        raise BadField("label", "yes or no", row.get("label"))
    other = "no" if label == "yes" else "yes"
    image = text_of(row, "image")
    return Question(place, "", text_of(row, "text"), label, other, image=image)


def _truthfulqa(row: Mapping[str, object], place: str) -> Question:
    best, wrong = text_of(row, "best_answer"), _parts(row, "incorrect_answers")
    if not wrong:
        raise BadField("incorrect_answers", "at least one answer", row.get("incorrect_answers"))
    worst = text_of(row, "best_incorrect_answer", "").strip() or wrong[0]
    right = tuple(text for text in _parts(row, "correct_answers") if text != best.strip())
    return Question(place, "", text_of(row, "question"), best, worst, aliases=right)


def _parts(row: Mapping[str, object], field: str) -> list[str]:
    """Return answers that come as a list, or as one text with semicolons between them."""
    values = listed(row, field)
    texts = [string_of(values[0], field)] if len(values) == 1 else []
    parts = texts[0].split(";") if texts and not isinstance(row.get(field), list) else map(_told(field), values)
    return [part.strip() for part in parts if part.strip()]


def _told(field: str) -> Callable[[object], str]:
    return lambda value: string_of(value, field)


def _choices(row: Mapping[str, object], field: str) -> dict[bool, list[str]]:
    """Return the right and the wrong choices of a field: ``{choices, labels}``, or ``{choice: label}``."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadField(field, MC_FORM, value) from error
    if not isinstance(value, Mapping):
        raise BadField(field, MC_FORM, value)
    choices, labels = value.get("choices"), value.get("labels")
    if not (isinstance(choices, list) and isinstance(labels, list)):
        choices, labels = list(value), list(value.values())
    if len(choices) != len(labels) or not all(label in (0, 1) for label in labels):
        raise BadField(field, MC_FORM, value)
    told = zip(choices, labels, strict=True)
    found: dict[bool, list[str]] = {True: [], False: []}
    for choice, label in told:
        found[label == 1].append(string_of(choice, field).strip())
    return found


MC_FORM = "choices and as many labels, 1 or 0"


def _truthfulqa_mc(row: Mapping[str, object], place: str) -> Question:
    fields = [field for field in ("mc1_targets", "mc0_targets", "mc2_targets") if row.get(field) is not None]
    found = _choices(row, fields[0] if fields else "mc1_targets")
    more = _choices(row, "mc2_targets")[True] if "mc2_targets" in fields else []
    return _of_choices(text_of(row, "question"), found, more, fields[0], place)


def _chosen(row: Mapping[str, object], place: str) -> Question:
    choices, label = listed(row, "choices"), row.get("label")
    if type(label) is not int or not 0 <= label < len(choices):
        raise BadField("label", f"the number of the right choice, 0 to {len(choices) - 1}", label)
    found: dict[bool, list[str]] = {True: [], False: []}
    for at, choice in enumerate(choices):
        found[at == label].append(string_of(choice, "choices").strip())
    return _of_choices(text_of(row, "question"), found, [], "choices", place)


def _of_choices(question: str, found: Mapping[bool, list[str]], more: list[str], field: str, place: str) -> Question:
    if not found[True] or not found[False]:
        raise BadField(field, "a right and a wrong choice", found)
    right = found[True][0]
    others = tuple(text for text in dict.fromkeys([*found[True], *more]) if text != right)
    return Question(place, "", question, right, found[False][0], aliases=others)


def _ragtruth(row: Mapping[str, object], place: str) -> Question:
    """Return one response of RAGTruth; what ``ragtruth.with_sources`` has added is its context and its question."""
    flaws = _flaws(row, "labels")
    truthful, untruthful = _single(text_of(row, "response"), not flaws, "response")
    return Question(
        id=text_of(row, "id", "") or place,
        context=_needed(row, "context"),
        question=text_of(row, "question"),
        truthful=truthful,
        untruthful=untruthful,
        group=text_of(row, "source_id"),
        kind=text_of(row, "task_type", "") or None,
    )


def _ragtruth_processed(row: Mapping[str, object], place: str) -> Question:
    """Return one response of RAGTruth as it is on the hub, in one file."""
    flaws = _flaws(row, "hallucination_labels")
    own = {name: row.get(name) for name in ("id", "context", "question", "answer", "group")}
    return _native({**own, "label": int(not flaws), "kind": row.get("task_type")}, place)


def _flaws(row: Mapping[str, object], field: str) -> list[object]:
    """Return the spans that annotators marked as hallucinated; they may come as JSON in a text."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value or "[]")
        except ValueError as error:
            raise BadField(field, "a list of marked spans", value) from error
    if not isinstance(value, list):
        raise BadField(field, "a list of marked spans (an empty one where nothing is marked)", value)
    return value


POLARITY = (
    "Labels are taken as they stand: gold is truthful. PhD's are right (95.5 % of its 'is there a …' rows agree with "
    "COCO). RLHF-V's rows have opposite labels in the two released files, and neither is shown to be right: before a "
    "probe's direction is used, check them against RLHF-V's chosen answers."
)

ONE_OF_SEVERAL = (
    "TruthfulQA lists several incorrect answers: the one under 'Best Incorrect Answer' is taken as the untruthful one, "
    "or, where that column is missing, the first."
)

RESPONSES = (
    "RAGTruth's responses count as truthful where annotators marked nothing in them; spans marked as true but not in "
    "the context (implicit_true) count as not truthful."
)

LAYOUTS = (
    Layout("HaluEval", frozenset({"knowledge", "question", "right_answer", "hallucinated_answer"}), _halueval),
    Layout("NQ-Swap", frozenset({"question", "sub_context", "sub_answer", "org_answer"}), _nqswap),
    Layout("RAGTruth", frozenset({"source_id", "response", "labels", "source_info"}), _ragtruth, RESPONSES),
    Layout(
        "RAGTruth, processed",
        frozenset({"question", "context", "answer", "hallucination_labels"}),
        _ragtruth_processed,
        RESPONSES,
    ),
    Layout(
        "RLHF-V / PhD",
        frozenset({"question_id", "question", "answer", "label", "image_id"}),
        _gold_or_hallucinated,
        POLARITY,
        labelled=True,
    ),
    Layout("POPE", frozenset({"question_id", "image", "text", "label"}), _pope),
    Layout("TruthfulQA", frozenset({"question", "best_answer", "incorrect_answers"}), _truthfulqa, ONE_OF_SEVERAL),
    Layout("TruthfulQA, multiple choice", frozenset({"question", "mc1_targets"}), _truthfulqa_mc, ONE_OF_SEVERAL),
    Layout("TruthfulQA, multiple choice", frozenset({"question", "mc2_targets"}), _truthfulqa_mc, ONE_OF_SEVERAL),
    Layout("TruthfulQA, multiple choice", frozenset({"question", "choices", "label"}), _chosen, ONE_OF_SEVERAL),
    Layout("pairs", frozenset({"question", "truthful", "untruthful"}), _native),
    Layout("singles", frozenset({"question", "answer", "label"}), _native, labelled=True),
)
"""Known layouts, the most telling columns first."""


def _half(row: Mapping[str, object], place: str) -> Question:
    if row.get("truthful") is not None and row.get("untruthful") not in (None, ""):
        return _native(row, place)
    told = row.get("truthful") is not None
    answer = row.get("truthful") if told else row.get("answer")
    made = _native({**row, "answer": answer, "label": 1, "truthful": None, "untruthful": None}, place)
    return replace(made, labelled=told)


WITH_HALVES = (
    Layout("pairs", frozenset({"question", "truthful"}), _half),
    *LAYOUTS,
    Layout("answers", frozenset({"question", "answer"}), _half),
)
"""As ``LAYOUTS``, but the untruthful answer may be missing, in all rows or in some."""


def _without_question(row: Mapping[str, object], place: str) -> Question:
    """Return a row that asks nothing: an answer, or a pair, about a context."""
    named = {**row, "question": row.get("question") or ""}
    if not named["question"] and row.get("group") is None:
        named["group"] = normalised_text(context_of(row, "context").text)  # answers to one context belong together
    if row.get("truthful") is not None or row.get("untruthful") is not None:
        return _native(named, place)
    return _native(named, place) if row.get("label") is not None else _half(named, place)


def _summary(row: Mapping[str, object], place: str) -> Question:
    """Return a summary and its source."""
    own = {name: row.get(name) for name in ("id", "label", "group", "kind")}
    context, answer = row.get("source", row.get("document")), row.get("summary")
    return _without_question({**own, "context": context, "answer": answer, "question": SUMMARISE}, place)


SUMMARISE = "Summarize the text."
"""What is asked where a row is a source and its summary."""

FOR_DETECTION = (
    *LAYOUTS,
    Layout("answers", frozenset({"question", "answer"}), _half),
    Layout("pairs", frozenset({"context", "truthful", "untruthful"}), _without_question),
    Layout("singles", frozenset({"context", "answer", "label"}), _without_question, labelled=True),
    Layout("answers", frozenset({"context", "answer"}), _without_question),
    Layout("summaries", frozenset({"source", "summary"}), _summary, labelled=True),
    Layout("summaries", frozenset({"document", "summary"}), _summary, labelled=True),
)
"""As ``LAYOUTS``, but an answer's label and the question may be missing."""
