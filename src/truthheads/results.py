"""From predictions to figures: everything in ``summary.json`` is computed here, from the lines alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from truthheads.artifacts import write_json
from truthheads.benchmarks.chair import measure_chair
from truthheads.benchmarks.conflict import measure_conflict
from truthheads.benchmarks.means import measure_means
from truthheads.benchmarks.pairs import measure_pairs
from truthheads.benchmarks.yesno import measure_yesno, two_golds
from truthheads.effects import Compared, compare, figures, holm, rank_among, verdict
from truthheads.errors import DataError
from truthheads.measures import Measured, resample
from truthheads.outputs import claiming
from truthheads.predictions import NAME, Line, key_of, read_predictions
from truthheads.stats import Figure, mean_figure

SUMMARY, SETTINGS = "summary.json", "run.json"
PLAIN = "none"
GUARD = "neutral"
ELSEWHERE = "lm-eval:"
MEASURES: dict[str, Callable[..., Measured]] = {
    "halueval": measure_yesno,
    "pope": measure_yesno,
    "chair": measure_chair,
    "pairs": measure_pairs,
    "conflict": measure_conflict,
}


def summarise(
    lines: Sequence[Line], *, seed: int = 0, settings: Mapping[str, Any] | None = None, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return every figure of an evaluation.

    Args:
        lines: Predictions of all runs, in any order; the ungated run is called ``none``. Names of controls are
            ``GATE/KIND-SEED``. Lines of task ``neutral`` are what each gate does to neutral text.
        seed: Of the resamples and the halves for calibration.
        settings: How the predictions were made; carried into the result.
        notes: Sentences for the reader; what is noticed here is added.

    Returns:
        ``task``, ``rows``, ``runs`` (the ungated one first), ``settings`` and ``notes``.

    Raises:
        DataError: There is no ungated run, more than one task, or a task that is not known.
    """
    tasks = {line["task"] for line in lines} - {GUARD}
    runs: dict[str, dict[tuple[str, str], Line]] = {}
    for line in lines:
        if line["task"] != GUARD:
            runs.setdefault(line["run"], {})[key_of(line)[2:]] = line
    known = all(task in MEASURES or task.startswith(ELSEWHERE) for task in tasks)
    if len(tasks) != 1 or not known or PLAIN not in runs:
        raise DataError(
            "the predictions cannot be summarised",
            expected=f"one task of {', '.join(MEASURES)}, with an ungated run called {PLAIN!r}",
            got=f"tasks {sorted(tasks)}, runs {sorted(runs)}",
            fix="evaluate again with another --out",
        )
    (task,) = tasks
    plain = runs.pop(PLAIN)
    notes = [*notes, *_disputed(list(plain.values()))]
    measured = _measured(task, plain, list(plain), seed)
    resampling = resample(measured.clusters, seed=seed)
    first = {"name": PLAIN, "kind": PLAIN, "rows": len(plain), "effect": {}, "verdict": None}
    entries = [{**first, "metrics": _json(figures(measured, seed=seed, resampling=resampling))}]
    compared: dict[str, Compared] = {}
    for name, found in runs.items():
        both = [key for key in plain if key in found]
        if len(both) < len(plain) or len(found) > len(both):
            notes.append(f"run {name!r} holds {len(both)} of {len(plain)} items; it is compared on these")
        if not both:
            continue
        before, drawn = (measured, resampling) if len(both) == len(plain) else (None, None)
        before = before or _measured(task, plain, both, seed)
        compared[name] = compare(before, _measured(task, found, both, seed), seed=seed, resampling=drawn)
        entries.append({"name": name, "rows": len(both)})
    harm = _harm(lines)
    adjusted = holm({name: entry.p["paired"] for name, entry in compared.items() if "/" not in name})
    for entry in entries[1:]:
        name = str(entry["name"])
        entry |= _entry(name, compared, adjusted, seed)
        if name in harm:
            entry["guard"] = _guard(harm[name], seed)
    return {
        "task": task,
        "rows": len(plain),
        "primary": measured.primary,
        "runs": entries,
        "settings": {**(settings or {}), "seed": seed},
        "notes": notes,
    }


def _disputed(lines: Sequence[Line]) -> list[str]:
    """Return a note on yes/no prompts with two gold answers, which readers of our own refuse where they can see it."""
    found = two_golds(lines) if all("parsed" in line for line in lines) else []
    if not found:
        return []
    one, other = (line["id"] for line in found[0])
    return [
        f"{len(found)} prompts have both yes and no as gold answers (the first at {one} and {other}): both rows count, "
        "and one of the two is right whatever the model says"
    ]


def _measured(task: str, found: Mapping[tuple[str, str], Line], keys: Sequence[tuple[str, str]], seed: int) -> Measured:
    lines = [found[key] for key in keys]
    if task.startswith(ELSEWHERE):
        return (measure_yesno if all("parsed" in line for line in lines) else measure_means)(lines, seed=seed)
    return MEASURES[task](lines, seed=seed)


def _entry(name: str, compared: Mapping[str, Compared], adjusted: Mapping[str, float], seed: int) -> dict[str, Any]:
    one = compared[name]
    gate, control, kind = name.partition("/")
    p = adjusted.get(name, one.p["paired"])
    entry: dict[str, Any] = {
        "kind": "control" if control else "gate",
        "metrics": _json(one.metrics),
        "effect": _json(one.effect),
        "p": {**one.p, "holm": adjusted.get(name)},
        "verdict": verdict(one, p),
    }
    if control:
        return {**entry, "of": gate, "control": kind}
    gains: dict[str, list[float]] = {}
    for other, theirs in compared.items():
        if other.startswith(f"{name}/"):
            gains.setdefault(other.partition("/")[2].rpartition("-")[0], []).append(theirs.gain)
    if gains:
        every = [gain for part in gains.values() for gain in part]
        entry["controls"] = {
            **rank_among(one.gain, every),
            "by_kind": {kind: rank_among(one.gain, part) for kind, part in sorted(gains.items())},
        }
    return entry


def _harm(lines: Sequence[Line]) -> dict[str, list[Line]]:
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line["task"] == GUARD:
            found.setdefault(line["run"], []).append(line)
    return found


def _guard(lines: Sequence[Line], seed: int) -> dict[str, Any]:
    """Return what a run does to neutral text: KL and rise of loss in nats a token, and the ratio of perplexities."""
    each = np.arange(len(lines))
    kl = mean_figure(np.array([line["kl"] for line in lines]), each, seed=seed)
    loss = mean_figure(np.array([line["loss"] for line in lines]), each, seed=seed)
    ratio = Figure(*(float(np.exp(value)) for value in loss))
    return {**_json({"kl": kl, "loss": loss, "perplexity_ratio": ratio}), "texts": len(lines)}


def _json(found: Mapping[str, Figure]) -> dict[str, dict[str, float]]:
    return {name: figure.json() for name, figure in found.items()}


@claiming("folder")
def rescore(folder: Path, *, seed: int | None = None) -> dict[str, Any]:
    """Compute every figure of a folder again from its predictions alone, and write ``summary.json``.

    Args:
        folder: An ``--out`` of an evaluation; ``run.json`` in it, where it is there, tells the settings.
        seed: Of the resamples; None: as in ``run.json``, else 0.

    Raises:
        DataError: The predictions are missing or cannot be used.
    """
    read = read_predictions(folder / NAME)
    told: dict[str, Any] = {}
    if (folder / SETTINGS).is_file():
        try:
            told = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            told = {}
    try:
        settings = dict(told.get("settings", {}))
        notes = [*map(str, told.get("notes", [])), *([read.dropped] if read.dropped else [])]
        used = int(settings.get("seed", 0)) if seed is None else seed
        with np.errstate(all="ignore"):
            summary = summarise(read.lines, seed=used, settings=settings, notes=notes)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / NAME} cannot be scored again",
            expected=f"predictions as `truthheads evaluate` writes them, and {SETTINGS}",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="remove what was changed by hand, or evaluate again with another --out",
        ) from error
    write_json(folder / SUMMARY, summary)
    return summary
