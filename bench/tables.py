"""``python -m bench.tables FIGURES docs/results.md``: write the tables of that page, from what ``bench.models`` left.

The page keeps its words. What stands between ``<!-- NAME: made by python -m bench.tables -->`` and ``<!-- end -->`` is
written anew, from ``FIGURES/MODEL/*.json``; a part that was not measured is a dash.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from truthheads.evaluation.predictions import NAME, read_predictions
from truthheads.models.answer_logprobs import right_pairs
from truthheads.stats.figures import Figure, mean_figure

MODELS = {
    "smollm2": "SmolLM2-135M",
    "gemma270": "Gemma-3-270M",
    "qwen05": "Qwen2.5-Coder-0.5B",
    "qwen15": "Qwen2.5-Coder-1.5B",
}
"""File name without its end, and what the model is called; in order of size."""

SIZES = {"smollm2": 135, "gemma270": 268, "qwen05": 494, "qwen15": 1544}
"""Millions of weights."""

KINDS = ("absent", "memory", "distractor")

ARMS = {
    "attribution": "attribution",
    "truth": "Truth Score",
    "random": "random heads",
    "all": "all heads",
    "lora": "plain LoRA on q and v",
}

GUARD = "0.01"

TASKS = {"pairs-generated": "pair_accuracy", "pairs-nqswap": "pair_accuracy", "conflict": "em_context"}

Row = Sequence[str]


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def shown(figure: Figure | dict[str, float] | None, *, sign: bool = False) -> str:
    """Return a value with its interval as text; a dash for none."""
    if figure is None:
        return "–"
    found = figure if isinstance(figure, Figure) else Figure.of(figure)  # type: ignore[arg-type]
    parts = [f"{part:{'+' if sign else ''}.3f}" for part in (found.value, found.low, found.high)]
    value, low, high = (re.sub(r"(?<![\d])0\.", ".", part).replace("-", "−") for part in parts)
    return f"{value} [{low}, {high}]"


class Figures:
    """What was measured of one model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, MODELS.get(folder.name, folder.name)

    def read(self, path: str) -> dict[str, Any] | None:
        """Return a file of figures; None where the part was not measured."""
        file = self.folder / path
        return json.loads(file.read_text()) if file.is_file() else None

    def run(self, task: str, name: str) -> dict[str, Any] | None:
        """Return what one remedy did on one task."""
        summary = self.read(f"{task}/summary.json")
        return next((run for run in summary["runs"] if run["name"] == name), None) if summary else None

    def right(self, task: str, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return which rows of pairs a remedy gets right, in order of their names, and their groups."""
        file = self.folder / task / NAME
        if not file.is_file():
            return None
        lines = {one["id"]: one for one in read_predictions(file).lines if one["run"] == name and "logp" in one}
        if not lines:
            return None
        ordered = [lines[key] for key in sorted(lines)]
        logp = np.array([one["logp"] for one in ordered])
        return right_pairs(logp[:, 0] - logp[:, 1]), np.unique([one["group"] for one in ordered], return_inverse=True)[
            1
        ]


def random_names(figures: Figures) -> list[str]:
    """Return the controls that were trained."""
    return sorted(path.stem.removeprefix("adapter-") for path in figures.folder.glob("adapter-random-*.json"))


def arms_of(figures: Figures) -> Iterator[tuple[str, list[str]]]:
    """Yield each way to choose, and the adapters that stand for it."""
    for arm in ARMS:
        names = random_names(figures) if arm == "random" else [arm]
        if names and figures.read(f"adapter-{names[0]}.json"):
            yield arm, names


def choice_of_heads(models: Sequence[Figures]) -> str:
    """Compare ways to choose what an adapter changes, at one number of parameters and one harm."""
    rows = []
    for figures in models:
        for arm, names in arms_of(figures):
            made = [figures.read(f"adapter-{name}.json") or {} for name in names]
            kept = [one["kept"].get(GUARD) for one in made]
            harm = [one["harm"]["kl"]["value"] for one in kept if one]
            cells = [figures.name, ARMS[arm] + (f" ({len(names)})" if arm == "random" else "")]
            cells += [f"{made[0]['heads'] or '–'} in {made[0]['layers']}", f"{made[0]['parameters'] / 1000:.0f} k"]
            cells += [f"{np.mean(harm):.4f}".lstrip("0") if harm else "–"]
            for task, measure in TASKS.items():
                runs = [figures.run(task, f"{name}@{GUARD}") for name in names]
                found = [run["effect"][measure] for run in runs if run]
                if len(found) == 1:
                    cells.append(shown(found[0], sign=True))
                else:
                    values = [one["value"] for one in found]
                    ends = f"{min(values):+.3f} to {max(values):+.3f}" if values else "–"
                    cells.append(re.sub(r"(?<![\d])0\.", ".", ends).replace("-", "−"))
            cells.append(shown(ahead(figures, arm, names), sign=True) if arm != "random" else "–")
            rows.append(cells)
    head = ["model", "chosen by", "heads in layers", "parameters", "harm, nats a token", "generated pairs"]
    return table([*head, "NQ-Swap pairs", "NQ-Swap greedy answers", "ahead of random heads, generated pairs"], rows)


def ahead(figures: Figures, arm: str, names: Sequence[str]) -> Figure | None:
    """Return how far an arm is ahead of the mean of the random ones, paired by row."""
    own = figures.right("pairs-generated", f"{names[0]}@{GUARD}")
    others = [figures.right("pairs-generated", f"{name}@{GUARD}") for name in random_names(figures)]
    there = [one[0] for one in others if one is not None]
    if own is None or not there:
        return None
    return mean_figure(own[0] - np.mean(there, axis=0), own[1], seed=0)


REMEDIES = {
    "none": "nothing",
    "prompt": "an instruction",
    "cad": "context-aware decoding",
    "gate@0.02": "a gate",
    "attribution@0.02": "a head adapter",
}


def remedies(models: Sequence[Figures]) -> str:
    """Compare what a user could do."""
    rows = []
    for figures in models:
        for name, called in REMEDIES.items():
            runs = {task: figures.run(task, name) for task in TASKS}
            if not any(runs.values()):
                continue
            cells = [figures.name, called]
            for task, measure in TASKS.items():
                run = runs[task]
                part = "metrics" if name == "none" else "effect"
                cells.append(shown(run[part][measure] if run else None, sign=name != "none"))
            harm = next((run["guard"]["kl"] for run in runs.values() if run and run.get("guard")), None)
            rows.append([*cells, shown(harm) if harm else "–" if name == "none" else "0"])
    head = ["model", "what is done", "generated pairs", "NQ-Swap pairs", "NQ-Swap greedy answers"]
    return table([*head, "harm, nats a token"], rows)


def detection(models: Sequence[Figures]) -> str:
    """Compare the detector fitted on generated rows with log P of the answer."""
    rows = []
    for figures in models:
        for name, found in (figures.read("detect.json") or {}).items():
            if not isinstance(found, dict) or "metrics" not in found or name.startswith("fitted"):
                continue
            logp = found["baselines"]["log P"]
            metrics = found["metrics"]
            cells = [shown(metrics["auroc"]), shown(logp["auroc"]), shown(logp["gain"], sign=True)]
            rows.append([figures.name, name, *cells, shown(metrics["calibration_error"])])
    return table(["model", "rows", "detector", "log P", "difference", "calibration error"], rows)


def scores(models: Sequence[Figures]) -> str:
    """Show the best head and the mean of all heads, kind by kind."""
    rows = []
    for figures in models:
        for name, found in (figures.read("scores.json") or {}).items():
            if not isinstance(found, dict) or "best" not in found:
                continue
            best = found["best"]
            cells = [figures.name, name, best["head"], shown(best["chosen"]), f"{found['heads_mean']:.3f}"[1:]]
            rows.append([*cells, shown(found["split_half"]["pearson"]) if found.get("split_half") else "–"])
    return table(
        ["model", "rows", "best head", "its score on halves that did not choose it", "mean", "split half"], rows
    )


def size_curve(models: Sequence[Figures], file: Path) -> None:
    """Draw the best head's score on each kind of generated rows over the size of the model."""
    points = []
    for figures in models:
        found = figures.read("scores.json")
        for kind in KINDS if found else ():
            chosen = found[kind]["best"]["chosen"]
            points.append({"model": figures.name, "millions": SIZES[figures.folder.name], "kind": kind, **chosen})
    if not points:
        return
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("millions:Q", title="millions of weights", scale=alt.Scale(type="log", nice=False)),
        color=alt.Color("kind:N", title="wrong answer", sort=list(KINDS)),
    )
    y = alt.Y("value:Q", title="best head's Truth Score", scale=alt.Scale(domain=[0.4, 1.0]))
    lines = base.mark_line(point=True).encode(y=y)
    ends = base.mark_rule().encode(y=alt.Y("low:Q", title=""), y2="high:Q")
    names = alt.Chart(alt.Data(values=points)).transform_filter("datum.kind == 'absent'")
    text = names.mark_text(dy=-14).encode(x="millions:Q", y="value:Q", text="model:N")
    (ends + lines + text).properties(width=560, height=300).save(file)


TABLES: dict[str, Callable[[Sequence[Figures]], str]] = {
    "choice of heads": choice_of_heads,
    "remedies": remedies,
    "detection": detection,
    "scores": scores,
}


def main() -> None:
    """Parse the command line and write the page."""
    reading = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    reading.add_argument("figures", type=Path, help="--out of bench.models")
    reading.add_argument("page", type=Path, help="the page")
    reading.add_argument("--curve", type=Path, help="file of the size curve, .svg")
    given = reading.parse_args()
    order = list(MODELS)
    folders = sorted(
        (path for path in given.figures.iterdir() if path.name in order), key=lambda p: order.index(p.name)
    )
    models = [Figures(folder) for folder in folders]
    page = given.page.read_text()
    for name, made in TABLES.items():
        mark = f"<!-- {name}: made by python -m bench.tables -->"
        if mark in page:
            before, after = page.split(mark, 1)
            page = f"{before}{mark}\n{made(models)}\n{after[after.index('<!-- end -->') :]}"
    given.page.write_text(page)
    if given.curve:
        size_curve(models, given.curve)


if __name__ == "__main__":
    main()
