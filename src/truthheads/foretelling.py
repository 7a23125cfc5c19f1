"""Does a head's weight drift foretell how far its Truth Score moves?"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from truthheads.drift import Drift
from truthheads.lineage import centre
from truthheads.stats import Figure, layer_bootstrap, pearson, spearman

PERMUTATIONS = 1000
Heads = Float[np.ndarray, "num_layers num_heads"]


def foretell(drift: Drift, change: Heads, *, seed: int = 0) -> dict[str, Any]:
    """Return the rank correlation of drift with the change of score, for each part and their mean (``all``).

    Args:
        drift: Weight drift of every head.
        change: Absolute difference of the two models' scores.
        seed: Of resamples and permutations.

    Returns:
        For each part ``raw`` and ``within_layer`` (ranks among the heads of a layer, centred, correlated over all
        heads), 95 % intervals with layers resampled, and ``p_permutation`` of the latter, two-sided, with heads
        shuffled inside their layers.
    """
    parts = {part: values.double().numpy() for part, values in drift.parts.items()}
    parts = {"all": np.mean(list(parts.values()), axis=0), **parts}
    return {part: _related(values, change, seed) for part, values in parts.items()}


def _related(moved: Heads, change: Heads, seed: int) -> dict[str, Any]:
    known = np.isfinite(moved) & np.isfinite(change)
    x, y = np.where(known, moved, np.nan), np.where(known, change, np.nan)
    u, v = _ranks(x), _ranks(y)
    within: Figure = layer_bootstrap([(u, v)], pearson, seed=seed)
    generator = np.random.default_rng(seed)
    seen = abs(within.value)
    count = 0
    for _ in range(PERMUTATIONS):
        shuffled = v.copy()
        for row, mask in zip(shuffled, known, strict=True):
            row[mask] = generator.permutation(row[mask])
        count += abs(pearson(u.ravel(), shuffled.ravel())) >= seen - 1e-12
    return {
        "raw": layer_bootstrap([(x, y)], spearman, seed=seed).json(),
        "within_layer": within.json(),
        "p_permutation": (count + 1) / (PERMUTATIONS + 1),
    }


def _ranks(values: Heads) -> Heads:
    """Return ranks inside each layer, less their mean; NaN stays."""
    ranks = np.full(values.shape, np.nan)
    for row, found in zip(values, ranks, strict=True):
        known = np.isfinite(row)
        found[known] = rankdata(row[known])
    return centre(ranks)
