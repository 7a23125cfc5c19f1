"""What ``evaluate`` writes and ``report`` reads: names of the files, and what ``summary.json`` holds."""

from typing import Any, Literal, NotRequired, TypedDict

from truthheads.results.detector import DetectionFigures
from truthheads.stats.figures import FigureJson
from truthheads.stats.resampling import ControlRank

SUMMARY, SETTINGS = "summary.json", "run.json"

PLAIN = "none"

GUARD = "neutral"


class GateMark(TypedDict):
    """Which gate a run was made under: the digest of its factors, and what it scales."""

    digest: str
    site: str


class Guard(TypedDict):
    """What a gate does to neutral text.

    Attributes:
        kl: Change of the predictions, in nats a token.
        loss: Rise of the loss, in nats a token.
        perplexity_ratio: Perplexity under the gate over that without.
        texts: How many texts were read.
    """

    kl: FigureJson
    loss: FigureJson
    perplexity_ratio: FigureJson
    texts: int


class ControlRanks(ControlRank):
    """How a gate stands among all of its controls, and among those of each kind."""

    by_kind: dict[str, ControlRank]


class PValues(TypedDict):
    """Two-sided p values of the primary effect.

    Attributes:
        paired: By bootstrap over clusters; None where the effect is not known.
        mcnemar: Exact, over items, where an item is right or wrong.
        holm: ``paired``, adjusted for the number of gates; None for controls.
    """

    paired: float | None
    mcnemar: NotRequired[float]
    holm: float | None


class RunResult(TypedDict):
    """One run: without a gate, under a gate, or under a control.

    Attributes:
        name: Its name; ``none`` without a gate, ``GATE/KIND-SEED`` for a control.
        kind: ``none``, ``gate``, ``control`` or ``baseline``.
        rows: Items that it is measured on.
        metrics: Its figures.
        effect: Its figures less those without a gate, on the same items.
        verdict: What the effect says, in words; None without a gate.
        p: P values of the primary effect; of gates and controls.
        of: The gate that a control belongs to.
        control: The kind of a control and its seed: ``shuffled-3``.
        controls: How a gate stands among its controls.
        guard: What a gate does to neutral text.
    """

    name: str
    kind: Literal["none", "gate", "control", "baseline"]
    rows: int
    metrics: dict[str, FigureJson]
    effect: dict[str, FigureJson]
    verdict: str | None
    p: NotRequired[PValues]
    of: NotRequired[str]
    control: NotRequired[str]
    controls: NotRequired[ControlRanks]
    guard: NotRequired[Guard]


class EvaluationResult(TypedDict):
    """What ``summary.json`` holds.

    Attributes:
        task: The benchmark.
        rows: Items of the ungated run.
        primary: The figure that verdicts are about.
        runs: The ungated run first, then each gate and its controls.
        settings: How the predictions were made; each benchmark adds its own.
        notes: Sentences for the reader.
    """

    task: str
    rows: int
    primary: str
    runs: list[RunResult]
    settings: dict[str, Any]
    notes: list[str]


class Mistake(TypedDict):
    """An answer on which a detector is wrong: label 1 where it is supported, and the probability that it was given."""

    id: str
    context: str
    question: str
    answer: str
    label: int
    supported: float


class DetectionEvaluation(EvaluationResult):
    """What ``evaluate detect`` writes into ``summary.json``.

    Attributes:
        detection: Every figure, curves among them.
        mistakes: The most confident ones.
    """

    detection: DetectionFigures
    mistakes: list[Mistake]
