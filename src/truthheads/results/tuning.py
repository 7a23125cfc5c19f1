"""The tuning artefact: the chosen gate and the path that led to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from truthheads.choices import Norm, Site
from truthheads.plots.charts import chart_html, frontier_chart
from truthheads.plots.views import Shown, data_frame
from truthheads.results.gate import Gate, GateInfo
from truthheads.results.origin import of_model
from truthheads.stats.figures import FigureJson
from truthheads.storage.files import as_path, dumps, replaced


class CandidateNotes(TypedDict, total=False):
    """Where a candidate comes from: its place in the grid, or on the learned path."""

    norm: Norm
    strength: float
    site: Site
    epoch: float
    loss: float
    kl_taught: float
    share: float


class CandidateResult(CandidateNotes):
    """A judged gate: what it gains on dev questions, and what it loses on neutral text (nats a token)."""

    name: str
    gate: GateInfo
    effect: dict[str, FigureJson]
    harm: dict[str, FigureJson]


class FrontierRow(TypedDict):
    """The candidate that gains most at no more than so much harm; None where there is none."""

    harm: float
    name: str | None
    effect: dict[str, FigureJson] | None


class TunedRows(TypedDict):
    """How many questions were judged on and learned from."""

    dev: int
    train: int
    dev_groups: NotRequired[int]


NeutralTexts = TypedDict("NeutralTexts", {"learned from": int, "held out": int})
"""How many neutral texts were learned from and judged on."""


class TuneMeta(TypedDict):
    """How a gate was tuned."""

    method: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    packages: dict[str, str]
    command: str | None


class TuningResult(TuneMeta):
    """What ``tuning.json`` holds. ``chosen`` is a place in ``path``; None where no candidate helps within the guard."""

    guard: float
    rows: TunedRows
    neutral: NeutralTexts
    ungated: dict[str, FigureJson]
    path: list[CandidateResult]
    frontier: list[FrontierRow]
    chosen: int | None
    gain_elsewhere: FigureJson | None
    why: str
    warnings: list[str]


class TuningOutput(TuningResult):
    """The JSON result of ``truthheads tune``."""

    gate: GateInfo
    out: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tuning(Shown):
    """A gate and the path that led to it.

    Attributes:
        gate: The chosen gate; all ones where none helps within the guard.
        result: The JSON result: settings, the ungated figures, every candidate with its effect and harm, the frontier,
            which candidate was chosen and why.
    """

    gate: Gate
    result: TuningResult

    def save(self, path: str | Path) -> None:
        """Write the gate, and ``tuning.json`` beside it.

        Raises:
            ArtifactError: A file could not be written.
        """
        beside = as_path(path).with_name("tuning.json")
        with replaced(beside) as told, replaced(as_path(path)) as gate:  # there is room for both, or neither changes
            told.write_text(dumps(self.result, indent=2) + "\n", encoding="utf-8")
            self.gate.save(gate)
            beside.unlink(missing_ok=True)  # it must not stand beside a gate that it does not tell of, after a kill

    def in_short(self) -> str:
        """Return the method, and the candidate that was chosen."""
        at, path = self.result["chosen"], self.result["path"]
        found = "no candidate helps within the guard" if at is None else f"chose {path[at]['name']!r}"
        return f"{self.result['method']}, {found}, of {len(path)}; {self.gate!r}"

    def to_pandas(self) -> Any:
        """Return the candidates as a pandas DataFrame: what each gains and costs, and whether it was chosen.

        Raises:
            TruthHeadsError: pandas is not installed.
        """
        return data_frame(
            {"name": one["name"], "chosen": at == self.result["chosen"], **one["effect"], **one["harm"]}
            for at, one in enumerate(self.result["path"])
        )

    def _repr_html_(self) -> str:
        return chart_html(self.chart())

    def chart(self) -> Any:
        """Return margin gained against nats lost, one point per candidate, as an Altair chart."""
        found, rows, held = self.result, self.result["rows"], self.result["neutral"]["held out"]
        notes = [
            f"Each point is a candidate, judged on {rows['dev']} questions that it was not learned from and {held} "
            f"neutral texts. Right of the dashed line ({found['guard']:g}) it harms more than the guard allows.",
            f"{of_model(found)}: {found['why']}".removeprefix(": "),
        ]
        return frontier_chart(found["path"], guard=found["guard"], chosen=found["chosen"], notes=notes)
