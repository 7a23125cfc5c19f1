"""Two models' Truth Scores against each other: how much is the same, and how much only looks so.

Scores are means over questions, so two score files share the questions' noise where they share the questions, and each
is less than itself correlated with itself. Both are known from the samples in the files. Write ``a[g, h]`` for what
question g adds to head h's score in one file, ``A[h]`` for its mean over n questions, and M for centring over all heads
(raw) or over the heads of each layer. Then

    T(A, B) = sum over h of (M A)[h] (M B)[h]
    N(A, B) = 1 / (n (n - 1)) * sum over g, h of (M (a[g] - A))[h] (M (b[g] - B))[h]

N is the part of T that comes from questions being a sample. ``T - N`` pairs no question with itself: it is the average
over all ways of taking A from some questions and B from others. So

    raw        T(A, B) / sqrt(T(A, A) T(B, B))
    ceiling    (T - N)(A, A) / T(A, A): the correlation of A with A from as many new questions
    disjoint   (T - N)(A, B) / sqrt((T + N)(A, A) (T + N)(B, B)): A on one half of the questions, B on the other
    corrected  (T - N)(A, B) / sqrt((T - N)(A, A) (T - N)(B, B)): the correlation without noise
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from truthheads.errors import ShapeError
from truthheads.products import jackknifed, products, ratio
from truthheads.samples import paired_items, widening
from truthheads.scores import Scores
from truthheads.stats import Figure, interval, layer_bootstrap, pearson, spearman

RESAMPLES = 1000
PERMUTATIONS = 2000
TOPS = (0.05, 0.10, 0.20)
Basis = Literal["shared questions", "own questions", "layers"]


class Overlap(NamedTuple):
    """Heads that are among the best of both.

    Attributes:
        share: Of all heads, how many count as best.
        overlap: Share of one's best heads that are the other's best, too.
        chance: What heads in random order give.
    """

    share: float
    overlap: float
    chance: float


class Relation(NamedTuple):
    """How the scores of two models agree.

    Attributes:
        pearson: Raw, of the scores as they stand.
        spearman: Ranks of the scores as they stand.
        within: Pearson after each layer's mean has been taken off.
        disjoint: Raw, one model on one half of the questions and the other on the other half.
        disjoint_within: The same after centring.
        corrected: Raw, corrected for the questions' noise; None without samples.
        corrected_within: The same after centring.
        ceiling: Of both: correlation of each model with itself on as many new questions, raw; geometric mean.
        ceiling_within: The same after centring.
        p_permutation: Share of permutations of heads within layers that agree as much within layers; two-sided. Over
            shared questions of ``T - N``, so that noise which both files share does not pass for agreement.
        depth_only: Mean raw correlation of those permutations: what a shared depth profile gives.
        overlaps: Of the best heads.
        shared: Questions that both files have.
        basis: What the intervals resample.
    """

    pearson: Figure
    spearman: Figure
    within: Figure
    disjoint: Figure | None
    disjoint_within: Figure | None
    corrected: Figure | None
    corrected_within: Figure | None
    ceiling: float | None
    ceiling_within: float | None
    p_permutation: float
    depth_only: float
    overlaps: tuple[Overlap, ...]
    shared: int
    basis: Basis


def relate(a: Scores, b: Scores, *, seed: int = 0, resamples: int = RESAMPLES) -> Relation:
    """Compare the scores of two models head by head.

    Args:
        a: Scores of one model.
        b: Scores of another of the same shape.
        seed: Of resamples and permutations.
        resamples: How many for the intervals.

    Raises:
        ShapeError: The shapes differ; heads can then be aligned, not compared one by one.

    Source:
        Correction for attenuation: Spearman (1904), The American Journal of Psychology 15(1), 72-101. Intervals:
        of plain figures, bootstrap over questions, the draws' own noise taken off, so that they lie around the figure;
        of disjoint and corrected ones, jackknife over questions.
    """
    if a.values.shape != b.values.shape:
        raise ShapeError(
            "the two score files are of different shape",
            expected=" x ".join(map(str, a.values.shape)),
            got=" x ".join(map(str, b.values.shape)),
            fix="compare their layer profiles, or align their heads: `truthheads compare --align`",
        )
    x, y = a.values.double().numpy(), b.values.double().numpy()
    heads = np.isfinite(x) & np.isfinite(y)
    overlaps = tuple(_overlap(x[heads], y[heads], share) for share in TOPS)
    first, second, shared = paired_items(a, b, heads)
    wider = widening(a, heads), widening(b, heads)
    times = (wider[0] * wider[1]) ** 0.5
    p, depth = _permuted(x, y, heads, (first, second, times) if shared else None, seed)
    if first is None or second is None:
        masked = [(np.where(heads, x, np.nan), np.where(heads, y, np.nan))]
        centred = [(centre(masked[0][0]), centre(masked[0][1]))]
        return Relation(
            layer_bootstrap(masked, pearson, seed=seed),
            layer_bootstrap(masked, spearman, seed=seed),
            layer_bootstrap(centred, pearson, seed=seed),
            *(None,) * 6,
            p,
            depth,
            overlaps,
            shared,
            "layers",
        )
    layer = np.nonzero(heads)[0]
    generator = np.random.default_rng(seed)
    weights = [_draws(generator, len(first), resamples)]
    weights.append(weights[0] if shared else _draws(generator, len(second), resamples))
    raw = _figures(first, second, weights, None, bool(shared), (x[heads], y[heads]), wider)
    within = _figures(first, second, weights, layer, bool(shared), (x[heads], y[heads]), wider)
    ranks = np.array([spearman(u, v) for u, v in zip(weights[0] @ first, weights[1] @ second, strict=True)])
    value = spearman(x[heads], y[heads])
    low, high = interval(np.clip(value + times**0.5 * (ranks - np.median(ranks)), -1, 1))
    return Relation(
        raw.plain,
        Figure(value, float(low), float(high)),
        within.plain,
        raw.disjoint,
        within.disjoint,
        raw.corrected,
        within.corrected,
        raw.ceiling,
        within.ceiling,
        p,
        depth,
        overlaps,
        shared,
        "shared questions" if shared else "own questions",
    )


def centre(values: Float[np.ndarray, "num_layers num_heads"]) -> Float[np.ndarray, "num_layers num_heads"]:
    """Return scores less the mean of their layer; NaN stays."""
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
    result: Float[np.ndarray, "num_layers num_heads"] = values - mean
    return result


class _Figures(NamedTuple):
    plain: Figure
    disjoint: Figure
    corrected: Figure
    ceiling: float


def _draws(generator: np.random.Generator, groups: int, resamples: int) -> Float[np.ndarray, "resamples groups"]:
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    result: Float[np.ndarray, "resamples groups"] = counts / groups
    return result


def _figures(
    first: Float[np.ndarray, "groups heads"],
    second: Float[np.ndarray, "others heads"],
    weights: list[Float[np.ndarray, "resamples _"]],
    layer: Int[np.ndarray, " heads"] | None,
    shared: bool,
    values: tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]],
    wider: tuple[float, float],
) -> _Figures:
    """Return the figures of the module docstring."""
    a, b = centred(first, layer), centred(second, layer)
    drawn_t, drawn_n = products(a, b, weights, shared=shared)  # resampling adds N of independent answers
    x, y = (centred(value[None], layer)[0] for value in values)
    plain = float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))
    found = ratio(drawn_t - drawn_n)  # once, since resampling adds N once more
    found = found[np.isfinite(found)]
    middle = float(np.median(found)) if len(found) else np.nan
    more = (wider[0] * wider[1]) ** 0.25
    low, high = interval(np.clip(middle + more * (found - middle), -1, 1)) if len(found) else (np.nan, np.nan)
    point = [np.full((1, len(one)), 1 / len(one)) for one in (a, b)]
    t, n = products(a, b, point, shared=shared, wider=wider)
    reliability = np.clip((t - n)[1:, 0] / t[1:, 0], 0, None)
    # The cross term loses N, the squares gain it: half the questions each.
    halves = np.array([[-1.0], [1.0], [1.0]])
    return _Figures(
        Figure(plain, float(low), float(high)),
        jackknifed(a, b, halves, shared=shared, wider=wider),
        jackknifed(a, b, -np.ones((3, 1)), shared=shared, wider=wider),
        float(np.sqrt(reliability[0] * reliability[1])),
    )


def centred(
    values: Float[np.ndarray, "groups heads"], layer: Int[np.ndarray, " heads"] | None
) -> Float[np.ndarray, "groups heads"]:
    """Return values less the mean over all heads, or over the heads of each layer."""
    if layer is None:
        result: Float[np.ndarray, "groups heads"] = values - values.mean(1, keepdims=True)
        return result
    members, index = np.unique(layer, return_inverse=True)
    member = np.eye(len(members))[index]
    within: Float[np.ndarray, "groups heads"] = values - (values @ member / member.sum(0))[:, index]
    return within


def _permuted(
    x: Float[np.ndarray, "num_layers num_heads"],
    y: Float[np.ndarray, "num_layers num_heads"],
    heads: Bool[np.ndarray, "num_layers num_heads"],
    shared: Any,
    seed: int,
) -> tuple[float, float]:
    """Return the two-sided p of the within-layer agreement, and the mean raw correlation, under permutation.

    Args:
        x: Scores of one model.
        y: Scores of the other.
        heads: Those that both have.
        shared: Both models' means per shared question and how far their noise is widened, or None: what both owe to
            the same questions is then unknown.
        seed: Of the permutations.
    """
    layer = np.nonzero(heads)[0]
    u, v = x[heads], y[heads]
    generator = np.random.default_rng(seed)
    order = np.stack([np.arange(len(layer)), *(_within(generator, layer) for _ in range(PERMUTATIONS))])
    cu, cv = (centred(one[None], layer)[0] for one in (u, v))
    agreement = cv[order] @ cu
    if shared is not None:
        first, second = (centred(one, layer) for one in shared[:2])
        count = len(first)
        noise = (first - first.mean(0)).T @ (second - second.mean(0)) / (count * (count - 1)) * shared[2]
        agreement = first.mean(0) @ second.mean(0)[order].T - noise[np.arange(len(layer)), order].sum(1)
    as_much = int((np.abs(agreement[1:]) >= abs(agreement[0]) - 1e-12).sum())
    ru, rv = u - u.mean(), v - v.mean()
    scale = np.sqrt((ru @ ru) * (rv @ rv))
    depth = float((rv[order[1:]] @ ru).mean() / scale) if scale > 0 else float("nan")
    return (as_much + 1) / (PERMUTATIONS + 1), depth


def _within(generator: np.random.Generator, layer: Int[np.ndarray, " heads"]) -> Int[np.ndarray, " heads"]:
    """Return an order in which heads have changed places inside their layers alone."""
    return np.lexsort((generator.random(len(layer)), layer))


def _overlap(x: Float[np.ndarray, " heads"], y: Float[np.ndarray, " heads"], share: float) -> Overlap:
    """Return the overlap of the best heads; heads that tie at the border share the places left."""
    count = max(1, round(share * len(x)))
    best = []
    for values in (x, y):
        border = np.sort(values)[-count]
        above, tied = values > border, values == border
        best.append(above + tied * (count - above.sum()) / tied.sum())
    return Overlap(share, float(np.minimum(*best).sum() / count), count / len(x))
