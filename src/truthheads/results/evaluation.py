"""What ``evaluate`` writes and ``report`` reads: names of the files, and what ``summary.json`` holds."""

from typing import Any, Literal, NotRequired, TypedDict, cast

from truthheads.plots.views import Shown, data_frame, table_html
from truthheads.results.detector import DetectionFigures
from truthheads.stats.figures import FigureJson
from truthheads.stats.resampling import ControlRank

SUMMARY, SETTINGS = "summary.json", "run.json"

PLAIN = "none"

GUARD = "neutral"

BETTER, WORSE, NOTHING = "better", "worse", "no evidence"
"""Verdicts on a run; there are some more that begin with ``better``."""


class GateMark(TypedDict):
    """Which gate a run was made under: the digest of its factors, and what it scales."""

    digest: str
    site: str


class AdapterMark(TypedDict):
    """Which adapter a run was made under, by the digest of its weights."""

    digest: str


class BaselineMark(TypedDict):
    """How a baseline was asked, and what it costs.

    Attributes:
        text: The instruction of ``prompt``.
        alpha: The weight of what the context adds in ``cad``.
        passes: Forward passes for each new token.
        prompt_tokens: Tokens that are read more for each prompt, on average.
    """

    text: NotRequired[str]
    alpha: NotRequired[float]
    passes: int
    prompt_tokens: float


class Cost(TypedDict):
    """What a run costs when the model is served, beside the untouched model.

    Attributes:
        passes: Forward passes for each new token; 1 is that of the untouched model.
        prompt_tokens: Tokens that are read more for each prompt, on average.
        in_words: Both in words.
    """

    passes: int
    prompt_tokens: float
    in_words: str


class Guard(TypedDict):
    """What a gate or an adapter does to neutral text.

    Attributes:
        kl: Change of the predictions, in nats a token.
        loss: Rise of the loss, in nats a token.
        perplexity_ratio: Perplexity under it over that without.
        texts: How many texts were read.
    """

    kl: FigureJson
    loss: FigureJson
    perplexity_ratio: FigureJson
    texts: int


class ControlRanks(ControlRank):
    """How a gate or an adapter stands among all of its controls, and among those of each kind."""

    by_kind: dict[str, ControlRank]


class PValues(TypedDict):
    """Two-sided p values of the primary effect.

    Attributes:
        paired: By bootstrap over clusters; None where the effect is not known.
        mcnemar: Exact, over items, where an item is right or wrong.
        holm: ``paired``, adjusted for the number of runs that are no controls; None for controls.
    """

    paired: float | None
    mcnemar: NotRequired[float]
    holm: float | None


RunKind = Literal["none", "gate", "adapter", "baseline", "control"]

REMEDIES: tuple[RunKind, ...] = ("gate", "adapter", "baseline")
"""The kinds of runs that are something a user could do."""


class RunResult(TypedDict):
    """One run: the model as it is, under a gate or an adapter, under a control of these, or with a baseline.

    Attributes:
        name: Its name; ``none`` for the untouched model, ``GATE/KIND-SEED`` for a control.
        kind: ``none``, ``gate``, ``adapter``, ``baseline`` or ``control``.
        rows: Items that it is measured on.
        metrics: Its figures.
        effect: Its figures less those of the untouched model, on the same items.
        verdict: What the effect says, in words; None for the untouched model.
        p: P values of the primary effect.
        of: The gate or adapter that a control belongs to.
        control: The kind of a control and its seed: ``shuffled-3``.
        controls: How a gate or an adapter stands among its controls.
        ahead: How far it is ahead of each control in the primary figure, on the same items; positive is better.
        guard: What it does to neutral text. Absent where none was measured; baselines change nothing
            there.
        cost: What it costs when the model is served; absent for controls, and in earlier summaries.
    """

    name: str
    kind: RunKind
    rows: int
    metrics: dict[str, FigureJson]
    effect: dict[str, FigureJson]
    verdict: str | None
    p: NotRequired[PValues]
    of: NotRequired[str]
    control: NotRequired[str]
    controls: NotRequired[ControlRanks]
    ahead: NotRequired[dict[str, FigureJson]]
    guard: NotRequired[Guard]
    cost: NotRequired[Cost]


class BestRemedy(TypedDict):
    """Which of the things that a user could do is best.

    Attributes:
        run: Its run; None where none is better than the untouched model.
        ahead: How far it is ahead of every other in the primary figure, on the same items; positive is better.
        in_words: One sentence: the gain, the cost of each token, the harm, and what cannot be told from it.
    """

    run: str | None
    ahead: dict[str, FigureJson]
    in_words: str


class EvaluationResult(TypedDict):
    """What ``summary.json`` holds.

    Attributes:
        task: The benchmark.
        rows: Items of the untouched run.
        primary: The figure that verdicts are about.
        runs: The untouched run first, then each gate and each adapter with its controls, then baselines.
        best: Which remedy is best; absent where none was run, and in earlier summaries.
        settings: How the predictions were made; each benchmark adds its own.
        notes: Sentences for the reader.
    """

    task: str
    rows: int
    primary: str
    runs: list[RunResult]
    best: NotRequired[BestRemedy]
    settings: dict[str, Any]
    notes: list[str]


class Evaluation(Shown, dict[str, Any]):
    """What ``truthheads.evaluate`` returns: the dictionary of ``summary.json`` (:class:`EvaluationResult`)."""

    __repr__ = Shown.__repr__

    @property
    def result(self) -> EvaluationResult:
        """The same dictionary, with the types of its entries."""
        return cast(EvaluationResult, self)

    def in_short(self) -> str:
        """Return the benchmark, the primary figure of the unchanged model, and the verdict on each gate."""
        primary, (plain, *others) = self.result["primary"], self.result["runs"]
        figure = plain["metrics"][primary]
        told = [f"{run['name']}: {run['verdict']}" for run in others if run["kind"] != "control"]
        value = f"{primary.replace('_', ' ')} {figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        return "; ".join([f"{self.result['task']}, {self.result['rows']} rows, {value}", *told])

    def table(self) -> list[dict[str, object]]:
        """Return one row per run and figure: its value, and its change against the unchanged model."""
        return [
            {
                "run": run["name"],
                "kind": run["kind"],
                "metric": metric,
                "value": figure["value"],
                "low": figure["low"],
                "high": figure["high"],
                "effect": run["effect"].get(metric),
                "verdict": run["verdict"],
            }
            for run in self.result["runs"]
            for metric, figure in run["metrics"].items()
        ]

    def to_pandas(self) -> Any:
        """Return the table as a pandas DataFrame; TruthHeadsError where pandas is not installed."""
        return data_frame(self.table())

    def _repr_html_(self) -> str:
        primary = [row for row in self.table() if row["metric"] == self.result["primary"]]
        return table_html(f"{self.result['task']}, {self.result['rows']} rows", primary)


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
