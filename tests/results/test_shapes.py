"""Every result has the keys and types that its TypedDict names, all the way down, and no others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from planted import planted_model, planted_questions
from shaped import misfits
from truthheads.data.questions import Question
from truthheads.lineage.compare import compare
from truthheads.models.load import Model
from truthheads.results.comparison import ComparisonResult, PairResult, PairRow
from truthheads.results.gate import Gate, GateInfo, HeadFactor
from truthheads.results.score_summary import ScoreSummary, summarise_scores
from truthheads.results.scores import ScoreMeta, Scores
from truthheads.results.trace import TraceSummary
from truthheads.results.tuning import CandidateResult, TuningResult
from truthheads.scoring.score import score
from truthheads.stats.figures import Figure, FigureJson
from truthheads.storage.files import dumps, read_json
from truthheads.tracing.score_correlation import summarise_trace
from truthheads.tracing.trace import trace
from truthheads.tuning.learn import Schedule
from truthheads.tuning.tune import tune


@pytest.fixture(scope="module")
def planted(wrap: Callable[..., Model]) -> Model:
    made = planted_model()
    return wrap(made.network, made.tokenizer, "planted")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(planted_questions(30))


@pytest.fixture(scope="module")
def scores(planted: Model, questions: list[Question]) -> Scores:
    return score(planted, questions)


def test_the_check_finds_what_is_wrong() -> None:
    whole: dict[str, Any] = {"value": 0.5, "low": None, "high": 1.0}
    assert misfits(whole, FigureJson) == []
    assert misfits({**whole, "low": "0"}, FigureJson) == [".low: '0' is no float"]
    assert misfits({**whole, "width": 1.0}, FigureJson) == [": width is not of FigureJson"]
    assert misfits({"value": 0.5, "low": 0.0}, FigureJson) == [": high is missing"]
    assert misfits([{"head": "L0H0", "factor": True}], list[HeadFactor]) == ["[0].factor: True is no float"]
    assert misfits({"pairs": [{"a": "x"}]}, dict[str, list[PairResult]]) == [".pairs[0]: b is missing"]


@pytest.mark.parametrize("method", ["probe", "attribution", "evidence"])
def test_scores(planted: Model, questions: list[Question], method: Any, tmp_path: Path) -> None:
    made = score(planted, questions, method=method)
    assert misfits(summarise_scores(made), ScoreSummary) == []
    if method != "evidence":  # which keeps a trace's metadata
        assert misfits(dict(made.meta), ScoreMeta) == []
    made.save(tmp_path / "scores.safetensors")
    assert dumps(summarise_scores(Scores.load(tmp_path / "scores.safetensors"))) == dumps(summarise_scores(made))


def test_scores_of_unknown_origin() -> None:
    assert misfits(summarise_scores(Scores.of("probe", torch.rand(2, 3), meta={})), ScoreSummary) == []


def test_a_trace_with_and_without_scores(planted: Model, questions: list[Question], scores: Scores) -> None:
    assert misfits(summarise_trace(trace(planted, questions)), TraceSummary) == []
    found = summarise_trace(trace(planted, questions, scores=scores, untruthful=True))
    assert misfits(found, TraceSummary) == []
    assert found["claim"] is not None and set(found["claim"]) == {"answer", "question", "untruthful"}


def test_a_comparison_also_after_it_was_read_back(
    planted: Model, questions: list[Question], scores: Scores, tmp_path: Path
) -> None:
    other = score(planted, questions, seed=1)
    made = compare(scores, other, names=["a", "b"], reference=other, align=True)
    assert misfits(made.result, ComparisonResult) == []
    assert misfits(made.table(), list[PairRow]) == []
    made.save(tmp_path / "comparison.json")
    assert read_json(tmp_path / "comparison.json")["pairs"][0]["a"] == made.pairs[0]["a"] == "a"


@pytest.mark.parametrize("method", ["grid", "learn"])
def test_a_tuning(planted: Model, questions: list[Question], scores: Scores, method: Any) -> None:
    made = tune(
        planted,
        questions,
        method=method,
        scores=scores if method == "grid" else None,
        schedule=Schedule(epochs=1),
        strengths=(0.5,),
    )
    assert misfits(made.result, TuningResult) == []
    assert misfits(made.result["path"], list[CandidateResult]) == []
    assert misfits(made.gate.describe(), GateInfo) == []


def test_a_gate(scores: Scores) -> None:
    gate = Gate.from_scores(scores, strength=1.0)
    assert misfits(gate.describe(), GateInfo) == []
    assert misfits(gate.table(), list[HeadFactor]) == []


def test_a_figure_that_a_file_holds_as_null_is_not_a_number() -> None:
    assert Figure.of({"value": 0.5, "low": 0.25, "high": 0.75}) == Figure(0.5, 0.25, 0.75)
    unknown = Figure.of({"value": 0.5, "low": None, "high": None})
    assert unknown.value == 0.5 and str(unknown) == "0.500 [nan, nan]"
