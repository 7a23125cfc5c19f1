"""Find, compare and gate the attention heads that keep a model with its context."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthheads.architectures import HeadLayout as HeadLayout
    from truthheads.comparison import Comparison as Comparison
    from truthheads.comparison import compare as compare
    from truthheads.data import Question as Question
    from truthheads.drift import Drift as Drift
    from truthheads.drift import weight_drift as weight_drift
    from truthheads.errors import TruthHeadsError as TruthHeadsError
    from truthheads.evaluation import evaluate as evaluate
    from truthheads.evidence import Trace as Trace
    from truthheads.exports import export as export
    from truthheads.family.scenes import make_scenes as make_scenes
    from truthheads.family.text import make_text as make_text
    from truthheads.gates import Gate as Gate
    from truthheads.gates import gated as gated
    from truthheads.grounding import ground as ground
    from truthheads.models import Model as Model
    from truthheads.models import inspect as inspect
    from truthheads.models import load as load
    from truthheads.pairing import make_pairs as make_pairs
    from truthheads.readers import read_questions as read_questions
    from truthheads.reports import report as report
    from truthheads.scores import Scores as Scores
    from truthheads.scoring import score as score
    from truthheads.tracing import trace as trace
    from truthheads.tuning import tune as tune

_HOMES = {
    "Comparison": "comparison",
    "Drift": "drift",
    "Gate": "gates",
    "HeadLayout": "architectures",
    "Model": "models",
    "Question": "data",
    "Scores": "scores",
    "Trace": "evidence",
    "TruthHeadsError": "errors",
    "compare": "comparison",
    "evaluate": "evaluation",
    "export": "exports",
    "gated": "gates",
    "ground": "grounding",
    "inspect": "models",
    "load": "models",
    "make_pairs": "pairing",
    "make_scenes": "family.scenes",
    "make_text": "family.text",
    "read_questions": "readers",
    "report": "reports",
    "score": "scoring",
    "trace": "tracing",
    "tune": "tuning",
    "weight_drift": "drift",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``truthheads --help`` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'truthheads' has no attribute {name!r}")
    return getattr(import_module(f"truthheads.{_HOMES[name]}"), name)
