"""What the page's charts are drawn from: scatters of pairs, the matrix of models, effects, the tuning path.

The page draws them on canvases with a small script of its own, not with Vega-Lite: one chosen head is marked in all
panels at once, colours follow the theme, and 5,000 heads are drawn in milliseconds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truthheads.reports.finding import Artefacts, Named
from truthheads.reports.panels import Arrays
from truthheads.reports.wording import chance, figure, number, signed, task_name


def scored_pairs(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs of a comparison whose scores were compared."""
    return [pair for pair in comparison["pairs"] if pair.get("pearson_within_layer")]


def largest_first(found: Artefacts) -> list[Named[dict[str, Any]]]:
    """Return the comparisons, that of most models first."""
    return sorted(found.comparisons, key=lambda one: -len(one.item["models"]))


def scatters(found: Artefacts, arrays: Arrays) -> list[dict[str, Any]]:
    """Return one scatter for each pair whose scores were compared, the largest comparison first."""
    made = []
    for one in largest_first(found):
        models = {model["name"]: model for model in one.item["models"] if model.get("values")}
        for pair in scored_pairs(one.item):
            if pair["a"] not in models or pair["b"] not in models:
                continue
            a, b = (np.array(models[pair[side]]["values"], dtype=float) for side in ("a", "b"))
            if a.ndim != 2 or a.shape != b.shape:
                continue
            made.append(
                {
                    "a": pair["a"],
                    "b": pair["b"],
                    "unit": models[pair["a"]].get("unit", "score"),
                    "shape": list(a.shape),
                    "x": arrays.add(a),
                    "y": arrays.add(b),
                    "words": in_words(pair),
                }
            )
    return made


def in_words(pair: Mapping[str, Any]) -> str:
    """Return a pair's agreement: within layers with interval and p, the ceiling that noise allows, and the raw one."""
    ceiling = pair.get("noise_ceiling_within_layer")
    limit = "no noise ceiling, since there are no samples" if ceiling is None else f"noise ceiling {number(ceiling, 2)}"
    within = f"within layers r {figure(pair['pearson_within_layer'], 2)}, {chance(pair.get('p_permutation'))}, {limit}"
    return f"{within}; over all heads r {figure(pair.get('pearson'), 2)}"


def matrix(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the matrix of models; None below three, where one pair says it all."""
    names = [model["name"] for model in comparison["models"]]
    pairs = scored_pairs(comparison)
    if len(names) < 3 or not pairs:
        return None
    at = {name: number for number, name in enumerate(names)}
    cells = []
    for pair in pairs:
        words = f"{pair['a']} and {pair['b']}: {in_words(pair)}; {pair.get('verdict')}"
        value = pair["pearson_within_layer"]["value"]
        cells.append(
            {"a": at[pair["a"]], "b": at[pair["b"]], "value": value, "verdict": pair["verdict"], "words": words}
        )
    return {"names": names, "cells": cells}


def agreement_bars(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return each pair's agreement within layers with its interval, and the ceiling as a mark."""
    rows = [
        {
            "name": f"{pair['a']} – {pair['b']}",
            **_ends(pair["pearson_within_layer"]),
            "mark": pair.get("noise_ceiling_within_layer"),
            "quiet": False,
            "words": in_words(pair),
        }
        for pair in scored_pairs(comparison)
    ]
    return {"rows": rows, "unit": "correlation of scores within layers", "mark": "noise ceiling"} if rows else None


def effect_bars(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the change of the primary figure under each gate, its controls below it, drawn quietly."""
    primary = str(summary["primary"])
    rows = []
    for run in summary["runs"]:
        effect = (run.get("effect") or {}).get(primary)
        if effect:
            words = f"{run['name']}: {signed(effect)}, {run.get('verdict')}"
            quiet = run.get("kind") == "control"
            rows.append({"name": run["name"], **_ends(effect), "mark": None, "quiet": quiet, "words": words})
    unit = f"change in {primary.replace('_', ' ')}, {task_name(str(summary['task']))}"
    return {"rows": rows, "unit": unit, "mark": None} if rows else None


def tuning_path(tuning: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return gain against harm of every candidate, with both intervals."""
    points = []
    for at, entry in enumerate(tuning["path"]):
        harm, gain = entry["harm"]["kl"], entry["effect"]["margin"]
        state = "chosen" if at == tuning["chosen"] else "within" if harm["high"] <= tuning["guard"] else "beyond"
        words = f"{entry['name']}: margin {signed(gain)}, harm {figure(harm, 4)}"
        points.append({"name": entry["name"], "state": state, "x": _ends(harm), "y": _ends(gain), "words": words})
    return {"points": points, "guard": tuning["guard"]} if points else None


def _ends(found: Mapping[str, Any]) -> dict[str, float | None]:
    return {end: found.get(end) for end in ("value", "low", "high")}


def best_gate(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the gate's run with the largest gain in the primary figure; None where no gate was run."""
    primary = summary["primary"]
    runs: Sequence[Mapping[str, Any]] = [
        run for run in summary["runs"] if run.get("kind") == "gate" and (run.get("effect") or {}).get(primary)
    ]
    sign = -1 if lower_is_better(str(primary)) else 1
    return max(runs, key=lambda run: sign * (run["effect"][primary]["value"] or 0), default=None)


def lower_is_better(primary: str) -> bool:
    """Return whether less of a figure is better: the share of hallucinated objects."""
    return primary.startswith("chair_")
