"""Candidates of tuning, gates and head adapters alike: judged on held-out rows and neutral text, chosen by one rule."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from typing import NamedTuple, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from truthheads.data.questions import Question
from truthheads.models.answer_logprobs import group_numbers, pair_effects, pair_logprobs
from truthheads.models.forward import shares_prefix
from truthheads.models.load import Model
from truthheads.models.neutral_text import NeutralTexts, measure_harm
from truthheads.models.progress import Progress, WorkParts
from truthheads.models.prompts import Encoded, encode
from truthheads.results.gate import Gate
from truthheads.results.head_adapter import HeadAdapter
from truthheads.results.tuning import CandidateNotes, CandidateResult, FrontierRow
from truthheads.stats.figures import Figure, half_of, mean_figure
from truthheads.storage.kept_results import KeptResults

LEVELS = (0.003, 0.01, 0.03, 0.1)
"""Harm in nats a token at which a frontier is read."""


class RunSettings(TypedDict):
    """How questions are put to the model."""

    chat: bool
    truncate: bool
    batch_tokens: int
    seed: int


class Candidate(NamedTuple):
    """A gate or an adapter to be judged: its name, and what else is to be written down of it."""

    name: str
    change: Gate | HeadAdapter
    notes: CandidateNotes


class CandidateEvaluator:
    """Measures candidates on dev questions and on neutral text that nothing is learned from.

    Args:
        model: The model, untouched.
        questions: The dev questions.
        settings: How they are put.
        neutral: Token ids of the held-out texts.
        kept: Where what is measured is kept, batch by batch, and found again.
        parts: How far it is.
        candidates: Number of candidates to come, roughly, those of all paths together.
        whole_path: Whether every point of a path is judged, or the last alone: judging all takes half as long as
            learning from a few rows; see :func:`judge_path`.
    """

    def __init__(
        self,
        model: Model,
        questions: Sequence[Question],
        settings: RunSettings,
        neutral: list[list[int]],
        kept: KeptResults,
        parts: WorkParts,
        candidates: int,
        *,
        whole_path: bool = True,
    ):
        self.model, self.neutral, self.seed = model, NeutralTexts(model, neutral), settings["seed"]
        self.kept, self.parts, self.candidates, self.whole_path = kept, parts, candidates, whole_path
        self.prefix, self.first = "", 0
        self.batch_tokens = settings["batch_tokens"]
        self.groups = group_numbers(questions)
        self.encoded = encode_questions(model, questions, settings)
        self.plain = self._logprobs("ungated", None, parts.part("ungated"))
        self.path: list[CandidateResult] = []
        self.changes: list[Gate | HeadAdapter] = []
        self.after: list[Float[np.ndarray, "questions 2"]] = []

    def measure(self, candidate: Candidate) -> CandidateResult:
        """Return a candidate's effect and harm as JSON, and keep both it and what was judged."""
        change, name = candidate.change, f"{self.prefix}{candidate.name}"
        told, judged = (
            self.parts.part(part, turn=self.first + len(self.path), turns=self.candidates)
            for part in ("harm", "judging")
        )
        harm = measure_harm(
            self.model, self.neutral, change, progress=told, kept=self.kept, name=f"harm of {name}"
        ).figures(seed=self.seed)
        after = self._logprobs(name, change, judged)
        effect = pair_effects(self.plain, after, self.groups, seed=self.seed)
        figures: CandidateNotes = (
            {"gate": change.describe()} if isinstance(change, Gate) else {"adapter": change.describe()}
        )
        entry: CandidateResult = {
            "name": candidate.name,
            **candidate.notes,
            **figures,
            "effect": {name: figure.json() for name, figure in effect.items()},
            "harm": {name: figure.json() for name, figure in harm.items()},
        }
        self.path.append(entry)
        self.changes.append(change)
        self.after.append(after)
        return entry

    def again(self, prefix: str, *, first: int) -> "CandidateEvaluator":
        """Return an evaluator of other candidates on the same questions and texts.

        Args:
            prefix: Stands before their names where results are kept.
            first: Number of candidates that were to come before them.
        """
        other = copy(self)
        other.prefix, other.first = prefix, first
        other.path, other.changes, other.after = [], [], []
        return other

    def _logprobs(
        self, name: str, change: Gate | HeadAdapter | None, progress: Progress | None
    ) -> Float[np.ndarray, "questions 2"]:
        return pair_logprobs(
            self.model,
            self.encoded,
            batch_tokens=self.batch_tokens,
            gate=change,
            progress=progress,
            kept=self.kept,
            name=f"answers under {name}",
        )

    @property
    def gains(self) -> list[Float[np.ndarray, " questions"]]:
        """Gains in margin of each candidate, question by question."""
        return [(after[:, 0] - after[:, 1]) - (self.plain[:, 0] - self.plain[:, 1]) for after in self.after]


@runtime_checkable
class PathPoint(Protocol):
    """A point of a learned path: how far it is, and its mean loss and KL since the one before."""

    @property
    def epoch(self) -> float:
        """Passes over the questions so far."""

    @property
    def loss(self) -> float:
        """Mean loss of the margins."""

    @property
    def kl(self) -> float:
        """Mean KL on the neutral texts that were learned from."""


PATIENCE = 3
"""Points without a better margin on dev questions, beyond the guard, after which a path ends."""

FAR = 5.0
"""A path ends where the harm is so many guards."""

WEAKER_AT_MOST = 3
"""Weaker versions that are tried where only the last point of a path is judged; the first is nearly always enough."""

PointT = TypeVar("PointT", bound=PathPoint)


def judge_path(
    judge: CandidateEvaluator,
    points: Iterable[PointT],
    made: Callable[[PointT, float], Gate | HeadAdapter],
    guard: float,
) -> None:
    """Judge the points of a path, then weaker versions of the last, for the guard and for each lower level of harm.

    Later points have been held by the KL for longer: weaker versions of the last beat earlier points as they are.
    Where the judge is not to look at the whole path: the last point, and weaker versions of it until one is within the
    guard.

    Args:
        judge: Keeps the results.
        points: In order; one is not asked for before the one before it has been judged.
        made: Makes the gate or adapter of a point, so many times as strong.
        guard: Largest harm allowed.
    """

    def measured(point: PointT, share: float = 1.0) -> CandidateResult:
        notes: CandidateNotes = {"epoch": point.epoch, "loss": point.loss, "kl_taught": point.kl}
        if share == 1:
            return judge.measure(Candidate(f"epoch {point.epoch:.2g}", made(point, share), notes))
        name = f"epoch {point.epoch:.2g} x {share:.2f}"
        return judge.measure(Candidate(name, made(point, share), {**notes, "share": share}))

    best, waited, last, share = -np.inf, 0, None, 1.0
    for last in points:
        if not judge.whole_path:
            continue
        entry = measured(last)
        harm, gain = harm_of(entry), gain_of(entry).value
        waited = 0 if gain > best or harm.high <= guard else waited + 1
        best = max(best, gain)
        if waited >= PATIENCE or harm.value > FAR * guard:
            break
    if last is None:
        return
    if judge.whole_path:
        for level in sorted({guard, *LEVELS}, reverse=True):
            if level <= guard and harm.value > level:
                measured(last, _share(level, harm))
        return
    harm = harm_of(measured(last))
    for _ in range(WEAKER_AT_MOST):
        if harm.high <= guard:
            return
        share *= _share(guard, harm)
        harm = harm_of(measured(last, share))


def _share(level: float, harm: Figure) -> float:
    """Say how much of a change to keep so that its harm comes below a level: near 1, the KL grows with the square."""
    return float(np.sqrt(0.8 * level / harm.high))


def encode_questions(model: Model, questions: Sequence[Question], settings: RunSettings) -> list[Encoded]:
    """Return token ids of questions as the settings say."""
    chat, truncate = settings["chat"], settings["truncate"]
    return encode(model, questions, chat=chat, truncate=truncate, share_prefix=shares_prefix(model))


def frontier(path: Sequence[CandidateResult]) -> list[FrontierRow]:
    """Return for each level of harm the candidate with the largest gain in margin whose mean KL is no higher."""
    rows: list[FrontierRow] = []
    for level in LEVELS:
        within = [entry for entry in path if harm_of(entry).value <= level]
        best = max(within, key=lambda entry: gain_of(entry).value, default=None)
        rows.append({"harm": level, "name": best["name"] if best else None, "effect": best["effect"] if best else None})
    return rows


def harm_of(entry: CandidateResult) -> Figure:
    """Read what a candidate costs on neutral text, in nats a token."""
    return Figure.of(entry["harm"]["kl"])


def gain_of(entry: CandidateResult) -> Figure:
    """Read what a candidate gains in margin on dev questions, in nats."""
    return Figure.of(entry["effect"]["margin"])


def choose_candidate(path: Sequence[CandidateResult], guard: float) -> int | None:
    """Return the number of the candidate that the rule chooses; None where none gains within the guard."""
    allowed = [at for at, entry in enumerate(path) if harm_of(entry).high <= guard and gain_of(entry).low > 0]
    return max(allowed, key=lambda at: gain_of(path[at]).value, default=None)


def strongest(path: Sequence[CandidateResult], guard: float) -> int:
    """Return the number of the candidate that gains most within the guard, whether or not its interval is above 0.

    Where none is within the guard, the one of the least harm. It is what a control is compared by.
    """
    within = [at for at, entry in enumerate(path) if harm_of(entry).high <= guard]
    if not within:
        return min(range(len(path)), key=lambda at: harm_of(path[at]).high)
    return max(within, key=lambda at: gain_of(path[at]).value)


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


def why(path: Sequence[CandidateResult], chosen: int | None, guard: float, *, what: str = "gate") -> str:
    """Explain the choice in a sentence."""
    safe = sum(harm_of(entry).high <= guard for entry in path)
    if chosen is not None:
        return (
            f"largest gain in margin on dev questions among the {safe} of {len(path)} candidates whose harm "
            f"(KL on held-out neutral text, upper end) is at most {guard:g} nats a token"
        )
    return (
        f"no {what}: of the {safe} of {len(path)} candidates within {guard:g} nats a token "
        "none has a gain in margin whose interval lies above 0"
    )
