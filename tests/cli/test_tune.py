"""The command ``truthheads tune``: what it writes, prints and refuses."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from typer.testing import CliRunner, Result

from planted import PLANTED_HEAD, planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.results.gate import Gate
from truthheads.results.head_adapter import HeadAdapter

LIGHT = ("--epochs", 2, "--rate", 0.05, "--guard", 0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "q.jsonl", planted_questions(40))


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_learn_writes_a_gate_its_path_and_a_chart(model: Path, rows: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "gate.safetensors", tmp_path / "frontier.svg"
    result = run("tune", "learn", model, "--data", rows, "--out", out, "--plot", plot, *LIGHT)
    assert result.exit_code == 0, result.output
    gate = Gate.load(out).gate
    assert divmod(int(gate.argmax()), gate.shape[1]) == PLANTED_HEAD
    path = json.loads((tmp_path / "tuning.json").read_text())
    assert path["chosen"] is not None and len(path["path"]) >= 2
    assert "Frontier" in result.output and str(out) in result.output
    assert plot.read_text().startswith("<svg")


def test_json_is_all_that_stands_on_standard_output(model: Path, rows: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.safetensors"
    assert run("score", model, "--data", rows, "--out", scores).exit_code == 0
    words: tuple[Any, ...] = ("--scores", scores, "--strengths", "0.2,1", "--norms", "centred")
    out = tmp_path / "g.safetensors"
    result = run("tune", "grid", model, "--data", rows, "--out", out, *words, "--sites", "z", "--json")
    found = json.loads(result.stdout)
    assert [entry["strength"] for entry in found["path"]] == [0.2, 1.0]
    assert found["method"] == "grid"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("learn", "--guard", "0"), "guard"),
        (("grid", "--scores", "missing.safetensors", "--strengths", "1,x"), "--strengths must be numbers"),
        (("grid", "--scores", "missing.safetensors"), "not there"),
        (("learn", "--neutral", "missing.txt"), "neutral"),
        (("learn", "--plot", "chart.pdf"), "chart"),
    ],
)
def test_bad_input_ends_with_two_lines_and_leaves_nothing(
    model: Path, rows: Path, tmp_path: Path, words: tuple[str, ...], problem: str
) -> None:
    result = run("tune", words[0], model, "--data", rows, "--out", tmp_path / "gate.safetensors", *words[1:])
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 2 and lines[0].startswith("error:") and lines[1].startswith("do:")
    assert problem in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_gate_of_another_shape_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    Gate(torch.ones(3, 3)).save(tmp_path / "other.safetensors")
    words = ("--base-gate", tmp_path / "other.safetensors")
    result = run("tune", "learn", model, "--data", rows, "--out", tmp_path / "gate.safetensors", *words)
    assert result.exit_code == 2 and "does not fit the model" in result.stderr


def test_a_grid_without_scores_is_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    result = run("tune", "grid", model, "--data", rows, "--out", tmp_path / "gate.safetensors")
    assert result.exit_code == 2 and "Missing option '--scores'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_adapt_writes_a_lora_its_path_and_its_controls(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    words = ("--epochs", 2, "--guard", 9, "--controls", 1, "--rank", 4, "--heads", 0.25, "--dtype", "fp32")
    result = run("tune", "adapt", model, "--data", rows, "--out", out, *words)
    assert result.exit_code == 0, result.output
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"]) == ("LORA", 8)
    assert settings["base_model_name_or_path"] == model.name
    assert HeadAdapter.load(out).rank == 4 and len(HeadAdapter.load(out).heads) == 2
    told = json.loads((out / "tuning.json").read_text())
    assert told["chosen"] is not None and told["settings"]["choose"] == "attribution"
    assert told["controls"][0]["name"] == "random-1" and HeadAdapter.load(out / "controls" / "random-1").heads
    assert "random-1" in result.output and "2 heads:" in result.output and str(out) in result.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_adapt_writes_nothing_where_nothing_helps(model: Path, tmp_path: Path) -> None:
    coin = [
        replace(question, truthful=question.untruthful, untruthful=question.truthful) if number % 2 else question
        for number, question in enumerate(planted_questions(24))
    ]
    data = write_questions(tmp_path / "coin.jsonl", coin)
    words = ("--epochs", 1, "--guard", 1e-9, "--dtype", "fp32")
    result = run("tune", "adapt", model, "--data", data, "--out", tmp_path / "adapter", *words)
    assert result.exit_code == 1, result.output
    assert "no adapter" in result.output and "nothing was written" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["coin.jsonl"]
    result = run("tune", "adapt", model, "--data", data, "--out", tmp_path / "adapter", *words, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1 and found["adapter"] is None and found["out"] is None and found["path"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--choose", "best"), "best"),
        (("--choose", "truth"), "--choose truth needs Truth Scores"),
        (("--heads", "0"), "--heads must be above 0"),
        (("--scores", "missing.safetensors"), "not there"),
        (("--choose", "all", "--controls", "2"), "all heads are chosen"),
    ],
)
def test_bad_input_to_adapt_ends_with_two_lines_and_leaves_nothing(
    model: Path, rows: Path, tmp_path: Path, words: tuple[str, ...], problem: str, unchecked: None
) -> None:
    result = run("tune", "adapt", model, "--data", rows, "--out", tmp_path / "adapter", *words)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 2 and lines[0].startswith("error:") and lines[1].startswith("do:")
    assert problem in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the check of annotations off: it would fire before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_adapt_replaces_no_folder_of_another_kind(model: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    command = ("tune", "adapt", model, "--data", rows, "--out", tmp_path / "mine")
    result = run(*command)
    assert result.exit_code == 2 and "exists already" in result.stderr
    result = run(*command, "--force")
    assert result.exit_code == 2 and "is not replaced" in result.stderr
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
