"""What a score file says, in figures and in sentences."""

from typing import Any

import numpy as np

from truthheads.cautions import data_cautions
from truthheads.scores import Scores

OCCURRENCE = (
    "A head that is high only where the untruthful answer does not stand in the context knows that an answer occurs "
    "there, not that it answers the question."
)
NOT_BINDING = (
    "All untruthful answers are absent from their contexts: a head may score high by knowing only that an answer "
    "stands in the context, not that it answers the question. Rows with distractors tell the two apart."
)


def summarise(scores: Scores, *, top: int = 10) -> dict[str, Any]:
    """Return the JSON result of ``truthheads score``.

    Args:
        scores: The artefact.
        top: Heads in the list.
    """
    meta = scores.meta
    values = scores.values.numpy()
    summary = meta.get("summary", {})
    kinds = {
        name: {**summary.get("kinds", {}).get(name, {}), **_profile(scores.kind_values[i].numpy())}
        for i, name in enumerate(meta.get("kinds", []))
    }
    result = {
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
        **_profile(values),
        "layer_intervals": _layer_intervals(scores),
        "kinds": kinds,
    }
    if result["best"] is not None:
        own = result["top"][0] if result["top"] else {}
        result["best"] |= {end: own.get(end) for end in ("low", "high")} | {"chosen": summary.get("chosen")}
    return {**result, "warnings": warnings_of(result, scores.caution)}


def _layer_intervals(scores: Scores) -> list[dict[str, float] | None]:
    """Return the ends of each layer's interval; None where they are not known."""
    low, high = scores.layer_intervals()
    return [
        {"low": float(a), "high": float(b)} if np.isfinite([a, b]).all() else None
        for a, b in zip(low, high, strict=True)
    ]


def _profile(values: np.ndarray) -> dict[str, Any]:
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


def warnings_of(result: dict[str, Any], caution: str | None = None) -> list[str]:
    """Return what a reader must know before trusting the scores, one sentence or two each.

    Args:
        result: As :func:`summarise` makes it.
        caution: Of the scores: that heads cannot be ranked.
    """
    found = [caution] if caution else []
    form = result["form"]
    if form and form["warns"]:
        found.append(
            f"The form of the answers alone separates them at {form['accuracy']['value']:.3f} "
            f"[{form['accuracy']['low']:.3f}, {form['accuracy']['high']:.3f}] ({form['best_feature']!r} alone at "
            f"{form['best_accuracy']:.3f}): scores on this data measure the answers' form, not only their truth."
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
