"""What ``ground`` writes and ``report`` reads: names of the files, and what ``ground.json`` holds."""

from typing import Any, Literal, NotRequired, TypedDict, cast

from truthheads.plots.views import Shown, data_frame, table_html
from truthheads.results.evaluation import Guard
from truthheads.stats.figures import FigureJson
from truthheads.stats.resampling import ControlRank


class TestedControls(TypedDict, total=False):
    """How a remedy stands among its controls (see :class:`ControlRanks`); empty where it was tested without any."""

    beaten: int
    of: int
    rank: int
    p: float
    by_kind: dict[str, ControlRank]


RemedyName = Literal["prompt", "gate", "adapter"]


class RemedyTried(TypedDict):
    """One of the things that were tried.

    Attributes:
        name: ``prompt``: an instruction before every prompt; ``gate``; ``adapter``.
        tested: Whether it was tested: not where tuning found nothing within the guard.
        why: Why tuning chose what it chose, or nothing; None for the instruction.
        effect: The change of every figure on the test rows; empty where it was not tested.
        beyond_prompt: How far its primary figure is beyond that under the instruction, on the same rows.
        harm: What it does to neutral text, in nats a token.
        controls: How it stands among its controls; empty where none were run.
        verdict: What the test rows say of it beside the untouched model; None where it was not tested.
        ships: Whether it may be shipped: better than the untouched model and than the instruction, within the guard,
            and, for a gate, than each of its controls.
    """

    name: RemedyName
    tested: bool
    why: str | None
    effect: dict[str, FigureJson]
    beyond_prompt: FigureJson | None
    harm: FigureJson | None
    controls: TestedControls
    verdict: str | None
    ships: bool


class Instruction(TypedDict):
    """The instruction that was tried, and how many tokens it adds to a prompt."""

    text: str
    prompt_tokens: float


class AnswerPair(TypedDict):
    """One line of ``answers.jsonl``: what the model writes, greedily, as it is and with the remedy."""

    id: str
    question: str
    truthful: str
    before: str
    after: str


class GroundAnswers(TypedDict):
    """Answers before and after.

    Attributes:
        remedy: With what the answers of ``after`` were written.
        asked: How many test rows were asked, the first of them.
        changed: In how many of these the answers differ.
        shown: The first five that differ.
    """

    remedy: RemedyName
    asked: int
    changed: int
    shown: list[AnswerPair]


class GroundDecision(TypedDict):
    """What the test rows say of the instruction, the gate and the adapter.

    Attributes:
        better: Whether a gate or an adapter may be shipped.
        moved: Whether tuning chose a gate or an adapter at all.
        verdict: In words.
        remedy: What the figures below are of: what is shipped, else the gate or adapter that gains most; None where
            there is neither. Files before head adapters have none: there it is the gate.
        remedies: Everything that was tried; files before head adapters have none.
        instruction: The instruction; None where a row shows no context; likewise.
        primary: The figure that the verdict is about.
        test_rows: How many rows the remedies were tested on.
        ungated: Every figure of the untouched model.
        effect: Its change.
        controls: How the remedy stands among its controls; empty where there are none.
        guard: What the remedy does to neutral text.
        exported: The file or folder that was written; None where none was.
    """

    better: bool
    moved: bool
    verdict: str | None
    remedy: RemedyName | None
    remedies: list[RemedyTried]
    instruction: Instruction | None
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
        chat: Whether prompts were put into the chat template.
        answers: Answers before and after; None where nothing was there to compare with.
        advice: What would help where nothing did, such as how many more rows; files of 0.1.0 have none.
        packages: Versions of the packages.
        command: The command; None outside the program.
    """

    model: str
    data: str
    anyway: bool
    warnings: list[str]
    chat: NotRequired[bool]
    answers: NotRequired[GroundAnswers | None]
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
