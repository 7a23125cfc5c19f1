"""The answers of a list of questions, counted through: labels, groups, kinds, digests."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from truthheads.data import Question, kind_of


class Answers(NamedTuple):
    """The answers of a list of questions, counted through.

    Attributes:
        text: Each answer.
        label: True where truthful.
        group: Number of its group.
        group_name: Its group.
        question: Row of its question.
    """

    text: list[str]
    label: Bool[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    group_name: list[str]
    question: Int[np.ndarray, " n"]


def list_answers(questions: Sequence[Question], *, shuffle: int | None = None) -> Answers:
    """Return all answers, counted through in the order of the questions.

    Args:
        questions: The questions.
        shuffle: Seed of the shuffled-label control, or None for the true labels.
    """
    numbers: dict[str, int] = {}
    text, label, names, row = [], [], [], []
    for i, question in enumerate(questions):
        name = question.group or question.id
        numbers.setdefault(name, len(numbers))
        coin = hashlib.sha256(f"{shuffle}|{question.digest}".encode()).digest()[0] % 2 == 1
        for answer in question.answers:
            text.append(answer.text)
            label.append(answer.truthful ^ (coin and shuffle is not None))
            names.append(name)
            row.append(i)
    group = np.array([numbers[name] for name in names])
    return Answers(text, np.array(label, dtype=bool), group, names, np.array(row))


def describe_data(questions: Sequence[Question]) -> dict[str, Any]:
    """Return what an artefact says about its data: layout, rows, digest of the file and of the rows used."""
    rows = hashlib.sha256("".join(str(question.digest) for question in questions).encode()).hexdigest()
    return {
        "layout": getattr(questions, "layout", None),
        "path": getattr(questions, "path", None),
        "sha256": getattr(questions, "sha256", rows),
        "rows_sha256": rows,
        "rows": len(questions),
        "skipped": getattr(questions, "skipped", 0),
        "note": getattr(questions, "note", ""),
    }


def answers_by_kind(questions: Sequence[Question], answers: Answers) -> dict[str, Bool[np.ndarray, " n"]]:
    """Return a mask of the answers of each kind, in alphabetical order; rows without a kind are in none."""
    names = np.array([kind_of(question) or "" for question in questions])[answers.question]
    return {str(name): names == name for name in sorted(set(names.tolist()) - {""})}


def kept_samples(question: Int[np.ndarray, " n"], max_samples: int, seed: int) -> Int[np.ndarray, " kept"]:
    """Return the samples to keep: all, or whole questions drawn at random up to the limit."""
    if len(question) <= max_samples:
        return np.arange(len(question))
    drawn = np.random.default_rng(seed).permutation(np.unique(question))
    sizes = np.bincount(question)[drawn].cumsum()
    return np.flatnonzero(np.isin(question, drawn[sizes <= max_samples]))


def digests(questions: Sequence[Question], rows: Int[np.ndarray, " n"]) -> Tensor:
    """Return the digest of the question at each given row, int64."""
    return torch.tensor([questions[int(row)].digest for row in rows], dtype=torch.int64)
