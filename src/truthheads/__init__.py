"""Find, compare and gate the attention heads that keep a model with its context."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthheads.data.questions import Question as Question
    from truthheads.data.questions import Questions as Questions
    from truthheads.data.readers import read_questions as read_questions
    from truthheads.detection.detect import detect as detect
    from truthheads.detection.fit import fit_detector as fit_detector
    from truthheads.errors import TruthHeadsError as TruthHeadsError
    from truthheads.evaluation.evaluate import evaluate as evaluate
    from truthheads.exporting.export import export as export
    from truthheads.lineage.compare import compare as compare
    from truthheads.lineage.weight_drift import weight_drift as weight_drift
    from truthheads.models.architectures import HeadLayout as HeadLayout
    from truthheads.models.held import inspect as inspect
    from truthheads.models.held import load as load
    from truthheads.models.inspection import Inspection as Inspection
    from truthheads.models.load import Model as Model
    from truthheads.reporting.report import report as report
    from truthheads.results.comparison import Comparison as Comparison
    from truthheads.results.detections import Detections as Detections
    from truthheads.results.detector import Detector as Detector
    from truthheads.results.drift import Drift as Drift
    from truthheads.results.evaluation import Evaluation as Evaluation
    from truthheads.results.gate import Gate as Gate
    from truthheads.results.gate import gated as gated
    from truthheads.results.grounding import Grounding as Grounding
    from truthheads.results.head_adapter import HeadAdapter as HeadAdapter
    from truthheads.results.head_adapter import adapted as adapted
    from truthheads.results.scores import Scores as Scores
    from truthheads.results.trace import Trace as Trace
    from truthheads.results.tuning import Tuning as Tuning
    from truthheads.scoring.score import score as score
    from truthheads.synthetic.scenes import make_scenes as make_scenes
    from truthheads.synthetic.text import make_text as make_text
    from truthheads.tracing.trace import trace as trace
    from truthheads.tuning.adapt import AdaptSchedule as AdaptSchedule
    from truthheads.tuning.learn import Schedule as Schedule
    from truthheads.tuning.tune import tune as tune
    from truthheads.workflows.ground import ground as ground
    from truthheads.workflows.make_pairs import Pairs as Pairs
    from truthheads.workflows.make_pairs import make_pairs as make_pairs

    __version__: str

_HOMES = {
    "AdaptSchedule": "tuning.adapt",
    "Comparison": "results.comparison",
    "Detections": "results.detections",
    "Detector": "results.detector",
    "Drift": "results.drift",
    "Evaluation": "results.evaluation",
    "Gate": "results.gate",
    "Grounding": "results.grounding",
    "HeadAdapter": "results.head_adapter",
    "HeadLayout": "models.architectures",
    "Inspection": "models.inspection",
    "Model": "models.load",
    "Pairs": "workflows.make_pairs",
    "Question": "data.questions",
    "Questions": "data.questions",
    "Schedule": "tuning.learn",
    "Scores": "results.scores",
    "Trace": "results.trace",
    "TruthHeadsError": "errors",
    "Tuning": "results.tuning",
    "adapted": "results.head_adapter",
    "compare": "lineage.compare",
    "detect": "detection.detect",
    "evaluate": "evaluation.evaluate",
    "export": "exporting.export",
    "fit_detector": "detection.fit",
    "gated": "results.gate",
    "ground": "workflows.ground",
    "inspect": "models.held",
    "load": "models.held",
    "make_pairs": "workflows.make_pairs",
    "make_scenes": "synthetic.scenes",
    "make_text": "synthetic.text",
    "read_questions": "data.readers",
    "report": "reporting.report",
    "score": "scoring.score",
    "trace": "tracing.trace",
    "tune": "tuning.tune",
    "weight_drift": "lineage.weight_drift",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``truthheads --help`` does not wait for torch."""
    if name == "__version__":
        return import_module("importlib.metadata").version("truthheads")
    if name not in _HOMES:
        raise AttributeError(f"module 'truthheads' has no attribute {name!r}")
    return getattr(import_module(f"truthheads.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, also those that were not used yet."""
    return [*__all__, "__version__", *(name for name in globals() if name.startswith("__"))]
