"""What ``ground`` writes and ``report`` reads: names of the files, and what ``ground.json`` holds."""

from typing import Any, NotRequired, TypedDict, cast

from truthheads.plots.views import Shown, data_frame, table_html
from truthheads.results.evaluation import Guard
from truthheads.stats.figures import FigureJson
from truthheads.stats.resampling import ControlRank


class TestedControls(TypedDict, total=False):
    """How the gate stands among its controls (see :class:`ControlRanks`); empty where it was tested without any."""

    beaten: int
    of: int
    rank: int
    p: float
    by_kind: dict[str, ControlRank]


class GroundDecision(TypedDict):
    """What the test rows say of the learned gate.

    Attributes:
        better: Whether the verdict says so and the gate beats every control.
        moved: Whether tuning chose a gate at all.
        verdict: In words.
        primary: The figure that the verdict is about.
        test_rows: How many rows the gate was tested on.
        ungated: Every figure without the gate.
        effect: Its change under the gate.
        controls: How the gate stands among its controls; empty where there are none.
        guard: What the gate does to neutral text.
        exported: The file or folder that was written; None where none was.
    """

    better: bool
    moved: bool
    verdict: str | None
    primary: str
    test_rows: int
    ungated: dict[str, FigureJson]
    effect: dict[str, FigureJson]
    controls: TestedControls
    guard: Guard | None
    exported: str | None


class GroundResult(GroundDecision):
    """What ``ground.json`` holds.

    Attributes:
        model: The model, as it was given.
        data: The file of questions.
        anyway: Whether the model is to be written although nothing shows that it is better.
        warnings: Sentences for the reader.
        advice: What would help where nothing did, such as how many more rows; files of 0.1.0 have none.
        packages: Versions of the packages.
        command: The command; None outside the program.
    """

    model: str
    data: str
    anyway: bool
    warnings: list[str]
    advice: NotRequired[list[str]]
    packages: dict[str, str]
    command: str | None


class Grounding(Shown, dict[str, Any]):
    """What ``truthheads.ground`` returns: the dictionary of ``ground.json`` (:class:`GroundResult`)."""

    __repr__ = Shown.__repr__

    @property
    def result(self) -> GroundResult:
        """The same dictionary, with the types of its entries."""
        return cast(GroundResult, self)

    def in_short(self) -> str:
        """Return the model, the verdict, and what was written."""
        written = "no model written" if self.result["exported"] is None else f"written: {self.result['exported']}"
        return f"{self.result['model']}: {self.result['verdict']}, {self.result['test_rows']} test rows, {written}"

    def table(self) -> list[dict[str, object]]:
        """Return one row per figure on the test rows: before, and its change."""
        effect = self.result["effect"]
        return [
            {"metric": name, "ungated": figure, "effect": effect.get(name)}
            for name, figure in self.result["ungated"].items()
        ]

    def to_pandas(self) -> Any:
        """Return the table as a pandas DataFrame; TruthHeadsError where pandas is not installed."""
        return data_frame(self.table())

    def _repr_html_(self) -> str:
        return table_html(self.in_short(), self.table())
