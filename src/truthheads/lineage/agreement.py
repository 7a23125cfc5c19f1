"""How much two models' Truth Scores agree, how much of it noise hides, and what that says about their kinship.

Thresholds: docs/decisions/0006.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from truthheads.errors import ShapeError
from truthheads.results.scores import Scores
from truthheads.stats.figures import Figure, interval, layer_bootstrap, pearson, spearman
from truthheads.stats.intervals import spread_of
from truthheads.stats.overlap import density
from truthheads.stats.thresholds import (
    MIN_SHARED_QUESTIONS,
    SCORE_CORRELATION_INHERITED,
    SCORE_CORRELATION_UNRELATED,
    SCORE_MIN_NOISE_CEILING,
    SCORE_PERMUTATION_P,
)

Means = Float[np.ndarray, "groups heads"]

Others = Float[np.ndarray, "others heads"]

NoiseProducts = Float[np.ndarray, "3 draws"]

NORMAL = 1.959964
"""Half the width of a 95 % interval in standard errors."""


def products(
    a: Means, b: Others, weights: list[np.ndarray], *, shared: bool, wider: tuple[float, float] = (1.0, 1.0)
) -> tuple[NoiseProducts, NoiseProducts]:
    """Return T and N of (A, B), (A, A) and (B, B), one column for each row of the weights.

    Args:
        a: One model's mean per group of questions, centred over heads.
        b: The other's; row by row the same groups where ``shared``.
        weights: Weights of the groups of each, rows summing to 1.
        shared: Whether both were measured on the same questions, and so share their noise.
        wider: How many times each file's noise is that of independent answers (see :func:`widening`).
    """
    means = weights[0] @ a, weights[1] @ b

    def noise(x: int, y: int) -> Float[np.ndarray, " draws"]:
        parts = (a, b)
        each = (parts[x] * parts[y]).sum(1)
        count = len(parts[x])
        result: Float[np.ndarray, " draws"] = (weights[x] @ each - (means[x] * means[y]).sum(1)) / (count - 1)
        return result

    t = np.stack([(means[x] * means[y]).sum(1) for x, y in ((0, 1), (0, 0), (1, 1))])
    cross = noise(0, 1) if shared else np.zeros(len(weights[0]))
    return t, np.stack([cross, noise(0, 0), noise(1, 1)]) * _times(wider)


def products_ratio(parts: NoiseProducts) -> Float[np.ndarray, " draws"]:
    """Return the correlation of (A, B), (A, A), (B, B); NaN where a square is not positive."""
    product = np.where((parts[1] > 0) & (parts[2] > 0), parts[1] * parts[2], np.nan)
    result: Float[np.ndarray, " draws"] = parts[0] / np.sqrt(product)
    return result


def jackknifed(
    a: Means, b: Others, sign: Float[np.ndarray, "3 1"], *, shared: bool, wider: tuple[float, float] = (1.0, 1.0)
) -> Figure:
    """Return the correlation of ``T + sign · N`` with its interval by leaving out one group of questions at a time.

    Resampling with replacement would add the questions' noise a second time, which the ratio does not forgive: at a
    true correlation of 0.9 bootstrap intervals held it in 98–100 % of simulations, these in 96–97 %
    (``python -m bench interval-coverage``).

    Args:
        a: One model's mean per group of questions, centred over heads.
        b: The other's.
        sign: What N counts in each of the three products.
        shared: Whether both were measured on the same questions.
        wider: As in :func:`products`.

    Source:
        Delete-one jackknife: Efron and Stein (1981), Annals of Statistics 9(3), 586-596; two samples: their variances
        add up.
    """
    whole = [np.full((1, len(one)), 1 / len(one)) for one in (a, b)]
    t, n = products(a, b, whole, shared=shared)
    sign = sign * _times(wider)
    value = float(products_ratio(t + sign * n)[0])
    variance = 0.0
    for drawn_t, drawn_n in _left_out(a, b, t, n, shared):
        found = products_ratio(drawn_t + sign * drawn_n)
        variance += (len(found) - 1) * float(found.var())
    reach = NORMAL * (variance * (wider[0] * wider[1]) ** 0.5) ** 0.5
    return Figure(value, value - reach, value + reach)


def _times(wider: tuple[float, float]) -> Float[np.ndarray, "3 1"]:
    return np.array([[(wider[0] * wider[1]) ** 0.5], [wider[0]], [wider[1]]])


def _left_out(
    a: Means, b: Others, t: Float[np.ndarray, "3 1"], n: Float[np.ndarray, "3 1"], shared: bool
) -> list[tuple[NoiseProducts, NoiseProducts]]:
    """Return T and N without each group in turn; of each file by itself where they share no questions."""
    if shared:
        found = [_without(a, b), _without(a, a), _without(b, b)]
        return [(np.stack([one[0] for one in found]), np.stack([one[1] for one in found]))]
    sides = []
    for x, y, place in ((a, b, 1), (b, a, 2)):
        count = len(x)
        whole_t, whole_n = np.repeat(t, count, axis=1), np.repeat(n, count, axis=1)
        whole_t[0] = (count * x.mean(0) - x) / (count - 1) @ y.mean(0)
        whole_t[place], whole_n[place] = _without(x, x)
        sides.append((whole_t, whole_n))
    return sides


def _without(x: Means, y: Means) -> tuple[Float[np.ndarray, " groups"], Float[np.ndarray, " groups"]]:
    """Return T and N of two files over shared groups, without each group in turn."""
    count = len(x)
    t = (((count * x.mean(0) - x) / (count - 1)) * ((count * y.mean(0) - y) / (count - 1))).sum(1)
    each = (x * y).sum(1)
    n = ((each.sum() - each) / (count - 1) - t) / (count - 2)
    return t, n


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
        first: Samples of the first file; None where none were kept.
        second: Samples of the second; where questions are shared, row by row the same groups.
        shared: How many questions are shared.
    """

    first: Float[np.ndarray, "groups heads"] | None
    second: Float[np.ndarray, "others heads"] | None
    shared: int


def items(scores: Scores) -> Float[np.ndarray, "samples num_layers num_heads"] | None:
    """Compute what each sample adds to each head's score; None where no samples were kept.

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
    if len(common) < MIN_SHARED_QUESTIONS:
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


RESAMPLES = 1000

PERMUTATIONS = 2000

TOPS = (0.05, 0.10, 0.20)

Basis = Literal["shared questions", "own questions", "layers"]


class Overlap(NamedTuple):
    """Heads that are among the best of both.

    Attributes:
        share: Share of all heads that count as best.
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
        ceiling: Noise ceiling: correlation of each model with itself on as many new questions, raw; geometric mean.
        ceiling_within: The same after centring.
        p_permutation: Share of permutations of heads within layers that agree as much within layers; two-sided. Over
            shared questions of ``T - N``, so that noise which both files share does not pass for agreement.
        depth_only: Mean raw correlation of those permutations: what a shared depth profile gives.
        overlaps: Overlaps of the best heads.
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
        seed: Random seed of resamples and permutations.
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
    found = products_ratio(drawn_t - drawn_n)  # once, since resampling adds N once more
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
        seed: Random seed of the permutations.
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


class Verdict(NamedTuple):
    """A verdict in one word, with its evidence."""

    word: str
    evidence: str


def score_verdict(relation: Relation) -> Verdict:
    """Return ``inherited``, ``partly``, ``not related`` or ``can't tell``, from the ends of intervals alone.

    The figure judged is the within-layer correlation with the questions' noise taken off; where a file's ceiling is
    below ``SCORE_MIN_NOISE_CEILING``, the correlation across disjoint halves; without samples, the
    plain within-layer correlation.
    """
    name, judged = _judged(relation)
    p = relation.p_permutation
    words = f"within-layer correlation {name} {judged}, permutation p {p:.4f}"
    if relation.ceiling_within is not None:
        words += f", noise ceiling {relation.ceiling_within:.2f}"
    words += f"; raw {relation.pearson.value:.3f}, of which depth alone gives {relation.depth_only:.3f}"
    if not np.isfinite([judged.low, judged.high]).all():
        return Verdict("can't tell", f"{words}: no interval")
    if p <= SCORE_PERMUTATION_P and judged.low >= SCORE_CORRELATION_INHERITED:
        return Verdict("inherited", words)
    if p <= SCORE_PERMUTATION_P and judged.low > SCORE_CORRELATION_UNRELATED:
        return Verdict("partly", words)
    if judged.high < SCORE_CORRELATION_INHERITED and (
        p > SCORE_PERMUTATION_P or judged.high <= SCORE_CORRELATION_UNRELATED
    ):
        return Verdict("not related", words)
    return Verdict(
        "can't tell",
        f"{words}: the interval reaches from below {SCORE_CORRELATION_UNRELATED} upwards, "
        f"or p is above {SCORE_PERMUTATION_P}",
    )


def _judged(relation: Relation) -> tuple[str, Figure]:
    if relation.corrected_within is None or relation.disjoint_within is None or relation.ceiling_within is None:
        return "(no samples: noise still in it)", relation.within
    ends = [relation.corrected_within.low, relation.corrected_within.high]
    if relation.ceiling_within < SCORE_MIN_NOISE_CEILING or not np.isfinite(ends).all():
        return "across disjoint halves", relation.disjoint_within
    return "without noise", relation.corrected_within
