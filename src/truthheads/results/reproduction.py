"""What ``reproduce`` and ``demo`` give back: the plan of a recipe, and its figures beside published ones."""

from typing import TypedDict

from truthheads.results.comparison import ComparisonResult
from truthheads.results.evaluation import EvaluationResult
from truthheads.results.scores import Scores
from truthheads.stats.figures import FigureJson
from truthheads.storage.artifacts import Provenance

RESULT = "reproduction.json"


class PlannedStep(TypedDict):
    """One step: its name, what it does in words, and estimates of seconds and bytes on one GPU (loading included)."""

    name: str
    what: str
    seconds: float
    memory: float


class NeededFile(TypedDict):
    """A model or a file that a recipe uses.

    Attributes:
        kind: ``model`` or ``data``.
        name: Hub id, or file.
        place: Where it was found below the given folders; None where it was not.
        bytes: Estimated size of a model; 0 for data.
        origin: Where it is had.
    """

    kind: str
    name: str
    place: str | None
    bytes: float
    origin: str


class RecipePlan(TypedDict):
    """The JSON result of ``truthheads reproduce --plan``: steps in order, what is missing, memory and time."""

    title: str
    source: str
    notes: list[str]
    steps: list[PlannedStep]
    needs: list[NeededFile]
    download_bytes: float
    gpu_bytes: float
    hours: float
    assumption: str


class MeasuredFigure(TypedDict):
    """A figure that was not measured by this step is None, and so is one that was not published.

    Attributes:
        step: The step that measured it.
        run: The run of an evaluation, or the pair of a comparison of several models; else empty.
        figure: Its name.
        ours: What was measured; None where this was not.
        paper: What was published; None where it was not.
        paper_inside_ours: Whether the published figure lies in our interval; None where one of them is missing.
    """

    step: str
    run: str
    figure: str
    ours: FigureJson | None
    paper: float | None
    paper_inside_ours: bool | None


class ReproducedFigure(MeasuredFigure, total=False):
    """A figure of an evaluation also has its ``change`` against the ungated run, and the run's ``verdict``."""

    change: FigureJson | None
    verdict: str | None


class Reproduction(Provenance):
    """What ``reproduction.json`` holds; ``rows``: how many of each file were read at most, None: all of them."""

    title: str
    source: str
    notes: list[str]
    rows: int | None
    figures: list[ReproducedFigure]


class DemoResult(TypedDict):
    """What the demo has made: the scores of SmolLM2, the comparison of three models, and the evaluations by folder."""

    scores: Scores
    comparison: ComparisonResult
    evaluations: dict[str, EvaluationResult]
