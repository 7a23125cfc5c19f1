"""Rows that a model cannot take, found before anything is computed: too long for it, or with an answer of no token."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from truthheads.data.questions import Question
from truthheads.errors import RowError
from truthheads.models.load import Model
from truthheads.models.prompts import encode

AT_ONCE = 64
"""Rows that are tried together; one by one only where one of them cannot be used."""


class UnusableRow(NamedTuple):
    """A row that cannot be used, and why."""

    question: Question
    error: RowError


def unusable_rows(
    model: Model, questions: Sequence[Question], *, chat: bool = False, truncate: bool = False
) -> list[UnusableRow]:
    """List the rows that :func:`truthheads.models.prompts.encode` refuses.

    Args:
        model: The model.
        questions: The rows.
        chat: As for ``encode``.
        truncate: As for ``encode``.

    Raises:
        DataError: An image is missing.
        ModelError: The prompts cannot be made at all.
    """

    def put(part: Sequence[Question]) -> None:
        encode(model, part, chat=chat, truncate=truncate)

    return [UnusableRow(questions[at], error) for at, error in refused(questions, put)]


Kind = TypeVar("Kind")


def refused(rows: Sequence[Kind], put: Callable[[Sequence[Kind]], object]) -> list[tuple[int, RowError]]:
    """Return which rows are refused one by one, and why.

    Args:
        rows: The rows.
        put: Raises RowError where one of the rows that it is given cannot be used.
    """
    found: list[tuple[int, RowError]] = []
    for first in range(0, len(rows), AT_ONCE):
        part = rows[first : first + AT_ONCE]
        try:
            put(part)
        except RowError:
            for at, row in enumerate(part):
                try:
                    put([row])
                except RowError as error:
                    found.append((first + at, error))
    return found
