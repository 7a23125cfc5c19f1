"""Which rows belong together: those about one image, one question, or, where a question is general, one context."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from truthheads.data.contradictions import hashed
from truthheads.data.questions import Question, QuestionRows, normalised_text

GENERAL_FROM = 6
"""Contexts of which a question is asked that says nothing about its answer ("Summarize the text"). NQ-Swap asks each of
its questions of up to five contexts, which are one text with other names; there the question is what is common."""

KINDS = {
    "own": "the rows' own groups",
    "image": "image",
    "context": "context",
    "question": "question",
    "id": "row",
}
"""What rows may be grouped by, and how it is told."""


class Grouping:
    """What the rows of a file ask of how many contexts; 24 bytes a row, for files have millions of rows."""

    def __init__(self) -> None:
        self._asked, self._contexts, self._groups = array("q"), array("q"), array("q")
        self._by: Counter[str] = Counter()
        self._general = 0

    def add(self, question: Question) -> Question:
        """Add a row and return it with a group: its own, its image, its question, or else its id."""
        asked = normalised_text(question.question)
        group = question.group or question.image or asked or question.id
        by = "image" if question.image == group else "question" if group == asked else "id"
        by = "own" if question.group and by != "question" else by
        counts = not question.group and by in ("question", "id") and bool(question.context.strip())
        self._by[by] += 1
        self._asked.append(hashed(asked) if counts else 0)
        self._contexts.append(hashed(question.context.strip()) if counts else 0)
        self._groups.append(hashed(group))
        return question if question.group else replace(question, group=group)

    def settle(self, rows: QuestionRows) -> Iterator[Question] | None:
        """Return the rows with groups by context where their question is general; None where none is.

        A question is general that is asked of many contexts (``GENERAL_FROM``), or of three or more that are more than
        half of all.

        Args:
            rows: All that were added, in their order.
        """
        asked, contexts = (np.array(one, dtype=np.int64) for one in (self._asked, self._contexts))
        both = np.unique(np.stack([asked, contexts], axis=1)[asked != 0], axis=0)
        questions, count = np.unique(both[:, 0], return_counts=True)
        of_all = len(np.unique(both[:, 1]))
        general = np.isin(asked, questions[(count >= GENERAL_FROM) | ((count >= 3) & (2 * count > of_all))])
        if not general.any():
            return None
        self._general = len(np.unique(asked[general]))
        self._by = Counter(own=self._by["own"], image=self._by["image"], context=int(general.sum()))
        self._by["question"] = len(rows) - self._by.total()
        groups = np.array(self._groups, dtype=np.int64)
        groups[general] = contexts[general]
        self._groups = array("q", groups.tolist())
        return _by_context(rows, general)

    def told(self) -> str:
        """Return in a few words how the rows are grouped."""
        groups = len(np.unique(np.array(self._groups, dtype=np.int64)))
        by = " or ".join(word for name, word in KINDS.items() if self._by[name])
        several = "one question is" if self._general == 1 else f"{self._general} questions are"
        why = f", since {several} asked of many contexts" if self._general else ""
        return f"grouped by {by} ({groups} {'group' if groups == 1 else 'groups'}){why}"


def _by_context(rows: QuestionRows, general: Bool[np.ndarray, " rows"]) -> Iterator[Question]:
    for question, one in zip(rows, general, strict=True):
        if one:
            name = hashlib.sha256(question.context.strip().encode()).hexdigest()[:16]
            question = replace(question, group=f"context {name}")
        yield question
