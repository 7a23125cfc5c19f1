"""One answer to one question, truthful in one row of a file and untruthful in another: no figure can be right."""

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from truthheads.data.questions import Question
from truthheads.errors import DataError


def hashed(*texts: str) -> int:
    """Return 64 bits that stand for texts: of a million rows, all would have to be kept to find one twice."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest(), "big", signed=True)


class Said:
    """What the rows of a file say of each answer; 24 bytes an answer, for files have millions of rows."""

    def __init__(self) -> None:
        self._keys, self._lines, self._rows = array("q"), array("q"), array("q")

    def add(self, question: Question, line: int, row: int) -> None:
        """Add a row's answers.

        Args:
            question: The row.
            line: Where it stands in its file, from 1.
            row: Its place among the questions that were read, from 0.
        """
        asked = (question.context.strip(), question.question.strip(), question.image or "")
        for answer in question.answers:
            self._keys.append(hashed(*asked, answer.text.strip()))
            self._lines.append(line if answer.truthful else -line)
            self._rows.append(row)

    def check(self, questions: Sequence[Question], path: Path, word: str) -> None:
        """Raise DataError where an answer is truthful in one row and untruthful in another, naming both.

        Args:
            questions: All that were added, by their place.
            path: Their file.
            word: What a place in it is called, ``line`` or ``row``.
        """
        keys, lines = (np.array(one, dtype=np.int64) for one in (self._keys, self._lines))
        order = np.lexsort((np.abs(lines), keys))
        keys, lines = keys[order], lines[order]
        turned = np.flatnonzero((keys[1:] == keys[:-1]) & ((lines[1:] > 0) != (lines[:-1] > 0))) + 1
        if not len(turned):
            return
        at = int(turned[np.abs(lines[turned]).argmin()])
        first, second = int(lines[np.searchsorted(keys, keys[at])]), int(lines[at])
        question = questions[self._rows[int(order[at])]]
        answer = question.truthful if second > 0 else question.untruthful
        pictured = question.image is not None
        raise DataError(
            f"{path}:{word} {abs(second)}: the same answer to the same question has opposite labels",
            expected=f"{'truthful' if first > 0 else 'untruthful'}, as in {path}:{word} {abs(first)}",
            got=f"{str(answer)[:60]!r} {f'about {question.image}' if pictured else f'to {question.question[:60]!r}'}",
            fix="the released RLHF-V sets D and E have opposite labels: use one, and correct rows that disagree"
            if pictured
            else "correct one of the two rows, or remove both",
        )
