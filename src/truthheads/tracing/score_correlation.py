"""Test whether heads with high Truth Scores attend to the evidence more than others."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from truthheads.data.cautions import data_cautions
from truthheads.errors import ShapeError
from truthheads.lineage.agreement import paired_items, relate
from truthheads.results.scores import Scores
from truthheads.results.trace import Claim, ClaimResult, Trace, TraceCounts, TraceSummary
from truthheads.stats.figures import Figure, FigureJson, interval
from truthheads.stats.thresholds import TOP_HEADS_SHARE

TESTED = ("auroc", "lift", "pointing", "distractor_auroc", "distractor_lift", "distractor_pointing")

RESAMPLES = 200

PERMUTATIONS = 2000

Draws = Float[np.ndarray, "#draws heads"]
"""An array of heads, or one for each draw."""


def score_correlations(trace: Trace, scores: Scores, *, seed: int = 0) -> Claim:
    """Return, for every position and measure, how the measure correlates with Truth Scores over heads.

    Args:
        trace: How well each head finds the evidence.
        scores: Truth Scores of the same model, or of a relative of the same shape.
        seed: Random seed of resamples and permutations.

    Returns:
        By position and measure: ``spearman`` of all heads; ``within_layer``, of ranks among the heads of a layer, with
        ``p_permutation``, two-sided, heads shuffled inside their layers; ``depth_only``, the Spearman correlation that
        those permutations leave, which a shared depth profile alone gives; ``pearson``; ``pearson_within_layer``, its
        ``p_pearson``; ``disjoint_within_layer``, Pearson within layers with the measure from one half of the questions
        and the scores from the other, so that noise which both owe to the same questions does not pass for agreement;
        ``equal_depth``, the measure's mean over the best tenth of heads by Truth Score less its mean over the other
        heads of the same layers. Intervals resample questions: the trace's, and the scores' where their file kept
        samples, jointly where both have the same questions.

    Raises:
        ShapeError: The scores are of another shape.
    """
    check_shape(tuple(trace.truth.shape), scores)
    found: Claim = {}
    for position in trace.positions:
        arrays = {name: trace.as_scores(name, position) for name in TESTED}
        known = {name: array for name, array in arrays.items() if bool(torch.isfinite(array.values).any())}
        found[position] = {name: _tested(array, scores, seed) for name, array in known.items()}
    return found


def summarise_trace(trace: Trace, *, top: int = 10) -> TraceSummary:
    """Return the JSON result of ``truthheads trace``.

    Args:
        trace: The artefact.
        top: Heads in the list.
    """
    meta = trace.meta
    counts: TraceCounts = meta["summary"]
    result: TraceSummary = {
        "model": meta.get("model"),
        "data": meta.get("data"),
        "settings": meta.get("settings"),
        "seed": meta.get("seed"),
        "positions": list(trace.positions),
        "position": trace.position,
        "scores": meta.get("scores"),
        "claim": meta.get("claim"),
        **counts,
        "top": trace.table(top),
        "questions": trace.questions,
        "ranked": trace.caution is None,
        "warnings": [],
    }
    result["warnings"] = _warnings(result, trace.caution)
    return result


def _warnings(result: TraceSummary, caution: str | None) -> list[str]:
    """List the caveats that a reader of the figures must know, one sentence each."""
    found = [caution] if caution else []
    if result["left_out"]:
        found.append(f"Rows left out: {', '.join(f'{count} with {why}' for why, count in result['left_out'].items())}.")
    guessed = result["sources"].get("occurrences", 0)
    if guessed:
        found.append(
            f"{guessed} rows name no evidence; theirs is wherever the truthful answer stands in the context, also "
            "where that place does not answer the question."
        )
    found += data_cautions(result["data"])
    other = ((result["scores"] or {}).get("model") or {}).get("fingerprint")
    if few := (result["scores"] or {}).get("caution"):
        found.append(f"Of the Truth Scores: {few}")
    if result["scores"] and other != (result["model"] or {})["fingerprint"]:
        found.append("The Truth Scores are not known to be of this very model.")
    return found


def check_shape(shape: tuple[int, ...], scores: Scores) -> None:
    """Raise ShapeError where Truth Scores are not of the shape ``(num_layers, num_heads)`` that is traced."""
    if shape != tuple(scores.values.shape):
        raise ShapeError(
            "the scores do not fit the trace",
            expected=f"{shape[0]} layers x {shape[1]} heads",
            got=" x ".join(map(str, scores.values.shape)),
            fix="give scores of this model, or of a relative of the same shape",
        )


def _tested(measured: Scores, scores: Scores, seed: int) -> ClaimResult:
    x, y = measured.values.double().numpy(), scores.values.double().numpy()
    heads = np.isfinite(x) & np.isfinite(y)
    layer = np.nonzero(heads)[0]
    first, second = _draws(measured, scores, heads, seed)
    u, v = x[heads][None], y[heads][None]
    generator = np.random.default_rng(seed)
    orders = [np.lexsort((generator.random(len(layer)), layer)) for _ in range(PERMUTATIONS)]
    shuffled = v[0][np.array(orders)]
    within = _layer_ranks(u, layer), _layer_ranks(v, layer)
    chance = _correlation(within[0], _layer_ranks(shuffled, layer))
    seen = abs(float(_correlation(*within)[0]))
    related = relate(measured, scores, seed=seed, resamples=RESAMPLES)
    return {
        "spearman": _figure(lambda a, b: _correlation(_ranks(a), _ranks(b)), u, v, first, second),
        "within_layer": _figure(
            lambda a, b: _correlation(_layer_ranks(a, layer), _layer_ranks(b, layer)), u, v, first, second
        ),
        "p_permutation": (int((np.abs(chance) >= seen - 1e-12).sum()) + 1) / (PERMUTATIONS + 1),
        "depth_only": float(np.mean(_correlation(_ranks(u), _ranks(shuffled)))),
        "pearson": related.pearson.json(),
        "pearson_within_layer": related.within.json(),
        "p_pearson": related.p_permutation,
        "disjoint_within_layer": related.disjoint_within.json() if related.disjoint_within else None,
        "equal_depth": _figure(lambda a, b: _advantage(a, b, layer), u, v, first, second, (-np.inf, np.inf)),
        "heads": int(heads.sum()),
        "shared_questions": related.shared,
    }


def _draws(
    measured: Scores, scores: Scores, heads: Bool[np.ndarray, "num_layers num_heads"], seed: int
) -> tuple[Draws, Draws]:
    """Return both arrays over resampled questions; without samples scores stay as they are, a trace is NaN."""
    pair = paired_items(measured, scores, heads)
    generator = np.random.default_rng(seed)
    both = []
    weights = None
    alone = paired_items(measured, measured, heads).first if pair.first is None else pair.first
    for items, values in ((alone, measured.values), (pair.second, scores.values)):
        if items is None or alone is None:
            fixed = values.double().numpy()[heads][None]
            both.append(fixed * np.nan if alone is None else fixed.repeat(RESAMPLES, 0))
            continue
        if weights is None or not pair.shared:
            weights = generator.multinomial(len(items), np.full(len(items), 1 / len(items)), size=RESAMPLES)
        both.append(weights @ items / len(items))
    return both[0], both[1]


def _figure(
    statistic: Callable[[Draws, Draws], Float[np.ndarray, " some"]],
    u: Draws,
    v: Draws,
    first: Draws,
    second: Draws,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> FigureJson:
    """Return a statistic of both arrays with its interval; draws carry noise once more, so they are moved onto it."""
    value = float(statistic(u, v)[0])
    draws = statistic(first, second)
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Figure(value, float("nan"), float("nan")).json()
    low, high = interval(draws + value - np.median(draws))
    return Figure(value, float(max(low, bounds[0])), float(min(high, bounds[1]))).json()


def _ranks(values: Draws) -> Draws:
    result: Draws = rankdata(values, axis=1) - (values.shape[1] + 1) / 2
    return result


def _layer_ranks(values: Draws, layer: Int[np.ndarray, " heads"]) -> Draws:
    """Return ranks among the heads of each layer, less their mean."""
    ranks = np.empty(values.shape)
    for index in np.unique(layer):
        ranks[:, layer == index] = _ranks(values[:, layer == index])
    return ranks


def _correlation(a: Draws, b: Draws) -> Float[np.ndarray, " some"]:
    """Return the correlation of each pair of rows that have mean 0; NaN where one is constant."""
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    result: Float[np.ndarray, " some"] = (a * b).sum(1) / np.where(scale > 0, scale, np.nan)
    return result


def _advantage(measured: Draws, scores: Draws, layer: Int[np.ndarray, " heads"]) -> Float[np.ndarray, " some"]:
    """Return the mean over the best heads by score of: the measure, less its mean over the layer's other heads."""
    count = max(1, round(TOP_HEADS_SHARE * measured.shape[1]))
    place = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    best = place < count
    gain = np.full(measured.shape, np.nan)
    for index in np.unique(layer):
        own = layer == index
        others = ~best[:, own]
        left = np.where(others.any(1), (measured[:, own] * others).sum(1) / np.maximum(others.sum(1), 1), np.nan)
        gain[:, own] = measured[:, own] - left[:, None]
    usable = best & np.isfinite(gain)
    used = usable.sum(1)
    result: Float[np.ndarray, " some"] = np.where(usable, gain, 0).sum(1) / np.where(used > 0, used, np.nan)
    return result
