"""95 % intervals of shares over clustered items: accuracy, AUROC, pair accuracy, and their means over heads."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit
from scipy.stats import rankdata

from truthheads.stats.figures import Figure, bootstrap_means, expanded
from truthheads.stats.overlap import UNKNOWN, density
from truthheads.stats.thresholds import CONFIDENCE_LEVEL

PRIOR = 0.1
"""Variance added for one more cluster whose items are all alike: 5 of 5 right then do not mean a variance of 0."""

DEGREES = 2
"""Degrees of freedom a cluster: one a cluster covers 98 % at 20 questions, the normal quantile 92 %."""

UNSEEN = 2 / np.pi
"""What overlapping training folds add to a variance of 1 under labels without meaning: the most that was seen."""


class Spread(NamedTuple):
    """How far items differ between clusters.

    Attributes:
        mean: Mean of each column.
        variance: Variance of the mean, items of one cluster taken as dependent.
        clusters: How many.
        alike: Design effect if items of one cluster were all alike: the mean size that an item finds.
    """

    mean: Float[np.ndarray, " heads"]
    variance: Float[np.ndarray, " heads"]
    clusters: int
    alike: float


def spread_of(values: Float[np.ndarray, "n heads"], clusters: Int[np.ndarray, " n"]) -> Spread:
    """Return the mean of each column with its variance over clusters; NaN in a column makes both NaN.

    Source:
        Variance of a mean over clusters of different size: Cochran (1977), Sampling Techniques, 9A.3.
    """
    _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")
    mean = values.mean(0)
    sums = np.add.reduceat(values[order] - mean, np.r_[0, np.cumsum(sizes)[:-1]], axis=0)
    groups = len(sizes)
    correction = groups / (groups - 1) if groups > 1 else np.nan
    return Spread(mean, (sums**2).sum(0) / len(values) ** 2 * correction, groups, float((sizes**2).sum() / sizes.sum()))


def share_ends(
    share: Float[np.ndarray, " heads"],
    spread: Spread,
    count: float,
    *,
    added: Float[np.ndarray, " heads"] | float = 0.0,
    prior: float = PRIOR,
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Return the ends of the 95 % interval of shares in [0, 1]; never a point, NaN with fewer than two clusters.

    Wilson's interval with as many items as would give, independent, the variance that there is.

    Args:
        share: The figures.
        spread: Spread of the items that they are means of.
        count: How many items.
        added: Variance of one item that comes on top, from training folds that overlap.
        prior: See :data:`PRIOR`; less of it where an item is itself a mean.

    Source:
        Wilson (1927), Journal of the American Statistical Association 22(158), 209-212; effective sample size and
        Student's t: Korn and Graubard (1998), Survey Methodology 24(2), 193-201.
    """
    if spread.clusters < 2:
        nothing = np.full(np.shape(share), np.nan)
        return nothing, nothing
    inner = share * (1 - share)
    prior = prior / spread.clusters
    effect = (spread.variance * count + prior * spread.alike) / (inner + prior)
    smooth = (share * count + 2) / (count + 4)
    effective = count / (effect + added / (smooth * (1 - smooth)))
    reach = float(stdtrit(DEGREES * spread.clusters, (1 + CONFIDENCE_LEVEL) / 2)) ** 2 / effective
    middle = (share + reach / 2) / (1 + reach)
    half = np.sqrt(reach * inner + reach**2 / 4) / (1 + reach)
    # Rounding must not leave the share outside: at 1 the upper end is 1.
    return np.minimum(np.clip(middle - half, 0, 1), share), np.maximum(np.clip(middle + half, 0, 1), share)


def share_figure(
    values: Float[np.ndarray, " n"], clusters: Int[np.ndarray, " n"], *, added: float = 0.0, share: float | None = None
) -> Figure:
    """Return a mean of values in [0, 1] with its interval over clusters.

    Args:
        values: One for each item.
        clusters: Items of one number are one draw.
        share: The figure, where it is another mean of the same values (the mean of folds); None: their mean.
        added: As in :func:`share_ends`; NaN where it is not known, and then counted as no more than :data:`UNSEEN`.
    """
    spread = spread_of(values[:, None], clusters)
    if not np.isfinite(added):
        added = UNSEEN * float(spread.variance[0]) * len(values)
    figure = spread.mean if share is None else np.array([share])
    low, high = share_ends(figure, spread, float(len(values)), added=added, prior=PRIOR if _whole(values) else 0.0)
    return Figure(float(figure[0]), float(low[0]), float(high[0]))


def probed_ends(
    share: Float[np.ndarray, " heads"], spread: Spread, count: float, dependence: Float[np.ndarray, " heads"]
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Return the ends of the interval of each head's share of cross-validated items.

    Args:
        share: The figures.
        spread: Spread of the items that they are means of.
        count: How many items.
        dependence: As in :class:`truthheads.stats.overlap.Overlap`.
    """
    return share_ends(share, spread, count, added=dependence * density(share, count) ** 2)


def mean_ends(
    values: Float[np.ndarray, "n heads"], clusters: Int[np.ndarray, " n"], *, bounded: bool
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Return the ends of the interval of each column's mean: bootstrapped, of columns of 0 and 1 as shares.

    Args:
        values: One row for each item.
        clusters: Items of one number are one draw.
        bounded: Whether values lie in [0, 1]; a column without spread is then no point.
    """
    low, high = expanded(bootstrap_means(values, clusters, seed=0), clusters)
    flat = np.array([bounded and _whole(column) for column in values.T])
    if flat.any():
        spread = spread_of(values[:, flat], clusters)
        low[flat], high[flat] = share_ends(spread.mean, spread, float(len(values)))
    return low, high


def layer_ends(
    share: Float[np.ndarray, " num_layers"],
    mean: Float[np.ndarray, "n num_layers"],
    clusters: Int[np.ndarray, " n"],
    dependence: Float[np.ndarray, " num_layers"],
) -> tuple[Float[np.ndarray, " num_layers"], Float[np.ndarray, " num_layers"]]:
    """Return the ends of the interval of each layer's mean over heads and answers.

    Args:
        share: The figures.
        mean: Mean of each answer's heads, layer by layer.
        clusters: Answers of one number are one draw.
        dependence: Variance of one answer's mean that comes on top; NaN where it is not known.
    """
    ends = [np.full(len(share), np.nan) for _ in range(2)]
    for layer in range(len(share)):
        if np.isfinite(mean[:, layer]).all():
            figure = share_figure(mean[:, layer], clusters, added=float(dependence[layer]), share=share[layer])
            ends[0][layer], ends[1][layer] = figure.low, figure.high
    return ends[0], ends[1]


def chosen_figure(share: float, clusters: Int[np.ndarray, " n"]) -> Figure:
    """Return the mean accuracy of heads chosen on one half of the clusters and measured on the other, both ways.

    Nothing is known of the dependence of halves: answers of one cluster count as independent and training folds as
    under labels without meaning.
    """
    members, n = len(np.unique(clusters)), float(len(clusters))
    spread = Spread(np.array([share]), np.array([share * (1 - share) / n]), members, n / members)
    low, high = probed_ends(np.array([share]), spread, n, np.array([UNKNOWN]))
    return Figure(share, float(low[0]), float(high[0]))


def auroc_spread(
    logit: Float[np.ndarray, "n heads"], label: Bool[np.ndarray, " n"], clusters: Int[np.ndarray, " n"]
) -> tuple[Spread, float]:
    """Return the spread of AUROC over clusters, and the number of pairs of answers that it counts as.

    Source:
        Placement values: DeLong, DeLong and Clarke-Pearson (1988), Biometrics 44(3), 837-845; over clusters:
        Obuchowski (1997), Biometrics 53(2), 567-578.
    """
    both, good = rankdata(logit, axis=0), int(label.sum())
    bad = len(label) - good
    placed = np.empty(logit.shape)
    placed[label] = (both[label] - rankdata(logit[label], axis=0)) / bad
    placed[~label] = 1 - (both[~label] - rankdata(logit[~label], axis=0)) / good
    area = placed[label].mean(0)
    # Each class has half of the weight: the mean of n such values is AUROC, and their spread is its noise.
    weight = np.where(label, len(label) / (2 * good), len(label) / (2 * bad))[:, None]
    spread = spread_of(area + 2 * weight * (placed - area), clusters)
    return Spread(area, spread.variance, spread.clusters, 1.0), 2 * good * bad / len(label)


def _whole(values: Float[np.ndarray, "..."]) -> bool:
    """Return whether each value is 0 or 1, or all are alike: a mean over heads says more than one answer does."""
    return bool(np.isin(values, (0, 1)).all() or np.ptp(values) == 0)
