"""A linear probe on every head and fold at once: Newton's method, and the paper's protocol for parity."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from torch import Tensor

from truthheads.data.answers import shuffled_place
from truthheads.errors import DataError
from truthheads.stats.figures import head_auroc

C = 0.05
"""Inverse strength of the L2 penalty on the summed loss, features scaled to unit variance per head. Chosen once on
NQ-Swap activations of SmolLM2 as the best agreement with the paper's early-stopped probe (Pearson 0.99)."""

TOLERANCE = 1e-4
"""Largest entry of the gradient of the mean loss at which a fit counts as converged: on SmolLM2 no head is then more
than one answer in 600 off the accuracy at the exact minimum."""

MAX_STEPS = 200

NUM_FOLDS = 5

EPOCHS = 200
"""Of the paper's probe."""

ROWS_AT_ONCE = 1 << 15


class HeadFits(NamedTuple):
    """Probes of a block of heads.

    Attributes:
        logit: Out-of-fold logit of each answer.
        weight: Probe fitted on all answers, on raw z.
        bias: Its intercept.
        fold_logit: Logit of each answer by the probe of each fold, those that were trained on it among them.
    """

    logit: Float[Tensor, "n heads"]
    weight: Float[Tensor, "heads head_dim"]
    bias: Float[Tensor, " heads"]
    fold_logit: Float[Tensor, "heads folds n"]


Probe = Callable[[Tensor, Tensor, Tensor], HeadFits]
"""Called with z ``[heads, n, head_dim]``, labels ``[n]`` (0 or 1) and the fold of each answer ``[n]``."""


class HeadMetrics(NamedTuple):
    """How well the probes of a block of heads tell truthful from untruthful answers, out of fold."""

    accuracy: Float[np.ndarray, " heads"]
    auroc: Float[np.ndarray, " heads"]
    pair_accuracy: Float[np.ndarray, " heads"]
    fold_accuracy: Float[np.ndarray, "folds heads"]


def grouped_folds(groups: Sequence[str], *, num_folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Return a fold for each answer; a group never straddles folds, and folds are as equal as the groups allow.

    The order of groups comes from a hash of their names and the seed, so it does not depend on the order of rows.

    Args:
        groups: Group of each answer.
        num_folds: How many.
        seed: Another seed gives other folds.

    Raises:
        DataError: There are fewer groups than folds.
    """
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
    order = np.array([shuffled_place(name, seed) for name in numbers], dtype=np.uint64)
    return dealt_folds(group, order, num_folds=num_folds)


def dealt_folds(
    group: Int[np.ndarray, " n"], order: UInt64[np.ndarray, " groups"], *, num_folds: int
) -> Int[np.ndarray, " n"]:
    """Assign a fold to each answer: the largest groups first, each to the fold with the fewest answers so far.

    Args:
        group: Number of each answer's group, counted from 0.
        order: Each group's place among groups of its size.
        num_folds: How many.

    Raises:
        DataError: There are fewer groups than folds.
    """
    if len(order) < num_folds:
        raise DataError(
            "too few groups for cross-validation",
            expected=f"at least {num_folds} groups of rows (one for each fold)",
            got=f"{len(order)} in {len(group)} answers",
            fix="give more rows; rows of one `group`, one question or, where all ask the same, one context count once",
        )
    sizes = np.bincount(group, minlength=len(order))
    fold_of = np.empty(len(order), dtype=np.int64)
    filled = [0] * num_folds
    for number in np.lexsort((order, -sizes)):
        fold = min(range(num_folds), key=filled.__getitem__)
        fold_of[number] = fold
        filled[fold] += int(sizes[number])
    folds: Int[np.ndarray, " n"] = fold_of[group]
    return folds


def paper_folds(n: int, *, num_folds: int = NUM_FOLDS) -> Int[np.ndarray, " n"]:
    """Return the released split: rows shuffled once and cut into consecutive parts, neither grouped nor stratified.

    Source:
        scikit-learn's ``KFold(5, shuffle=True, random_state=42)``, as in the paper's probing scripts.
    """
    if n < num_folds:
        raise DataError(
            "too few rows for cross-validation", expected=f"at least {num_folds}", got=str(n), fix="give more rows"
        )
    order = np.arange(n)
    np.random.RandomState(42).shuffle(order)
    folds = np.empty(n, dtype=np.int64)
    for fold, part in enumerate(np.array_split(order, num_folds)):
        folds[part] = fold
    return folds


def newton_probe(z: Float[Tensor, "heads n head_dim"], label: Float[Tensor, " n"], fold: Int[Tensor, " n"]) -> HeadFits:
    """Fit L2-regularised logistic regressions of all heads and folds together.

    Features are centred and scaled by one number per head (labels are not looked at for that); the intercept is not
    penalised. The fit on all answers comes first; the folds start from it. Each of the two takes one Newton step and
    then goes on by conjugate gradients that the Newton step's Hessian preconditions, so there are two Hessians a head.

    Args:
        z: Activations of a block of heads.
        label: 1 truthful, 0 not.
        fold: Fold of each answer, counted from 0.

    Source:
        Preconditioned nonlinear conjugate gradients (Polak-Ribière, restarts): Nocedal and Wright (2006), chapter 5.
    """
    heads, n, width = z.shape
    x = z.new_empty(heads, n, width + 1, dtype=torch.float32)  # the only copy of z in fp32
    features = x[:, :, :-1]
    features.copy_(z)
    x[:, :, -1] = 1
    mean = features.mean(1, keepdim=True)
    features -= mean
    scale = torch.linalg.vector_norm(features, dim=(1, 2), keepdim=True) / (n * width) ** 0.5
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    features /= scale
    penalty = torch.full((width + 1,), 1 / C, device=z.device)
    penalty[-1] = 1e-6
    whole = _minimise(x, label, torch.ones_like(label)[None], penalty, x.new_zeros(heads, 1, width + 1))
    kept = torch.stack([(fold != k).float() for k in range(int(fold.max()) + 1)])
    part = _minimise(x, label, kept, penalty, whole.repeat(1, len(kept), 1))
    logits = torch.bmm(part, x.transpose(1, 2))
    held_out = logits.gather(1, fold[None, None].expand(heads, 1, n))[:, 0]
    weight = whole[:, 0, :-1] / scale[:, 0]
    return HeadFits(held_out.T, weight, whole[:, 0, -1] - (weight * mean[:, 0]).sum(1), logits)


def _minimise(
    x: Tensor, label: Tensor, kept: Tensor, penalty: Tensor, theta: Tensor
) -> Float[Tensor, "heads fits width"]:
    """Minimise ``sum(kept · BCE) + ½ θ'Pθ`` for each head and row of ``kept``, from θ ``[heads, fits, width]``.

    The first fit's Hessian over all answers preconditions every fit of its head: leaving out a fold changes little.
    Fits stand in rows, not columns: products with so thin a matrix are then four times as fast on CPUs.
    """
    logit = torch.bmm(theta, x.transpose(1, 2))
    p = torch.sigmoid(logit)
    hessian = _hessian(x, (p[:, 0] * (1 - p[:, 0])).sqrt()) + torch.diag(penalty)
    with _one_thread():
        factor = torch.linalg.cholesky_ex(hessian)[0]
    direction, before, size = torch.zeros_like(theta), torch.zeros_like(theta), logit.new_ones(())
    for _ in range(MAX_STEPS):
        gradient = torch.baddbmm(penalty * theta, kept * (p - label), x)
        if float(gradient.abs().amax()) < TOLERANCE * x.shape[1]:
            break
        with _one_thread():
            newton = torch.cholesky_solve(gradient.transpose(1, 2), factor).transpose(1, 2)
        turn = ((newton * (gradient - before)).sum(2, keepdim=True) / size).clamp(min=0)
        direction = newton + turn * direction
        before, size = gradient, (gradient * newton).sum(2, keepdim=True).clamp(min=1e-30)
        # The best length along the direction, from slope and curvature; logits are linear in it, so x is read once.
        along = torch.bmm(direction, x.transpose(1, 2))
        slope = (gradient * direction).sum(2, keepdim=True)
        curvature = (kept * p * (1 - p) * along.square()).sum(2, keepdim=True)
        length = slope / (curvature + (penalty * direction.square()).sum(2, keepdim=True)).clamp(min=1e-30)
        theta = theta - length * direction
        logit = logit - length * along
        p = torch.sigmoid(logit)
    return theta


@contextmanager
def _one_thread() -> Iterator[None]:
    """Factorise on one thread: matrices this small cost LAPACK more in waking a second one than that one does.

    32 heads of 128, 600 answers, two cores: the whole fit took 0.175 s with two threads and 0.084 s with one.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _hessian(x: Float[Tensor, "heads n width"], root: Float[Tensor, "heads n"]) -> Float[Tensor, "heads width width"]:
    """Return ``sum(root² x x')`` of each head, in parts of rows: the weighted copy of x is never whole in memory."""
    total = x.new_zeros(x.shape[0], x.shape[2], x.shape[2])
    for first in range(0, x.shape[1], ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        weighted = x[:, part] * root[:, part, None]
        total.baddbmm_(weighted.transpose(1, 2), weighted)
    return total


def paper_probe(z: Float[Tensor, "heads n head_dim"], label: Float[Tensor, " n"], fold: Int[Tensor, " n"]) -> HeadFits:
    """Fit the paper's probes, step for step.

    Zero start, AdamW at 1e-2 with weight decay 1e-3 (bias too), 200 epochs, batches of 512 that are never reshuffled,
    one loss averaged over batch and heads, raw fp32 features.

    Source:
        The paper's probing scripts, as described in its protocol: BCE over batch × layers × heads.
    """
    heads, n, _ = z.shape
    logits = torch.empty(n, heads, device=z.device)
    every = []
    for k in range(int(fold.max()) + 1):
        train = fold != k
        weight, bias = _adamw(z[:, train].float(), label[train])
        every.append((torch.einsum("hnd,hd->nh", z.float(), weight) + bias).detach())
        logits[~train] = every[-1][~train]
    weight, bias = _adamw(z.float(), label)
    return HeadFits(logits, weight.detach(), bias.detach(), torch.stack(every).permute(2, 0, 1))


def _adamw(z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(z.shape[0], z.shape[2], device=z.device, requires_grad=True)
    bias = torch.zeros(z.shape[0], device=z.device, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=1e-2, weight_decay=1e-3)
    for _ in range(EPOCHS):
        for start in range(0, z.shape[1], 512):
            rows = slice(start, start + 512)
            logit = torch.einsum("hnd,hd->nh", z[:, rows], weight) + bias
            target = label[rows, None].expand_as(logit)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, target)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return weight, bias


PROBES: dict[str, Probe] = {"newton": newton_probe, "paper": paper_probe}


def probe_metrics(
    logit: Float[np.ndarray, "n heads"],
    label: Bool[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    pair: Int[np.ndarray, " n"],
) -> HeadMetrics:
    """Return out-of-fold accuracy, AUROC and pair accuracy of each head.

    Args:
        logit: Out-of-fold logits.
        label: True for truthful answers.
        fold: Fold of each answer.
        pair: Question of each answer; those with both answers count for pair accuracy.

    Returns:
        Accuracy is the mean of the folds' accuracies at logit 0 (the paper's score), AUROC the mean over folds that
        hold both classes, pair accuracy the share of questions whose truthful answer has the larger logit (ties one
        half), NaN where no question has both.
    """
    per_fold = fold_accuracies(logit, label, fold)
    areas = np.stack([head_auroc(logit[fold == k], label[fold == k]) for k in np.unique(fold)])
    defined = np.isfinite(areas).any(0)
    auroc = np.full(logit.shape[1], np.nan)
    auroc[defined] = np.nanmean(areas[:, defined], axis=0)
    paired = np.full(logit.shape[1], np.nan)
    good, bad = np.flatnonzero(label), np.flatnonzero(~label)
    both, first, second = np.intersect1d(pair[good], pair[bad], return_indices=True)
    if len(both):
        gap = logit[good[first]] - logit[bad[second]]
        paired = ((gap > 0) + 0.5 * (gap == 0)).mean(0)
    return HeadMetrics(per_fold.mean(0), auroc, paired, per_fold)


def fold_accuracies(
    logit: Float[np.ndarray, "n heads"], label: Bool[np.ndarray, " n"], fold: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "folds heads"]:
    """Return the accuracy of each head at logit 0 in each fold; the mean over folds is the paper's score."""
    right = (logit > 0) == label[:, None]
    return np.stack([right[fold == k].mean(0) for k in np.unique(fold)])
