"""Tasks of lm-evaluation-harness: the harness reads and asks them, their figures are measured here."""

from collections.abc import Sequence

import numpy as np

from truthheads.benchmarks.base import AskOptions, Benchmark, Prediction
from truthheads.benchmarks.yes_no import measure_yesno
from truthheads.stats.resampling import Measured, ratio

LEADING = ("acc", "exact_match", "acc_norm", "f1")
"""Metrics that a verdict is about, the first that a task has; else the first in alphabetical order."""


def measure_means(lines: Sequence[Prediction], *, seed: int = 0) -> Measured:
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


def measure_task(lines: Sequence[Prediction], *, seed: int = 0) -> Measured:
    """Compute the figures of a task's predictions: yes/no figures where all are that, else the means of its metrics."""
    return (measure_yesno if all("parsed" in line for line in lines) else measure_means)(lines, seed=seed)


LM_EVAL = Benchmark(
    name="lm-eval",
    label="lm-eval",
    about="A task of lm-evaluation-harness, by its name there.",
    asks="harness",
    options=AskOptions,
    measure=measure_task,
    shown_beside=("yes_rate",),
    several_files=True,
    needs_files=False,
)
