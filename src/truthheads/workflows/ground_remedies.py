"""What ``ground`` tries: an instruction, a gate, an adapter; learned from the same rows, tested once, and decided."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from truthheads.benchmarks.base import Prediction
from truthheads.data.questions import Question
from truthheads.data.readers import read_questions
from truthheads.errors import ArchitectureError
from truthheads.evaluation.evaluate import evaluate
from truthheads.evaluation.predictions import NAME, read_predictions
from truthheads.evaluation.summary import BETTER, summarise_runs
from truthheads.models.forward import shares_prefix
from truthheads.models.head_modules import locate_places
from truthheads.models.load import Model
from truthheads.models.progress import Progress, WorkParts
from truthheads.models.prompts import encode, has_chat_template
from truthheads.results.evaluation import PLAIN, SUMMARY, EvaluationResult, RunResult
from truthheads.results.gate import Gate
from truthheads.results.grounding import GroundDecision, RemedyName, RemedyTried
from truthheads.results.head_adapter import AdapterLike
from truthheads.results.tuning import TUNING, TuningResult
from truthheads.stats.figures import Figure, FigureJson
from truthheads.storage.files import read_json, write_json
from truthheads.tuning.learn import Schedule
from truthheads.tuning.tune import tune
from truthheads.workflows.ground_settings import Settings

PROMPT: Literal["prompt"] = "prompt"

GATE: Literal["gate"] = "gate"

ADAPTER: Literal["adapter"] = "adapter"

EPOCHS: dict[RemedyName, int] = {GATE: 2, ADAPTER: 4}
"""Passes over the rows that are learned from, at most; docs/decisions/0025-ground-tries-three.md."""

LEARNING = 1.3e13
"""Weights times tokens that a processor learns from in minutes: 26,000 tokens, four times 40 rows of 160, of a model of
0.5 billion weights. Where there are more, the longest rows are left out; what then is still more is learned from in
fewer passes, two at least."""

LEARNED_AT_LEAST, ROWS_AT_LEAST = 0.5, 40
"""Rows that are learned from however long they are: this share of them, or so many where there are no more."""

NOT_TRIED = "not_tried.json"

GATE_CONTROLS = 2
"""Shuffled and random control gates where nothing else is said, of each so many."""


class Tuned(NamedTuple):
    """What was learned.

    Attributes:
        gate: File of the gate, and its ``tuning.json``.
        adapter: Folder of the adapter with its ``tuning.json``; without one where the network has no place for it.
    """

    gate: Path
    adapter: Path

    @property
    def results(self) -> dict[RemedyName, TuningResult]:
        """Each tuning's result."""
        files: dict[RemedyName, Path] = {GATE: self.gate.with_name(TUNING), ADAPTER: self.adapter / TUNING}
        return {name: cast(TuningResult, read_json(file)) for name, file in files.items() if file.is_file()}

    @property
    def chosen(self) -> dict[RemedyName, Path]:
        """What there is to be tested: a gate or an adapter that tuning chose."""
        paths: dict[RemedyName, Path] = {GATE: self.gate, ADAPTER: self.adapter}
        return {name: paths[name] for name, one in self.results.items() if one["chosen"] is not None}


def in_chat(model: Model, how: Settings) -> bool:
    """Return whether prompts are put into the chat template: as told, else where there is one."""
    return has_chat_template(model) if how.chat is None else how.chat


def affordable(model: Model, rows: Sequence[Question], most: int, chat: bool) -> tuple[list[Question], int]:
    """Return the rows that are learned from, in their order, and how often: what a processor can do in minutes.

    A few long rows often hold most of the tokens: on NQ-Swap a fifth of the rows hold three quarters. They are left out
    first. All rows, and always ``most`` passes, on other devices.

    Args:
        model: The model.
        rows: The rows that may be learned from.
        most: Passes over them where there is time.
        chat: Whether they are put into the chat template.
    """
    if model.device.type != "cpu":
        return list(rows), most
    read = encode(model, rows, chat=chat, truncate=True, share_prefix=shares_prefix(model))
    lengths = np.array([one.unique_tokens for one in read])
    budget = LEARNING / sum(one.numel() for one in model.network.parameters())
    order = np.argsort(lengths, kind="stable")
    total = np.cumsum(lengths[order])
    count = max(int((most * total <= budget).sum()), round(LEARNED_AT_LEAST * len(rows)), min(ROWS_AT_LEAST, len(rows)))
    times = max(min(2, most), min(most, int(budget / max(1, total[count - 1]))))
    return [rows[at] for at in sorted(order[:count].tolist())], times


def learn_remedy(
    name: RemedyName, model: Model, dev: Path, out: Path, how: Settings, work_dir: Path, progress: Progress | None
) -> None:
    """Learn a gate (a file) or an adapter (a folder) and write it with its ``tuning.json``, or that alone.

    Args:
        name: Which.
        model: The model.
        dev: The rows to learn and choose from.
        out: The file or the folder.
        how: The settings.
        work_dir: Folder of what is done; both remedies' lie side by side, with the samples that they share.
        progress: Called with the work done and the total.
    """
    chat = in_chat(model, how)
    rows, times = affordable(model, read_questions(dev, images=how.images), max(EPOCHS.values()), chat)
    epochs = min(times, EPOCHS[name])
    common: dict[str, Any] = {
        "neutral": how.neutral,
        "whole_path": False,
        "guard": how.guard,
        "chat": chat,
        "truncate": how.truncate,
        "batch_tokens": how.batch_tokens,
        "seed": how.seed,
        "work_dir": work_dir,
        "samples_dir": work_dir.with_name("neutral"),
        "progress": progress,
    }
    if name == GATE:
        start = Gate.load(how.base_gate) if how.base_gate is not None else None
        tune(model, rows, method="learn", base_gate=start, schedule=Schedule(epochs=epochs), **common).save(out)
        return
    try:
        locate_places(model.network, model.layout)
    except ArchitectureError as error:
        write_json(out / NOT_TRIED, {"why": error.problem})
        return
    tuned = tune(model, rows, method="adapt", epochs=epochs, controls=how.controls or 0, **common)
    if tuned.adapter is not None:
        tuned.save(out)
    else:
        write_json(out / TUNING, tuned.result)


def evaluate_remedies(
    model: Model, test: Path, tuned: Tuned, out: Path, how: Settings, progress: Progress | None
) -> None:
    """Test what was learned and the instruction on the test rows, then the controls of what would be shipped.

    Args:
        model: The model.
        test: The rows, of which nothing has been learned.
        tuned: What was learned.
        out: Folder of the evaluation.
        how: The settings.
        progress: Called with the work done and the total.
    """
    rows, chosen = read_questions(test, images=how.images), tuned.chosen
    asking = {"images": how.images, "chat": in_chat(model, how), "truncate": how.truncate, "seed": how.seed}
    common: dict[str, Any] = {
        "out": out,
        "asking": asking,
        "neutral": how.neutral,
        "batch_tokens": how.batch_tokens,
        "seed": how.seed,
    }
    prompt = [PROMPT] if all(row.context.strip() for row in rows) else []
    controls = GATE_CONTROLS if how.controls is None else how.controls
    parts = WorkParts(progress, {"remedies": 1e6 * (2 + len(chosen)), "controls": 1e6 * controls})
    gates: dict[str, Gate] = {GATE: Gate.load(chosen[GATE])} if GATE in chosen else {}
    adapters: dict[str, AdapterLike] = {ADAPTER: chosen[ADAPTER]} if ADAPTER in chosen else {}
    evaluate(
        model,
        "pairs",
        test,
        gates=gates,
        adapters=adapters,
        baselines=prompt,
        progress=parts.part("remedies"),
        **common,
    )
    decided = decide(out, tuned, how.guard)
    shipped = decided["remedy"] if decided["better"] else None
    told = parts.part("controls")
    if shipped == GATE:
        evaluate(model, "pairs", test, gates=gates, controls=controls, progress=told, **common)
    elif shipped == ADAPTER and how.controls:
        evaluate(model, "pairs", test, adapters=adapters, controls=controls, progress=told, **common)
    parts.finish()


def decide(evaluation: Path, tuned: Tuned, guard: float) -> GroundDecision:
    """Decide by the test rows which remedy is better than the untouched model and than the instruction.

    Args:
        evaluation: Folder of the evaluation.
        tuned: What was learned.
        guard: Largest harm allowed, the upper end of its interval.
    """
    summary = cast(EvaluationResult, read_json(evaluation / SUMMARY))
    primary, runs = summary["primary"], {run["name"]: run for run in summary["runs"]}
    beyond = _beyond_prompt(evaluation, summary)
    results, chosen = tuned.results, tuned.chosen
    tried = [_tried(PROMPT, runs[PROMPT], None, None, guard, primary)] if PROMPT in runs else []
    for name, result in results.items():
        run = runs.get(name) if name in chosen else None
        tried.append(_tried(name, run, result["why"], beyond.get(name), guard, primary))
    ranked = sorted(
        (one for one in tried if one["tested"] and one["name"] != PROMPT),
        key=lambda one: (one["ships"], Figure.of(one["effect"][primary]).value),
        reverse=True,
    )
    best = ranked[0] if ranked else None
    better = best is not None and best["ships"]
    instruction = next((one for one in tried if one["name"] == PROMPT), None)
    mark = (summary["settings"].get("baselines") or {}).get(PROMPT)
    return {
        "better": better,
        "moved": best is not None,
        "verdict": _verdict(best, instruction, guard),
        "remedy": best["name"] if best is not None else None,
        "remedies": tried,
        "instruction": {"text": mark["text"], "prompt_tokens": mark["prompt_tokens"]} if mark else None,
        "primary": primary,
        "test_rows": summary["rows"],
        "ungated": runs[PLAIN]["metrics"],
        "effect": best["effect"] if best is not None else {},
        "controls": best["controls"] if best is not None else {},
        "guard": runs[best["name"]].get("guard") if best is not None else None,
        "exported": None,
    }


def _tried(
    name: RemedyName,
    run: RunResult | None,
    why: str | None,
    beyond: FigureJson | None,
    guard: float,
    primary: str,
) -> RemedyTried:
    held = run.get("controls") if run is not None else None
    harm = run["guard"]["kl"] if run is not None and "guard" in run else None
    found: RemedyTried = {
        "name": name,
        "tested": run is not None,
        "why": why,
        "effect": run["effect"] if run is not None else {},
        "beyond_prompt": beyond,
        "harm": harm,
        "controls": {**held} if held is not None else {},
        "verdict": run["verdict"] if run is not None else None,
        "ships": False,
    }
    found["ships"] = name != PROMPT and found["tested"] and found["verdict"] == BETTER and not lacking(found, guard)
    return found


def lacking(one: RemedyTried, guard: float) -> str | None:
    """Say why a gate or an adapter that is better than the untouched model is not shipped; None where it may be."""
    if one["harm"] is not None and Figure.of(one["harm"]).high > guard:
        return f"but it changes neutral text by more than {guard:g} nats a token"
    if one["beyond_prompt"] is not None and not Figure.of(one["beyond_prompt"]).low > 0:
        return "but not measurably better than an instruction"
    held = one["controls"]
    if one["name"] == GATE and held and held["beaten"] < held["of"]:
        return "but no more than its controls"
    return None


def _verdict(best: RemedyTried | None, instruction: RemedyTried | None, guard: float) -> str | None:
    if best is not None and best["ships"]:
        return BETTER
    if instruction is not None and instruction["verdict"] == BETTER:
        return "an instruction does as much"
    if best is None:
        return "nothing helped within the guard"
    return f"{BETTER}, {lacking(best, guard)}" if best["verdict"] == BETTER else best["verdict"]


def _beyond_prompt(evaluation: Path, summary: EvaluationResult) -> dict[str, FigureJson]:
    """Return how far each gate and adapter is beyond the instruction, on the same rows and resamples."""
    runs = {run["name"] for run in summary["runs"] if run["kind"] in (GATE, ADAPTER)}
    lines = [line for line in read_predictions(evaluation / NAME).lines if line["run"] in {PROMPT, *runs}]
    if not any(line["run"] == PROMPT for line in lines):
        return {}
    named: list[Prediction] = [{**line, "run": PLAIN} if line["run"] == PROMPT else line for line in lines]
    compared = summarise_runs(named, seed=int(summary["settings"].get("seed", 0)))
    return {run["name"]: run["effect"][summary["primary"]] for run in compared["runs"] if run["name"] in runs}


def left_aside(tuned: Tuned, decided: GroundDecision, dev: int) -> list[str]:
    """Return a sentence for what could not be tried, and for rows that were not learned from."""
    told = []
    learned = max(one["rows"]["dev"] + one["rows"]["train"] for one in tuned.results.values())
    if learned < dev:
        told.append(
            f"{dev - learned} of {dev} rows to learn from, the longest, were left out, to save time on a processor; "
            "rows of any length are tested"
        )
    if (file := tuned.adapter / NOT_TRIED).is_file():
        told.append(f"no adapter was tried: {read_json(file)['why']}")
    if decided["instruction"] is None:
        told.append("no instruction to use the context was tried: not every test row shows a context")
    return told
