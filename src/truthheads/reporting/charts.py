"""The series behind the page's charts: heat maps, pairs, the matrix of models, effects, the tuning path."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from truthheads.benchmarks.registry import label, lower_is_better
from truthheads.models.head_weights import WEIGHT_PARTS
from truthheads.plots.charts import candidate_points, scored_pairs
from truthheads.reporting.artifacts import Artefacts, Heads, Named
from truthheads.reporting.wording import chance, figure, number, short_name, signed
from truthheads.results.comparison import ComparisonResult, PairResult
from truthheads.results.drift import Drift
from truthheads.results.evaluation import EvaluationResult, RunResult
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.results.trace import MEASURES, MIDDLES, UNITS, Trace
from truthheads.results.tuning import TuningResult
from truthheads.stats.figures import FigureJson

DIGITS = 4

SMALLEST = 1e-18
"""What is smaller is written as 0."""

PART_NAMES = {"q": "queries", "k": "keys", "v": "values", "o": "output"}


class View(TypedDict):
    """One heat map; arrays by their number.

    Attributes:
        name: What it shows.
        unit: Unit of its numbers.
        middle: Centre of the colour scale; None for a scale from least to largest.
        values: One number a head.
        low: Lower ends of the intervals, where there are any.
        high: Upper ends.
    """

    name: str
    unit: str
    middle: float | None
    values: int
    low: NotRequired[int]
    high: NotRequired[int]


class Panel(TypedDict):
    """Heat maps of one artefact, to switch between."""

    group: str
    title: str
    note: str
    shape: list[int]
    views: list[View]


class Scatter(TypedDict):
    """Scores of two models, one point a head; arrays by their number."""

    a: str
    b: str
    unit: str
    shape: list[int]
    x: int
    y: int
    words: str


class Cell(TypedDict):
    """One pair of models in the matrix; models by their number."""

    a: int
    b: int
    value: float | None
    verdict: str
    words: str


class Matrix(TypedDict):
    """The matrix of models."""

    names: list[str]
    cells: list[Cell]


class Bar(FigureJson):
    """A figure with its interval.

    Attributes:
        name: Its row's.
        mark: Where an upright line stands, where there is one.
        quiet: Whether it is drawn in grey.
        words: The same in words.
    """

    name: str
    mark: float | None
    quiet: bool
    words: str


class Bars(TypedDict):
    """Figures below each other, their unit, and what their marks mean."""

    rows: list[Bar]
    unit: str
    mark: str | None


class Point(TypedDict):
    """A candidate of a tuning run: its harm and its gain, and the same in words."""

    name: str
    state: str
    x: FigureJson
    y: FigureJson
    words: str


class TuningPath(TypedDict):
    """The candidates of a tuning run, and the largest harm allowed."""

    points: list[Point]
    guard: float


@dataclass(slots=True)
class Arrays:
    """Every array of the page once, rounded to four significant digits; figures name it by its number."""

    lists: list[list[float | None]] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)

    def add(self, values: ArrayLike) -> int:
        """Return the number of an array, flattened; not finite becomes null."""
        flat = np.asarray(values, dtype=np.float64).ravel()
        known = np.isfinite(flat) & (np.abs(flat) > SMALLEST)
        size = np.floor(np.log10(np.abs(flat, where=known, out=np.ones_like(flat))))
        # An integer over a power of ten is the nearest double to its decimal, so that JSON writes few digits.
        up, down = 10.0 ** np.maximum(DIGITS - 1 - size, 0), 10.0 ** np.maximum(size - DIGITS + 1, 0)
        rounded = np.where(
            known, np.rint(np.where(known, flat, 0) * up / down) * down / up, np.where(np.isfinite(flat), 0, np.nan)
        )
        digest = hashlib.sha256(rounded.tobytes()).hexdigest()
        if digest not in self.known:
            self.known[digest] = len(self.lists)
            self.lists.append([value if value == value else None for value in rounded.tolist()])
        return self.known[digest]


def panels(found: Artefacts, arrays: Arrays) -> list[Panel]:
    """Return every heat map: scores, evidence, gates, then drift.

    Args:
        found: What the folder holds.
        arrays: Where the numbers go.

    Returns:
        ``group``, ``title``, ``note``, ``shape`` and ``views``: each with ``name``, ``unit``, ``middle`` (None for a
        scale from least to largest), ``values`` and, where samples were kept, ``low`` and ``high``.
    """
    made = [_scores(one, arrays) for one in found.scores]
    made += [_trace(one, arrays) for one in found.traces]
    made += [_gate(one, arrays) for one in found.gates]
    made += [_drift(one, arrays) for one in found.drifts]
    return made


def made_of(meta: Mapping[str, Any]) -> str:
    """Return whose artefact it is and from what data: ``smollm2 on questions.jsonl, 300 rows``."""
    model, data = meta.get("model") or {}, meta.get("data") or {}
    words = short_name(str(model.get("name") or meta.get("source") or ""))
    if data.get("path"):
        words += f" on {short_name('/' + str(data['path']))}"
    return f"{words}, {data['rows']} rows" if data.get("rows") else words


def _panel(group: str, one: Named[Any], note: str, shape: Any, views: list[View]) -> Panel:
    return {"group": group, "title": one.name, "note": note, "shape": [int(edge) for edge in shape], "views": views}


def _view(
    arrays: Arrays,
    name: str,
    values: ArrayLike,
    *,
    unit: str,
    middle: float | None = None,
    interval: tuple[Heads, Heads] | None = None,
) -> View:
    view: View = {"name": name, "unit": unit, "middle": middle, "values": arrays.add(values)}
    if interval is not None and np.isfinite(interval[0]).any():
        view["low"], view["high"] = arrays.add(interval[0]), arrays.add(interval[1])
    return view


def _scores(one: Named[Scores], arrays: Arrays) -> Panel:
    item = one.item
    middle = item.chance
    views = [_view(arrays, "score", item.values.numpy(), unit=item.unit, middle=middle, interval=one.ends)]
    others = {"AUROC": item.auroc, "pair accuracy": item.pair_accuracy}
    views += [
        _view(arrays, name, array.numpy(), unit=name) for name, array in others.items() if bool(array.isfinite().any())
    ]
    kinds = item.meta.get("kinds") or []
    if len(kinds) > 1:
        views += [
            _view(arrays, f"rows of kind {kind}", item.kind_values[i].numpy(), unit=item.unit, middle=middle)
            for i, kind in enumerate(kinds[: len(item.kind_values)])
        ]
    return _panel("scores", one, made_of(item.meta), item.values.shape, views)


def _trace(one: Named[Trace], arrays: Arrays) -> Panel:
    item = one.item
    known = [name for name in MEASURES if bool(item.array(name).isfinite().any())]
    views = []
    for name in known:
        views.append(
            _view(
                arrays,
                name.replace("_", " "),
                item.array(name).numpy(),
                unit=UNITS[name],
                middle=MIDDLES.get(name.removeprefix("distractor_")),
                interval=one.ends if name == "auroc" else None,
            )
        )
    note = f"{made_of(item.meta)}; attention of the {item.position}'s last token"
    return _panel("evidence", one, note, item.truth.shape, views)


def _gate(one: Named[Gate], arrays: Arrays) -> Panel:
    item = one.item
    shown = item.gate.double().numpy().copy()
    for layer, head in item.absent:
        shown[layer, head] = np.nan
    note = f"{gate_origin(item)}; {item.moved} of {item.gate.numel() - len(item.absent)} heads changed"
    return _panel("gates", one, note, shown.shape, [_view(arrays, "factor", shown, unit="factor", middle=1.0)])


def gate_origin(gate: Gate) -> str:
    """Return in a few words where a gate comes from."""
    meta = gate.meta
    if meta.get("method") == "scores":
        source = meta.get("scores") or {}
        whose = made_of(source) or "scores"
        return f"from scores of {whose}, {meta.get('norm')}, strength {meta.get('strength', 0):g}"
    if meta.get("method") in ("learn", "grid"):
        return f"{'learned' if meta['method'] == 'learn' else 'chosen from a grid'} for {made_of(meta)}"
    return str(meta.get("method") or "given as an array")


def _drift(one: Named[Drift], arrays: Arrays) -> Panel:
    item = one.item
    parts = [part for part in WEIGHT_PARTS if part in item.parts]
    stacked = np.stack([item.parts[part].double().numpy() for part in parts])
    known = np.isfinite(stacked)
    mean = np.where(known.any(0), np.where(known, stacked, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    views = [_view(arrays, "mean of q, k, v, o", mean, unit="relative drift")]
    views += [_view(arrays, PART_NAMES[part], stacked[at], unit="relative drift") for at, part in enumerate(parts)]
    panel = _panel("drift", one, "", mean.shape, views)
    return {**panel, "title": f"{short_name(item.base)} → {short_name(item.descendant)}", "note": one.path}


def largest_first(found: Artefacts) -> list[Named[ComparisonResult]]:
    """Return the comparisons, that of most models first."""
    return sorted(found.comparisons, key=lambda one: -len(one.item["models"]))


def scatters(found: Artefacts, arrays: Arrays) -> list[Scatter]:
    """Return one scatter for each pair whose scores were compared, the largest comparison first."""
    made: list[Scatter] = []
    for one in largest_first(found):
        models = {model["name"]: model for model in one.item["models"] if model.get("values")}
        for pair, _ in scored_pairs(one.item["pairs"]):
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


def in_words(pair: PairResult) -> str:
    """Return a pair's agreement: within layers with interval and p, the ceiling that noise allows, and the raw one."""
    ceiling = pair.get("noise_ceiling_within_layer")
    limit = "no noise ceiling, since there are no samples" if ceiling is None else f"noise ceiling {number(ceiling, 2)}"
    within = f"within layers r {figure(pair['pearson_within_layer'], 2)}, {chance(pair.get('p_permutation'))}, {limit}"
    return f"{within}; over all heads r {figure(pair.get('pearson'), 2)}"


def matrix(comparison: ComparisonResult) -> Matrix | None:
    """Return the matrix of models; None for fewer than three models, which one pair covers."""
    names = [model["name"] for model in comparison["models"]]
    pairs = scored_pairs(comparison["pairs"])
    if len(names) < 3 or not pairs:
        return None
    at = {name: number for number, name in enumerate(names)}
    cells: list[Cell] = []
    for pair, within in pairs:
        words = f"{pair['a']} and {pair['b']}: {in_words(pair)}; {pair.get('verdict')}"
        cells.append(
            {
                "a": at[pair["a"]],
                "b": at[pair["b"]],
                "value": within["value"],
                "verdict": pair["verdict"],
                "words": words,
            }
        )
    return {"names": names, "cells": cells}


def agreement_bars(comparison: ComparisonResult) -> Bars | None:
    """Return each pair's agreement within layers with its interval, and the ceiling as a mark."""
    rows: list[Bar] = [
        {
            "name": f"{pair['a']} – {pair['b']}",
            **_ends(within),
            "mark": pair.get("noise_ceiling_within_layer"),
            "quiet": False,
            "words": in_words(pair),
        }
        for pair, within in scored_pairs(comparison["pairs"])
    ]
    return {"rows": rows, "unit": "correlation of scores within layers", "mark": "noise ceiling"} if rows else None


def effect_bars(summary: EvaluationResult) -> Bars | None:
    """Return the change of the primary figure under each gate, its controls below it, drawn quietly."""
    primary = str(summary["primary"])
    rows: list[Bar] = []
    for run in summary["runs"]:
        effect = (run.get("effect") or {}).get(primary)
        if effect:
            words = f"{run['name']}: {signed(effect)}, {run.get('verdict')}"
            quiet = run.get("kind") == "control"
            rows.append({"name": run["name"], **_ends(effect), "mark": None, "quiet": quiet, "words": words})
    unit = f"change in {primary.replace('_', ' ')}, {label(str(summary['task']))}"
    return {"rows": rows, "unit": unit, "mark": None} if rows else None


def tuning_path(tuning: TuningResult) -> TuningPath | None:
    """Return gain against harm of every candidate, with both intervals."""
    points: list[Point] = []
    for one in candidate_points(tuning["path"], guard=tuning["guard"], chosen=tuning["chosen"]):
        words = f"{one.name}: margin {signed(one.gain)}, harm {figure(one.harm, 4)}"
        points.append(
            {"name": one.name, "state": one.state, "x": _ends(one.harm), "y": _ends(one.gain), "words": words}
        )
    return {"points": points, "guard": tuning["guard"]} if points else None


def _ends(found: FigureJson) -> FigureJson:
    return {"value": found.get("value"), "low": found.get("low"), "high": found.get("high")}


def best_gate(summary: EvaluationResult) -> RunResult | None:
    """Return the gate's run with the largest gain in the primary figure; None where no gate was run."""
    primary = summary["primary"]
    runs = [run for run in summary["runs"] if run.get("kind") == "gate" and (run.get("effect") or {}).get(primary)]
    sign = -1 if lower_is_better(str(summary["task"])) else 1
    return max(runs, key=lambda run: sign * (run["effect"][primary]["value"] or 0), default=None)
