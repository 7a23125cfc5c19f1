"""Packed sequences: one context, many questions about it, read in one pass.

A document is a prefix (a picture, a passage) and branches (question and answer). All documents of a pack stand in
one sequence; a mask lets a branch see its own prefix and itself alone, and positions run on from the prefix in every
branch, so that each branch reads exactly what it would read alone.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Branch(NamedTuple):
    """A prompt and the answer that follows it, as tokens."""

    prompt: list[int]
    answer: list[int]


class Document(NamedTuple):
    """What all branches share, and the branches; ``slots`` are the places in the prefix where a picture stands."""

    prefix: list[int]
    branches: list[Branch]
    slots: list[int] = []  # noqa: RUF012 - a NamedTuple's default is never changed here


class Pack(NamedTuple):
    """One training sequence.

    Attributes:
        ids: Tokens.
        positions: Position of each token in its own branch.
        mask: What each token may look at.
        sources: Places whose output predicts an answer token.
        targets: Those answer tokens.
        weights: Weight of each, summing to 1; long answers weigh with the root of their length.
        slots: Places that a picture fills.
        features: What fills them, or None.
    """

    ids: Int[Tensor, " length"]
    positions: Int[Tensor, " length"]
    mask: Bool[Tensor, "length length"]
    sources: Int[Tensor, " answers"]
    targets: Int[Tensor, " answers"]
    weights: Float[Tensor, " answers"]
    slots: Int[Tensor, " slots"]
    features: Float[Tensor, "pictures patches width"] | None


def pack(documents: list[Document], features: Float[Tensor, "pictures patches width"] | None = None) -> Pack:
    """Lay documents out in one sequence.

    Args:
        documents: At least one, with at least one answer token between them.
        features: Patch features of the documents that hold a picture, in order.

    Returns:
        The pack.
    """
    ids: list[int] = []
    positions: list[int] = []
    home: list[tuple[int, int]] = []  # (document, branch), branch -1 for the prefix
    sources: list[int] = []
    weights: list[float] = []
    slots: list[int] = []
    for number, document in enumerate(documents):
        slots += [len(ids) + slot for slot in document.slots]
        _append(document.prefix, 0, (number, -1), ids, positions, home)
        for which, branch in enumerate(document.branches):
            _append(branch.prompt, len(document.prefix), (number, which), ids, positions, home)
            sources += range(len(ids) - 1, len(ids) - 1 + len(branch.answer))
            weights += [len(branch.answer) ** -0.5] * len(branch.answer)
            depth = len(document.prefix) + len(branch.prompt)
            _append(branch.answer, depth, (number, which), ids, positions, home)
    place = torch.tensor(home)
    same_document = place[:, None, 0] == place[None, :, 0]
    same_branch = place[:, None, 1] == place[None, :, 1]
    to_prefix = (place[:, 1] == -1)[None, :]
    earlier = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    token = torch.tensor(ids)
    weight = torch.tensor(weights)
    source = torch.tensor(sources)
    return Pack(
        ids=token,
        positions=torch.tensor(positions),
        mask=earlier & same_document & (same_branch | to_prefix),
        sources=source,
        targets=token[source + 1],
        weights=weight / weight.sum(),
        slots=torch.tensor(slots, dtype=torch.long),
        features=features,
    )


def _append(
    tokens: list[int],
    start: int,
    where: tuple[int, int],
    ids: list[int],
    positions: list[int],
    home: list[tuple[int, int]],
) -> None:
    ids += tokens
    positions += range(start, start + len(tokens))
    home += [where] * len(tokens)
