"""What each question adds to each head's score, for one score file or for two side by side."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from truthheads.intervals import spread_of
from truthheads.overlap import density
from truthheads.scores import Scores

ENOUGH = 10
"""Shared questions below which two files are compared as if they shared none."""


def widening(scores: Scores, heads: Bool[np.ndarray, "num_layers num_heads"]) -> float:
    """Return how many times the noise of scores is what their samples, taken as independent, would give.

    1 where nothing is known of the dependence of training folds, and where nothing was trained.
    """
    dependence = scores.dependence.double().numpy()[heads]
    if scores.method != "probe" or not len(scores.sample) or not np.isfinite(dependence).all():
        return 1.0
    right = scores.right()[:, heads]
    spread = spread_of(right, scores.sample_group.numpy())
    added = dependence * density(spread.mean, float(len(right))) ** 2 / len(right)
    own = float(spread.variance.sum())
    return 1 + float(added.sum()) / own if own > 0 else 1.0


class Paired(NamedTuple):
    """Means per group of questions, one column for each head.

    Attributes:
        first: Of the first file; None where no samples were kept.
        second: Of the second; where questions are shared, row by row the same groups.
        shared: How many questions are shared.
    """

    first: Float[np.ndarray, "groups heads"] | None
    second: Float[np.ndarray, "others heads"] | None
    shared: int


def items(scores: Scores) -> Float[np.ndarray, "samples num_layers num_heads"] | None:
    """Return what each sample adds to each head's score; None where no samples were kept.

    Right or wrong (1 or 0) for probes; the gradient for attribution; the measure for evidence.
    """
    if not len(scores.sample):
        return None
    if scores.method == "probe":
        return scores.right()
    sample: Float[np.ndarray, "samples num_layers num_heads"] = scores.sample.double().numpy()
    return sample


def paired_items(a: Scores, b: Scores, heads: Bool[np.ndarray, "num_layers num_heads"]) -> Paired:
    """Return both models' means per group of questions, over shared questions where there are enough of them."""
    found = [item for item in (items(a), items(b)) if item is not None]
    if len(found) < 2:
        return Paired(None, None, 0)
    ids = a.sample_id.numpy(), b.sample_id.numpy()
    usable = [np.isfinite(item[:, heads]).all(1) for item in found]
    common = np.intersect1d(ids[0][usable[0]], ids[1][usable[1]])
    if len(common) < ENOUGH:
        first, second = (
            _group_means(item[rows][:, heads], scores.sample_group.numpy()[rows])
            for scores, item, rows in zip((a, b), found, usable, strict=True)
        )
        return Paired(first, second, 0)
    # A shared question belongs to the group that the first file puts it in.
    named, where = np.unique(ids[0], return_index=True)
    group = a.sample_group.numpy()[where]
    means = []
    for item, own, rows in zip(found, ids, usable, strict=True):
        keep = rows & np.isin(own, common)
        key = group[np.searchsorted(named, own[keep])]
        means.append(_group_means(item[keep][:, heads], key))
    return Paired(means[0], means[1], len(common))


def _group_means(
    values: Float[np.ndarray, "samples heads"], key: Int[np.ndarray, " samples"]
) -> Float[np.ndarray, "groups heads"]:
    """Return for each group a row such that the rows' mean is that of all samples, and their spread its noise.

    A group of n samples of mean m counts as ``M + n / n̄ (m - M)``, M being the mean of all: the linear form of a mean
    over clusters of different size (Cochran 1977, Sampling Techniques, 9A.3).
    """
    members, index = np.unique(key, return_inverse=True)
    sums = np.zeros((len(members), values.shape[1]))
    np.add.at(sums, index, values)
    sizes = np.bincount(index)[:, None]
    mean = values.mean(0)
    result: Float[np.ndarray, "groups heads"] = mean + (sums - sizes * mean) / sizes.mean()
    return result
