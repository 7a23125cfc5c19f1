"""Scores into probabilities, and how good the probabilities are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from truthheads.stats.figures import Figure, bootstrap_means, interval

BINS = 10

DRAWS = 1000

LEAST_SLOPE = 0.0


class Platt(NamedTuple):
    """``P(supported) = sigmoid(slope · score + intercept)``."""

    slope: float
    intercept: float

    def probability(self, score: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Return the probabilities of scores."""
        found: Float[np.ndarray, "*n"] = expit(self.slope * score + self.intercept)
        return found


def fit_platt(score: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"]) -> Platt:
    """Fit the two numbers of Platt scaling; the slope is never negative, so the order of scores is kept.

    Args:
        score: Of rows that the score's own parameters were not fitted on.
        label: True for supported answers.

    Source:
        Platt (1999), Probabilistic outputs for support vector machines, with its smoothed targets.
    """
    good, bad = int(label.sum()), int((~label).sum())
    target = np.where(label, (good + 1) / (good + 2), 1 / (bad + 2))
    spread = float(score.std()) or 1.0
    scaled = score / spread

    def loss(theta: Float[np.ndarray, " two"]) -> tuple[float, Float[np.ndarray, " two"]]:
        logit = theta[0] * scaled + theta[1]
        value = np.logaddexp(0, logit) - target * logit
        wrong = expit(logit) - target
        return float(value.mean()), np.array([(wrong * scaled).mean(), wrong.mean()])

    start = np.array([1.0, 0.0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(LEAST_SLOPE, None), (None, None)]).x
    return Platt(float(found[0]) / spread, float(found[1]))


class Reliability(NamedTuple):
    """Bins of equal numbers of rows, from the least probable to the most.

    Attributes:
        probability: Mean probability in each bin.
        share: Share of supported answers in it.
        rows: How many rows it holds.
    """

    probability: list[float]
    share: list[float]
    rows: list[int]


def reliability(
    probability: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"], *, bins: int = BINS
) -> Reliability:
    """Sort rows into bins of equal size and compare what is promised with what came."""
    parts = [part for part in np.array_split(np.argsort(probability, kind="stable"), bins) if len(part)]
    return Reliability(
        [float(probability[part].mean()) for part in parts],
        [float(label[part].mean()) for part in parts],
        [len(part) for part in parts],
    )


def calibration_error(
    probability: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"], *, bins: int = BINS
) -> float:
    """Return the expected calibration error: mean distance of promised and true share over bins of equal size."""
    found = reliability(probability, label, bins=bins)
    gaps = np.abs(np.array(found.probability) - np.array(found.share))
    return float(np.average(gaps, weights=found.rows))


def brier(probability: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"]) -> float:
    """Return the Brier score: the mean squared distance of probability and label; 0.25 for a coin."""
    return float(((probability - label) ** 2).mean())


def auroc_of(score: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"]) -> float:
    """Return the area under the ROC curve; ties count one half, NaN where a class is missing."""
    good = int(label.sum())
    bad = len(label) - good
    if not good or not bad:
        return float("nan")
    return float((rankdata(score)[label].sum() - good * (good + 1) / 2) / (good * bad))


def resampled(
    clusters: Int[np.ndarray, " n"], *, seed: int, draws: int = DRAWS
) -> list[Int[np.ndarray, " drawn"]]:
    """Return rows of bootstrap samples that draw whole clusters."""
    _, index = np.unique(clusters, return_inverse=True)
    members = [np.flatnonzero(index == number) for number in range(int(index.max()) + 1)]
    rng = np.random.default_rng(seed)
    return [
        np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for _ in range(draws)
    ]
