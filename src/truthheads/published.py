"""Our figures beside the published ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truthheads.artifacts import read_json
from truthheads.recipes import ComparisonPart, EvaluationPart


def compared(pair: ComparisonPart, path: Path) -> list[dict[str, Any]]:
    """Return the figures of a comparison, from its ``comparison.json``, each beside what was published."""
    (found,) = read_json(path)["pairs"]
    usual = ("drift.q", "drift.k", "drift.v", "drift.o") if pair.weights else ("pearson", "pearson_within_layer")
    figures = []
    for name in dict.fromkeys((*usual, *pair.paper)):
        ours: Any = found
        for part in name.split("."):
            ours = ours.get(part) if isinstance(ours, Mapping) else None
        figures.append(_figure(f"comparison {pair.name}", "", name, ours, pair.paper.get(name)))
    return figures


def tested(test: EvaluationPart, folder: Path) -> list[dict[str, Any]]:
    """Return the main figure of every run and all that was published, ungated first."""
    summary = read_json(folder / "summary.json")
    figures = []
    for run in summary["runs"]:
        if run["name"] not in ("none", *test.gates):
            continue
        published = test.paper.get(run["name"], {})
        for name in dict.fromkeys((summary["primary"], *published)):
            figure = _figure(
                f"evaluation {test.name}", run["name"], name, run["metrics"].get(name), published.get(name)
            )
            figures.append({**figure, "change": run["effect"].get(name), "verdict": run["verdict"]})
    return figures


def _figure(step: str, run: str, name: str, ours: Mapping[str, Any] | None, paper: float | None) -> dict[str, Any]:
    inside = None
    if ours is not None and paper is not None and ours.get("low") is not None:
        inside = bool(ours["low"] <= paper <= ours["high"])
    return {"step": step, "run": run, "figure": name, "ours": ours, "paper": paper, "paper_inside_ours": inside}
