"""Fields of one row: a text, an answer in several forms, a context, evidence; what cannot be used is a BadField."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from truthheads.data.passages import Joined, join_passages
from truthheads.data.same_answers import same_answer


class BadField(ValueError):
    """A field of one row cannot be used; becomes a DataError with file and line."""

    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(field)
        self.field, self.expected, self.got = field, expected, repr(got)[:120]


MISSING = "text (an empty cell is none, nor is nan; in a CSV answer neither is None, null or NA)"


def text_of(row: Mapping[str, object], field: str, default: str | None = None) -> str:
    """Return the one text of a field; a list must hold one text, however often."""
    values = listed(row, field)
    if len(values) > 1 and not all(value == values[0] for value in values):
        raise BadField(field, "one text, not a list of several", values)
    if not values and default is not None:
        return default
    return string_of(values[0], field) if values else string_of(None, field)


def listed(row: Mapping[str, object], field: str) -> list[object]:
    """Read a field as a list; missing items are left out."""
    value = row.get(field)
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [one for one in values if one is not None]


def string_of(value: object, field: str) -> str:
    """Return a value as text; numbers are written out. BadField where it is neither, or no valid Unicode."""
    if value is None:
        raise BadField(field, MISSING, value)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        raise BadField(field, "text", value)
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise BadField(field, "text that is valid Unicode", value)
    return value


class Forms(NamedTuple):
    """An answer that a field gives in one or several forms."""

    text: str
    aliases: tuple[str, ...]


ALSO_UNTRUTHFUL = "untruthful_aliases"
"""Column of other untruthful answers, which are not scored: what the world says in several forms."""


def forms_of(row: Mapping[str, object], field: str) -> Forms:
    """Return an answer of which a list holds several forms: the first that is not blank is scored, the others match."""
    values = list(dict.fromkeys(string_of(value, field) for value in listed(row, field)))
    filled = [value for value in values if value.strip()]
    if not filled:
        return Forms(values[0] if values else string_of(None, field), ())
    return Forms(filled[0], tuple(filled[1:]))


def untruthful_of(row: Mapping[str, object], field: str) -> Forms:
    """Return an untruthful answer; a list may hold forms of one, since of several none is more untruthful."""
    found = forms_of(row, field)
    if not all(same_answer(found.text, other) for other in found.aliases):
        raise BadField(field, "one untruthful answer (write a row for each of several, with one `group`)", row[field])
    others = (string_of(value, ALSO_UNTRUTHFUL) for value in listed(row, ALSO_UNTRUTHFUL))
    return Forms(found.text, tuple(dict.fromkeys((*found.aliases, *(one for one in others if one.strip())))))


def context_of(row: Mapping[str, object], field: str) -> Joined:
    """Return the text of a context and where its passages stand in it."""
    value = row.get(field)
    if isinstance(value, bool | int | float):
        return Joined(string_of(value, field), ())
    try:
        found = join_passages(value)
    except ValueError as error:
        raise BadField(field, str(error), value) from error
    string_of(found.text, field)
    return found


LARGEST = 2**53
"""Positions and pixels stay below: every whole number up to here is exact as a float."""


def spans_of(row: Mapping[str, object], field: str, *widths: int) -> list[tuple[Any, ...]]:
    """Return a field that holds lists of so many numbers, also where they come as JSON in a text."""
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


def evidence_of(row: Mapping[str, object], context: Joined) -> tuple[tuple[int, int], ...]:
    """Return evidence as spans of the joined context; ``[passage, start, end]`` counts inside of one passage."""
    spans = spans_of(row, "evidence", 2) if isinstance(row.get("context"), str) else spans_of(row, "evidence", 2, 3)
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
