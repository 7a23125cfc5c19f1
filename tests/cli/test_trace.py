"""The command ``truthheads trace``: what it writes, prints and refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from planted import PLANTED_HEAD, planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.results.scores import Scores
from truthheads.results.trace import Trace

NAME = "L{}H{}".format(*PLANTED_HEAD)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "q.jsonl", planted_questions(30))


@pytest.fixture(scope="module")
def scores(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scores") / "scores.safetensors"
    assert run("score", model, "--data", rows, "--dtype", "fp32", "--out", out).exit_code == 0
    return out


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*words: object) -> str:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 2 and lines[0].startswith("error:") and lines[1].startswith("do:")
    return result.stderr


def test_it_writes_a_trace_and_names_the_planted_head(model: Path, rows: Path, scores: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "trace.safetensors", tmp_path / "heads.svg"
    words = ("--dtype", "fp32", "--scores", scores, "--out", out, "--plot", plot, "--top", 2)
    result = run("trace", model, "--data", rows, *words)
    assert result.exit_code == 0, result.output
    found = Trace.load(out)
    assert found.top(1) == [PLANTED_HEAD] and float(found.auroc[PLANTED_HEAD]) == 1
    assert torch.equal(found.truth, Scores.load(scores).values)
    table = result.output.split("Top heads, answer's last token")[1].splitlines()
    assert table[2].split()[0] == NAME
    assert "Do heads with high Truth Scores look at the evidence?" in result.output
    assert "30 of 30 rows" in result.output and "evidence from spans (30)" in result.output
    assert plot.read_text().startswith("<svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads.svg", "trace.safetensors"]


def test_json_is_all_that_stands_on_standard_output(model: Path, rows: Path, scores: Path, tmp_path: Path) -> None:
    words: tuple[Any, ...] = ("--position", "question", "--untruthful", "--json", "--top", 1, "--scores", scores)
    result = run("trace", model, "--data", rows, "--out", tmp_path / "t.safetensors", *words)
    found = json.loads(result.stdout)
    assert found["top"][0]["head"] == NAME and found["position"] == "question"
    assert found["positions"] == ["answer", "question", "untruthful"]
    assert found["means"]["answer"]["auroc"].keys() == {"value", "low", "high"}
    one = found["claim"]["answer"]["pointing"]
    assert one["spearman"].keys() == {"value", "low", "high"} and 0 < one["p_permutation"] <= 1
    assert found["top"][0]["distractor_auroc"] is None  # no answer but the truthful one stands in these contexts
    assert found["warnings"] == []


def test_the_same_command_gives_the_same_bytes(model: Path, rows: Path, tmp_path: Path) -> None:
    for name in "ab":
        assert run("trace", model, "--data", rows, "--out", tmp_path / name).exit_code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_score_by_evidence(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.safetensors"
    result = run("score", model, "--data", rows, "--method", "evidence", "--out", out, "--json")
    assert json.loads(result.stdout)["top"][0]["head"] == NAME
    assert Scores.load(out).method == "evidence"


def test_what_the_rows_leave_open_is_said(model: Path, tmp_path: Path) -> None:
    questions = planted_questions(4)
    questions[0] = replace(questions[0], evidence=())
    questions[1] = replace(questions[1], evidence=(), truthful="Nowhere")
    rows = write_questions(tmp_path / "q.jsonl", questions)
    result = run("trace", model, "--data", rows, "--out", tmp_path / "t.safetensors")
    assert "3 of 4 rows" in result.output
    assert "Rows left out: 1 with no evidence." in result.output
    assert "1 rows name no evidence" in result.output


def test_bad_rows_are_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.safetensors"
    question = planted_questions(1)[0]
    bare = write_questions(tmp_path / "bare.jsonl", [replace(question, evidence=(), truthful="Nowhere")])
    assert "no question has evidence" in refused("trace", model, "--data", bare, "--out", out)
    beyond = write_questions(tmp_path / "beyond.jsonl", [replace(question, evidence=((0, 9999),))])
    assert "evidence" in refused("trace", model, "--data", beyond, "--out", out)
    assert not out.exists() and not out.with_name("trace.safetensors.partial").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--scores", "missing.safetensors"), "missing.safetensors is not there"),
        (("--plot", "chart.pdf"), "chart"),
        (("--out", "."), "folder"),
    ],
)
def test_bad_options_are_refused(model: Path, rows: Path, tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    out = () if "--out" in words else ("--out", tmp_path / "trace.safetensors")
    assert problem in refused("trace", model, "--data", rows, *out, *words)
    assert list(tmp_path.iterdir()) == []


def test_scores_of_another_shape_are_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    Scores.of("probe", torch.zeros(5, 3), meta={}).save(tmp_path / "other.safetensors")
    words = ("--scores", tmp_path / "other.safetensors", "--out", tmp_path / "trace.safetensors")
    assert "2 layers x 4 heads; got 5 x 3" in refused("trace", model, "--data", rows, *words)


def test_a_tokenizer_without_offsets_is_named(rows: Path, tmp_path: Path) -> None:
    folder = save_planted(tmp_path / "slow")
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda word: vocabulary[word])))
    settings = {"tokenizer_class": "EsmTokenizer", "unk_token": "<unk>", "eos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    problem = refused("trace", folder, "--data", rows, "--out", tmp_path / "trace.safetensors")
    assert "gives no character offsets" in problem and "EsmTokenizer" in problem
