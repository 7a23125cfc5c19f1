"""What each question adds to each head's score, for one score file or for two side by side."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from truthheads.scores import Scores

ENOUGH = 10
"""Shared questions below which two files are compared as if they shared none."""


class Paired(NamedTuple):
    """Means per group of questions, one column for each head.

    Attributes:
        first: Of the first file; None where no samples were kept.
        second: Of the second; where questions are shared, row by row the same questions.
        shared: How many questions are shared and paired.
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
    sample: Float[np.ndarray, "samples num_layers num_heads"] = scores.sample.double().numpy()
    if scores.method != "probe":
        return sample
    right: Float[np.ndarray, "samples num_layers num_heads"] = (
        (sample > 0) == (scores.sample_label.numpy() == 1)[:, None, None]
    ).astype(float)
    right[np.isnan(sample)] = np.nan
    return right


def paired_items(a: Scores, b: Scores, heads: Bool[np.ndarray, "num_layers num_heads"]) -> Paired:
    """Return both models' means per group of questions, over shared questions where there are enough of them."""
    found = [item for item in (items(a), items(b)) if item is not None]
    if len(found) < 2:
        return Paired(None, None, 0)
    ids = a.sample_id.numpy(), b.sample_id.numpy()
    common = np.intersect1d(ids[0], ids[1])
    shared = [np.isin(one, common) for one in ids]
    enough = len(common) >= ENOUGH
    means = []
    for scores, item, own, keep in zip((a, b), found, ids, shared, strict=True):
        rows = keep if enough else np.ones(len(own), dtype=bool)
        flat = item[rows][:, heads]
        usable = np.isfinite(flat).all(1)
        # Shared questions are paired by their identity; own ones are grouped as the file groups them.
        key = own[rows][usable] if enough else scores.sample_group.numpy()[rows][usable]
        means.append((np.unique(key), _group_means(flat[usable], key)))
    if not enough:
        return Paired(means[0][1], means[1][1], 0)
    both = np.intersect1d(means[0][0], means[1][0])
    first, second = (mean[np.isin(keys, both)] for keys, mean in means)
    return Paired(first, second, len(both))


def _group_means(
    values: Float[np.ndarray, "samples heads"], key: Int[np.ndarray, " samples"]
) -> Float[np.ndarray, "groups heads"]:
    members, index = np.unique(key, return_inverse=True)
    sums = np.zeros((len(members), values.shape[1]))
    np.add.at(sums, index, values)
    result: Float[np.ndarray, "groups heads"] = sums / np.bincount(index)[:, None]
    return result
