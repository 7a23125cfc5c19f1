"""``ground`` gains where there is something to gain, claims nothing where there is not, and does no step twice."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from commands import contents
from planted import ENTITIES, planted_model, planted_questions
from shaped import misfits
from truthheads.cli import app
from truthheads.data.questions import Question, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import ArtifactError, DataError
from truthheads.models.load import load
from truthheads.results.gate import Gate
from truthheads.results.grounding import GroundResult
from truthheads.tuning import learn as learning
from truthheads.workflows.ground import Settings, ground

FEW = Settings(controls=1, guard=0.5, test_share=0.5, chat=False)  # planted: made for the plain prompt


def save(folder: Path, *, memory: float) -> str:
    """Write the planted model with a memory: every name is the likelier or the less likely, whatever the context."""
    made = planted_model()
    ids = made.tokenizer.convert_tokens_to_ids(list(ENTITIES))
    names = made.network.lm_head.weight.detach()[ids].double()
    likely = torch.randn(len(ids), generator=torch.Generator().manual_seed(5)) * memory
    with torch.no_grad():
        made.network.transformer.ln_f.bias += (names.T @ torch.linalg.solve(names @ names.T, likely.double())).float()
    made.network.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stubborn(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("stubborn") / "model", memory=2.0)


@pytest.fixture(scope="module")
def faithful(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("faithful") / "model", memory=0.0)


def rows_at(path: Path, rows: Sequence[Question]) -> Path:
    return write_questions(path, rows)


@pytest.fixture(scope="module")
def grounded(stubborn: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("grounded")
    data = rows_at(folder / "rows.jsonl", planted_questions(240))
    return folder, ground(stubborn, data, out=folder / "out", settings=FEW, dtype="fp32")


def test_a_model_that_can_be_made_better_is(grounded: tuple[Path, dict[str, Any]]) -> None:
    folder, result = grounded
    assert result["better"] and result["verdict"] == "better" and result["exported"] == "model"
    assert result["effect"]["pair_accuracy"]["low"] > 0
    assert result["controls"]["beaten"] == result["controls"]["of"] == 3
    gated = load(str(folder / "out" / "model"), dtype="fp32")
    assert gated.layout.num_heads == 4
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "The gated model was written to model" in page
    written = json.loads((folder / "out" / "ground.json").read_text(encoding="utf-8"))
    assert written["better"] is True and misfits(written, GroundResult) == []


def test_no_group_is_learned_from_and_tested_on(grounded: tuple[Path, dict[str, Any]]) -> None:
    folder, result = grounded
    dev, test = (read_questions(folder / "out" / f"{name}.jsonl") for name in ("dev", "test"))
    assert not {row.group for row in dev} & {row.group for row in test}
    assert len(dev) + len(test) == 240 and len(test) == result["test_rows"] == 120


def test_nothing_is_done_twice(stubborn: str, grounded: tuple[Path, dict[str, Any]]) -> None:
    folder, before = grounded
    told: list[tuple[str, bool]] = []
    again = ground(
        stubborn,
        folder / "rows.jsonl",
        out=folder / "out",
        settings=FEW,
        dtype="fp32",
        tell=lambda name, there: told.append((name, there)),
    )
    assert again == before
    assert told == [(name, True) for name in ("pair", "split", "learn", "test", "export")]


def test_nothing_is_claimed_where_answers_are_right_already(faithful: str, tmp_path: Path) -> None:
    data = rows_at(tmp_path / "rows.jsonl", planted_questions(120))
    result = ground(faithful, data, out=tmp_path / "out", settings=FEW, dtype="fp32")
    assert result["ungated"]["pair_accuracy"]["value"] == 1.0
    assert not result["better"] and result["exported"] is None
    assert not (tmp_path / "out" / "model").exists()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No model was written" in page and "nothing to gain" in page and "nothing to gain" in result["advice"][0]
    summary = json.loads((tmp_path / "out" / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in summary["runs"]] == ["none", "learned"] and result["controls"] == {}
    assert any("controls of gate learned were not run" in note for note in summary["notes"])


def test_nothing_is_claimed_where_labels_are_a_coin(stubborn: str, tmp_path: Path) -> None:
    coin = np.random.default_rng(1).random(160) < 0.5
    rows = [
        replace(row, truthful=row.untruthful, untruthful=row.truthful, evidence=()) if side else row
        for row, side in zip(planted_questions(160), coin, strict=True)
    ]
    result = ground(stubborn, rows_at(tmp_path / "rows.jsonl", rows), out=tmp_path / "out", settings=FEW, dtype="fp32")
    assert not result["better"] and result["exported"] is None


def test_missing_untruthful_answers_are_made(stubborn: str, tmp_path: Path) -> None:
    rows = [replace(row, untruthful=None) if at % 2 else row for at, row in enumerate(planted_questions(120))]
    path = tmp_path / "rows.jsonl"
    told = [
        {"context": row.context, "question": row.question, "truthful": row.truthful, "untruthful": row.untruthful}
        for row in rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    ground(stubborn, path, out=tmp_path / "out", settings=FEW, dtype="fp32")
    pairs = read_questions(tmp_path / "out" / "pairs.jsonl")
    assert len(pairs) > 100 and all(row.truthful and row.untruthful for row in pairs)
    given = {row.question: row.untruthful for row in rows if row.untruthful}
    assert all(given.get(row.question, row.untruthful) == row.untruthful for row in pairs)


def test_stopped_again_and_again_every_step_goes_on_to_the_same_bytes(
    stubborn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "SAVED_EVERY_SECONDS", 0.0)
    rows = [replace(row, untruthful=None) if at % 2 else row for at, row in enumerate(planted_questions(60))]
    path = tmp_path / "rows.jsonl"
    lines = (
        json.dumps({key: getattr(row, key) for key in ("id", "context", "question", "truthful", "untruthful")})
        for row in rows
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    how = replace(FEW, export_anyway=True, batch_tokens=300)
    ground(stubborn, path, out=tmp_path / "out", settings=how, dtype="fp32")
    (tmp_path / "out").rename(tmp_path / "whole")  # artefacts name the file that they were made from
    step: list[str] = []
    stopped: list[str] = []

    def stop(done: int, total: int) -> None:
        if step[-1] not in stopped and done > total / 4:
            stopped.append(step[-1])
            raise KeyboardInterrupt

    while len(stopped) < 9:
        try:
            ground(
                stubborn,
                path,
                out=tmp_path / "out",
                settings=how,
                dtype="fp32",
                tell=lambda name, _: step.append(name),
                progress=stop,
            )
            break
        except KeyboardInterrupt:
            continue
    assert {"pair", "learn", "test"} <= set(stopped)
    whole, again = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert whole.keys() == again.keys()
    assert [name for name in whole if whole[name] != again[name]] == []


def test_a_relatives_gate_is_started_from(stubborn: str, tmp_path: Path) -> None:
    Gate(torch.full((2, 4), 1.25)).save(tmp_path / "base.safetensors")
    data = rows_at(tmp_path / "rows.jsonl", planted_questions(60))
    ground(
        stubborn,
        data,
        out=tmp_path / "out",
        settings=replace(FEW, base_gate=tmp_path / "base.safetensors"),
        dtype="fp32",
    )
    tuning = json.loads((tmp_path / "out" / "tuning.json").read_text(encoding="utf-8"))
    assert tuning["settings"]["target"] == Gate.load(tmp_path / "base.safetensors").digest


def test_too_few_rows_and_foreign_files_are_one_error(faithful: str, tmp_path: Path) -> None:
    data = rows_at(tmp_path / "rows.jsonl", planted_questions(20))
    with pytest.raises(DataError, match="too few questions to learn from and to test on"):
        ground(faithful, data, out=tmp_path / "out", settings=FEW, dtype="fp32")
    mine = rows_at(tmp_path / "mine" / "pairs.jsonl", planted_questions(60))
    before = mine.read_bytes()
    with pytest.raises(ArtifactError, match="no step of this folder made it"):
        ground(faithful, mine, out=tmp_path / "mine", settings=FEW, dtype="fp32")
    assert mine.read_bytes() == before


def test_the_command_says_what_comes_next(stubborn: str, tmp_path: Path) -> None:
    data = rows_at(tmp_path / "rows.jsonl", planted_questions(60))
    words = ["ground", stubborn, "--data", data, "--out", tmp_path / "out", "--guard", 0.5, "--dtype", "fp32"]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--controls", 1, "--export-anyway"]])
    assert result.exit_code == 0, result.output
    assert "vllm serve" in result.stdout and "verdict:" in result.stdout
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "because --export-anyway was given" in page
    told = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert [file for file in told if os.fsencode(tmp_path) in file.read_bytes()] == []  # where it lies is nobody's
