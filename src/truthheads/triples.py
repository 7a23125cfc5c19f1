"""Three related models: which stands between the other two, from the distances of their weights alone.

Fine-tunes that were made apart move the weights in directions that have nothing to do with each other. So seen from a
common base, the changes of two descendants stand at a right angle; and in a chain A → B → C the change from A to B
stands at a right angle to that from B to C. Either way the angle is right at the model in the middle, sharp at the
ends.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from truthheads.drift import Drift
from truthheads.stats import Figure, interval

RIGHT = 0.2
"""Cosine below which two changes count as independent; an end's angle has the cosine near ‖its change‖ ÷ ‖both‖."""


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

    def json(self) -> dict[str, Any]:
        """Return the triple as JSON, with a sentence."""
        return {
            "models": list(self.models),
            "cosines": {name: figure.json() for name, figure in zip(self.models, self.cosines, strict=True)},
            "middle": self.middle,
            "in_words": self.in_words(),
        }

    def in_words(self) -> str:
        """Return what the angles say."""
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
        drifts: Of all three pairs, of one shape; relative to the first of the pair.
        seed: Of the resampling of layers.
    """
    a, b, c = trio
    sides = {}
    for pair, scale in (((a, b), None), ((a, c), None), ((b, c), (a, b))):
        # All three in units of the first model's norm: |B| / |A| follows from cosine and drift of the pair (A, B).
        sides[pair] = _squares(drifts[pair]) * (1.0 if scale is None else _ratio(drifts[scale]))
    ab, ac, bc = (sides[pair] for pair in ((a, b), (a, c), (b, c)))
    found = tuple(_cosine(x, y, z, seed) for x, y, z in ((ab, ac, bc), (ab, bc, ac), (ac, bc, ab)))
    right = [name for name, figure in zip(trio, found, strict=True) if figure.high < RIGHT and figure.low > -RIGHT]
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
