"""From predictions to ``summary.json``: figures, differences to the untouched run, tests, verdicts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from truthheads.benchmarks.base import Prediction
from truthheads.benchmarks.registry import BENCHMARKS, benchmark
from truthheads.benchmarks.yes_no import two_golds
from truthheads.errors import DataError, TruthHeadsError
from truthheads.evaluation.best import ahead_of, best_remedy, cost_of
from truthheads.evaluation.predictions import NAME, key_of, read_predictions
from truthheads.results.evaluation import BETTER as BETTER
from truthheads.results.evaluation import (
    GUARD,
    NOTHING,
    PLAIN,
    SETTINGS,
    SUMMARY,
    WORSE,
    BaselineMark,
    ControlRanks,
    EvaluationResult,
    Guard,
    PValues,
    RunKind,
    RunResult,
)
from truthheads.stats.figures import Figure, FigureJson, mean_figure
from truthheads.stats.resampling import (
    Draws,
    Measured,
    Resampling,
    holm,
    mcnemar,
    paired_p,
    rank_among,
    resample,
    resample_metrics,
)
from truthheads.stats.thresholds import SIGNIFICANCE_LEVEL
from truthheads.storage.files import write_json
from truthheads.storage.output_lock import lock_output

LESS_OFTEN, MORE_OFTEN = "better by answering yes less often", "better by answering yes more often"

FEWER = "better by naming fewer objects"


class Compared(NamedTuple):
    """One run beside the untouched one.

    Attributes:
        metrics: Its figures.
        effect: Its figures less the untouched run's, on the same items.
        p: Two-sided, of the primary figure: ``paired`` (bootstrap over clusters), ``mcnemar`` (exact, items).
        primary: Name of the primary figure.
        sign: +1 where more of it is better.
        change: The primary effect, resample by resample; None where it is not at hand.
    """

    metrics: dict[str, Figure]
    effect: dict[str, Figure]
    p: dict[str, float]
    primary: str
    sign: int
    change: Draws | None = None

    @property
    def gain(self) -> float:
        """The primary effect, positive where better."""
        return self.sign * self.effect[self.primary].value


def metric_figures(measured: Measured, *, seed: int, resampling: Resampling | None = None) -> dict[str, Figure]:
    """Return the figures of one run with clustered 95 % intervals."""
    drawn = resample_metrics(measured, resampling or resample(measured.clusters, seed=seed))
    return {name: draws.figure() for name, draws in drawn.items()}


def compare_runs(plain: Measured, changed: Measured, *, seed: int, resampling: Resampling | None = None) -> Compared:
    """Return a run beside the untouched one; both hold the same items in the same order.

    Args:
        plain: The untouched run.
        changed: The other run.
        seed: Random seed of the resamples, which both share: differences are paired.
        resampling: The resamples, where they are at hand.
    """
    resampling = resampling or resample(plain.clusters, seed=seed)
    before, after = resample_metrics(plain, resampling), resample_metrics(changed, resampling)
    clusters = resampling.weights.shape[1]
    effect = {
        name: Draws(after[name].value - before[name].value, after[name].draws - before[name].draws, clusters)
        for name in after
        if name in before
    }
    p = {"paired": paired_p(effect[plain.primary])}
    if plain.right is not None and changed.right is not None:
        p["mcnemar"] = mcnemar(plain.right, changed.right)
    metrics = {name: draws.figure() for name, draws in after.items()}
    differences = {name: draws.figure() for name, draws in effect.items()}
    return Compared(metrics, differences, p, plain.primary, plain.sign, effect[plain.primary])


def effect_verdict(compared: Compared, p: float) -> str:
    """Return the sentence on a run.

    ``better`` or ``worse`` where the interval of the primary effect lies on one side of 0 and the adjusted p is below
    0.05. A gain in accuracy that goes with a shift of the yes-rate is called ``better by answering yes less often``
    (or more) unless a figure that such a shift leaves alone gained too: AUROC, or d′ where there are no logits
    (TPR − FPR moves with the threshold, and on balanced items is the accuracy itself). A fall of CHAIR-i that goes
    with a fall of recall is ``better by naming fewer objects``.

    Args:
        compared: The run beside the untouched one.
        p: p value of the primary effect, adjusted for the number of remedies.
    """
    effect, main = compared.effect, compared.effect[compared.primary]
    found = np.isfinite(p) and p < SIGNIFICANCE_LEVEL and (main.low > 0 or main.high < 0)
    if not found:
        return NOTHING
    if compared.sign * main.value < 0:
        return WORSE
    if "yes_rate" in effect:
        free = effect["auroc"] if "auroc" in effect else effect["sensitivity"]
        shift = effect["yes_rate"]
        if not free.low > 0 and (shift.low > 0 or shift.high < 0):
            return LESS_OFTEN if shift.value < 0 else MORE_OFTEN
    if "chair_i" in effect and effect["recall"].high < 0:
        return FEWER
    return BETTER


def summarise_runs(
    lines: Sequence[Prediction],
    *,
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
) -> EvaluationResult:
    """Return every figure of an evaluation.

    Args:
        lines: Predictions of all runs, in any order; the untouched run is called ``none``. Names of controls are
            ``GATE/KIND-SEED``. Lines of task ``neutral`` are what each gate or adapter does to neutral text.
        seed: Random seed of the resamples and the halves for calibration.
        settings: How the predictions were made; carried into the result. What stands under ``adapters`` and
            ``baselines`` tells their runs from those of gates.
        notes: Sentences for the reader; what is noticed here is added.

    Returns:
        ``task``, ``rows``, ``runs`` (the untouched one first), ``best``, ``settings`` and ``notes``.

    Raises:
        DataError: There is no untouched run, more than one task, or a task that is not known.
    """
    tasks = {line["task"] for line in lines} - {GUARD}
    runs: dict[str, dict[tuple[str, str], Prediction]] = {}
    for line in lines:
        if line["task"] != GUARD:
            runs.setdefault(line["run"], {})[key_of(line)[2:]] = line
    strange = sorted(task for task in tasks if task.partition(":")[0] not in BENCHMARKS)
    if len(tasks) != 1 or strange or PLAIN not in runs:
        raise DataError(
            "the predictions cannot be summarised",
            expected=f"one task of {', '.join(BENCHMARKS)}, with an untouched run called {PLAIN!r}",
            got=f"tasks {sorted(tasks)}, runs {sorted(runs)}",
            fix=f"add {strange[0]} to registry.BENCHMARKS" if strange else "evaluate again with another --out",
        )
    (task,) = tasks
    plain = runs.pop(PLAIN)
    notes = [*notes, *_disputed(list(plain.values()))]
    measured = _measured(task, plain, list(plain), seed)
    resampling = resample(measured.clusters, seed=seed)
    first: RunResult = {
        "name": PLAIN,
        "kind": "none",
        "rows": len(plain),
        "metrics": _json(metric_figures(measured, seed=seed, resampling=resampling)),
        "effect": {},
        "verdict": None,
    }
    items: dict[str, int] = {}
    compared: dict[str, Compared] = {}
    for name, found in runs.items():
        both = [key for key in plain if key in found]
        if len(both) < len(plain) or len(found) > len(both):
            notes.append(f"run {name!r} holds {len(both)} of {len(plain)} items; it is compared on these")
        if not both:
            continue
        before, drawn = (measured, resampling) if len(both) == len(plain) else (None, None)
        before = before or _measured(task, plain, both, seed)
        compared[name] = compare_runs(before, _measured(task, found, both, seed), seed=seed, resampling=drawn)
        items[name] = len(both)
    harm = _harm(lines)
    adjusted = holm({name: entry.p["paired"] for name, entry in compared.items() if "/" not in name})
    changes = {name: one.change for name, one in compared.items() if one.change and items[name] == len(plain)}
    told = settings or {}
    entries = [first]
    for name, rows in items.items():
        entry = _entry(name, rows, compared, adjusted, told)
        if entry["kind"] != "control":
            controls = [other for other in changes if other.startswith(f"{name}/") and name in changes]
            if controls:
                entry["ahead"] = {other: ahead_of(changes, name, other, measured.sign).json() for other in controls}
        if name in harm:
            entry["guard"] = _guard(harm[name], seed)
        entries.append(entry)
    result: EvaluationResult = {
        "task": task,
        "rows": len(plain),
        "primary": measured.primary,
        "runs": entries,
        "settings": {**told, "seed": seed},
        "notes": notes,
    }
    best = best_remedy(measured.primary, measured.sign, entries, changes)
    return {**result, "best": best} if best is not None else result


def _disputed(lines: Sequence[Prediction]) -> list[str]:
    """Return a note on yes/no prompts with two gold answers, which readers of our own refuse where they can see it."""
    found = two_golds(lines) if all("parsed" in line for line in lines) else []
    if not found:
        return []
    one, other = (line["id"] for line in found[0])
    return [
        f"{len(found)} prompts have both yes and no as gold answers (the first at {one} and {other}): both rows count, "
        "and one of the two is right whatever the model says"
    ]


def _measured(
    task: str, found: Mapping[tuple[str, str], Prediction], keys: Sequence[tuple[str, str]], seed: int
) -> Measured:
    record = benchmark(task)
    measured = record.measure([found[key] for key in keys], seed=seed)
    primary = record.primary or measured.primary
    if primary not in measured.metrics and primary not in measured.curves:
        raise TruthHeadsError(
            f"the benchmark {record.name} does not measure its primary figure",
            expected=f"{primary} among its figures",
            got=", ".join([*measured.metrics, *measured.curves]),
            fix="correct primary or measure in its record",
        )
    return replace(measured, primary=primary, sign=-1 if record.lower_is_better else 1)


def _entry(
    name: str,
    rows: int,
    compared: Mapping[str, Compared],
    adjusted: Mapping[str, float],
    settings: Mapping[str, Any],
) -> RunResult:
    one = compared[name]
    remedy, control, kind = name.partition("/")
    p = adjusted.get(name, one.p["paired"])
    values: PValues = {"paired": one.p["paired"], "holm": adjusted.get(name)}
    if "mcnemar" in one.p:
        values["mcnemar"] = one.p["mcnemar"]
    mark: BaselineMark | None = (settings.get("baselines") or {}).get(name)
    found: RunKind = "adapter" if name in (settings.get("adapters") or {}) else "baseline" if mark else "gate"
    entry: RunResult = {
        "name": name,
        "kind": "control" if control else found,
        "rows": rows,
        "metrics": _json(one.metrics),
        "effect": _json(one.effect),
        "p": values,
        "verdict": effect_verdict(one, p),
    }
    if control:
        return {**entry, "of": remedy, "control": kind}
    entry["cost"] = cost_of(mark)
    gains: dict[str, list[float]] = {}
    for other, theirs in compared.items():
        if other.startswith(f"{name}/"):
            gains.setdefault(other.partition("/")[2].rpartition("-")[0], []).append(theirs.gain)
    if gains:
        every = [gain for part in gains.values() for gain in part]
        by_kind = {kind: rank_among(one.gain, part) for kind, part in sorted(gains.items())}
        entry["controls"] = ControlRanks(**rank_among(one.gain, every), by_kind=by_kind)
    return entry


def _harm(lines: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}
    for line in lines:
        if line["task"] == GUARD:
            found.setdefault(line["run"], []).append(line)
    return found


def _guard(lines: Sequence[Prediction], seed: int) -> Guard:
    """Measure a run's harm on neutral text: KL and rise of loss in nats a token, and the ratio of perplexities."""
    each = np.arange(len(lines))
    kl = mean_figure(np.array([line["kl"] for line in lines]), each, seed=seed)
    loss = mean_figure(np.array([line["loss"] for line in lines]), each, seed=seed)
    ratio = Figure(*(float(np.exp(value)) for value in loss))
    return {"kl": kl.json(), "loss": loss.json(), "perplexity_ratio": ratio.json(), "texts": len(lines)}


def _json(found: Mapping[str, Figure]) -> dict[str, FigureJson]:
    return {name: figure.json() for name, figure in found.items()}


@lock_output("folder")
def rescore(folder: Path, *, seed: int | None = None) -> EvaluationResult:
    """Compute every figure of a folder again from its predictions alone, and write ``summary.json``.

    Args:
        folder: An ``--out`` of an evaluation; ``run.json`` in it, where it is there, tells the settings.
        seed: Random seed of the resamples; None: as in ``run.json``, else 0.

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
            summary = summarise_runs(read.lines, seed=used, settings=settings, notes=notes)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / NAME} cannot be scored again",
            expected=f"predictions as `truthheads evaluate` writes them, and {SETTINGS}",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="remove what was changed by hand, or evaluate again with another --out",
        ) from error
    write_json(folder / SUMMARY, summary)
    return summary
