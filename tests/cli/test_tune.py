"""The command ``truthheads tune``: what it writes, prints and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from planted import PLANTED_HEAD, planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.results.gate import Gate

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
