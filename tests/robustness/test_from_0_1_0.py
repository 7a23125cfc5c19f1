"""What 0.1.0 wrote is read, continued and shown by this version; its calls still work."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import truthheads as th
from planted import planted_questions, save_planted
from truthheads.data.answers import describe_data, same_data
from truthheads.data.questions import write_questions
from truthheads.evaluation.evaluate import evaluate
from truthheads.models.load import load
from truthheads.storage.files import dumps


@pytest.mark.parametrize("task", ["pairs", "conflict"])
def test_an_evaluation_that_0_1_0_began_is_continued(task: str, tmp_path: Path) -> None:
    """0.1.0 did not write down which rows have two answers that are alike; its folder is of the same data anyway."""
    model = load(str(save_planted(tmp_path / "model")), dtype="fp32")
    data = write_questions(tmp_path / "rows.jsonl", planted_questions(6))
    out = tmp_path / "out"
    evaluate(model, task, data, out=out, asking={"new_tokens": 2} if task == "conflict" else None)
    whole = {name: (out / name).read_bytes() for name in ("predictions.jsonl", "summary.json")}
    settings = json.loads((out / "run.json").read_text())
    del settings["settings"]["data"]["alike"]
    (out / "run.json").write_text(dumps(settings))
    begun = whole["predictions.jsonl"].splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(begun[:3]))
    (out / "summary.json").unlink()
    evaluate(model, task, data, out=out, asking={"new_tokens": 2} if task == "conflict" else None)
    assert {name: (out / name).read_bytes() for name in whole} == whole


def test_only_what_follows_from_the_rows_is_not_compared() -> None:
    one, other = (describe_data(planted_questions(rows)) for rows in (4, 5))
    before = {key: value for key, value in one.items() if key != "alike"}
    assert same_data(one, before) and same_data(before, one)
    assert not same_data(one, other) and not same_data(one, None) and not same_data(before, {**before, "path": "x"})


def test_scores_are_built_by_the_arguments_of_0_1_0(tmp_path: Path) -> None:
    """Of the constructor's fields the later ones come last and may be left out: their intervals are those of a file."""
    drawn = np.random.default_rng(0)
    values = torch.full((2, 3), 0.75)
    numbers = torch.arange(40)
    fields = (
        "probe", values, values, values, values, values[None], torch.zeros(0, 2, 3),
        torch.from_numpy(drawn.normal(size=(40, 2, 3))).half(), numbers % 2, numbers // 2, numbers // 2,
        numbers // 2 + 7, torch.zeros(2, 3, 4), values, {"seed": 3},
    )  # fmt: skip
    scores = th.Scores(*fields)
    assert scores.meta == {"seed": 3}
    for name, shape in (("dependence", (2, 3)), ("pair_dependence", (2, 3)), ("layer_dependence", (2,))):
        assert getattr(scores, name).shape == shape and getattr(scores, name).isnan().all()
    scores.save(tmp_path / "scores.safetensors")
    assert th.Scores.load(tmp_path / "scores.safetensors").table() == scores.table()
    without = th.Scores.of("probe", values, meta={}, dependence=torch.ones(2, 3))
    assert without.dependence.eq(1).all() and without.layer_dependence.isnan().all()
