"""The answers of a list of questions, counted through: labels, groups, kinds, digests."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor

from truthheads.data.questions import Question, Questions, alike_rows, answer_kind
from truthheads.storage.artifacts import without_folder


class Answers(NamedTuple):
    """The answers of a list of questions, counted through: some two hundred bytes each, and no text.

    Attributes:
        label: True where truthful.
        group: Number of its group, in the order in which groups first appear.
        question: Row of its question.
        order: For each group its place when groups are shuffled; see :func:`shuffled_place`.
        kinds: The kinds of rows, in alphabetical order.
        kind: Number of its kind, -1 where it has none.
        digest: For each question its digest.
        size: For each question its characters.
        features: What ``features`` of :func:`list_answers` returned for each answer.
    """

    label: Bool[np.ndarray, " n"]
    group: Int[np.ndarray, " n"]
    question: Int[np.ndarray, " n"]
    order: UInt64[np.ndarray, " groups"]
    kinds: tuple[str, ...]
    kind: Int[np.ndarray, " n"]
    digest: Int[np.ndarray, " questions"]
    size: Int[np.ndarray, " questions"]
    features: Float[np.ndarray, "n features"]


def list_answers(
    questions: Iterable[Question],
    *,
    seed: int = 0,
    shuffle: int | None = None,
    features: Callable[[str], Sequence[float]] | None = None,
) -> Answers:
    """Return all answers, counted through in the order of the questions, which are read once.

    Args:
        questions: The questions.
        seed: Random seed of the order of groups.
        shuffle: Seed of the shuffled-label control, or None for the true labels.
        features: What to keep of each answer's text, as numbers; kept in fp32.
    """
    label, row = array("b"), array("q")
    place, digest, size, kind = array("Q"), array("q"), array("q"), array("q")
    kinds: dict[str, int] = {}
    kept = array("f")
    for i, question in enumerate(questions):
        place.append(shuffled_place(question.group or question.id, seed))
        digest.append(question.digest)
        size.append(len(question.context) + len(question.question) + sum(len(one.text) for one in question.answers))
        own = answer_kind(question)
        kind.append(-1 if not own else kinds.setdefault(own, len(kinds)))
        coin = shuffle is not None and hashlib.sha256(f"{shuffle}|{question.digest}".encode()).digest()[0] % 2 == 1
        for answer in question.answers:
            label.append(answer.truthful ^ coin)
            row.append(i)
            if features is not None:
                kept.extend(features(answer.text))
    places = np.array(place, dtype=np.uint64)  # 64 bits of a hash of the name: as good as the name
    number, first = _numbered(places)
    names = sorted(kinds)
    renamed = np.array([names.index(name) for name in kinds] + [-1])  # the last one serves those without a kind
    rows = np.array(row, dtype=np.int64)
    return Answers(
        label=np.array(label, dtype=bool),
        group=number[rows],
        question=rows,
        order=places[first],
        kinds=tuple(names),
        kind=renamed[np.array(kind, dtype=np.int64)][rows],
        digest=np.array(digest, dtype=np.int64),
        size=np.array(size, dtype=np.int64),
        features=np.array(kept, dtype=np.float32).reshape(len(rows), -1 if len(kept) else 0),
    )


def shuffled_place(name: str, seed: int) -> int:
    """Return where a group comes when groups are shuffled: it depends on its name and the seed, not on other rows."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "big")


def _numbered(names: UInt64[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " groups"]]:
    """Return numbers in the order of first appearance, and where each number first appears."""
    _, first, index = np.unique(names, return_index=True, return_inverse=True)
    by_place = np.argsort(first, kind="stable")
    number = np.empty(len(first), dtype=np.int64)
    number[by_place] = np.arange(len(first))
    return number[index.reshape(-1)], first[by_place]


class AlikeSummary(TypedDict):
    """How many rows have two answers that are one but for its form, and where the first few of them stand."""

    rows: int
    first: list[str]


class DataSummary(TypedDict):
    """What an artefact says about the data that it rests on.

    Attributes:
        layout: Name of the layout, where the questions come from a file.
        path: The file's address.
        sha256: Digest of the file, else of the rows.
        rows_sha256: Digest of the rows that were used.
        rows: How many.
        skipped: Bad rows that were left out.
        note: What is to be known about the layout.
        alike: Rows whose two answers are one.
        read_as: How the file was read where that is not a matter of course, and how its rows are grouped.
    """

    layout: str | None
    path: str | None
    sha256: str
    rows_sha256: str
    rows: int
    skipped: int
    note: str
    alike: AlikeSummary
    read_as: list[str]


def describe_data(questions: Sequence[Question], *, digest: Int[np.ndarray, " questions"] | None = None) -> DataSummary:
    """Describe the data for an artefact's metadata: layout, rows, digests of the file and of the rows used.

    Args:
        questions: The questions.
        digest: Their digests, where they are known already.
    """
    whole = hashlib.sha256()
    for one in digest.tolist() if digest is not None else (question.digest for question in questions):
        whole.update(str(one).encode())
    rows = whole.hexdigest()
    return {
        "layout": getattr(questions, "layout", None),
        "path": without_folder(str(path)) if (path := getattr(questions, "path", None)) is not None else None,
        "sha256": getattr(questions, "sha256", rows),
        "rows_sha256": rows,
        "rows": len(questions),
        "skipped": getattr(questions, "skipped", 0),
        "note": getattr(questions, "note", ""),
        "alike": _alike(questions),
        "read_as": list(getattr(questions, "read_as", ())),
    }


def same_data(one: object, other: object) -> bool:
    """Return whether two descriptions are of the same data; what follows from the rows alone is not compared.

    Files of 0.1.0 do not have it.

    Args:
        one: As :func:`describe_data` or a benchmark made it.
        other: The same.
    """
    both = [each for each in (one, other) if isinstance(each, dict)]
    told = [{key: value for key, value in each.items() if key not in ("alike", "read_as")} for each in both]
    return len(told) == 2 and told[0] == told[1]


def _alike(questions: Sequence[Question]) -> AlikeSummary:
    """Return how many rows have two answers that are one but for its form, and where the first few stand."""
    found = questions.alike if isinstance(questions, Questions) else alike_rows(questions)
    return {"rows": found.rows, "first": list(found.first)}


def answers_by_kind(answers: Answers) -> dict[str, Bool[np.ndarray, " n"]]:
    """Return a mask of the answers of each kind, in alphabetical order; rows without a kind are in none."""
    return {name: answers.kind == number for number, name in enumerate(answers.kinds)}


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
