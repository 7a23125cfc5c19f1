"""What 0.1.0 wrote is read, continued and shown by this version; its calls still work."""

import json
from pathlib import Path

import pytest

from planted import planted_questions, save_planted
from truthheads.data.answers import describe_data, same_data
from truthheads.data.questions import write_questions
from truthheads.evaluation.evaluate import evaluate
from truthheads.models.load import load
from truthheads.storage.files import dumps


@pytest.mark.parametrize("task", ["pairs", "conflict"])
def test_an_evaluation_that_0_1_0_began_is_continued(task: str, tmp_path: Path) -> None:
    """0.1.0 did not write down which rows have two answers that are alike: its folder is of the same data all the same."""
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
