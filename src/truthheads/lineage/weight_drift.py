"""Three related models: which stands between the other two, from the distances of their weights alone.

Fine-tunes that were made apart move the weights in directions that have nothing to do with each other. So seen from a
common base, the changes of two descendants stand at a right angle; and in a chain A → B → C the change from A to B
stands at a right angle to that from B to C. Either way the angle is right at the model in the middle, sharp at the
ends.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from truthheads.errors import ShapeError
from truthheads.lineage.head_matching import match_layers, reordered
from truthheads.lineage.slice_norms import PairReader, Squares, over_layers
from truthheads.models.head_weights import WEIGHT_PARTS, Checkpoint, LayerParts, open_checkpoint
from truthheads.results.comparison import TripleResult
from truthheads.results.drift import GQA, Drift
from truthheads.stats.figures import Figure, interval
from truthheads.stats.thresholds import HEAD_MATCH_LEAD, TRIPLE_RIGHT_ANGLE_COSINE
from truthheads.storage.artifacts import provenance

TRIED_LAYERS = 4


def weight_drift(base: str, descendant: str, *, progress: Callable[[int, int], None] | None = None) -> Drift:
    """Measure how far the attention weights of two checkpoints lie apart, without building either model.

    Weights are read from their safetensors files a block at a time, in whatever floating-point type each of them has;
    differences are taken in fp32, sums in fp64. Layers are paired in order among those with heads, so a language model
    can be compared with a descendant that has cross-attention layers between its own. Where the weights do not agree in
    place, heads are matched by what they do (``meta["matching"]``: in 4 layers, in all where those say that the
    models are related; ``drift`` there is that of matched heads).

    Args:
        base: A model as for ``load``: a folder, ``.gguf`` file, hub id, ``smollm2`` … A multimodal model's text decoder
            is found by name.
        descendant: The other.
        progress: Called with the layers done and the total.

    Raises:
        ModelError: Weights are missing, damaged, quantised, not safetensors, or not finite.
        ArchitectureError: The heads or their projections could not be located.
        ShapeError: The two have heads of different number or shape.

    Source:
        Relative drift: paper.md 4.3 (for unrelated matrices it is √(1 + ρ²), ρ the ratio of their norms).
    """
    mine, theirs = open_checkpoint(base), open_checkpoint(descendant)
    _check_shapes(mine, theirs)
    meta = {
        "base": mine.describe(),
        "descendant": theirs.describe(),
        "key_value_heads": GQA,
        "weights": {part: mine.count(part) for part in WEIGHT_PARTS},
        **provenance(),
    }
    found = _in_place(mine, theirs, theirs.layers, meta, progress)
    if found.verdict()[0] == "inherited":
        return found
    layers = sorted({round(at) for at in np.linspace(0, len(mine.layers) - 1, TRIED_LAYERS)})
    found = replace(found, meta={**found.meta, "matching": match_layers(mine, theirs, layers)})
    if found._match()[1].low <= HEAD_MATCH_LEAD:
        return found
    matching = match_layers(mine, theirs, list(range(len(mine.layers))))
    orders = [reordered(layer, np.array(heads)) for layer, heads in zip(theirs.layers, matching["heads"], strict=True)]
    moved = _in_place(mine, theirs, orders, meta, None)
    matching["drift"] = {part: figure.json() for part, figure in moved.figures().items()}
    return replace(found, meta={**found.meta, "matching": matching})


def _in_place(
    mine: Checkpoint,
    theirs: Checkpoint,
    others: Sequence[LayerParts],
    meta: Mapping[str, Any],
    progress: Callable[[int, int], None] | None,
) -> Drift:
    """Return the drift between one checkpoint's slices and another's, given in the order in which they are paired."""
    shape = mine.layout.shape
    parts = {part: torch.full(shape, float("nan")) for part in WEIGHT_PARTS}
    cosines = {part: values.clone() for part, values in parts.items()}
    chance = torch.zeros(shape[0], len(WEIGHT_PARTS))
    digests = hashlib.sha256(), hashlib.sha256()
    alike: set[str | None] = set()

    def squares(at: int) -> tuple[list[Squares], str | None]:
        reader = PairReader(mine.shards, theirs.shards)
        return [
            reader.squares(mine.layers[at].parts[part], others[at].parts[part]) for part in WEIGHT_PARTS
        ], reader.alike

    for number, (found, kind) in enumerate(over_layers(squares, len(mine.layers))):
        layer = mine.layers[number]
        alike.add(kind)
        for column, (part, sums) in enumerate(zip(WEIGHT_PARTS, found, strict=True)):
            group = layer.num_heads // len(sums.base)
            drift = torch.where(sums.base > 0, (sums.difference / sums.base).sqrt(), torch.nan)
            both = sums.base + sums.descendant - sums.difference
            cosine = (both / (2 * (sums.base * sums.descendant).sqrt())).clamp(-1, 1)
            parts[part][layer.index, : layer.num_heads] = drift.float().repeat_interleave(group)
            cosines[part][layer.index, : layer.num_heads] = cosine.float().repeat_interleave(group)
            chance[layer.index, column] = sums.chance
            for digest, norms in zip(digests, (sums.base, sums.descendant), strict=True):
                digest.update(norms.numpy().tobytes())
        if progress is not None:
            progress(number + 1, len(mine.layers))
    norms_sha256 = {"base": digests[0].hexdigest(), "descendant": digests[1].hexdigest()}
    whole = "exact" if alike == {"exact"} else "rounded" if None not in alike else None
    return Drift(mine.name, theirs.name, parts, {**meta, "alike": whole, "norms_sha256": norms_sha256}, cosines, chance)


def _check_shapes(mine: Checkpoint, theirs: Checkpoint) -> None:
    same = [part for part in WEIGHT_PARTS if mine.shapes(part) == theirs.shapes(part)]
    if same != list(WEIGHT_PARTS):
        raise ShapeError(
            f"{mine.name} and {theirs.name} have attention of different shape",
            expected=mine.in_words(),
            got=theirs.in_words(),
            fix="no drift is defined; compare their Truth Scores instead: `truthheads score` both on the same "
            "questions, then `truthheads compare`" + (f" (same shape: {', '.join(same)})" if same else ""),
        )


class Middle(NamedTuple):
    """Three models and the one in the middle.

    Attributes:
        models: The three.
        cosines: For each, the cosine of the angle between its ways to the two others, layers resampled.
        middle: The model in the middle; None where the evidence does not say.
    """

    models: tuple[str, str, str]
    cosines: tuple[Figure, Figure, Figure]
    middle: str | None

    def json(self) -> TripleResult:
        """Return the triple as JSON, with a sentence."""
        return {
            "models": list(self.models),
            "cosines": {name: figure.json() for name, figure in zip(self.models, self.cosines, strict=True)},
            "middle": self.middle,
            "in_words": self.in_words(),
        }

    def in_words(self) -> str:
        """Put the verdict on the angles into words."""
        if self.middle is None:
            return f"of {', '.join(self.models)} none is seen to stand in the middle"
        first, second = (name for name in self.models if name != self.middle)
        at = self.cosines[self.models.index(self.middle)]
        return (
            f"{self.middle} stands between {first} and {second}: siblings made from it, or a chain through it (cosine "
            f"of the two changes {at}; weights do not say which came first)"
        )


def middle(trio: tuple[str, str, str], drifts: Mapping[tuple[str, str], Drift], *, seed: int = 0) -> Middle:
    """Return which of three models stands between the other two.

    Args:
        trio: Their names, in the order in which the drifts are keyed.
        drifts: Drifts of all three pairs, of one shape; relative to the first of the pair.
        seed: Random seed of the resampling of layers.
    """
    a, b, c = trio
    sides = {}
    for pair, scale in (((a, b), None), ((a, c), None), ((b, c), (a, b))):
        # All three in units of the first model's norm: |B| / |A| follows from cosine and drift of the pair (A, B).
        sides[pair] = _squares(drifts[pair]) * (1.0 if scale is None else _ratio(drifts[scale]))
    ab, ac, bc = (sides[pair] for pair in ((a, b), (a, c), (b, c)))
    found = tuple(_cosine(x, y, z, seed) for x, y, z in ((ab, ac, bc), (ab, bc, ac), (ac, bc, ab)))
    right = [
        name
        for name, figure in zip(trio, found, strict=True)
        if figure.high < TRIPLE_RIGHT_ANGLE_COSINE and figure.low > -TRIPLE_RIGHT_ANGLE_COSINE
    ]
    related = all(drifts[pair].verdict()[0] == "inherited" for pair in sides)
    return Middle(trio, found, right[0] if len(right) == 1 and related else None)  # type: ignore[arg-type]


def _squares(drift: Drift) -> Float[np.ndarray, "num_layers heads"]:
    values: Float[np.ndarray, "num_layers heads"] = np.concatenate(
        [drift.parts[part].double().numpy() ** 2 for part in sorted(drift.parts)], axis=1
    )
    return values


def _ratio(drift: Drift) -> Float[np.ndarray, "num_layers heads"]:
    """Return (‖descendant‖ ÷ ‖base‖)², the root of d² = 1 + r² − 2 r cos that is nearer to 1."""
    cosine = np.concatenate([drift.cosines[part].double().numpy() for part in sorted(drift.parts)], axis=1)
    inside = np.clip(cosine**2 - 1 + _squares(drift), 0, None)
    roots = np.stack([cosine + np.sqrt(inside), cosine - np.sqrt(inside)])
    nearer = np.where(np.abs(roots[0] - 1) <= np.abs(roots[1] - 1), roots[0], roots[1])
    result: Float[np.ndarray, "num_layers heads"] = nearer**2
    return result


def _cosine(
    one: Float[np.ndarray, "num_layers heads"],
    other: Float[np.ndarray, "num_layers heads"],
    across: Float[np.ndarray, "num_layers heads"],
    seed: int,
) -> Figure:
    """Return the mean over heads of (a² + b² − c²) ÷ 2ab, by the law of cosines."""
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (one + other - across) / (2 * np.sqrt(one * other))
    means = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in cosines])
    means = means[np.isfinite(means)]
    if not len(means):
        return Figure(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).choice(means, (1000, len(means))).mean(1)
    low, high = interval(draws)
    return Figure(float(means.mean()), float(low), float(high))
