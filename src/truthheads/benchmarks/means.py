"""Benchmarks of other harnesses: a number for each item and metric, averaged."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truthheads.measures import Measured, ratio

LEADING = ("acc", "exact_match", "acc_norm", "f1")
"""Metrics that a verdict is about, the first that a task has; else the first in alphabetical order."""


def measure_means(lines: Sequence[Mapping[str, Any]], *, seed: int = 0) -> Measured:
    """Return the means of every metric that all items have.

    Args:
        lines: Predictions of one run: ``metrics`` and ``group``.
        seed: Not used; every task has it.
    """
    del seed
    names = sorted(set.intersection(*(set(line["metrics"]) for line in lines)))
    features = {name: np.array([float(line["metrics"][name]) for line in lines]) for name in names}
    primary = next((name for name in LEADING if name in names), names[0])
    values = features[primary]
    whole = bool(np.isin(values, (0.0, 1.0)).all())
    metrics = {name: ratio(name, "items") for name in names}
    return Measured(
        {**features, "items": np.ones(len(lines))},
        [str(line["group"]) for line in lines],
        metrics,
        primary,
        right=values > 0 if whole else None,
    )
