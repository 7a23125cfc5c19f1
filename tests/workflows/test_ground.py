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
from truthheads.models.prompts import prompt_of
from truthheads.results.gate import Gate
from truthheads.results.grounding import GroundResult
from truthheads.storage.files import read_json
from truthheads.tuning import learn as learning
from truthheads.workflows.ground import Settings, ground

FEW = Settings(guard=0.5, test_share=0.5, chat=False)  # the planted head reads the plain prompt


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
    return folder, ground(stubborn, data, out=folder / "out", settings=replace(FEW, controls=1), dtype="fp32")


def test_a_model_that_can_be_made_better_is(grounded: tuple[Path, dict[str, Any]]) -> None:
    folder, result = grounded
    assert result["better"] and result["verdict"] == "better" and result["exported"] == "model"
    assert result["effect"]["pair_accuracy"]["low"] > 0
    tried = {one["name"]: one for one in result["remedies"]}
    assert list(tried) == ["prompt", "gate", "adapter"] and all(one["tested"] for one in tried.values())
    best = max((tried["gate"], tried["adapter"]), key=lambda one: one["effect"]["pair_accuracy"]["value"])
    assert result["remedy"] == best["name"] and result["effect"] == best["effect"] and best["ships"]
    assert best["beyond_prompt"]["low"] > 0 and best["harm"]["high"] <= 0.5
    runs = {run["name"] for run in read_json(folder / "out" / "evaluation" / "summary.json")["runs"]}
    assert {name.partition("/")[0] for name in runs if "/" in name} == {result["remedy"]}  # of what is shipped alone
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert f"The {'gated' if result['remedy'] == 'gate' else 'adapted'} model was written to model" in page
    written = json.loads((folder / "out" / "ground.json").read_text(encoding="utf-8"))
    assert written["better"] is True and misfits(written, GroundResult) == []


def test_the_shipped_model_writes_the_answers_that_are_shown(grounded: tuple[Path, dict[str, Any]]) -> None:
    folder, result = grounded
    lines = [json.loads(line) for line in (folder / "out" / "answers.jsonl").read_text("utf-8").splitlines()]
    test = read_questions(folder / "out" / "test.jsonl")
    assert [line["id"] for line in lines] == [row.id for row in test[:24]]
    changed = [line for line in lines if line["before"] != line["after"]]
    found = result["answers"]
    assert found["shown"] == changed[:5] and len(found["shown"]) == 5  # the first, whatever they say
    assert (found["changed"], found["asked"], found["remedy"]) == (len(changed), 24, result["remedy"])
    shipped = load(str(folder / "out" / "model"), dtype="fp32")
    for line, row in zip(lines[:6], test, strict=False):
        ids = torch.tensor([shipped.tokenizer(prompt_of(row))["input_ids"]])
        wrote = shipped.network.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
        assert shipped.tokenizer.decode(wrote, skip_special_tokens=True).split("\n")[0].strip() == line["after"]
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert f"the first 5 of {len(changed)} answers that changed, of 24 held-out rows" in page


def test_prompts_are_in_the_chat_template_where_there_is_one(stubborn: str, tmp_path: Path) -> None:
    rows = [replace(row, untruthful=None) for row in planted_questions(60)]
    asked: list[str] = []
    model = load(stubborn, dtype="fp32")
    template = model.tokenizer.apply_chat_template

    def applied(*given: Any, **how: Any) -> Any:
        asked.append(given[0][0]["content"])
        return template(*given, **how)

    model.tokenizer.apply_chat_template = applied
    result = ground(model, rows, out=tmp_path / "out", settings=replace(FEW, chat=None))
    assert result["chat"] is True
    summary = read_json(tmp_path / "out" / "evaluation" / "summary.json")
    tunings = [read_json(tmp_path / "out" / name) for name in ("tuning.json", "head-adapter/tuning.json")]
    assert summary["settings"]["chat"] is True and [one["settings"]["chat"] for one in tunings] == [True, True]
    assert any(not text.startswith("Context") for text in asked)  # asked without the context, for the wrong answer


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
        settings=replace(FEW, controls=1),
        dtype="fp32",
        tell=lambda name, there: told.append((name, there)),
    )
    assert again == before
    assert told == [(name, True) for name in ("pair", "split", "learn", "adapt", "test", "answers", "export")]


def test_nothing_is_claimed_where_answers_are_right_already(faithful: str, tmp_path: Path) -> None:
    data = rows_at(tmp_path / "rows.jsonl", planted_questions(120))
    result = ground(faithful, data, out=tmp_path / "out", settings=FEW, dtype="fp32")
    assert result["ungated"]["pair_accuracy"]["value"] == 1.0
    assert not result["better"] and result["exported"] is None
    assert not (tmp_path / "out" / "model").exists()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "No model was written" in page and "nothing to gain" in page and "nothing to gain" in result["advice"][0]
    summary = json.loads((tmp_path / "out" / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    names = [run["name"] for run in summary["runs"]]
    assert names[0] == "none" and names[-1] == "prompt" and not any("/" in name for name in names)
    assert result["controls"] == {} and {one["name"] for one in result["remedies"]} == {"prompt", "gate", "adapter"}


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

    while len(stopped) < 11:
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
    assert {"pair", "learn", "adapt", "test", "answers"} <= set(stopped)
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
    words = [
        "ground",
        stubborn,
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--guard",
        0.5,
        "--dtype",
        "fp32",
        "--no-chat",
    ]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--export-anyway"]])
    assert result.exit_code == 0, result.output
    assert "vllm serve" in result.stdout and "verdict:" in result.stdout
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "because --export-anyway was given" in page
    told = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert [file for file in told if os.fsencode(tmp_path) in file.read_bytes()] == []  # where it lies is nobody's
