"""Figures as functions of sums over items, with clustered intervals for them and for their paired differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtr, stdtrit
from scipy.stats import binomtest, t

from truthheads.stats.figures import RESAMPLES, Figure
from truthheads.stats.thresholds import CONFIDENCE_LEVEL

Sums = Mapping[str, Any]
"""Sums of each feature: one number, or one for each resample."""

Metric = Callable[[Sums], Any]


class Curve(NamedTuple):
    """A threshold-free figure: scores of the items that count, of which some are positive."""

    score: Float[np.ndarray, " counted"]
    positive: Bool[np.ndarray, " counted"]
    items: Int[np.ndarray, " counted"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run's predictions amount to, item by item.

    Attributes:
        features: Numbers of each item, to be summed.
        clusters: Items with one name are resampled together: a question, an image.
        metrics: Each figure as a function of the features' sums.
        curves: Figures that are areas under a ROC curve.
        primary: The figure that the verdict is about.
        sign: +1 where more of it is better, −1 where less is.
        right: For each item whether it is right, where that is yes or no: for McNemar's test.
    """

    features: dict[str, Float[np.ndarray, " items"]]
    clusters: list[str]
    metrics: dict[str, Metric]
    primary: str
    sign: int = 1
    curves: dict[str, Curve] = field(default_factory=dict)
    right: Bool[np.ndarray, " items"] | None = None


class Resampling(NamedTuple):
    """How often each cluster is drawn in each resample; shared by all runs, so that differences are paired.

    Attributes:
        weights: Counts.
        cluster: The cluster of each item.
    """

    weights: Float[np.ndarray, "resamples clusters"]
    cluster: Int[np.ndarray, " items"]


class Draws(NamedTuple):
    """A figure, what it is in every resample, and how many clusters were resampled."""

    value: float
    draws: Float[np.ndarray, " resamples"]
    clusters: int

    def figure(self) -> Figure:
        """Return the figure with its 95 % interval, over the resamples in which it is defined.

        Source:
            Expanded percentile interval: Hesterberg (2015), The American Statistician 69(4), 371-386. Plain percentiles
            are too narrow: of 400 simulated effects on 60 clusters they held 93.0 %.
        """
        defined = self.draws[np.isfinite(self.draws)]
        if not len(defined) or not np.isfinite(self.value) or self.clusters < 2:
            return Figure(self.value, float("nan"), float("nan"))
        tail = (1 - CONFIDENCE_LEVEL) / 2
        n = self.clusters
        wider = float(ndtr(np.sqrt(n / (n - 1)) * stdtrit(n - 1, tail)))
        low, high = np.quantile(defined, (wider, 1 - wider))
        return Figure(self.value, float(low), float(high))


def resample(clusters: list[str], *, seed: int, resamples: int = RESAMPLES) -> Resampling:
    """Draw whole clusters with replacement.

    Source:
        Cluster bootstrap: Davison and Hinkley (1997), section 3.8, strategy 1.
    """
    names, index = np.unique(clusters, return_inverse=True)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return Resampling(weights.astype(float), index)


def resample_metrics(measured: Measured, resampling: Resampling) -> dict[str, Draws]:
    """Return every figure with its resamples; NaN where a figure is not defined."""
    weights, index = resampling
    totals, drawn = {}, {}
    for name, values in measured.features.items():
        totals[name] = float(values.sum())
        drawn[name] = weights @ np.bincount(index, values, minlength=weights.shape[1])
    figures = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, metric in measured.metrics.items():
            value = metric({key: np.array(total) for key, total in totals.items()})
            figures[name] = Draws(float(value), np.asarray(metric(drawn), dtype=float), weights.shape[1])
    for name, curve in measured.curves.items():
        once = np.ones((1, weights.shape[1]))
        value = float(weighted_auroc(curve, once, index[curve.items])[0])
        figures[name] = Draws(value, weighted_auroc(curve, weights, index[curve.items]), weights.shape[1])
    return figures


def weighted_auroc(
    curve: Curve,
    weights: Float[np.ndarray, "resamples clusters"],
    index: Int[np.ndarray, " counted"],
) -> Float[np.ndarray, " resamples"]:
    """Return the AUROC of each resample; ties count one half, NaN where one class is absent.

    Source:
        Hanley and McNeil (1982), Radiology 143(1), 29-36, with every item counted as often as its cluster was drawn.
    """
    order = np.argsort(curve.score, kind="stable")
    score, positive, cluster = curve.score[order], curve.positive[order], index[order]
    firsts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]]) if len(score) else np.zeros(0, dtype=int)
    area = np.full(len(weights), np.nan)
    for start in range(0, len(weights), 100):
        part = weights[start : start + 100, cluster]
        ups = np.add.reduceat(part * positive, firsts, axis=1)
        downs = np.add.reduceat(part * ~positive, firsts, axis=1)
        below = downs.cumsum(1) - downs
        with np.errstate(divide="ignore", invalid="ignore"):
            area[start : start + 100] = (ups * (below + downs / 2)).sum(1) / (ups.sum(1) * downs.sum(1))
    return area


def ratio(above: str, below: str) -> Metric:
    """Return the figure sum of one feature / sum of another."""
    return lambda sums: sums[above] / sums[below]


def paired_p(effect: Draws) -> float:
    """Return the two-sided p of an effect by its bootstrap standard error and Student's t over the clusters.

    1 where nothing changed in any resample; NaN with fewer than two clusters or an effect that is not defined.
    """
    spread = float(np.nanstd(effect.draws)) if np.isfinite(effect.draws).any() else np.nan
    if effect.clusters < 2 or not np.isfinite(effect.value) or not np.isfinite(spread):
        return float("nan")
    if spread == 0:
        return 1.0 if effect.value == 0 else 0.0
    return float(2 * t.sf(abs(effect.value) / spread, effect.clusters - 1))


def mcnemar(before: Bool[np.ndarray, " items"], after: Bool[np.ndarray, " items"]) -> float:
    """Return the exact two-sided p of McNemar's test; items are taken as independent.

    Source:
        McNemar (1947), Psychometrika 12(2), 153-157, with the binomial distribution.
    """
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p adjusted for several tests; a p that is not defined stays so and counts as a test.

    Source:
        Holm (1979), Scandinavian Journal of Statistics 6(2), 65-70.
    """
    order = sorted(p, key=lambda name: p[name] if np.isfinite(p[name]) else 2.0)
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(order):
        if not np.isfinite(p[name]):
            adjusted[name] = float("nan")
            continue
        highest = max(highest, min(1.0, (len(order) - rank) * p[name]))
        adjusted[name] = highest
    return adjusted


class ControlRank(TypedDict):
    """How a gate stands among its controls: how many of them it beats, its rank from 1, and the permutation p."""

    beaten: int
    of: int
    rank: int
    p: float


def rank_among(gain: float, controls: Sequence[float]) -> ControlRank:
    """Return how a gate stands among its controls."""
    as_good = sum(control >= gain for control in controls)
    return {
        "beaten": len(controls) - as_good,
        "of": len(controls),
        "rank": 1 + as_good,
        "p": (1 + as_good) / (1 + len(controls)),
    }
