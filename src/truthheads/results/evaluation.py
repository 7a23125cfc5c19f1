"""What ``evaluate`` writes and ``report`` reads: names of the files, and what ``summary.json`` holds."""

from typing import Any, Literal, NotRequired, TypedDict, cast

from truthheads.plots.views import Shown, data_frame, table_html
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
        kind: ``none``, ``gate`` or ``control``.
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
    kind: Literal["none", "gate", "control"]
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
