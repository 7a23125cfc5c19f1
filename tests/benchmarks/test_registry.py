"""A benchmark is one record and one line: everything that asks, measures or shows one takes it from there."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

import truthheads as th
from planted import save_planted
from toy_benchmark import TOY, ToyOptions
from truthheads.benchmarks.base import AnswerOptions, AskOptions, Benchmark, help_text
from truthheads.benchmarks.registry import BENCHMARKS, benchmark, label, lower_is_better, records
from truthheads.errors import DataError, TruthHeadsError
from truthheads.evaluation.external import score_answers
from truthheads.evaluation.predictions import NAME, read_predictions
from truthheads.evaluation.summary import rescore
from truthheads.results.gate import Gate
from truthheads.workflows.recipe import EvaluationPart


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "toy", "toy_benchmark:TOY")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the check of annotations off: it fires before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Where is {at}?", "word": "a"}) + "\n" for at in range(6)))
    return path


def test_every_line_leads_to_a_record_of_its_name() -> None:
    assert list(records()) == ["halueval", "pope", "chair", "pairs", "conflict", "lm-eval"]
    for name, record in records().items():
        assert record.name == name and record.label and record.about.endswith((".", "?"))


def test_a_toy_runs_through_asking_summary_and_report(toy: None, rows: Path, tmp_path: Path) -> None:
    model = th.load(str(save_planted(tmp_path / "planted")), dtype="fp32")
    factors = 1 + 0.3 * torch.randn(*model.layout.shape, generator=torch.Generator().manual_seed(0))
    out = tmp_path / "shown" / "toy"
    asking = ToyOptions(before="Now: ", note="Only a toy.", limit=5)
    summary = th.evaluate(model, "toy", rows, out=out, gates={"g": Gate(factors)}, asking=asking, guard_texts=2)
    assert (summary["task"], summary["rows"], summary["primary"]) == ("toy", 5, "lacking")
    assert summary["settings"]["before"] == "Now: " and summary["notes"] == ["Only a toy."]
    lines = [line for line in read_predictions(out / NAME).lines if line["task"] == "toy"]
    assert [line["run"] for line in lines] == ["none"] * 5 + ["g"] * 5
    lacking = sum("a" not in line["answer"] for line in lines[:5]) / 5
    assert summary["runs"][0]["metrics"]["lacking"]["value"] == lacking
    before = (out / "summary.json").read_bytes()
    rescore(out)
    assert (out / "summary.json").read_bytes() == before
    page = th.report(tmp_path / "shown").read_text(encoding="utf-8")
    assert "On The Toy (5 rows)" in page and "lacking (less is better)" in page


def test_answers_to_a_toy_that_were_made_elsewhere(toy: None, rows: Path, tmp_path: Path) -> None:
    given = tmp_path / "answers.jsonl"
    given.write_text("".join(json.dumps({"answer": text}) + "\n" for text in ("a", "b", "ba", "", "c", "aa")))
    summary = score_answers("toy", [given], [rows], out=tmp_path / "out")
    assert summary["rows"] == 6 and summary["runs"][0]["metrics"]["lacking"]["value"] == 0.5
    with pytest.raises(DataError, match="pairs takes no answers that were made elsewhere"):
        score_answers("pairs", [given], [rows], out=tmp_path / "out")


def test_a_recipe_knows_a_toy(toy: None) -> None:
    part: dict[str, Any] = {"name": "t", "model": "m", "task": "toy", "data": ["d"]}
    assert EvaluationPart(**part, new_tokens=7).options(limit=3) == ToyOptions(new_tokens=7, limit=3)
    assert EvaluationPart(**part).options().new_tokens == 2
    with pytest.raises(ValueError, match="toy has no option instruction"):
        EvaluationPart(**part, instruction="Say so.")
    with pytest.raises(ValueError, match="task 'tony' is not known"):
        EvaluationPart(**{**part, "task": "tony"})
    with pytest.raises(ValueError, match="run by its harness"):
        EvaluationPart(**{**part, "task": "lm-eval:arc_easy"})


@dataclass(frozen=True)
class Bare(AskOptions):
    new_tokens: int = 1


@dataclass(frozen=True)
class Curt(AnswerOptions):
    more: int = 1


@dataclass(frozen=True)
class Silent(AskOptions):
    more: int = field(default=1, metadata=help_text("More."))


PARTS = {one.name: getattr(TOY, one.name) for one in fields(Benchmark)}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"measure": None}, "no measure"),
        ({"read": None}, "no read"),
        ({"parse": None}, "no parse"),
        ({"primary": None}, "no primary"),
        ({"name": "neutral"}, "name of small letters other than neutral, answers, rescore"),
        ({"name": "lm:toy"}, "name of small letters"),
        ({"label": "", "about": ""}, "no label, no about"),
        ({"asks": "yes"}, "yes_no, text, pair_logprobs, harness"),
        ({"options": ToyOptions()}, "a dataclass that extends AskOptions"),
        ({"options": Bare}, "help and default of options new_tokens"),
        ({"options": Silent}, "how many tokens are written"),
        ({"elsewhere": replace(TOY.elsewhere, options=Curt)}, "help and default of elsewhere.options more"),
    ],
)
def test_half_a_record_is_refused_where_it_is_made(changed: dict[str, Any], told: str, unchecked: None) -> None:
    Benchmark(**PARTS)
    with pytest.raises(TruthHeadsError, match="is registered by half") as caught:
        Benchmark(**{**PARTS, **changed})
    assert told in caught.value.got


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("no_such_module:TOY", "ModuleNotFoundError"),
        ("toy_benchmark:NONE", "AttributeError"),
        ("toy_benchmark:read", "function"),
        ("truthheads.benchmarks.pope:POPE", "a record called pope"),
    ],
)
def test_a_line_that_leads_nowhere_is_refused_before_a_model_runs(
    where: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "toy", where)
    with pytest.raises(TruthHeadsError, match="'toy' is registered by half") as caught:
        benchmark("toy")
    assert told in caught.value.got and where in caught.value.expected


def test_a_primary_figure_that_is_not_measured(toy: None, rows: Path, tmp_path: Path) -> None:
    record = replace(TOY, primary="lacking_of")
    lines = [{"task": "toy", "run": "none", "id": "1", "group": "1", "gold": "a", "answer": "a"}]
    from truthheads.evaluation import summary

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toy_benchmark.TOY", record)
        with pytest.raises(TruthHeadsError, match="does not measure its primary figure"):
            summary.summarise_runs(lines)


def test_names_that_are_no_task() -> None:
    with pytest.raises(DataError) as caught:
        benchmark("poppe")
    assert "did you mean pope?" in caught.value.fix and "lm-eval:NAME" in caught.value.expected
    for task in ("lm-eval", "lm-eval:", "pope:random", "pope:"):
        with pytest.raises(DataError, match="is not known"):
            benchmark(task)
    assert benchmark("lm-eval:arc_easy").asks == "harness"
    assert (label("pope"), label("lm-eval:arc_easy"), label("gone")) == ("POPE", "lm-eval:arc_easy", "gone")
    assert [lower_is_better(task) for task in ("chair", "pope", "gone")] == [True, False, False]


def test_options_by_name_or_as_the_common_ones() -> None:
    record = benchmark("chair")
    assert record.ask_options({"caps": (8,)}, seed=3) == record.options(caps=(8,), seed=3)  # type: ignore[call-arg]
    assert record.ask_options(AskOptions(limit=2, seed=1), seed=3) == record.options(limit=2, seed=1)
    with pytest.raises(TruthHeadsError, match="chair has no option knowledge, shown"):
        record.ask_options({"knowledge": False, "shown": "one"})
    with pytest.raises(TruthHeadsError, match="pairs has no option synonyms, lemmatizer, instruction, caps"):
        benchmark("pairs").ask_options(record.options())
