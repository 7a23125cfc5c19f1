"""The stage behind ``truthheads tune``: candidates from a grid, a learned gate or a head adapter; one is chosen."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, get_args

import numpy as np
import torch

from truthheads.choices import HeadChoice, Norm, Site, TuneMethod, renamed
from truthheads.data.answers import describe_data
from truthheads.data.cautions import cannot_choose, data_cautions
from truthheads.data.held import QuestionsLike
from truthheads.data.questions import Question
from truthheads.data.readers import as_questions
from truthheads.errors import DataError, GateError
from truthheads.models.answer_logprobs import check_pairs, group_numbers, pair_figures
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.held import ModelLike, as_model
from truthheads.models.hooks import check_factors
from truthheads.models.load import Model
from truthheads.models.neutral_text import LENGTH, neutral_ids
from truthheads.models.progress import Progress, WorkParts
from truthheads.models.prompts import with_images
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores, ScoresLike, as_scores
from truthheads.results.tuning import CandidateNotes, TuneMeta, Tuning, TuningResult
from truthheads.stats.figures import FigureJson
from truthheads.stats.thresholds import GATE_HARM_NATS
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import as_path, file_sha256
from truthheads.storage.kept_results import KeptResults
from truthheads.tuning.adapt import AdaptSchedule
from truthheads.tuning.adapters import AdapterRun, HeadRule, check_rule, schedule_json, tune_adapter
from truthheads.tuning.candidates import (
    LEVELS,
    Candidate,
    CandidateEvaluator,
    RunSettings,
    choose_candidate,
    encode_questions,
    frontier,
    gain_elsewhere,
    harm_of,
    judge_path,
    why,
)
from truthheads.tuning.learn import Point, Schedule, Steps, learn

STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.5)

NORMS: tuple[Norm, ...] = ("centred", "minmax")

SITES: tuple[Site, ...] = ("z", "output")

TEXTS = 96

TOKENS_PER_SAMPLED = 4.0
"""Tokens of a forward pass that take as long as one sampled token does, in a batch of 32 texts."""


@renamed(target="base_gate")
def tune(
    model: ModelLike,
    questions: QuestionsLike,
    *,
    method: TuneMethod = "learn",
    scores: ScoresLike | None = None,
    base_gate: Gate | str | Path | None = None,
    neutral: str | Path | None = None,
    guard: float = GATE_HARM_NATS,
    site: Site = "z",
    strengths: Sequence[float] = STRENGTHS,
    norms: Sequence[Norm] = NORMS,
    sites: Sequence[Site] = SITES,
    standardise: bool = False,
    schedule: Schedule | None = None,
    choose: HeadChoice = "attribution",
    heads: float = 0.1,
    rank: int = 8,
    controls: int = 0,
    training: AdaptSchedule | None = None,
    dev_share: float = 0.25,
    whole_path: bool = True,
    chat: bool = False,
    truncate: bool = False,
    skip_missing: bool = False,
    batch_tokens: int | None = None,
    seed: int = 0,
    work_dir: str | Path | None = None,
    samples_dir: str | Path | None = None,
    progress: Progress | None = None,
    **steps: Unpack[Steps],
) -> Tuning:
    """Find a gate or a head adapter that makes truthful answers more likely and changes neutral text little.

    The rule: of all candidates whose harm (mean KL on held-out neutral text, upper end of its 95 % interval) is at
    most ``guard``, the one with the largest mean gain in margin on the dev questions, if the lower end of that gain's
    paired interval is above 0; else a gate of ones, or no adapter.

    Args:
        model: From :func:`truthheads.load`, or a name that it takes.
        questions: Pairs, or what :func:`truthheads.read_questions` reads. ``grid`` judges on all of them; the
            others keep ``dev_share`` of the groups to judge on.
        method: ``grid``: gates from ``scores``, every strength, norm and site. ``learn``: one factor per head by
            gradient (:mod:`truthheads.tuning.learn`), points of the path and weaker versions of the last. ``adapt``: a
            low-rank update of chosen heads by gradient (:mod:`truthheads.tuning.adapt`), points and versions alike.
        scores: For ``grid``, and for ``adapt`` where heads are chosen by them: of this model or of a relative of the
            same shape.
        base_gate: For ``learn``: the gate, or its file, to start from and to be pulled towards; None: all ones.
        neutral: File of neutral text; None: the questions' contexts and the model's own samples. Half of it is
            learned from, the other half only judged on.
        guard: Largest harm allowed, in nats per token.
        site: For ``learn``: what a factor scales.
        strengths: For ``grid``.
        norms: For ``grid``.
        sites: For ``grid``.
        standardise: For ``grid``; see :meth:`Gate.from_scores`.
        schedule: For ``learn``: how factors are learned; None: the defaults.
        choose: For ``adapt``: the heads with the largest attributions (of ``scores``, else measured on the training
            rows), with the largest Truth Scores (``scores``), heads drawn at random, or all.
        heads: For ``adapt``: the share of the heads to change.
        rank: For ``adapt``: the rank of each module's update.
        controls: For ``adapt``: adapters on as many random heads, trained alike, that the result puts beside it.
        training: For ``adapt``: its schedule; ``rank`` and ``epochs`` come before it.
        dev_share: For ``learn`` and ``adapt``: share of the groups that is judged on.
        whole_path: For ``learn`` and ``adapt``: judge every point of the path, and weaker versions of the last for
            each level of harm; False: the last point, and weaker versions until one is within the guard.
        chat: Put the prompt into the chat template.
        truncate: Drop the start of contexts that are too long.
        skip_missing: Leave out rows whose image is not there, and count them.
        batch_tokens: Padded tokens in a batch, at most; None chooses by device.
        seed: Random seed of split, order, neutral samples and bootstraps.
        work_dir: Folder of what is done; a run that was killed goes on from it. None: keeps nothing.
        samples_dir: Folder of the model's own samples, which another tuning of the same model on the same questions
            finds again; None: they are kept in ``work_dir``.
        progress: Called with the work done and the total, in tokens of a forward pass, roughly.
        steps: For ``learn``: ``epochs``, ``rate``, ``pull``, ``low``, ``high``, which change the schedule; for
            ``adapt`` the first two.

    Raises:
        DataError: Rows without both answers, or fewer than two groups.
        GateError: Scores are missing, a guard that is no positive number, bounds that exclude 1, or another setting
            out of range.
        ModelError: ``adapt`` on a base that has an adapter in it.
        ShapeError: Scores or target of another shape than the model.
        ActivationError: A forward pass or gradient is not finite.
    """
    scores = None if scores is None else as_scores(scores)
    questions = as_questions(questions)
    check_pairs(questions, purpose="tuning")
    model = as_model(model)
    if skip_missing:
        questions = with_images(model, questions)
    schedule = replace(schedule or Schedule(), **steps)
    training = training or AdaptSchedule()
    epochs, rate = steps.get("epochs", training.epochs), steps.get("rate", training.rate)
    training = replace(training, rank=rank, epochs=epochs, rate=rate)
    rule = HeadRule(choose, heads, scores, controls)
    target = base_gate if base_gate is None or isinstance(base_gate, Gate) else Gate.load(base_gate)
    start = target or Gate(torch.ones(model.layout.shape), site)
    _check(model, method, scores, start, guard, schedule)
    if method == "adapt":
        check_rule(model, rule, training)
    settings: RunSettings = {
        "chat": chat,
        "truncate": truncate,
        "batch_tokens": batch_tokens or pick_batch_tokens(model.device),
        "seed": seed,
    }
    dev, train = list(questions), list(questions)
    if method != "grid":
        dev, train = _split(questions, dev_share, seed)
    candidates = list(_grid(scores, strengths, norms, sites, standardise)) if method == "grid" and scores else []
    points = {"grid": 0, "learn": schedule.epochs * schedule.stops, "adapt": training.epochs}[method]
    weaker = sum(level < guard for level in LEVELS) + 1
    on_path = points + weaker if whole_path else 2
    judged = len(candidates) or (1 + rule.controls if method == "adapt" else 1) * on_path
    sizes = _sizes(dev, [] if candidates else train, schedule, judged, settings["batch_tokens"])
    if method == "adapt":
        sizes |= _adapting(train, training, rule)
    parts = WorkParts(progress, sizes)
    text = as_path(neutral) if neutral else None
    kept = KeptResults(
        as_path(work_dir) if work_dir else None,
        {
            "model": model.describe(),
            "dtype": str(model.dtype),
            "data": describe_data(questions),
            "settings": settings,
            "method": method,
            "start": start.digest,
            "schedule": schedule_json(training if method == "adapt" else schedule),
            "heads": [choose, heads, _digest(scores)] if method == "adapt" else None,
            "dev_share": dev_share,
            "whole_path": whole_path,
            "guard": guard,
            "neutral": file_sha256(text) if text is not None and text.is_file() else None,
            "candidates": [candidate.change.digest for candidate in candidates],
            "packages": provenance()["packages"],
        },
    )
    told = parts.part("neutral")
    own = kept if samples_dir is None else _samples(as_path(samples_dir), model, questions, seed)
    texts = neutral_ids(model, questions, path=text, texts=TEXTS, seed=seed, progress=told, kept=own)
    held, taught = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    judge = CandidateEvaluator(model, dev, settings, held, kept, parts, judged, whole_path=whole_path)
    run: AdapterRun | None = None
    for candidate in candidates:
        judge.measure(candidate)
    if method == "learn":
        _learn(model, train, taught, start, judge, settings, schedule, guard)
    elif method == "adapt":
        asked = encode_questions(model, train, settings)
        run = tune_adapter(model, asked, taught, judge, rule, training, settings, guard=guard)
    parts.finish()
    chosen = choose_candidate(judge.path, guard)
    made = provenance()
    schedules = {"learn": schedule_json(schedule), "adapt": schedule_json(training)}
    meta: TuneMeta = {
        "method": method,
        "model": model.describe(),
        "data": describe_data(questions),
        "settings": {
            **settings,
            "dtype": str(model.dtype).removeprefix("torch."),
            "guard": guard,
            "neutral": text.name if text is not None else None,
            "schedule": schedules.get(method),
            "target": start.digest if target else None,
            "scores": scores.meta.get("model") if scores is not None else None,
            **({"choose": choose, "heads": heads, "controls": controls} if method == "adapt" else {}),
        },
        "packages": made["packages"],
        "command": made["command"],
    }
    gate, adapter = Gate(torch.ones(model.layout.shape), site), None
    evidence: dict[str, FigureJson] = {}
    if chosen is not None:
        entry = judge.path[chosen]
        evidence = {f"{name} gained (dev)": value for name, value in entry["effect"].items()}
        evidence |= {f"{name} on neutral text, nats a token": value for name, value in entry["harm"].items()}
        change = judge.changes[chosen]
        if isinstance(change, Gate):
            gate = change
        else:
            adapter = change.noted({**meta, "evidence": evidence})
    absent = tuple(sorted(_absent(model)))
    gate = Gate(gate.gate, gate.site, absent, gate.clipped, {**meta, "evidence": evidence})
    dev_groups = len(np.unique(judge.groups))
    ungated = pair_figures(judge.plain, judge.groups, seed=seed)
    allowed = [harm_of(entry).high <= guard for entry in judge.path]
    elsewhere = gain_elsewhere(judge.gains, allowed, judge.groups, seed=seed)
    result: TuningResult = {
        "method": meta["method"],
        "model": meta["model"],
        "data": meta["data"],
        "settings": meta["settings"],
        "packages": meta["packages"],
        "command": meta["command"],
        "guard": guard,
        "rows": {"dev": len(dev), "train": len(train) if method != "grid" else 0, "dev_groups": dev_groups},
        "neutral": {"learned from": len(taught), "held out": len(held)},
        "ungated": {name: figure.json() for name, figure in ungated.items()},
        "path": judge.path,
        "frontier": frontier(judge.path),
        "chosen": chosen,
        "gain_elsewhere": elsewhere.json() if elsewhere else None,
        "why": why(judge.path, chosen, guard, what="adapter" if method == "adapt" else "gate"),
        "warnings": _warnings(meta["data"], dev_groups, scores),
    }
    if run is None:
        return Tuning(gate, result)
    result |= {"heads": [place.name for place in run.places], "controls": run.controls}
    return Tuning(gate, result, adapter, tuple(one.noted(meta) for one in run.adapters))


def _sizes(
    dev: Sequence[Question], train: Sequence[Question], schedule: Schedule, judged: int, batch_tokens: int
) -> dict[str, float]:
    """Estimate what each part of tuning costs, in tokens of a forward pass, before anything is put into tokens."""
    of_dev, of_train = (sum(len(one.context) + len(one.question) for one in rows) / 4 for rows in (dev, train))
    steps = schedule.epochs * max(1.0, of_train / batch_tokens)
    return {
        "neutral": TEXTS / 2 * LENGTH * TOKENS_PER_SAMPLED,
        "ungated": of_dev,
        "learning": 3 * schedule.epochs * of_train + 4 * steps * schedule.texts * LENGTH if train else 0.0,
        "harm": (1 + judged) * TEXTS / 2 * LENGTH,
        "judging": judged * of_dev,
    }


def _adapting(train: Sequence[Question], training: AdaptSchedule, rule: HeadRule) -> dict[str, float]:
    """Estimate what choosing heads and training all adapters costs, in tokens of a forward pass."""
    tokens = sum(len(one.context) + len(one.question) for one in train) / 4
    once = 3 * tokens + 4 * len(train) / training.questions * training.texts * LENGTH
    measured = rule.choose == "attribution" and rule.scores is None
    return {"attribution": 3 * tokens * measured, "learning": (1 + rule.controls) * training.epochs * once}


def _samples(folder: Path, model: Model, questions: Sequence[Question], seed: int) -> KeptResults:
    """Open the samples of neutral text that depend on nothing of how the model is tuned."""
    data, packages = describe_data(questions), provenance()["packages"]
    return KeptResults(
        folder,
        {"model": model.describe(), "dtype": str(model.dtype), "data": data, "seed": seed, "packages": packages},
    )


def _digest(scores: Scores | None) -> str | None:
    return None if scores is None else hashlib.sha256(scores.values.numpy().tobytes()).hexdigest()


def _grid(
    scores: Scores, strengths: Sequence[float], norms: Sequence[Norm], sites: Sequence[Site], standardise: bool
) -> Iterator[Candidate]:
    for site in sites:
        for norm in norms:
            for strength in strengths:
                gate = Gate.from_scores(scores, strength=strength, norm=norm, site=site, standardise=standardise)
                notes: CandidateNotes = {"norm": norm, "strength": strength, "site": site}
                yield Candidate(f"{norm} {strength:g} at {site}", gate, notes)


def _learn(
    model: Model,
    train: Sequence[Question],
    taught: list[list[int]],
    start: Gate,
    judge: CandidateEvaluator,
    settings: RunSettings,
    schedule: Schedule,
    guard: float,
) -> None:
    """Judge the points of the learned path, then weaker versions of the last, for the guard and each lower level."""
    margin = judge.plain[:, 0] - judge.plain[:, 1]
    points = learn(
        model,
        encode_questions(model, train, settings),
        taught,
        start.gate,
        site=start.site,
        temperature=max(1.0, 0.75 * float(np.abs(margin).mean())),
        schedule=schedule,
        batch_tokens=settings["batch_tokens"],
        seed=settings["seed"],
        progress=judge.parts.part("learning"),
        kept=judge.kept,
    )

    def made(point: Point, share: float) -> Gate:
        return Gate(point.factors if share == 1 else start.gate + share * (point.factors - start.gate), start.site)

    judge_path(judge, points, made, guard)


def _split(questions: Sequence[Question], share: float, seed: int) -> tuple[list[Question], list[Question]]:
    """Return dev and train questions; a group is never on both sides."""
    groups = group_numbers(questions)
    members = np.random.default_rng(seed).permutation(np.unique(groups))
    count = max(1, round(share * len(members)))
    if not 0 < share < 1 or count >= len(members):
        raise DataError(
            "questions cannot be split into dev and train",
            expected="two groups or more, and a dev share between 0 and 1",
            got=f"{len(members)} {'group' if len(members) == 1 else 'groups'}, share {share:g}",
            fix="give more questions: rows of one group stay together"
            if len(members) < 2
            else "choose another dev share: 0.25 is a good start",
        )
    chosen = set(members[:count].tolist())
    dev = [question for question, group in zip(questions, groups, strict=True) if group in chosen]
    return dev, [question for question, group in zip(questions, groups, strict=True) if group not in chosen]


def _check(model: Model, method: str, scores: Scores | None, start: Gate, guard: float, schedule: Schedule) -> None:
    if method not in get_args(TuneMethod):
        known = ", ".join(get_args(TuneMethod))
        raise GateError("unknown method", expected=known, got=repr(method), fix="choose one of them")
    if method == "grid" and scores is None:
        raise GateError(
            "a grid is made from scores", expected="--scores FILE", got="none", fix="run `truthheads score` first"
        )
    if not (np.isfinite(guard) and guard > 0):
        raise GateError(
            f"the guard must be above 0 (got {guard:g})", expected="a number above 0", got=str(guard), fix="try 0.02"
        )
    odd = [name for name in ("rate", "pull", "kl_first", "kl_last") if not np.isfinite(getattr(schedule, name))]
    if odd:
        raise GateError(
            f"the schedule's {odd[0]} must be a finite number",
            expected="a finite number",
            got=str(getattr(schedule, odd[0])),
            fix="leave it out: the default is a good start",
        )
    if not schedule.low <= 1 <= schedule.high:
        raise GateError(
            "the bounds of the factors must include 1",
            expected="low <= 1 <= high",
            got=f"[{schedule.low:g}, {schedule.high:g}]",
            fix="try 0 and 2",
        )
    check_factors(start.gate, model.layout)
    if scores is not None:
        check_factors(torch.ones(scores.values.shape), model.layout)


def _absent(model: Model) -> Iterator[tuple[int, int]]:
    there = {(head.index, number) for head in model.layout.layers for number in range(head.num_heads)}
    layers, heads = model.layout.shape
    return ((layer, head) for layer in range(layers) for head in range(heads) if (layer, head) not in there)


def _warnings(data: Mapping[str, Any], dev: int, scores: Scores | None) -> list[str]:
    """List the caveats that a reader of the choice must know, one or two sentences each."""
    few = (
        []
        if scores is None or scores.caution is None
        else [f"Of the scores that the gates are made from: {scores.caution}"]
    )
    return [*few, *([caution] if (caution := cannot_choose(dev)) else []), *data_cautions(data)]
