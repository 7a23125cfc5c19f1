"""Conflict: the context says one thing and memory another; whose answer does the model write?"""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truthheads.data import Question
from truthheads.errors import DataError
from truthheads.measures import Measured, ratio

NEW_TOKENS = 16
SIDES = ("context", "memory")


@dataclass(frozen=True, slots=True)
class Conflict:
    """A question with all answers that its context and memory allow."""

    question: Question
    context: tuple[str, ...]
    memory: tuple[str, ...]


def conflicts(questions: Iterable[Question], path: Path) -> list[Conflict]:
    """Return the conflicts of a question file, with every form of both answers that the file gives.

    Args:
        questions: The rows, as ``read_questions`` gives them.
        path: Their file, for errors.

    Raises:
        DataError: A row has no context, or not both answers.
    """
    for question in questions:
        if not question.context or question.truthful is None or question.untruthful is None:
            raise DataError(
                f"{path}: row {question.id!r} is no conflict",
                expected="a context, the answer that it gives (truthful) and the one from memory (untruthful)",
                got="no context" if not question.context else "one answer",
                fix="give NQ-Swap, or a question file with both answers in every row",
            )
    return [
        Conflict(
            question,
            (str(question.truthful), *question.aliases),
            (str(question.untruthful), *question.untruthful_aliases),
        )
        for question in questions
    ]


def first_line(text: str) -> str:
    """Return what counts as the answer: the first line of what was generated, without blanks at its ends."""
    return text.strip().split("\n")[0].strip()


def plain_words(text: str) -> list[str]:
    """Return the words of an answer without case, punctuation and articles.

    Source:
        Answer normalisation of SQuAD: Rajpurkar et al. (2016), arXiv 1606.05250.
    """
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """Return 1 where an answer is one of the gold answers, both normalised, else 0."""
    return float(any(plain_words(answer) == plain_words(gold) for gold in golds))


def best_f1(answer: str, golds: Sequence[str]) -> float:
    """Return the highest F1 of an answer's words with those of a gold answer; 1 where both have none."""
    return max(_f1(plain_words(answer), plain_words(gold)) for gold in golds)


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def measure_conflict(lines: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Measured:
    """Return what generated answers amount to: exact match and F1 with each side's answer, and neither.

    Args:
        lines: Predictions of one run: ``answer``, ``gold`` with lists under ``context`` and ``memory``, ``group``.
        seed: Not used; every task has it.
    """
    del seed
    features = {"n": np.ones(len(lines))}
    answers = [first_line(line["answer"]) for line in lines]
    for side in SIDES:
        golds = [line["gold"][side] for line in lines]
        features[f"em_{side}"] = np.array([exact_match(a, g) for a, g in zip(answers, golds, strict=True)])
        features[f"f1_{side}"] = np.array([best_f1(a, g) for a, g in zip(answers, golds, strict=True)])
    features["neither"] = 1.0 - np.maximum(features["em_context"], features["em_memory"])
    metrics = {name: ratio(name, "n") for name in features if name != "n"}
    right = features["em_context"] > 0
    return Measured(features, [str(line["group"]) for line in lines], metrics, "em_context", right=right)
