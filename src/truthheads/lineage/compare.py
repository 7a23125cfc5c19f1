"""The stage behind ``truthheads compare``: models side by side, by Truth Scores, by weights, or by both."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from truthheads.errors import DataError, ShapeError
from truthheads.lineage.agreement import Relation, centre, relate, score_verdict
from truthheads.lineage.alignment import align as align_heads
from truthheads.lineage.alignment import resampled
from truthheads.lineage.weight_drift import middle, weight_drift
from truthheads.models.held import ModelLike, name_of
from truthheads.results.comparison import (
    NOTHING,
    Agreement,
    ComparedModel,
    Comparison,
    ComparisonResult,
    DriftEffect,
    PairFigures,
    PairResult,
    ReferenceResult,
    drift_files,
)
from truthheads.results.drift import Drift
from truthheads.results.scores import Scores, ScoresLike, as_scores
from truthheads.stats.figures import Figure, FigureJson, layer_bootstrap, pearson, spearman
from truthheads.storage.artifacts import provenance, without_folder
from truthheads.storage.files import as_path, distinct_names

PERMUTATIONS = 1000

Heads = Float[np.ndarray, "num_layers num_heads"]


def drift_score_correlation(drift: Drift, change: Heads, *, seed: int = 0) -> dict[str, DriftEffect]:
    """Return the rank correlation of drift with the change of score, for each part and their mean (``all``).

    Args:
        drift: Weight drift of every head.
        change: Absolute difference of the two models' scores.
        seed: Random seed of resamples and permutations.

    Returns:
        For each part ``raw`` and ``within_layer`` (ranks among the heads of a layer, centred, correlated over all
        heads), 95 % intervals with layers resampled, and ``p_permutation`` of the latter, two-sided, with heads
        shuffled inside their layers.
    """
    parts = {part: values.double().numpy() for part, values in drift.parts.items()}
    parts = {"all": np.mean(list(parts.values()), axis=0), **parts}
    return {part: _related(values, change, seed) for part, values in parts.items()}


def _related(moved: Heads, change: Heads, seed: int) -> DriftEffect:
    known = np.isfinite(moved) & np.isfinite(change)
    x, y = np.where(known, moved, np.nan), np.where(known, change, np.nan)
    u, v = _ranks(x), _ranks(y)
    within: Figure = layer_bootstrap([(u, v)], pearson, seed=seed)
    generator = np.random.default_rng(seed)
    seen = abs(within.value)
    count = 0
    for _ in range(PERMUTATIONS):
        shuffled = v.copy()
        for row, mask in zip(shuffled, known, strict=True):
            row[mask] = generator.permutation(row[mask])
        count += abs(pearson(u.ravel(), shuffled.ravel())) >= seen - 1e-12
    return {
        "raw": layer_bootstrap([(x, y)], spearman, seed=seed).json(),
        "within_layer": within.json(),
        "p_permutation": (count + 1) / (PERMUTATIONS + 1),
    }


def _ranks(values: Heads) -> Heads:
    """Return ranks inside each layer, less their mean; NaN stays."""
    ranks = np.full(values.shape, np.nan)
    for row, found in zip(values, ranks, strict=True):
        known = np.isfinite(row)
        found[known] = rankdata(row[known])
    return centre(ranks)


def scores_side(a: Scores, b: Scores, *, align: bool, seed: int) -> PairFigures:
    """Compare a pair of models by their scores."""
    side: PairFigures = {"notes": _notes(a, b)}
    if a.values.shape == b.values.shape:
        relation = relate(a, b, seed=seed)
        word, evidence = score_verdict(relation)
        if few := _few(a, b):
            word, evidence = "can't tell", f"{evidence}. {few}"
        side = {**side, **relation_figures(relation), "verdict": word, "evidence": evidence}
    elif not align:
        relate(a, b, seed=seed)  # raises ShapeError
    else:
        side |= {
            "verdict": "can't tell",
            "evidence": "the shapes differ, so no head of one stands for a head of the other; alignment and depth "
            "profile say how alike two models are, not where one comes from",
            "depth_profile": _profile(a, b),
        }
    if align:
        aligned = align_heads(a, b, seed=seed)
        side |= {"alignment": aligned.json(), "alignment_in_words": aligned.in_words()}
    return side


def relation_figures(relation: Relation) -> Agreement:
    """Return a relation under the names of ``comparison.json``; figures without samples are None."""
    return {
        "pearson": relation.pearson.json(),
        "spearman": relation.spearman.json(),
        "pearson_within_layer": relation.within.json(),
        "p_permutation": relation.p_permutation,
        "noise_ceiling": relation.ceiling,
        "noise_ceiling_within_layer": relation.ceiling_within,
        "disjoint": _json(relation.disjoint),
        "disjoint_within": _json(relation.disjoint_within),
        "corrected": _json(relation.corrected),
        "corrected_within": _json(relation.corrected_within),
        "depth_only": relation.depth_only,
        "overlaps": [{"share": one.share, "overlap": one.overlap, "chance": one.chance} for one in relation.overlaps],
        "shared_questions": relation.shared,
        "basis": relation.basis,
    }


def _json(figure: Figure | None) -> FigureJson | None:
    return None if figure is None else figure.json()


def _few(a: Scores, b: Scores) -> str | None:
    """Give the caution where one of two files rests on too few questions to rank heads."""
    fewer = min((one for one in (a, b) if one.caution), key=lambda one: one.questions or 0, default=None)
    return None if fewer is None else fewer.caution


def _notes(a: Scores, b: Scores) -> list[str]:
    """List what a reader must know of two files: too few questions, and what they differ in."""
    notes = [few] if (few := _few(a, b)) else []
    if a.method != b.method:
        notes.append(
            f"the files hold different measures, {a.method} and {b.method}: agreement is of heads, not of units"
        )
    data = [(one.meta.get("data") or {}).get("sha256") for one in (a, b)]
    if all(data) and data[0] != data[1]:
        notes.append("the files are of different data: disagreement may come from the data as well as from the models")
    model = [(one.meta.get("model") or {}).get("fingerprint") for one in (a, b)]
    if all(model) and model[0] == model[1]:
        notes.append("both files are of the same model: this compares data, not models")
    if not len(a.sample) or not len(b.sample):
        notes.append("no samples in at least one file: intervals resample layers, and noise is not taken off")
    return notes


def _profile(a: Scores, b: Scores) -> float:
    """Return the correlation of both models' layer means over relative depth."""
    means = [np.nanmean(one.values.double().numpy(), axis=1)[:, None] for one in (a, b)]
    return pearson(resampled(means[0], len(means[1])).ravel(), means[1].ravel())


def weights_side(drift: Drift, a: Scores | None, b: Scores | None, seed: int) -> PairFigures:
    """Compare a pair of models by their weights; with scores, also test whether drift predicts their change."""
    word, evidence = drift.verdict()
    side: PairFigures = {
        "drift": {part: figure.json() for part, figure in drift.figures(seed=seed).items()},
        "kinship": {part: figure.json() for part, figure in drift.kinship(seed=seed).items()},
        "weights_verdict": word,
        "weights_evidence": evidence,
    }
    if a is None or b is None:
        return {**side, "verdict": word, "evidence": evidence}
    shape = tuple(next(iter(drift.parts.values())).shape)
    if tuple(a.values.shape) != shape or tuple(b.values.shape) != shape:
        raise ShapeError(
            "scores and weights are not of the same models",
            expected=f"scores of {shape[0]} x {shape[1]} heads, as in {drift.base}",
            got=f"{tuple(a.values.shape)} and {tuple(b.values.shape)}",
            fix="give the models after --weights in the order of their score files",
        )
    change = (a.values.double() - b.values.double()).abs().numpy()
    return {**side, "drift_foretells_change": drift_score_correlation(drift, change, seed=seed)}


Progress = Callable[[int, int], None]


def compare(
    *scores: ScoresLike,
    weights: Sequence[ModelLike] = (),
    names: Sequence[str] | None = None,
    reference: ScoresLike | None = None,
    align: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare models pair by pair: was one made from the other, or both from a third?

    Args:
        scores: Truth Scores, or files of them; none where only weights are compared.
        weights: Models or their names as for ``load``, base first; with scores, as many and in the same order.
        names: Names of the models; by default the files' paths, or the models' names.
        reference: Scores of one of the models on other data: how well a model agrees with itself.
        align: Bring heads of different places or shapes onto each other, too.
        seed: Random seed of resamples and permutations.
        progress: Called with the layers done and the total, while weights are read.

    Raises:
        DataError: Fewer than two models, or scores and weights that do not pair up.
        ShapeError: Scores of different shape, without ``align``; or weights of different shape.
        ArtifactError: A score file cannot be read.
        ModelError: Weights cannot be read.
    """
    loaded = [as_scores(one) for one in scores]
    checkpoints = [name_of(one) for one in weights]
    called = _names(scores, loaded, checkpoints, names)
    found, drifts, files = [], {}, drift_files(called)
    for i, j in combinations(range(len(called)), 2):
        pair: PairResult = {"a": called[i], "b": called[j], **NOTHING}
        if loaded:
            pair = {**pair, **scores_side(loaded[i], loaded[j], align=align, seed=seed)}
        if weights:
            drift = weight_drift(checkpoints[i], checkpoints[j], progress=progress)
            drifts[called[i], called[j]] = drift
            both = (loaded[i], loaded[j]) if loaded else (None, None)
            pair = {**pair, **weights_side(drift, both[0], both[1], seed)}
            pair["drift_file"] = files[called[i], called[j]]
        found.append(pair)
    known = None if reference is None else as_scores(reference)
    models = [_model(name, loaded[at] if loaded else None) for at, name in enumerate(called)]
    made = provenance()
    result: ComparisonResult = {
        "pairs": found,
        "models": models,
        "triples": [middle(trio, drifts, seed=seed).json() for trio in combinations(called, 3)] if weights else [],
        "reference": None if known is None else _reference(known, loaded, called, seed),
        "meta": {"seed": seed, "packages": made["packages"], "command": made["command"]},
    }
    return Comparison(result, drifts)


def _names(
    scores: Sequence[ScoresLike],
    loaded: Sequence[Scores],
    weights: Sequence[str],
    names: Sequence[str] | None,
) -> list[str]:
    if len(scores or weights) < 2 or (scores and weights and len(scores) != len(weights)):
        raise DataError(
            "there are no pairs to compare",
            expected="two or more score files, or models with --weights; where both, one model for each file",
            got=f"{len(scores)} score files and {len(weights)} models",
            fix="for instance: truthheads compare base.safetensors tuned.safetensors --weights BASE TUNED",
        )
    files = iter(distinct_names([as_path(one) for one in scores if isinstance(one, str | Path)]))
    own = [
        str((one.meta.get("model") or {}).get("name", "scores")) if isinstance(given, Scores) else next(files)
        for given, one in zip(scores, loaded, strict=True)
    ]
    found = list(names or own or _folders_named(weights))
    if len(found) != len(scores or weights):
        raise DataError(
            "names and models differ in number",
            expected=str(len(scores or weights)),
            got=str(len(found)),
            fix="name each",
        )
    return [name if found.count(name) == 1 else f"{name} ({at + 1})" for at, name in enumerate(found)]


def _folders_named(weights: Sequence[str]) -> list[str]:
    """Name models: hub ids as they are, folders by their last part, or by what tells them apart."""
    named = iter(distinct_names([Path(one) for one in weights if without_folder(one) != one], suffixes=True))
    return [one if without_folder(one) == one else next(named) for one in weights]


def _model(name: str, scores: Scores | None) -> ComparedModel:
    if scores is None:
        return {"name": name}
    data = scores.meta.get("data") or {}
    return {
        "name": name,
        "model": (scores.meta.get("model") or {}).get("name"),
        "rows": data.get("rows"),
        "data_sha256": data.get("sha256"),
        "unit": scores.unit,
        "values": scores.values.double().tolist(),
    }


def _reference(reference: Scores, loaded: Sequence[Scores], called: Sequence[str], seed: int) -> ReferenceResult:
    """Return how well the model of the reference agrees with itself on the compared data."""
    wanted = (reference.meta.get("model") or {}).get("fingerprint")
    same = [at for at, one in enumerate(loaded) if (one.meta.get("model") or {}).get("fingerprint") == wanted]
    same = [at for at in same if loaded[at].values.shape == reference.values.shape]
    if not same:
        raise DataError(
            "the reference is of none of the models",
            expected="scores of one of the compared models, on other data",
            got=str((reference.meta.get("model") or {}).get("name", "scores without a model's name")),
            fix="score one of these models on other questions, and give that file as --reference",
        )
    return {"of": called[same[0]], **relation_figures(relate(loaded[same[0]], reference, seed=seed))}
