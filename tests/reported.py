"""A folder of artefacts with known truths, made through the library: what a report must find and say."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from simulated import HEADS, LAYERS, simulated
from truthheads.evaluation.summary import summarise_runs
from truthheads.lineage.compare import compare
from truthheads.results.drift import Drift
from truthheads.results.gate import Gate
from truthheads.results.pictures import AttentionPictures
from truthheads.results.scores import Scores
from truthheads.results.trace import MEASURES, Trace
from truthheads.storage.files import write_json
from truthheads.tracing.pictures import Drawing, prepare, write_pictures
from truthheads.tracing.score_correlation import score_correlations

BEST = (6, 4)
"""The head with the highest score of the base, and the one that finds the evidence best."""
EVIL = "<script>alert(1)</script>"


def fill(folder: Path, *, model: str = "base", rows: int = 150) -> Path:
    """Write one artefact of every kind.

    Args:
        folder: Where; folders in it are made, too.
        model: Name of the base model.
        rows: Questions behind the scores.
    """
    base, descendant, stranger = scores(model, rows)
    for name, one in (("base", base), ("descendant", descendant), ("stranger", stranger)):
        one.save(folder / f"{name}.safetensors")
    compare(*(folder / f"{name}.safetensors" for name in ("base", "descendant", "stranger"))).save(
        folder / "comparison.json"
    )
    Gate.from_scores(base, strength=2.0).save(folder / "gates" / "own.safetensors")
    trace(base, model).save(folder / "trace.safetensors")
    drift(model).save(folder / "drift-base-descendant.safetensors")
    write_pictures(folder / "pictures.html", pictures(folder, model))
    write_json(folder / "tuning.json", tuning())
    write_json(folder / "pope" / "summary.json", evaluation(gain=0.3))
    return folder


def scores(model: str, rows: int) -> tuple[Scores, Scores, Scores]:
    """Return scores of a base whose best head is ``BEST``, of a descendant, and of a model that is no relative."""
    pair, other = simulated(3, rho=0.95, questions=rows), simulated(4, rho=0, questions=rows)
    base = _with_best(pair.a)
    made = []
    for name, one in ((model, base), ("tuned", pair.b), ("other", other.b)):
        data = {"path": "text/questions.jsonl", "rows": rows, "sha256": "ab" * 32}
        meta = {
            "model": {"name": name, "fingerprint": name},
            "data": data,
            "seed": 0,
            "command": f"truthheads score {name}",
        }
        made.append(replace(one, meta={**one.meta, **meta}))
    return made[0], made[1], made[2]


def _with_best(one: Scores) -> Scores:
    """Return scores in which the planted head is right on every question but a few."""
    sample, values = one.sample.clone(), one.values.clone()
    right = torch.where(one.sample_label == 1, 1.0, -1.0).to(sample.dtype)
    right[:: len(right) // 3] *= -1
    sample[:, BEST[0], BEST[1]] = right
    values[BEST] = float(((right > 0) == (one.sample_label == 1)).float().mean())
    return replace(one, sample=sample, values=values, accuracy=values)


def trace(truth: Scores, model: str) -> Trace:
    """Return a trace in which heads find the evidence the better the higher their score, without noise to speak of."""
    random = np.random.default_rng(0)
    known = truth.values.numpy()
    rows = len(truth.sample)
    sample = np.zeros((rows, 2, len(MEASURES), LAYERS, HEADS), np.float32)
    sample[:] = known + 0.01 * random.normal(size=sample.shape)
    values = torch.from_numpy(sample.mean(0))
    group = torch.arange(rows)
    data = {"path": "text/questions.jsonl", "rows": rows, "sha256": "cd" * 32}
    meta = {
        "model": {"name": model},
        "data": data,
        "seed": 0,
        "positions": ["answer", "question"],
        "position": "answer",
    }
    found = Trace(values, torch.from_numpy(sample).half(), group, group, group + 10**6, truth.values.float(), meta)
    return replace(found, meta={**meta, "claim": score_correlations(found, truth)})


def drift(model: str) -> Drift:
    """Return a small drift of every head."""
    parts = {part: torch.full((LAYERS, HEADS), 0.01 * at) for at, part in enumerate("qkvo", start=1)}
    cosines = {part: torch.ones(LAYERS, HEADS) for part in parts}
    return Drift(model, "tuned", parts, {"seed": 0}, cosines, torch.zeros(LAYERS, 4))


def pictures(folder: Path, model: str) -> AttentionPictures:
    """Return pictures of one row in words and one with an image, the best head beside the worst."""
    text = f"Context:\n{EVIL} lives in Rome.\nAnswer: Rome"
    spans = [(0, 8), (9, 34), (35, 40), (41, 43), (44, 49), (50, 57), (58, 62)]
    marks = np.zeros((3, len(spans)), bool)
    marks[0, 0] = marks[1, 4] = True
    weights = np.full((2, len(spans)), 0.05)
    weights[0, 4] = 0.6
    heads = [(f"L{BEST[0]}H{BEST[1]}", "Truth Score 0.98"), ("L0H0", "Truth Score 0.5")]
    words = Drawing("Where?", "row 1", text, spans, marks[0], marks[1], marks[2], 6, heads, weights)
    picture = folder / "scene.png"
    Image.new("RGB", (32, 32), "navy").save(picture)
    cells = np.array([[0, 0, 16, 32], [16, 0, 32, 32], *[[np.nan] * 4] * (len(spans) - 2)])
    shown = np.zeros(len(spans), bool)
    shown[:2] = True
    seen = replace(
        words, title="What colour?", image=str(picture), cells=cells, pixels=shown, boxes=[(0.0, 0.0, 16.0, 16.0)]
    )
    return prepare(f"{model}: what the 1 best and 1 worst heads by Truth Score look at", [words, seen])


def tuning(chosen: int | None = 0) -> dict[str, Any]:
    """Return the result of a tuning run of two candidates, as ``tuning.json`` keeps it."""
    path = [
        {
            "name": f"epoch {at}",
            "effect": {"margin": figure(0.4 * at, 0.1), "pair_accuracy": figure(0.05, 0.02)},
            "harm": {"kl": figure(0.01 * at, 0.002), "loss": figure(0.01, 0.002)},
        }
        for at in (1, 3)
    ]
    made = {"method": "learn", "seed": 0, "command": "truthheads tune base", "data": {"sha256": "ef" * 32}}
    return {**made, "path": path, "frontier": [], "chosen": chosen, "guard": 0.02, "why": "largest gain"}


def figure(value: float, reach: float) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def evaluation(*, gain: float, names: Sequence[str] = ("own",), rows: int = 200) -> dict[str, Any]:
    """Return POPE's figures where a gate mends a share ``gain`` of all answers and its control mends none.

    Args:
        gain: Share of the answers that only the gate gets right.
        names: Of the gates.
        rows: Questions; half of them are to be answered with yes.
    """
    lines = []
    for run in ("none", *(one for name in names for one in (name, f"{name}/shuffled-0"))):
        for at in range(rows):
            gold = ("yes", "no")[at % 2]
            wrong = at % 10 < 4 and not (run in names and at % 10 < 10 * gain)
            said = {"yes": "no", "no": "yes"}[gold] if wrong else gold
            name = f"q{at}"
            lines.append(
                {
                    "task": "pope",
                    "run": run,
                    "id": name,
                    "split": "",
                    "group": name,
                    "prompt": name,
                    "gold": gold,
                    "answer": said,
                    "yes": None,
                    "no": None,
                    "parsed": {"strict": said},
                }
            )
    settings = {"command": "truthheads evaluate pope base", "data": {"files": [{"sha256": "12" * 32}]}}
    return summarise_runs(lines, settings=settings)  # type: ignore[arg-type]
