"""Align and match the heads of models of different shape, compared with what unrelated models would give.

Layers of A are paired with layers of B by relative depth. A free fit always finds something: an orthogonal map has
H (H - 1) / 2 parameters, and sorting two lists makes them alike. So each fit is repeated with B's heads shuffled over
the whole model; the spread of those fits is what any two models would give.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment

from truthheads.lineage.agreement import centre, items
from truthheads.results.comparison import AlignmentResult, FitResult
from truthheads.results.scores import Scores
from truthheads.stats.figures import Figure, half_of, interval, pearson
from truthheads.stats.thresholds import MIN_SHARED_QUESTIONS

PERMUTATIONS = 200

Heads = Float[np.ndarray, "num_layers num_heads"]

Profiles = Float[np.ndarray, "features num_layers num_heads"]

Others = Float[np.ndarray, "features other_layers other_heads"]


class Fit(NamedTuple):
    """The quality of an alignment, beside that of unrelated models.

    Attributes:
        before: As the heads stand; NaN where shapes differ.
        after: As fitted.
        chance: The same fit with B's heads shuffled over the whole model: mean and central 95 %.
        p: Share of those that fit as well.
    """

    before: float
    after: float
    chance: Figure
    p: float

    def json(self) -> FitResult:
        """Return the fit as JSON."""
        return {"before": self.before, "after": self.after, "chance": self.chance.json(), "p": self.p}


@dataclass(frozen=True, slots=True)
class Alignment:
    """How well the heads of two models can be aligned.

    Attributes:
        rotated: Correlation of centred scores after an orthogonal map of the heads axis, one for all layers.
        held_out: The same, map fitted on every other layer and read on the rest; both ways, averaged.
        matched: Heads paired one to one inside layers. By samples: mean correlation over questions; by scores:
            correlation of centred scores.
        matched_held_out: By samples, paired on half of the questions and read on the other; None by scores.
        basis: What heads are paired by.
        layers: For each layer of A, the layer of B beside it.
        heads: For each layer of A, the head of B for each of A's heads; -1 where it has none.
    """

    rotated: Fit
    held_out: Fit
    matched: Fit
    matched_held_out: Fit | None
    basis: Literal["samples", "scores"]
    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...]

    @property
    def moved(self) -> int:
        """Heads whose partner has another number, or that have none."""
        return sum(partner != head for row in self.heads for head, partner in enumerate(row))

    def json(self) -> AlignmentResult:
        """Return the alignment as JSON."""
        return {
            "rotated": self.rotated.json(),
            "held_out": self.held_out.json(),
            "matched": self.matched.json(),
            "matched_held_out": self.matched_held_out.json() if self.matched_held_out else None,
            "basis": self.basis,
            "layers": list(self.layers),
            "heads": [list(row) for row in self.heads],
            "moved": self.moved,
        }

    def in_words(self) -> str:
        """Return both fits beside their baselines, in a sentence."""
        matched = self.matched_held_out or self.matched
        way = "on questions left out" if self.matched_held_out else "by their scores alone, which is sorting"
        return (
            f"rotated onto each other {_beside(self.rotated)}, on layers left out {_beside(self.held_out)}; "
            f"heads matched {way} {_beside(matched)}, {self.moved} of {sum(map(len, self.heads))} in another place"
        )


def _beside(fit: Fit) -> str:
    return f"{fit.after:.3f} (any two models: {fit.chance})"


def align(a: Scores, b: Scores, *, seed: int = 0, permutations: int = PERMUTATIONS) -> Alignment:
    """Align the heads of A with those of B, by rotation and by pairing.

    Rotation: scores of A, resampled linearly to B's depth, less each layer's mean, times one orthogonal matrix over the
    heads axis (the shorter axis filled with zeros). Pairing: heads of A's layer with those of B's layer at the same
    relative depth, by the correlation over shared questions of what each question adds to each head (less the layer's
    mean on that question); without such samples, by the scores.

    Args:
        a: Scores of one model.
        b: Scores of another, of any shape.
        seed: Random seed of the shuffles.
        permutations: How many.

    Source:
        Orthogonal Procrustes: Schönemann (1966), Psychometrika 31(1), 1-10, by scipy; the paper (4.3) aligns scores so,
        without saying which axis. Assignment: scipy.optimize.linear_sum_assignment.
    """
    x, y = a.values.double().numpy(), b.values.double().numpy()
    generator = np.random.default_rng(seed)
    shuffles = [generator.permutation(y.size) for _ in range(permutations)]
    same = x.shape == y.shape
    before = pearson(_filled(x).ravel(), _filled(y).ravel()) if same else float("nan")
    at_depth = resampled(x, len(y))

    def fit(way: Callable[[Profiles], float], profiles: Profiles, start: float) -> Fit:
        after = way(profiles)
        flat = profiles.reshape(len(profiles), -1)
        return _fit(start, after, np.array([way(flat[:, order].reshape(profiles.shape)) for order in shuffles]))

    scores = y[None]
    layers = paired_layers(len(x), len(y))
    shared = profiles_of(a, b)
    first, second = shared or (x[None], scores)
    pairs = _pairs(first, second, layers)
    start = _likeness(first, second, layers, _in_place(x)) if same else float("nan")
    held: Fit | None = None
    if shared:
        half = half_of(np.arange(len(first)), seed=seed)

        def left_out(other: Profiles) -> float:
            ways = [
                _likeness(first[~one], other[~one], layers, _pairs(first[one], other[one], layers))
                for one in (half, ~half)
            ]
            return float(np.mean(ways))

        held = fit(left_out, second, start)
    heads = np.full(x.shape, -1)
    for layer, (own, others) in enumerate(pairs):
        heads[layer, own] = others
    return Alignment(
        rotated=fit(lambda other: _rotated(at_depth, other[0]), scores, before),
        held_out=fit(lambda other: _held_out(at_depth, other[0]), scores, before),
        matched=fit(lambda other: _likeness(first, other, layers, _pairs(first, other, layers)), second, start),
        matched_held_out=held,
        basis="samples" if shared else "scores",
        layers=layers,
        heads=tuple(tuple(int(head) for head in row) for row in heads),
    )


def resampled(values: Heads, depth: int) -> Float[np.ndarray, "depth num_heads"]:
    """Return scores at another depth, each head's column interpolated linearly; layers without scores are passed over.

    Args:
        values: Less than one finite value in a column gives a column of NaN.
        depth: Layers wanted; the first and the last stay where they are.
    """
    wanted = np.linspace(0, 1, depth)
    at = np.linspace(0, 1, len(values)) if len(values) > 1 else np.array([0.5])
    result = np.full((depth, values.shape[1]), np.nan)
    for head, column in enumerate(values.T):
        known = np.isfinite(column)
        if known.any():
            result[:, head] = np.interp(wanted, at[known], column[known])
    return result


def paired_layers(first: int, second: int) -> tuple[int, ...]:
    """Return for each of the first model's layers the second's at the same relative depth."""
    return tuple(int(layer) for layer in np.rint(np.linspace(0, second - 1, first)))


def profiles_of(a: Scores, b: Scores) -> tuple[Profiles, Others] | None:
    """Compute what each shared question adds to each head's score; None where there are no such samples.

    Returns:
        Of each model ``[questions, num_layers, num_heads]``, rows of the same questions.
    """
    common = np.intersect1d(a.sample_id.numpy(), b.sample_id.numpy())
    if len(common) < MIN_SHARED_QUESTIONS:
        return None
    found = []
    for scores in (a, b):
        item = items(scores)
        if item is None:
            return None
        keep = np.isin(scores.sample_id.numpy(), common)
        index = np.searchsorted(common, scores.sample_id.numpy()[keep])
        sums = np.zeros((len(common), *item.shape[1:]))
        np.add.at(sums, index, item[keep])
        found.append(sums / np.bincount(index)[:, None, None])
    return found[0], found[1]


def _filled(values: Heads) -> Heads:
    """Return centred scores with nothing (0) where there is no score."""
    result: Heads = np.nan_to_num(centre(values))
    return result


def _same_width(
    x: Heads, y: Float[np.ndarray, "num_layers other_heads"]
) -> tuple[Float[np.ndarray, "num_layers width"], Float[np.ndarray, "num_layers width"]]:
    width = max(x.shape[1], y.shape[1])
    first, second = (np.pad(_filled(one), ((0, 0), (0, width - one.shape[1]))) for one in (x, y))
    return first, second


def _rotated(x: Heads, y: Float[np.ndarray, "num_layers other_heads"]) -> float:
    first, second = _same_width(x, y)
    turn, _ = orthogonal_procrustes(first, second)
    return pearson((first @ turn).ravel(), second.ravel())


def _held_out(x: Heads, y: Float[np.ndarray, "num_layers other_heads"]) -> float:
    first, second = _same_width(x, y)
    found = []
    for start in (0, 1):
        seen = np.arange(len(first)) % 2 == start
        turn, _ = orthogonal_procrustes(first[seen], second[seen])
        found.append(pearson((first[~seen] @ turn).ravel(), second[~seen].ravel()))
    return float(np.mean(found))


def _pairs(
    a: Profiles, b: Others, layers: tuple[int, ...]
) -> list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
    """Return for each layer of A its heads and their partners."""
    found = []
    for layer, other in enumerate(layers):
        likeness = _directions(a[:, layer]).T @ _directions(b[:, other])
        own, others = linear_sum_assignment(likeness, maximize=True)
        found.append((own, others))
    return found


def _likeness(
    a: Profiles, b: Others, layers: tuple[int, ...], pairs: list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]
) -> float:
    """Return the mean correlation of paired heads over questions; with one feature, the correlation of the scores."""
    first = [_directions(a[:, layer])[:, own] for layer, (own, _) in enumerate(pairs)]
    second = [_directions(b[:, other])[:, others] for other, (_, others) in zip(layers, pairs, strict=True)]
    x, y = np.concatenate(first, axis=1), np.concatenate(second, axis=1)
    return pearson(x[0], y[0]) if len(a) == 1 else float((x * y).sum(0).mean())


def _directions(values: Float[np.ndarray, "features heads"]) -> Float[np.ndarray, "features heads"]:
    """Return each head's profile less its layer's, over questions of mean 0 and length 1; scores only less the mean."""
    net: Float[np.ndarray, "features heads"] = np.nan_to_num(centre(values))
    if len(values) == 1:
        return net
    net = net - net.mean(0)
    length = np.sqrt((net * net).sum(0))
    result: Float[np.ndarray, "features heads"] = net / np.where(length > 0, length, 1)
    return result


def _in_place(x: Heads) -> list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]]:
    heads = np.arange(x.shape[1])
    return [(heads, heads)] * len(x)


def _fit(before: float, after: float, chance: Float[np.ndarray, " permutations"]) -> Fit:
    chance = chance[np.isfinite(chance)]
    if not len(chance) or not np.isfinite(after):
        return Fit(before, after, Figure(float("nan"), float("nan"), float("nan")), float("nan"))
    low, high = interval(chance)
    as_good = int((chance >= after - 1e-12).sum())
    return Fit(before, after, Figure(float(chance.mean()), float(low), float(high)), (as_good + 1) / (len(chance) + 1))
