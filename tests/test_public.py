"""What ``import truthheads`` shows: names, version, results in a line and as tables; one word for one thing."""

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import typer

import truthheads as th
from planted import planted_model, planted_questions, save_planted
from truthheads.benchmarks.registry import record_of
from truthheads.cli import app

SHORT = 300
"""Characters of a repr, at most."""


def fresh(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_dir_and_tab_show_the_public_names_before_anything_is_loaded() -> None:
    program = """
import sys, rlcompleter, truthheads as th
shown = dir(th)
found = rlcompleter.Completer({"th": th})
names = []
while (one := found.complete("th.s", len(names))) is not None:
    names.append(one.rstrip("("))
print(sorted(set(th.__all__) - set(shown)), "__version__" in shown, "Any" in shown, th.__version__, names)
"""
    assert fresh(program) == f"[] True False {version('truthheads')} ['th.score']"
    assert {"Tuning", "Schedule", "Questions", "Inspection", "Grounding", "Evaluation", "Pairs"} <= set(th.__all__)


def test_the_version_loads_nothing() -> None:
    assert fresh("import sys, truthheads as th; th.__version__; dir(th); print('torch' in sys.modules)") == "False"


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("results")
    planted, questions = planted_model(), planted_questions(24)
    model = th.load(planted.network, planted.tokenizer)
    scores = th.score(model, questions)
    gate = th.Gate.from_scores(scores, strength=1.0)
    neutral = folder / "neutral.jsonl"
    neutral.write_text("".join(f'{{"text": "{one.context}"}}\n' for one in questions))
    tuning = th.tune(
        model, questions, method="grid", scores=scores, strengths=(0.5, 1.0), norms=("centred",), neutral=neutral
    )
    evaluation = th.evaluate(model, "pairs", questions, out=folder / "pairs", gate=gate, guard_texts=2, neutral=neutral)
    return {
        "Model": model,
        "HeadLayout": model.layout,
        "Inspection": th.inspect(model),
        "Question": questions[0],
        "Questions": th.read_questions([{"question": "q", "truthful": "a", "untruthful": "b"}]),
        "Pairs": th.make_pairs(questions, strategy="swap"),
        "Scores": scores,
        "Gate": gate,
        "Trace": th.trace(model, questions, scores=scores),
        "Comparison": th.compare(scores, scores, names=["one", "two"]),
        "Tuning": tuning,
        "Evaluation": evaluation,
    }


TABLES = ("Scores", "Gate", "Trace", "Comparison", "Tuning", "Evaluation")


def test_every_result_prints_in_one_short_line(results: dict[str, Any]) -> None:
    for name, result in results.items():
        shown = repr(result)
        assert shown.startswith(f"{name}(") and "\n" not in shown and len(shown) <= SHORT, shown
        assert "tensor(" not in shown
    assert "2 layers x 4 heads" in repr(results["Scores"]) and "L1H2" in repr(results["Scores"])
    assert "24 rows" in repr(results["Evaluation"]) and "gate-1: " in repr(results["Evaluation"])


def test_a_long_text_does_not_make_the_line_long() -> None:
    question = th.Question("a", "c" * 5000, "q" * 500, "t" * 500, None)
    assert len(repr(question)) <= SHORT and "5,000 characters" in repr(question)


def test_every_result_has_a_notebook_view(results: dict[str, Any]) -> None:
    for name in ("Model", "Inspection", *TABLES):
        assert "<" in results[name]._repr_html_(), name


def test_tables_hold_every_head_with_its_place(results: dict[str, Any]) -> None:
    for name in ("Scores", "Gate", "Trace"):
        table = results[name].to_pandas()
        assert isinstance(table, pandas.DataFrame) and len(table) == 8
        assert list(table["head"][:5]) == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]
        assert list(table["layer"]) == [0] * 4 + [1] * 4 and list(table["head_index"]) == [0, 1, 2, 3] * 2
    scores = results["Scores"]
    assert scores.to_pandas()["score"].tolist() == pytest.approx(scores.values.flatten().tolist())
    assert results["Gate"].to_pandas()["factor"].tolist() == results["Gate"].gate.flatten().tolist()
    best = scores.table(1)[0]
    assert (
        best.items()
        <= {**scores.to_pandas().set_index("head").loc[best["head"]].to_dict(), "head": best["head"]}.items()
    )


def test_tables_of_pairs_candidates_and_runs(results: dict[str, Any]) -> None:
    comparison = results["Comparison"].to_pandas()
    assert list(comparison["a"]) == ["one"] and comparison["pearson"][0] == pytest.approx(1)
    assert {"pearson_low", "pearson_high"} <= set(comparison.columns)
    tuning = results["Tuning"].to_pandas()
    assert len(tuning) == 4 and {"name", "chosen", "margin", "margin_low", "kl"} <= set(tuning.columns)
    evaluation = results["Evaluation"].to_pandas()
    assert set(evaluation["run"]) == {"none", "gate-1"}
    assert (
        evaluation.query("run == 'none' and metric == 'pair_accuracy'")["value"].item()
        == (results["Evaluation"]["runs"][0]["metrics"]["pair_accuracy"]["value"])
    )


def test_a_comparison_of_weights_alone_has_a_notebook_view() -> None:
    pair = {"a": "x", "b": "<y>", "verdict": "inherited", "drift": {"q": {"value": 0.1, "low": 0.0, "high": 0.2}}}
    shown = th.Comparison({"pairs": [pair], "models": [], "meta": {}})._repr_html_()  # type: ignore[typeddict-item]
    assert "inherited" in shown and "&lt;y&gt;" in shown and "0.1" in shown


# --- one word for one thing ------------------------------------------------------------------------------------------

NOT_OF_PYTHON = {"json", "plot", "top", "out", "force", "help", "no_share_prefix", "pictures", "picture_rows", "for"}
"""What only a command has: how it prints, where it writes. ``share_prefix`` is the same word with a value."""

OF_LOADING = {
    "device",
    "dtype",
    "device_map",
    "max_memory",
    "offload_folder",
    "load_in",
    "trust_remote_code",
    "processor",
}

OF_ROWS = {"limit", "skip_bad_rows", "images", "data", "encoding", "label_true"}
"""Options of ``read_questions``; the rows themselves are an argument."""

TWINS: dict[tuple[str, ...], tuple[Callable[..., Any], set[str]]] = {
    ("score",): (th.score, OF_LOADING | OF_ROWS),
    ("trace",): (th.trace, OF_LOADING | OF_ROWS),
    ("compare",): (th.compare, set()),
    ("gate",): (th.Gate.from_scores, {"control", "seed", "trust_remote_code"}),
    ("tune", "learn"): (th.tune, OF_LOADING | OF_ROWS),
    ("tune", "grid"): (th.tune, OF_LOADING | OF_ROWS),
    ("export",): (th.export, set()),
    ("ground",): (th.ground, {"data"}),
    ("report",): (th.report, set()),
    ("data", "pairs"): (th.make_pairs, OF_LOADING | OF_ROWS),
    ("data", "make"): (th.make_text, set()),
    ("evaluate", "pope"): (th.evaluate, OF_LOADING),
}


def words_of(function: Callable[..., Any]) -> Iterator[str]:
    """Yield the names that a function takes, those of its ``**words`` too."""
    for name, one in inspect.signature(function).parameters.items():
        yield name
        if one.kind is one.VAR_KEYWORD and hasattr(one.annotation, "__args__"):
            (keys,) = one.annotation.__args__
            yield from {
                key
                for base in (keys, *keys.__mro__, *getattr(keys, "__orig_bases__", ()))
                for key in getattr(base, "__annotations__", {})
            }


def command(words: tuple[str, ...]) -> Any:
    found: Any = typer.main.get_command(app)
    for word in words:
        found = found.get_command(None, word)
    return found


@pytest.mark.parametrize("words", TWINS, ids=" ".join)
def test_an_option_has_the_same_name_in_python(words: tuple[str, ...]) -> None:
    function, elsewhere = TWINS[words]
    told = {
        name.removeprefix("--").replace("-", "_")
        for one in command(words).params
        if one.param_type_name == "option" and not one.hidden
        for name in one.opts
    }
    known = set(words_of(function)) | elsewhere | NOT_OF_PYTHON
    if function is th.evaluate:  # a benchmark's own options are taken by name, too, and checked against its record
        known |= {"gate", *(one.name for one in fields(record_of(words[1]).options))}
    assert told - known == set()


def test_options_of_a_benchmark_are_taken_by_name(tmp_path: Path) -> None:
    planted = planted_model()
    model = th.load(planted.network, planted.tokenizer)
    found = th.evaluate(model, "pairs", planted_questions(6), out=tmp_path, limit=4)
    assert found["rows"] == 4 and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6
    with pytest.raises(th.TruthHeadsError, match="pairs has no option shown"):
        th.evaluate(model, "pairs", planted_questions(6), out=tmp_path / "other", shown="one")


def test_the_words_of_a_schedule_are_taken_and_the_old_name_of_the_first_gate_with_a_note() -> None:
    planted, questions = planted_model(), planted_questions(24)
    model, gate = th.load(planted.network, planted.tokenizer), th.Gate(torch.full((2, 4), 0.9))
    with pytest.warns(FutureWarning, match=r"tune: target= is now base_gate="):
        old = th.tune(model, questions, target=gate, schedule=th.Schedule(epochs=1))
    new = th.tune(model, questions, base_gate=gate, epochs=1)
    assert torch.equal(old.gate.gate, new.gate.gate) and old.result["path"] == new.result["path"]
    assert new.result["settings"]["schedule"]["epochs"] == 1
    with pytest.raises(TypeError, match="got both 'target' and 'base_gate'"):
        th.tune(model, questions, target=gate, base_gate=gate)


def test_home_is_meant_by_its_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    th.Gate(torch.ones(2, 3)).save("~/made/gate.safetensors")
    assert th.Gate.load("~/made/gate.safetensors").gate.shape == (2, 3)
    (tmp_path / "rows.csv").write_text("question,truthful,untruthful\nq,a,b\n")
    assert len(th.read_questions("~/rows.csv")) == 1
    th.make_scenes(1, seed=0, out="~/scenes")
    assert (tmp_path / "scenes/questions.jsonl").is_file() and not (tmp_path / "~").exists()


def test_ground_takes_a_loaded_model_rows_in_memory_and_settings_by_name(tmp_path: Path) -> None:
    model = th.load(save_planted(tmp_path / "model"), dtype="fp32")
    rows = [
        {"id": one.id, "context": one.context, "question": one.question, "answer": one.truthful}
        for one in planted_questions(60)
    ]
    found = th.ground(model, pandas.DataFrame(rows), out=tmp_path / "out", controls=1, guard=0.5, test_share=0.5)
    assert isinstance(found, th.Grounding) and repr(found).startswith("Grounding(") and len(repr(found)) <= SHORT
    assert found["data"] == "rows in memory" and found["test_rows"] == 30
    assert found.to_pandas()["metric"].tolist() == list(found["ungated"])
    again = th.ground(model, rows, out=tmp_path / "out", settings=None, controls=1, guard=0.5, test_share=0.5)
    assert {**again} == {**found}
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        th.ground(model, rows, out=tmp_path / "out", epoch=1)  # type: ignore[call-arg]
    with pytest.raises(th.TruthHeadsError, match="in memory alone"):
        planted = planted_model()
        th.ground(th.load(planted.network, planted.tokenizer), rows, out=tmp_path / "other")
