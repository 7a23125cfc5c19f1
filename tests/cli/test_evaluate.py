"""The command ``truthheads evaluate``: what it writes, prints and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from planted import planted_questions, save_planted
from truthheads.benchmarks.registry import BENCHMARKS
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.results.gate import Gate

POPE = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "no"},
    {"question_id": 3, "image": "b.jpg", "text": "Is there a cat in the image?", "label": "yes"},
]
ANSWERS = [{"question_id": 1, "answer": "Yes."}, {"question_id": 2, "answer": "Yes"}, {"question_id": 3, "answer": "?"}]
CAPTIONS = [{"image_id": 7, "caption": "A dog and a cat."}, {"image_id": 8, "caption": "A car. A dog on"}]
TRUTH = {"7": ["dog"], "8": ["car", "person"]}


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_answers_made_elsewhere(tmp_path: Path) -> None:
    data, answers = jsonl(tmp_path / "pope.json", POPE), jsonl(tmp_path / "answers.jsonl", ANSWERS)
    out = tmp_path / "out"
    result = run("evaluate", "answers", "pope", answers, "--data", data, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    (only,) = summary["runs"]
    values = {name: figure["value"] for name, figure in only["metrics"].items()}
    assert (only["name"], only["effect"], summary["rows"], summary["task"]) == ("none", {}, 3, "pope")
    assert values["accuracy"] == pytest.approx(1 / 3) and values["recall"] == 0.5
    assert values["recall_released"] == 1.0 and values["yes_rate_released"] == pytest.approx(2 / 3)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["parsed"]["strict"] for line in lines] == ["yes", "yes", None]
    assert [line["gold"] for line in lines] == ["yes", "no", "yes"]


def test_captions_made_elsewhere_and_figures_from_predictions_alone(tmp_path: Path) -> None:
    captions, truth = jsonl(tmp_path / "c.jsonl", CAPTIONS), tmp_path / "truth.json"
    truth.write_text(json.dumps(TRUTH))
    out = tmp_path / "out"
    result = run("evaluate", "answers", "chair", captions, "--data", truth, "--out", out)
    assert result.exit_code == 0 and "chair_i" in result.output
    whole = (out / "summary.json").read_bytes()
    metrics = json.loads(whole)["runs"][0]["metrics"]
    # dog, cat | car, dog: cat of the first and dog of the second are not there.
    assert metrics["chair_i"]["value"] == 0.5 and metrics["chair_s"]["value"] == 1.0
    assert metrics["recall"]["value"] == pytest.approx(2 / 3)
    assert metrics["chair_i_whole"]["value"] == pytest.approx(1 / 3)  # without "A dog on"
    for path in (captions, truth, out / "summary.json"):
        path.unlink()
    assert run("evaluate", "rescore", out).exit_code == 0
    assert (out / "summary.json").read_bytes() == whole
    lines = (out / "predictions.jsonl").read_bytes()
    (out / "predictions.jsonl").write_bytes(lines[:-30])
    again = run("evaluate", "rescore", out)
    assert again.exit_code == 0 and "cut off" in again.output
    assert json.loads((out / "summary.json").read_text())["rows"] == 1


def test_synonyms_in_the_official_format(tmp_path: Path) -> None:
    captions, truth = jsonl(tmp_path / "c.jsonl", CAPTIONS), tmp_path / "truth.json"
    truth.write_text(json.dumps(TRUTH))
    (tmp_path / "s.txt").write_text("dog\ncar\nperson, man\n")
    words = ("evaluate", "answers", "chair", captions, "--data", truth, "--out", tmp_path / "o")
    result = run(*words, "--synonyms", tmp_path / "s.txt", "--json")
    assert json.loads(result.stdout)["runs"][0]["metrics"]["chair_i"]["value"] == pytest.approx(1 / 3)


def test_a_model_with_gates_and_controls(tmp_path: Path) -> None:
    model = save_planted(tmp_path / "planted")
    data = write_questions(tmp_path / "q.jsonl", planted_questions(24))
    shape = json.loads((model / "config.json").read_text())
    layers, heads = shape["n_layer"], shape["n_head"]
    factors = 1 + 0.3 * torch.randn(layers, heads, generator=torch.Generator().manual_seed(0))
    Gate(gate=factors).save(tmp_path / "own.safetensors")
    out = tmp_path / "out"
    words = ("evaluate", "pairs", model, "--data", data, "--out", out, "--guard-texts", 4, "--controls", 1)
    result = run(*words, "--gate", tmp_path / "own.safetensors")
    assert result.exit_code == 0, result.output
    assert "beaten" in result.output and "own: " in result.output
    runs = json.loads((out / "summary.json").read_text())["runs"]
    assert [entry["name"] for entry in runs][:2] == ["none", "own"] and len(runs) == 5
    assert runs[1]["controls"]["of"] == 3
    Gate(gate=torch.ones(layers + 1, heads)).save(tmp_path / "other.safetensors")
    refused = run(*words, "--gate", tmp_path / "other.safetensors")
    assert refused.exit_code == 2 and "Traceback" not in refused.output


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    return {
        "pope": jsonl(tmp_path / "pope.jsonl", POPE),
        "answers": jsonl(tmp_path / "answers.jsonl", ANSWERS),
        "captions": jsonl(tmp_path / "c.jsonl", CAPTIONS),
        "truth": tmp_path / "truth.json",
        "none": tmp_path / "none.jsonl",
        "out": tmp_path / "out",
    }


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("answers pope {answers} --data {answers} --out {out}", "field 'answer'"),
        ("answers pope {pope} --data {pope} --out {out}", "field 'answer'"),
        ("answers pope {none} --data {pope} --out {out}", "is not there"),
        ("answers chair {answers} --data {pope} --out {out}", "no ground truth"),
        ("answers chair {captions} {captions} --data {truth} --out {out}", "captions come in one file"),
        ("rescore {none}", "cannot be read"),
        ("chair m --data {truth} --caps 64,none --out {out}", "--caps cannot be read"),
        ("chair m --data {truth} --caps 64,64 --out {out}", "--caps cannot be read"),
        ("chair m --data {truth} --instruction {none} --out {out}", "cannot be read"),
        ("m --task pope --data {pope} --captions {captions}", "not clear what to evaluate"),
        ("--task chair --data {pope} --answers {answers}", "not clear what to evaluate"),
        ("--task pope --answers {answers} --rescore {out}", "not clear what to evaluate"),
        ("--task pope --answers {none} --data {pope} --out {out}", "is not there"),
        ("--rescore {none} --out {out}", "cannot be read"),
    ],
)
def test_bad_input_ends_in_two_lines_and_code_2(words: str, problem: str, names: dict[str, Path]) -> None:
    result = run("evaluate", *words.format(**names).split())
    assert result.exit_code == 2
    assert problem in result.output and "do:" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("pope m", "Missing option '--data'"),
        ("m --task pope", "Missing option '--data'"),
        ("pope --data {pope}", "Missing argument 'MODEL'"),
        ("pairs m --data {pope} --caps 64", "No such option: --caps"),
        ("m --task pairs --data {pope} --cap 64", "No such option: --cap"),
        ("answers pairs {answers} --data {pope}", "No such command 'pairs'"),
        ("m --data {pope}", "task 'm' is not known: expected halueval, pope"),
    ],
)
def test_what_is_missing_or_too_much_is_named(words: str, problem: str, names: dict[str, Path]) -> None:
    result = run("evaluate", *words.format(**names).split())
    assert result.exit_code == 2 and problem in result.output


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "--task pope --answers {answers} --data {pope} --out {out}",
            "answers pope --data {pope} --out {out} {answers}",
        ),
        (
            "--captions={captions} --data {truth} --task=chair --out {out}",
            "answers chair --data {truth} --out {out} {captions}",
        ),
    ],
)
def test_the_form_of_0_1_gives_the_same_and_a_note(old: str, new: str, names: dict[str, Path]) -> None:
    said = []
    for words in (new, old):
        result = run("evaluate", *words.format(**names).split())
        assert result.exit_code == 0, result.output
        said.append(result)
    assert said[0].stdout == said[1].stdout
    words = [line for line in said[0].stderr.splitlines() if line.strip()]
    assert len(words) == ("chair" in new) and all("not the published one" in line for line in words)
    written = new.format(**names).replace(f" {names['out']} ", f" {names['out']} -- ")
    assert (
        said[1].stderr.removesuffix(said[0].stderr).strip()
        == f"note: this form of evaluate will go; type: truthheads evaluate {written}"
    )
    again = run("evaluate", "--rescore", names["out"], "--out=elsewhere", "--seed", 3, "--json")
    assert json.loads(again.stdout)["settings"]["seed"] == 3 and "evaluate rescore" in again.stderr


def test_options_without_effect_in_the_form_of_0_1_are_left_out_and_named(names: dict[str, Path]) -> None:
    """0.1.0 had one set of options for all tasks, and took those that the task did not use."""
    out = names["out"]
    words = "--task chair --captions {captions} --data {truth} --caps 64 --dtype=fp32 --chat --seed 2 --out {out}"
    result = run("evaluate", *words.format(**names).split())
    assert result.exit_code == 0, result.output
    assert "; --caps, --dtype, --chat left out: no effect on answers chair" in " ".join(result.stderr.split())
    assert json.loads((out / "run.json").read_text())["settings"]["seed"] == 2
    result = run("evaluate", "--rescore", out, "--task", "chair", "--limit=1", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["rows"] == 2
    assert "--task, --limit left out: no effect on rescore" in " ".join(result.stderr.split())


def test_a_model_in_the_form_of_0_1(tmp_path: Path) -> None:
    model = save_planted(tmp_path / "planted")
    data = write_questions(tmp_path / "q.jsonl", planted_questions(8))
    for at, words in enumerate((("pairs", model), (model, "--task", "pairs"))):
        ignored = ("--caps", "64,512", "--no-knowledge", "--new-tokens", 3) if at else ()
        result = run("evaluate", *words, "--data", data, *ignored, "--out", tmp_path / str(at), "--limit", 4)
        assert result.exit_code == 0, result.output
        named = "--caps, --no-knowledge, --new-tokens left out: no effect on pairs"
        assert (named in " ".join(result.stderr.split())) == bool(at)
    assert (tmp_path / "0" / "predictions.jsonl").read_bytes() == (tmp_path / "1" / "predictions.jsonl").read_bytes()
    refused = run("evaluate", model, "--task", "lm-eval:no_such_task", "--data", tmp_path / "absent")
    assert refused.exit_code == 2 and "evaluate lm-eval no_such_task" in refused.stderr


def test_a_toy_has_its_sub_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(BENCHMARKS, "toy", "toy_benchmark:TOY")
    assert "The toy: does the answer hold the word?" in run("evaluate", "--help").stdout
    helped = run("evaluate", "toy", "--help").stdout
    assert "--before" in helped and "Text put before" in helped and "1,2" in helped
    model = save_planted(tmp_path / "planted")
    data = jsonl(tmp_path / "toy.jsonl", [{"prompt": f"Where is {at}?", "word": "a"} for at in range(3)])
    (tmp_path / "note.txt").write_text("Only a toy.")
    gate = tmp_path / "own.safetensors"
    shape = json.loads((model / "config.json").read_text())
    Gate(gate=torch.full((shape["n_layer"], shape["n_head"]), 0.5)).save(gate)
    words = ("--note", tmp_path / "note.txt", "--marks", "7,9", "--new-tokens", 3, "--gate", gate, "--guard-texts", 2)
    result = run("evaluate", "toy", model, "--data", data, "--out", tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    assert "note: Only a toy." in result.output and "effect on lacking" in result.output and "length" in result.output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["marks"] == [7, 9]
    made = jsonl(tmp_path / "answers.jsonl", [{"answer": "a"}, {"answer": "b"}, {"answer": ""}])
    scored = run("evaluate", "answers", "toy", made, "--data", data, "--out", tmp_path / "scored", "--json")
    assert json.loads(scored.stdout)["runs"][0]["metrics"]["lacking"]["value"] == pytest.approx(2 / 3)
    monkeypatch.setitem(BENCHMARKS, "toy", "toy_benchmark:NONE")
    broken = run("evaluate", "toy", model, "--data", data)
    assert broken.exit_code == 2 and "registered by half" in broken.stderr and "do:" in broken.stderr


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["pairz", "model"], "did you mean pairs?"),
        (["qqq", "model"], "choose one of them"),
        (["answers", "pupe", "said.jsonl"], "did you mean pope?"),
        (["lm-eval:arc_easy", "model"], "truthheads evaluate lm-eval arc_easy MODEL"),
        (["model", "--task", "pairz", "--data", "rows.jsonl"], "did you mean pairs?"),
    ],
    ids=" ".join,
)
def test_an_unknown_task_lists_all_and_names_the_nearest(words: list[str], fix: str) -> None:
    result = run("evaluate", *words)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert fix in said and "lm-eval" in said
    if "did you mean" in fix:
        assert "halueval, pope, chair, pairs, conflict, lm-eval:NAME" in said
