"""Match the heads of two checkpoints, where training or deliberate reordering has changed their order.

What a head does is decided by two products, W_qᵀ W_k and W_o W_v: they stay as they are when heads change places, or
when the inside of a head is rotated (queries and keys: as far as rotary positions allow). Their cosine is estimated
from their action on a few random directions, so that no product is ever formed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from truthheads.lineage.slice_norms import BLOCK_BYTES, columns, over_layers, row_bytes
from truthheads.models.head_weights import Checkpoint, LayerParts, WeightSlice
from truthheads.models.weight_files import Shards
from truthheads.results.drift import HeadMatching

DIRECTIONS = 16


@dataclass(frozen=True, slots=True)
class Match:
    """Heads of one layer, paired by optimal assignment.

    Attributes:
        heads: For each head of the base, the descendant's.
        similarity: Cosine of each pair's products, the mean of the two.
        second: The same for the best assignment that has no pair in common with the first: what choosing the best
            gives between any two models.
    """

    heads: Int[np.ndarray, " num_heads"]
    similarity: Float[np.ndarray, " num_heads"]
    second: Float[np.ndarray, " num_heads"]


def match_heads(base: Shards, layer: LayerParts, descendant: Shards, other: LayerParts, *, seed: int = 0) -> Match:
    """Pair the heads of one layer in two checkpoints.

    Args:
        base: The one checkpoint.
        layer: One of its layers.
        descendant: The other checkpoint.
        other: Its layer of the same shape.
        seed: Random seed of the random directions.

    Source:
        Assignment: scipy ``linear_sum_assignment``. Sketched inner products: Johnson and Lindenstrauss (1984).
    """
    similarity = np.zeros((layer.num_heads, layer.num_heads))
    for inner, outer in (("k", "q"), ("v", "o")):
        mine = _sketches(base, layer, inner, outer, seed)
        theirs = _sketches(descendant, other, inner, outer, seed)
        similarity += (mine @ theirs.T).double().numpy() / 2
    rows, heads = linear_sum_assignment(similarity, maximize=True)
    best = similarity[rows, heads]
    rest = similarity.copy()
    rest[rows, heads] = -2.0  # below every cosine
    again = linear_sum_assignment(rest, maximize=True)
    second = rest[again] if layer.num_heads > 1 else np.zeros(1)
    return Match(heads.astype(np.int64), best, second)


def match_layers(mine: Checkpoint, theirs: Checkpoint, chosen: Sequence[int]) -> HeadMatching:
    """Match the heads of some layers, and return what the artefact says about it: lists, one for each layer.

    Args:
        mine: The base.
        theirs: A descendant of the same shape.
        chosen: Which of the layers that have heads, counted among those.
    """

    def match(number: int) -> Match:
        at = chosen[number]
        return match_heads(mine.shards, mine.layers[at], theirs.shards, theirs.layers[at])

    matches = list(over_layers(match, len(chosen)))
    return {
        "layers": [mine.layers[at].index for at in chosen],
        "heads": [match.heads.tolist() for match in matches],
        "similarity": [match.similarity.tolist() for match in matches],
        "second": [match.second.tolist() for match in matches],
    }


def reordered(layer: LayerParts, heads: Int[np.ndarray, " num_heads"]) -> LayerParts:
    """Return a layer's slices in the order of a match; a key-value head goes where most of its group's heads go."""
    parts = {}
    for name, part in layer.parts.items():
        group = layer.num_heads // len(part.starts)
        votes = (heads // group).reshape(len(part.starts), group)
        chosen = [int(np.bincount(row).argmax()) for row in votes]
        parts[name] = replace(part, starts=tuple(part.starts[head] for head in chosen))
    return replace(layer, parts=parts)


def _sketches(
    shards: Shards, layer: LayerParts, inner: str, outer: str, seed: int
) -> Float[Tensor, "num_heads sketch"]:
    """Return each head's product of two slices times random directions, flattened, of norm 1 (0 for a dead head)."""
    right, left = layer.parts[inner], layer.parts[outer]
    width = shards.entries[right.tensor].shape[1 - right.axis]
    drawn = np.random.default_rng(seed).standard_normal((width, DIRECTIONS), dtype=np.float32)
    inside = torch.zeros(len(right.starts), left.width, DIRECTIONS)
    shared = min(left.width, right.width)  # a query may be wider than a key: latent attention, a gate beside it
    inside[:, :shared] = _times(shards, right, torch.from_numpy(drawn))[:, :shared]
    inside = inside.repeat_interleave(layer.num_heads // len(right.starts), dim=0)
    result: Tensor = torch.nn.functional.normalize(_transposed_times(shards, left, inside).flatten(1), dim=1)
    return result


def _times(
    shards: Shards, part: WeightSlice, matrix: Float[Tensor, "wide directions"]
) -> Float[Tensor, "heads width directions"]:
    """Return ``W matrix`` for each head's slice W, ``[width, wide]``."""
    result = torch.zeros(len(part.starts), part.width, matrix.shape[1])
    for heads, inside, outside, block in _blocks(shards, part):
        result[heads, inside] += torch.einsum("hio,or->hir", block, matrix[outside])
    return result


def _transposed_times(
    shards: Shards, part: WeightSlice, matrices: Float[Tensor, "heads width directions"]
) -> Float[Tensor, "heads wide directions"]:
    """Return ``Wᵀ matrix`` for each head's slice W, ``[width, wide]``, and its own matrix."""
    wide = shards.entries[part.tensor].shape[1 - part.axis]
    result = torch.zeros(len(part.starts), wide, matrices.shape[2])
    for heads, inside, outside, block in _blocks(shards, part):
        result[heads, outside] += torch.einsum("hio,hir->hor", block, matrices[heads, inside])
    return result


def _blocks(shards: Shards, part: WeightSlice) -> Iterator[tuple[slice, slice, slice, Tensor]]:
    """Yield pieces of a layer's slices as fp32 ``[heads, inside, outside]`` with their places along the three axes."""
    step = max(1, BLOCK_BYTES // row_bytes(shards, part))
    everything = slice(None)
    if part.axis == 0:
        for head, start in enumerate(part.starts):
            for low in range(0, part.width, step):
                high = min(low + step, part.width)
                block = shards.read(part.tensor, rows=(start + low, start + high)).float()
                yield slice(head, head + 1), slice(low, high), everything, block[None]
        return
    rows = shards.entries[part.tensor].shape[0]
    for low in range(0, rows, step):
        high = min(low + step, rows)
        block = columns(shards.read(part.tensor, rows=(low, high)), part).float().permute(1, 2, 0)
        yield everything, everything, slice(low, high), block
