"""Scores into probabilities, and how good the probabilities are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit

BINS = 10

ROC_POINTS = 200

LEAST_ROWS = 10
"""Rows that a verdict of a given precision must rest on: one row that happens to be right is no precision."""

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
        score: Scores of rows that they were not fitted on.
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


class RocPoints(NamedTuple):
    """A ROC curve: shares of unsupported and of supported answers at or above each cut, from the highest cut down."""

    false_positive: list[float]
    true_positive: list[float]


def roc_points(score: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"], *, most: int = ROC_POINTS) -> RocPoints:
    """Return the corners of a ROC curve, thinned to a number that can be drawn; empty where a class is missing."""
    if label.all() or not label.any():
        return RocPoints([], [])
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True])
    good = np.r_[0, np.cumsum(label[order])[ends]] / label.sum()
    bad = np.r_[0, np.cumsum(~label[order])[ends]] / (~label).sum()
    kept = np.unique(np.linspace(0, len(good) - 1, min(most, len(good))).round().astype(int))
    return RocPoints(bad[kept].tolist(), good[kept].tolist())


def best_threshold(probability: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"]) -> float:
    """Return the cut with the best balanced accuracy: half way between two neighbours, in the middle of equal ones.

    One half where a class is missing.
    """
    values, index = np.unique(probability, return_inverse=True)
    if label.all() or not label.any() or len(values) < 2:
        return 0.5
    good = np.bincount(index, label, len(values)) / label.sum()
    bad = np.bincount(index, ~label, len(values)) / (~label).sum()
    gain = (bad - good).cumsum()[:-1]  # TNR less FNR of a cut above each value but the last
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    at = int(best[len(best) // 2])
    return float((values[at] + values[at + 1]) / 2)


class Cuts(NamedTuple):
    """Supported from ``high`` on, not supported below ``low``, unsure between them."""

    low: float
    high: float


def cuts_for(
    probability: Float[np.ndarray, " n"],
    label: Bool[np.ndarray, " n"],
    precision: float,
    threshold: float,
    *,
    least: int = LEAST_ROWS,
) -> Cuts:
    """Return the cuts that leave fewest rows unsure while both verdicts are right in a share of ``precision``.

    Args:
        probability: Probabilities of rows that nothing was fitted on.
        label: True for supported answers.
        precision: Wanted share, 0 to 1.
        threshold: Where both cuts lie if they need not be apart.
        least: Rows that a verdict must rest on.

    Returns:
        ``high`` is infinite where no cut gives that precision for supported answers, ``low`` minus infinity where none
        does for the others.
    """
    high = _lowest(probability, label, precision, least)
    low = -_lowest(-probability, ~label, precision, least)
    if low >= high:
        return Cuts(threshold, threshold) if high <= threshold <= low else Cuts(*(2 * [min(max(threshold, high), low)]))
    return Cuts(float(np.nextafter(low, np.inf)), high)


def _lowest(score: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], precision: float, least: int) -> float:
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(score[order]) != 0, True]) if len(score) else np.zeros(0, dtype=int)
    share = np.cumsum(right[order])[ends] / (ends + 1)
    held = np.flatnonzero((share >= precision) & (ends + 1 >= least))
    return float(score[order][ends[held[-1]]]) if len(held) else float("inf")
