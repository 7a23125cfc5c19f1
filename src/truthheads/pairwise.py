"""What scores and weights say of one pair of models, in the words and figures of ``comparison.json``."""

from typing import Any

import numpy as np

from truthheads.alignment import align as align_heads
from truthheads.alignment import resampled
from truthheads.drift import Drift
from truthheads.errors import ShapeError
from truthheads.foretelling import foretell
from truthheads.lineage import Relation, relate
from truthheads.scores import Scores
from truthheads.stats import pearson
from truthheads.verdicts import judge


def scores_side(a: Scores, b: Scores, *, align: bool, seed: int) -> dict[str, Any]:
    """Return what scores say of a pair."""
    side: dict[str, Any] = {"notes": _notes(a, b)}
    if a.values.shape == b.values.shape:
        relation = relate(a, b, seed=seed)
        word, evidence = judge(relation)
        if few := _few(a, b):
            word, evidence = "can't tell", f"{evidence}. {few}"
        side |= {**figures(relation), "verdict": word, "evidence": evidence}
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


def figures(relation: Relation) -> dict[str, Any]:
    """Return a relation under the names of ``comparison.json``; figures without samples are None."""

    def json(name: str) -> Any:
        found = getattr(relation, name)
        return None if found is None else found.json()

    return {
        "pearson": json("pearson"),
        "spearman": json("spearman"),
        "pearson_within_layer": json("within"),
        "p_permutation": relation.p_permutation,
        "noise_ceiling": relation.ceiling,
        "noise_ceiling_within_layer": relation.ceiling_within,
        **{name: json(name) for name in ("disjoint", "disjoint_within", "corrected", "corrected_within")},
        "depth_only": relation.depth_only,
        "overlaps": [overlap._asdict() for overlap in relation.overlaps],
        "shared_questions": relation.shared,
        "basis": relation.basis,
    }


def _few(a: Scores, b: Scores) -> str | None:
    """Return what must be said of two files of which one rests on too few questions to rank heads."""
    fewer = min((one for one in (a, b) if one.caution), key=lambda one: one.questions or 0, default=None)
    return None if fewer is None else fewer.caution


def _notes(a: Scores, b: Scores) -> list[str]:
    """Return what a reader must know of two files: too few questions, and what they differ in."""
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


def weights_side(drift: Drift, a: Scores | None, b: Scores | None, seed: int) -> dict[str, Any]:
    """Return what weights say of a pair, and where there are scores, whether drift foretells their change."""
    word, evidence = drift.verdict()
    side: dict[str, Any] = {
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
    return {**side, "drift_foretells_change": foretell(drift, change, seed=seed)}
