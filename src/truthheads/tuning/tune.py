"""The stage behind ``truthheads tune``: judge candidates on held-out rows and on neutral text, choose one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int

from truthheads.choices import Norm, Site, TuneMethod, renamed
from truthheads.data.answers import describe_data
from truthheads.data.cautions import cannot_choose, data_cautions
from truthheads.data.held import QuestionsLike
from truthheads.data.questions import Question
from truthheads.data.readers import as_questions
from truthheads.errors import DataError, GateError
from truthheads.models.answer_logprobs import check_pairs, group_numbers, pair_effects, pair_figures, pair_logprobs
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import shares_prefix
from truthheads.models.held import ModelLike, as_model
from truthheads.models.hooks import check_factors
from truthheads.models.load import Model
from truthheads.models.neutral_text import LENGTH, measure_harm, neutral_ids
from truthheads.models.progress import Progress, WorkParts
from truthheads.models.prompts import Encoded, encode, with_images
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores, ScoresLike, as_scores
from truthheads.results.tuning import CandidateNotes, CandidateResult, FrontierRow, TuneMeta, Tuning, TuningResult
from truthheads.stats.figures import Figure, FigureJson, half_of, mean_figure
from truthheads.stats.thresholds import GATE_HARM_NATS
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import as_path, file_sha256
from truthheads.storage.kept_results import KeptResults
from truthheads.tuning.learn import Schedule, Steps, learn

LEVELS = (0.003, 0.01, 0.03, 0.1)
"""Harm in nats a token at which a frontier is read."""


class RunSettings(TypedDict):
    """How questions are put to the model."""

    chat: bool
    truncate: bool
    batch_tokens: int
    seed: int


class Candidate(NamedTuple):
    """A gate to be judged: its name, and what else is to be written down of it."""

    name: str
    gate: Gate
    notes: CandidateNotes


class CandidateEvaluator:
    """Measures candidates on dev questions and on neutral text that nothing is learned from."""

    def __init__(
        self,
        model: Model,
        questions: Sequence[Question],
        settings: RunSettings,
        neutral: list[list[int]],
        kept: KeptResults,
        parts: WorkParts,
        candidates: int,
    ):
        self.model, self.neutral, self.seed = model, neutral, settings["seed"]
        self.kept, self.parts, self.candidates = kept, parts, candidates
        self.batch_tokens = settings["batch_tokens"]
        self.groups = group_numbers(questions)
        self.encoded = encode_questions(model, questions, settings)
        self.plain = self._logprobs("ungated", None, parts.part("ungated"))
        self.path: list[CandidateResult] = []
        self.gates: list[Gate] = []
        self.gains: list[Float[np.ndarray, " questions"]] = []

    def measure(self, candidate: Candidate) -> CandidateResult:
        """Return a candidate's effect and harm as JSON, and keep both it and its gate."""
        turn, name = len(self.path), candidate.name
        told = self.parts.part("harm", turn=turn, turns=self.candidates)
        harm = measure_harm(
            self.model, self.neutral, candidate.gate, progress=told, kept=self.kept, name=f"harm of {name}"
        ).figures(seed=self.seed)
        after = self._logprobs(name, candidate.gate, self.parts.part("judging", turn=turn, turns=self.candidates))
        effect = pair_effects(self.plain, after, self.groups, seed=self.seed)
        entry: CandidateResult = {
            "name": candidate.name,
            **candidate.notes,
            "gate": candidate.gate.describe(),
            "effect": {name: figure.json() for name, figure in effect.items()},
            "harm": {name: figure.json() for name, figure in harm.items()},
        }
        self.path.append(entry)
        self.gates.append(candidate.gate)
        self.gains.append((after[:, 0] - after[:, 1]) - (self.plain[:, 0] - self.plain[:, 1]))
        return entry

    def _logprobs(
        self, name: str, gate: Gate | None, progress: Progress | None
    ) -> Float[np.ndarray, "questions answers"]:
        return pair_logprobs(
            self.model,
            self.encoded,
            batch_tokens=self.batch_tokens,
            gate=gate,
            progress=progress,
            kept=self.kept,
            name=f"answers under {name}",
        )


def encode_questions(model: Model, questions: Sequence[Question], settings: RunSettings) -> list[Encoded]:
    """Return token ids of questions as the settings say."""
    chat, truncate = settings["chat"], settings["truncate"]
    return encode(model, questions, chat=chat, truncate=truncate, share_prefix=shares_prefix(model))


def frontier(path: Sequence[CandidateResult]) -> list[FrontierRow]:
    """Return for each level of harm the candidate with the largest gain in margin whose mean KL is no higher."""
    rows: list[FrontierRow] = []
    for level in LEVELS:
        within = [entry for entry in path if _harm(entry).value <= level]
        best = max(within, key=lambda entry: _gain(entry).value, default=None)
        rows.append({"harm": level, "name": best["name"] if best else None, "effect": best["effect"] if best else None})
    return rows


def _harm(entry: CandidateResult) -> Figure:
    return Figure.of(entry["harm"]["kl"])


def _gain(entry: CandidateResult) -> Figure:
    return Figure.of(entry["effect"]["margin"])


def choose(path: Sequence[CandidateResult], guard: float) -> int | None:
    """Return the number of the candidate that the rule chooses; None where none gains within the guard."""
    allowed = [at for at, entry in enumerate(path) if _harm(entry).high <= guard and _gain(entry).low > 0]
    return max(allowed, key=lambda at: _gain(path[at]).value, default=None)


def gain_elsewhere(
    gains: Sequence[Float[np.ndarray, " questions"]],
    allowed: Sequence[bool],
    groups: Int[np.ndarray, " questions"],
    *,
    seed: int,
) -> Figure | None:
    """Return the gain in margin on questions that did not choose the candidate; None where nothing can be chosen.

    Each half of the dev questions is judged by the candidate that gains most on the other half. The gain of the best
    of several candidates on the questions that chose it is too high.

    Args:
        gains: Gains of each candidate, question by question.
        allowed: Whether its harm is within the guard.
        groups: Group of each dev question.
        seed: Random seed of halves and bootstrap.
    """
    half = half_of(groups, seed=seed)
    within = [gain for gain, may in zip(gains, allowed, strict=True) if may]
    if not within or not half.any() or half.all():
        return None
    found = np.empty(len(groups))
    for chooser in (half, ~half):
        found[~chooser] = max(within, key=lambda gain: float(gain[chooser].mean()))[~chooser]
    return mean_figure(found, groups, seed=seed)


def why(path: Sequence[CandidateResult], chosen: int | None, guard: float) -> str:
    """Explain the choice in a sentence."""
    safe = sum(_harm(entry).high <= guard for entry in path)
    if chosen is not None:
        return (
            f"largest gain in margin on dev questions among the {safe} of {len(path)} candidates whose harm "
            f"(KL on held-out neutral text, upper end) is at most {guard:g} nats a token"
        )
    return (
        f"no gate: of the {safe} of {len(path)} candidates within {guard:g} nats a token "
        "none has a gain in margin whose interval lies above 0"
    )


STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.5)

NORMS: tuple[Norm, ...] = ("centred", "minmax")

SITES: tuple[Site, ...] = ("z", "output")

TEXTS = 96

PATIENCE = 3
"""Stops without a better margin on dev questions, beyond the guard, after which learning ends."""

FAR = 5.0
"""Learning ends where the harm is so many guards."""

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
    dev_share: float = 0.25,
    chat: bool = False,
    truncate: bool = False,
    skip_missing: bool = False,
    batch_tokens: int | None = None,
    seed: int = 0,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
    **steps: Unpack[Steps],
) -> Tuning:
    """Find a gate that makes truthful answers more likely and changes neutral text little.

    The rule: of all candidates whose harm (mean KL on held-out neutral text, upper end of its 95 % interval) is at
    most ``guard``, the one with the largest mean gain in margin on the dev questions, if the lower end of that gain's
    paired interval is above 0; else a gate of ones.

    Args:
        model: From :func:`truthheads.load`, or a name that it takes.
        questions: Pairs, or what :func:`truthheads.read_questions` reads. ``grid`` judges on all of them; ``learn``
            keeps ``dev_share`` of the groups to judge on.
        method: ``grid``: gates from ``scores``, every strength, norm and site. ``learn``: one factor per head by
            gradient (:mod:`truthheads.tuning.learn`), points of the path and weaker versions of the last.
        scores: For ``grid``: of this model or of a relative of the same shape.
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
        dev_share: For ``learn``: share of the groups that is judged on.
        chat: Put the prompt into the chat template.
        truncate: Drop the start of contexts that are too long.
        skip_missing: Leave out rows whose image is not there, and count them.
        batch_tokens: Padded tokens in a batch, at most; None chooses by device.
        seed: Random seed of split, order, neutral samples and bootstraps.
        work_dir: Folder of what is done; a run that was killed goes on from it. None: keeps nothing.
        progress: Called with the work done and the total, in tokens of a forward pass, roughly.
        steps: For ``learn``: ``epochs``, ``rate``, ``pull``, ``low``, ``high``, which change the schedule.

    Raises:
        DataError: Rows without both answers, or fewer than two groups.
        GateError: ``grid`` without scores, a guard that is no positive number, or bounds that exclude 1.
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
    target = base_gate if base_gate is None or isinstance(base_gate, Gate) else Gate.load(base_gate)
    start = target or Gate(torch.ones(model.layout.shape), site)
    _check(model, method, scores, start, guard, schedule)
    settings: RunSettings = {
        "chat": chat,
        "truncate": truncate,
        "batch_tokens": batch_tokens or pick_batch_tokens(model.device),
        "seed": seed,
    }
    dev, train = list(questions), list(questions)
    if method == "learn":
        dev, train = _split(questions, dev_share, seed)
    candidates = list(_grid(scores, strengths, norms, sites, standardise)) if method == "grid" and scores else []
    judged = len(candidates) or schedule.epochs * schedule.stops + sum(level < guard for level in LEVELS) + 1
    parts = WorkParts(progress, _sizes(dev, [] if candidates else train, schedule, judged, settings["batch_tokens"]))
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
            "schedule": {name: getattr(schedule, name) for name in Schedule.__slots__},
            "dev_share": dev_share,
            "guard": guard,
            "neutral": file_sha256(text) if text is not None and text.is_file() else None,
            "candidates": [candidate.gate.digest for candidate in candidates],
            "packages": provenance()["packages"],
        },
    )
    texts = neutral_ids(
        model,
        questions,
        path=text,
        texts=TEXTS,
        seed=seed,
        progress=parts.part("neutral"),
        kept=kept,
    )
    held, taught = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    judge = CandidateEvaluator(model, dev, settings, held, kept, parts, judged)
    for candidate in candidates:
        judge.measure(candidate)
    if not candidates:
        _learn(model, train, taught, start, judge, settings, schedule, guard)
    chosen = choose(judge.path, guard)
    made = provenance()
    meta: TuneMeta = {
        "method": method,
        "model": model.describe(),
        "data": describe_data(questions),
        "settings": {
            **settings,
            "dtype": str(model.dtype).removeprefix("torch."),
            "guard": guard,
            "neutral": Path(neutral).name if neutral else None,
            "schedule": {name: getattr(schedule, name) for name in Schedule.__slots__} if method == "learn" else None,
            "target": start.digest if target else None,
            "scores": scores.meta.get("model") if scores is not None else None,
        },
        "packages": made["packages"],
        "command": made["command"],
    }
    evidence: dict[str, FigureJson] = {}
    gate = Gate(torch.ones(model.layout.shape), site)
    if chosen is not None:
        gate = judge.gates[chosen]
        entry = judge.path[chosen]
        evidence = {f"{name} gained (dev)": value for name, value in entry["effect"].items()}
        evidence |= {f"{name} on neutral text, nats a token": value for name, value in entry["harm"].items()}
    absent = tuple(sorted(_absent(model)))
    gate = Gate(gate.gate, gate.site, absent, gate.clipped, {**meta, "evidence": evidence})
    dev_groups = len(np.unique(judge.groups))
    ungated = pair_figures(judge.plain, judge.groups, seed=seed)
    allowed = [_harm(entry).high <= guard for entry in judge.path]
    elsewhere = gain_elsewhere(judge.gains, allowed, judge.groups, seed=seed)
    result: TuningResult = {
        **meta,
        "guard": guard,
        "rows": {"dev": len(dev), "train": len(train) if method == "learn" else 0, "dev_groups": dev_groups},
        "neutral": {"learned from": len(taught), "held out": len(held)},
        "ungated": {name: figure.json() for name, figure in ungated.items()},
        "path": judge.path,
        "frontier": frontier(judge.path),
        "chosen": chosen,
        "gain_elsewhere": elsewhere.json() if elsewhere else None,
        "why": why(judge.path, chosen, guard),
        "warnings": _warnings(meta["data"], dev_groups, scores),
    }
    return Tuning(gate, result)


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
        "harm": judged * TEXTS * LENGTH,
        "judging": judged * of_dev,
    }


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
    best, waited = -np.inf, 0
    for point in points:
        notes: CandidateNotes = {"epoch": point.epoch, "loss": point.loss, "kl_taught": point.kl}
        entry = judge.measure(Candidate(f"epoch {point.epoch:.2g}", Gate(point.factors, start.site), notes))
        harm, gain = _harm(entry), _gain(entry).value
        waited = 0 if gain > best or harm.high <= guard else waited + 1
        best = max(best, gain)
        if waited >= PATIENCE or harm.value > FAR * guard:
            break
    # Later points have been pulled by the KL for longer: weaker versions of the last beat earlier points as they are.
    for level in sorted({guard, *LEVELS}, reverse=True):
        if level > guard or harm.value <= level:
            continue
        share = float(np.sqrt(0.8 * level / harm.high))  # near 1, the KL grows with the square of the distance
        weaker = Gate(start.gate + share * (point.factors - start.gate), start.site)
        judge.measure(Candidate(f"epoch {point.epoch:.2g} x {share:.2f}", weaker, {**notes, "share": share}))


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
    if method not in ("grid", "learn"):
        raise GateError("unknown method", expected="grid or learn", got=repr(method), fix="choose one of the two")
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
