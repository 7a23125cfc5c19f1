"""How much answers of a cross-validated probe depend on each other: each trains the probe that judges the other.

Answer i is judged by a probe that answer j helped to train, and j by one that i helped to train. What the pair of them
owes to chance enters both verdicts with the same sign: under labels of no meaning the variance of an accuracy is then
``1 + 2 / pi`` times what independent verdicts would give. Derivation, source and simulations: docs/decisions/0015.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import norm
from torch import Tensor

ROWS = 4_000
"""Answers that it is estimated from: it is a mean over answers, and this many tell it to about 2 %."""

MOST = 2.0
"""Largest dependence of a head that is believed: simulated heads of any strength stay below 1.5."""

UNKNOWN = 1.0
"""Dependence of a head where nothing is known of its folds: that of labels without meaning."""


class Overlap(NamedTuple):
    """What the overlap of training folds does to a block of heads.

    Attributes:
        answers: The variance of a head's accuracy p over n cross-validated answers is ``spread / n + answers *
            phi(z)**2 / n``, where ``phi(z)`` is the normal density at the quantile of p.
        pairs: The same of pair accuracy, over n questions.
        shift: Sum over heads of each fold's logits of a cluster of answers, towards their labels, scaled so that its
            variance over folds is the second term for the mean of the heads' accuracies, times their number squared.
        fold: Fold of each cluster in ``shift``.
    """

    answers: Float[np.ndarray, " heads"]
    pairs: Float[np.ndarray, " heads"]
    shift: Float[np.ndarray, "folds clusters"]
    fold: Int[np.ndarray, " clusters"]


def overlap_of(
    fold_logit: Float[Tensor, "heads folds n"],
    label: Bool[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    cluster: Int[np.ndarray, " n"],
) -> Overlap:
    """Estimate the dependence of each head from how its folds' probes differ.

    Args:
        fold_logit: Logit of every answer by the probe of every fold, its own training answers among them.
        label: True for truthful answers.
        fold: Fold of each answer, counted from 0.
        cluster: Answers of one number are one draw: a question, or a group of them.

    Source:
        Second-order term of Hoeffding's decomposition (Hoeffding 1948, Annals of Mathematical Statistics 19(3),
        293-325) of a cross-validated accuracy; see docs/decisions/0015.
    """
    rows, index = _sampled(fold, cluster)
    own, truthful = torch.from_numpy(fold[rows]), torch.from_numpy(label[rows])
    logit = fold_logit[:, :, torch.from_numpy(rows).to(fold_logit.device)].cpu().float()
    heads, folds, count = logit.shape
    inside = (own[None] != torch.arange(folds)[:, None]).float()
    held = logit.gather(1, own[None, None].expand(heads, 1, count))
    p = torch.sigmoid(logit)
    residual = (truthful.float() - p) * inside
    squares = residual.square().sum((1, 2))
    error = squares / inside.sum()
    # An answer pulls its own logit by leverage * residual when it is trained on: the gap to its held-out logit.
    leverage = (((logit - held) * residual).sum((1, 2)) / squares.clamp(min=1e-12)).clamp(min=0)
    free = logit * (1 + leverage[:, None, None] * (p * (1 - p)).mean((1, 2), keepdim=True))
    noise = _between(free, own)
    clusters = int(index.max()) + 1
    joined = free.new_zeros(heads, folds, clusters)
    joined.index_add_(2, torch.from_numpy(index), free * (2 * truthful.float() - 1))
    joined *= (clusters / count) ** 0.5
    of_cluster = torch.zeros(clusters, dtype=torch.int64)
    of_cluster[torch.from_numpy(index)] = own
    together = _between(joined, of_cluster)
    spread = sum(held[:, 0, truthful == side].var(1, correction=0) for side in (True, False)) / 2
    share = noise / spread
    at_border = torch.full_like(leverage, 0.5)  # the residual of an answer whose held-out logit is 0
    for _ in range(30):
        at_border = (at_border + torch.sigmoid(-leverage * at_border)) / 2
    clipped = share.clamp(max=1)
    pairs = clipped * (at_border.square() / error.clamp(min=1e-12) + 1 - clipped)
    known = torch.isfinite(pairs) & (spread > 1e-12) & (noise > 0)
    pairs = torch.where(known, pairs.clamp(max=MOST), torch.full_like(pairs, UNKNOWN))
    answers = torch.where(known, (pairs * together / noise).clamp(max=MOST), pairs)
    right = ((held[:, 0] > 0) == truthful).double().mean(1).numpy()
    weight = torch.from_numpy(density(right, float(count))).float() * (pairs / noise.clamp(min=1e-30)).sqrt()
    shift = torch.einsum("h,hkn->kn", torch.where(known, weight, torch.zeros_like(weight)), joined)
    return Overlap(_single(answers), _single(pairs), shift.numpy(), of_cluster.numpy())


def _single(values: Tensor) -> Float[np.ndarray, " heads"]:
    return values.numpy().astype(np.float32)


def _sampled(
    fold: Int[np.ndarray, " n"], cluster: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Return at most about :data:`ROWS` answers, clusters whole, and the number of the cluster of each.

    Where folds cut clusters in two (the released split), each answer is a cluster of its own.
    """
    members, index = np.unique(cluster, return_inverse=True)
    first = np.empty(len(members), dtype=np.int64)
    first[index] = fold
    if (first[index] != fold).any():
        members = index = np.arange(len(fold))
    if len(fold) <= ROWS:
        return np.arange(len(fold)), index
    share = max(2, ROWS * len(members) // len(fold))
    chosen = np.random.default_rng(0).choice(len(members), share, replace=False)
    rows = np.flatnonzero(np.isin(index, chosen))
    return rows, np.unique(index[rows], return_inverse=True)[1]


def between(shift: Float[np.ndarray, "folds clusters"], fold: Int[np.ndarray, " clusters"]) -> float:
    """Return the variance that the choice of training answers gives a sum of logits, from how the folds' sums differ.

    Args:
        shift: As in :class:`Overlap`.
        fold: Fold of each cluster.
    """
    return float(_between(torch.from_numpy(shift)[None], torch.from_numpy(fold))[0])


def _between(logit: Float[Tensor, "heads folds n"], fold: Int[Tensor, " n"]) -> Float[Tensor, " heads"]:
    """Return it for each head, over answers that both of two folds' probes were trained on.

    Two of K probes differ by one part of K - 1 each: their squared difference is ``2 / (K - 1)`` times the variance.
    """
    folds, total, pairs = logit.shape[1], logit.new_zeros(len(logit)), 0
    for first in range(folds):
        for second in range(first):
            both = (fold != first) & (fold != second)
            if bool(both.any()):
                total, pairs = total + (logit[:, first, both] - logit[:, second, both]).square().mean(1), pairs + 1
    return total / pairs * (folds - 1) / 2 if pairs else torch.full_like(total, torch.nan)


def density(share: Float[np.ndarray, "..."], count: float) -> Float[np.ndarray, "..."]:
    """Return the normal density at the quantile of a share, two right and two wrong ones added so that it is above 0.

    Source:
        Agresti and Coull (1998), The American Statistician 52(2), 119-126, for the two and two.
    """
    result: Float[np.ndarray, ...] = np.asarray(norm.pdf(norm.ppf((share * count + 2) / (count + 4))))
    return result
