"""The JSON result of ``truthheads score``: means, best heads, depth profiles and caveats of Truth Scores."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import numpy as np

from truthheads.data.cautions import data_cautions
from truthheads.results.scores import FormResult, HeadScore, Scores, SplitHalf, StoredSummary
from truthheads.stats.figures import Figure, FigureJson


class BestHead(TypedDict):
    """The highest score, and ``chosen``: what the best head of one half of the questions scores on the other."""

    head: str
    score: float
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    chosen: NotRequired[FigureJson | None]


class DepthProfile(TypedDict):
    """Mean over heads, best head, and the means of the layers; None where there is no value."""

    heads_mean: float | None
    best: BestHead | None
    layers: list[float | None]


class KindProfile(DepthProfile):
    """The scores on the rows of one kind alone."""

    rows: NotRequired[int]


class LayerInterval(TypedDict):
    """The ends of the 95 % interval of a layer's mean."""

    low: float
    high: float


class ScoreSummary(DepthProfile):
    """The JSON result of ``truthheads score``; None where the file does not tell."""

    model: Mapping[str, Any] | None
    data: Mapping[str, Any] | None
    settings: Mapping[str, Any] | None
    seed: int | None
    unit: str
    questions: int | None
    ranked: bool
    mean: FigureJson | None
    margin: FigureJson | None
    split_half: SplitHalf | None
    form: FormResult | None
    top: list[HeadScore]
    layer_intervals: list[LayerInterval | None]
    kinds: dict[str, KindProfile]
    warnings: list[str]


OCCURRENCE = (
    "A head that is high only where the untruthful answer does not stand in the context knows that an answer occurs "
    "there, not that it answers the question."
)

NOT_BINDING = (
    "All untruthful answers are absent from their contexts: a head may score high by knowing only that an answer "
    "stands in the context, not that it answers the question. Rows with distractors tell the two apart."
)


def summarise_scores(scores: Scores, *, top: int = 10) -> ScoreSummary:
    """Return the JSON result of ``truthheads score``.

    Args:
        scores: The artefact.
        top: Heads in the list.
    """
    meta = scores.meta
    summary: StoredSummary = meta.get("summary", {})
    stored = summary.get("kinds", {})
    kinds: dict[str, KindProfile] = {
        name: {**stored.get(name, {}), **_profile(scores.kind_values[i].numpy())}
        for i, name in enumerate(meta.get("kinds", []))
    }
    result: ScoreSummary = {
        "model": meta.get("model"),
        "data": meta.get("data"),
        "settings": meta.get("settings"),
        "seed": meta.get("seed"),
        "unit": scores.unit,
        "questions": scores.questions,
        "ranked": scores.caution is None,
        "mean": summary.get("mean"),
        "margin": summary.get("margin"),
        "split_half": summary.get("split_half"),
        "form": summary.get("form"),
        "top": scores.table(top),
        **_profile(scores.values.numpy()),
        "layer_intervals": _layer_intervals(scores),
        "kinds": kinds,
        "warnings": [],
    }
    if result["best"] is not None:
        own = result["top"][0] if result["top"] else None
        result["best"]["low"] = None if own is None else own["low"]
        result["best"]["high"] = None if own is None else own["high"]
        result["best"]["chosen"] = summary.get("chosen")
    result["warnings"] = warnings_of(result, scores.caution)
    return result


def _layer_intervals(scores: Scores) -> list[LayerInterval | None]:
    """Return the ends of each layer's interval; None where they are not known."""
    low, high = scores.layer_intervals()
    return [
        {"low": float(a), "high": float(b)} if np.isfinite([a, b]).all() else None
        for a, b in zip(low, high, strict=True)
    ]


def _profile(values: np.ndarray) -> DepthProfile:
    """Return mean, best head and the means of the layers (None where a layer has no value)."""
    if not np.isfinite(values).any():
        return {"heads_mean": None, "best": None, "layers": [None] * len(values)}
    layer, head = divmod(int(np.nanargmax(values)), values.shape[1])
    layers = [float(np.nanmean(row)) if np.isfinite(row).any() else None for row in values]
    return {
        "heads_mean": float(np.nanmean(values)),
        "best": {"head": f"L{layer}H{head}", "score": float(values[layer, head])},
        "layers": layers,
    }


def warnings_of(result: ScoreSummary, caution: str | None = None) -> list[str]:
    """List the caveats that a reader of the scores must know, one or two sentences each.

    Args:
        result: As :func:`summarise` makes it.
        caution: Sentence that heads cannot be ranked, where it holds.
    """
    found = [caution] if caution else []
    form = result["form"]
    if form and form["warns"]:
        found.append(
            f"The form of the answers alone separates them at {Figure.of(form['accuracy'])} ({form['best_feature']!r} "
            f"alone at {form['best_accuracy']:.3f}): scores on this data measure the answers' form, not only their "
            "truth."
        )
    if result["kinds"] and set(result["kinds"]) <= {"absent", "not in context"}:
        found.append(NOT_BINDING)
    means = {name: kind["heads_mean"] for name, kind in result["kinds"].items() if kind["heads_mean"] is not None}
    if len(means) > 1:
        listed = ", ".join(f"{value:.3f} ({name})" for name, value in means.items())
        found.append(f"Means over heads by kind of untruthful answer: {listed}. {OCCURRENCE}")
    found += data_cautions(result["data"])
    if (result["settings"] or {}).get("shuffle_labels"):
        found.append("Labels are shuffled: these are chance scores, for control only.")
    return found
