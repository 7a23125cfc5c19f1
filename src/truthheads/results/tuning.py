"""The tuning artefact: the chosen gate or head adapter, and the path that led to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from truthheads.choices import Norm, Site
from truthheads.errors import ArtifactError
from truthheads.plots.charts import chart_html, frontier_chart
from truthheads.plots.views import Shown, data_frame
from truthheads.results.gate import Gate, GateInfo
from truthheads.results.head_adapter import AdapterInfo, HeadAdapter, replaced_adapter
from truthheads.results.origin import of_model
from truthheads.stats.figures import FigureJson
from truthheads.storage.files import as_path, dumps, replaced

TUNING = "tuning.json"

CONTROLS = "controls"
"""Folder of the adapters on random heads, in the folder of the adapter that they are controls of."""


class CandidateNotes(TypedDict, total=False):
    """What is written down of a candidate: its place in the grid, or on the learned path; the gate or the adapter."""

    norm: Norm
    strength: float
    site: Site
    epoch: float
    loss: float
    kl_taught: float
    share: float
    gate: GateInfo
    adapter: AdapterInfo


class CandidateResult(CandidateNotes):
    """A judged gate or adapter: what it gains on dev questions, and what it loses on neutral text (nats a token)."""

    name: str
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


class ControlResult(TypedDict):
    """An adapter on heads drawn at random, trained and chosen as the one beside it.

    Attributes:
        name: ``random-1`` and so on; its folder in ``controls/``.
        heads: The heads it changes.
        candidate: Which point of its path was taken: by the same rule, but whether or not its gain is above 0.
        effect: What it gains on dev questions.
        harm: What it loses on neutral text, in nats a token.
        difference: The effect of the adapter on the chosen heads less this one's, paired by question.
    """

    name: str
    heads: list[str]
    candidate: str
    effect: dict[str, FigureJson]
    harm: dict[str, FigureJson]
    difference: dict[str, FigureJson]


class TuneMeta(TypedDict):
    """How a gate or an adapter was tuned."""

    method: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    packages: dict[str, str]
    command: str | None


class TuningResult(TuneMeta):
    """What ``tuning.json`` holds. ``chosen`` is a place in ``path``; None where no candidate helps within the guard.

    ``heads`` and ``controls`` are there for head adapters.
    """

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
    heads: NotRequired[list[str]]
    controls: NotRequired[list[ControlResult]]


class TuningOutput(TuningResult):
    """The JSON result of ``truthheads tune``; ``out`` is null where no adapter was written."""

    gate: NotRequired[GateInfo]
    adapter: NotRequired[AdapterInfo | None]
    out: str | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Tuning(Shown):
    """A gate or a head adapter, and the path that led to it.

    Attributes:
        gate: The chosen gate; all ones where none helps within the guard, and where an adapter was tuned.
        result: The JSON result: settings, the ungated figures, every candidate with its effect and harm, the frontier,
            which candidate was chosen and why.
        adapter: The chosen head adapter; None where none helps within the guard, and where a gate was tuned.
        controls: Adapters on heads drawn at random, in the order of the result's ``controls``.
    """

    gate: Gate
    result: TuningResult
    adapter: HeadAdapter | None = None
    controls: tuple[HeadAdapter, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the gate, and ``tuning.json`` beside it; or the folder of the adapter, with ``tuning.json`` in it.

        Raises:
            ArtifactError: A file could not be written, or there is no adapter that helps.
        """
        if self.result["method"] == "adapt":
            self._save_adapter(as_path(path).absolute())
            return
        beside = as_path(path).with_name(TUNING)
        with replaced(beside) as told, replaced(as_path(path)) as gate:  # there is room for both, or neither changes
            told.write_text(self._json(), encoding="utf-8")
            self.gate.save(gate)
            beside.unlink(missing_ok=True)  # it must not stand beside a gate that it does not tell of, after a kill

    def _save_adapter(self, out: Path) -> None:
        if self.adapter is None:
            raise ArtifactError(
                "there is no adapter to write",
                expected="a candidate that gains within the guard",
                got=self.result["why"],
                fix="give more questions, or a larger guard",
            )
        with replaced_adapter(out) as folder:
            self.adapter.write(folder)
            for control, told in zip(self.controls, self.result.get("controls", []), strict=True):
                place = folder / CONTROLS / told["name"]
                place.mkdir(parents=True)
                control.write(place)
            (folder / TUNING).write_text(self._json(), encoding="utf-8")

    def _json(self) -> str:
        return dumps(self.result, indent=2) + "\n"

    def in_short(self) -> str:
        """Return the method, and the candidate that was chosen."""
        at, path = self.result["chosen"], self.result["path"]
        found = "no candidate helps within the guard" if at is None else f"chose {path[at]['name']!r}"
        change = self.gate if self.adapter is None else self.adapter
        return f"{self.result['method']}, {found}, of {len(path)}; {change!r}"

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
