"""lm-evaluation-harness, where it is installed: a live gate, an exported checkpoint and an adapter say the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from planted import save_planted
from truthheads.benchmarks.base import AskOptions
from truthheads.errors import DataError, ModelError
from truthheads.evaluation.evaluate import evaluate
from truthheads.evaluation.lm_eval import line_of
from truthheads.evaluation.predictions import NAME, read_predictions
from truthheads.exporting.export import export
from truthheads.models.load import Model, load
from truthheads.results.gate import Gate
from vision_zoo import seeing
from zoo import MULTIMODAL

TASK = "lm-eval:truthheads_halueval_qa"
ROWS = [
    {"knowledge": f"Rome {at}", "question": f"Where {at}", "right_answer": "Italy", "hallucinated_answer": "France"}
    for at in range(4)
]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_planted(tmp_path / "planted")


def gate_for(model: Model) -> Gate:
    layers, heads = model.layout.num_layers, model.layout.num_heads
    return Gate(gate=1 + 0.5 * torch.randn(layers, heads, generator=torch.Generator().manual_seed(0)))


def said(folder: Path, run: str) -> list[float]:
    return [line["yes"] for line in read_predictions(folder / NAME).lines if line["run"] == run and "yes" in line]


@pytest.mark.filterwarnings("ignore")
def test_live_gate_checkpoint_and_adapter_agree(harness: Any, folder: Path, rows: Path, tmp_path: Path) -> None:
    model = load(str(folder), dtype="fp32")
    gate = gate_for(model)
    summary = evaluate(model, TASK, rows, out=tmp_path / "live", gates={"g": gate}, guard_texts=0)
    live = said(tmp_path / "live", "g")
    assert summary["rows"] == 8 and live != said(tmp_path / "live", "none")
    assert {"accuracy", "auroc", "yes_rate"} <= summary["runs"][1]["effect"].keys()
    before = (tmp_path / "live" / NAME).read_bytes()
    evaluate(model, TASK, rows, out=tmp_path / "live", gates={"g": gate}, guard_texts=0)
    assert (tmp_path / "live" / NAME).read_bytes() == before
    export(model, gate, to="checkpoint", out=tmp_path / "checkpoint")
    evaluate(load(str(tmp_path / "checkpoint"), dtype="fp32"), TASK, rows, out=tmp_path / "exported")
    assert said(tmp_path / "exported", "none") == pytest.approx(live, abs=1e-4)
    export(model, gate, to="adapter", out=tmp_path / "adapter")
    made = tmp_path / "task"
    made.mkdir()
    (made / "local.yaml").write_text(
        json.dumps(
            {
                "task": "local", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
                "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
                "doc_to_choice": ["Italy", "France"], "doc_to_target": 0, "metric_list": [{"metric": "acc"}],
            }
        )
    )  # fmt: skip
    found = {}
    for name, words in {
        "checkpoint": {"pretrained": str(tmp_path / "checkpoint")},
        "adapter": {"pretrained": str(folder), "peft": str(tmp_path / "adapter")},
    }.items():
        manager = harness.tasks.TaskManager(include_path=str(made), include_defaults=False)
        words |= {"dtype": "float32", "device": "cpu"}
        ran = harness.simple_evaluate("hf", words, ["local"], task_manager=manager, bootstrap_iters=0)
        found[name] = [pair[0] for sample in ran["samples"]["local"] for pair in sample["filtered_resps"]]
    assert found["adapter"] == pytest.approx(found["checkpoint"], abs=1e-4)
    means = evaluate(model, "lm-eval:local", made, out=tmp_path / "means", asking=AskOptions(limit=3))
    assert means["primary"] == "acc" and means["rows"] == 3


@pytest.mark.filterwarnings("ignore")
def test_tasks_that_are_not_there(harness: Any, folder: Path, tmp_path: Path) -> None:
    model = load(str(folder), dtype="fp32")
    with pytest.raises(DataError, match="has no task 'truthheads_quiz'"):
        evaluate(model, "lm-eval:truthheads_quiz", [], out=tmp_path / "e")
    with pytest.raises(DataError, match="--data cannot be used"):
        evaluate(model, TASK, tmp_path / "absent.jsonl", out=tmp_path / "e")


ARC = {
    "task": "arc",
    "output_type": "multiple_choice",
    "doc_to_text": "q",
    "doc_to_choice": ["a", "b"],
    "doc_to_target": 0,
}
ARC |= {"test_split": "test", "dataset_kwargs": {}, "metric_list": [{"metric": "acc"}]}


@pytest.mark.filterwarnings("ignore")
def test_what_the_harness_cannot_do_is_said_with_what_helps(
    harness: Any, folder: Path, rows: Path, tmp_path: Path
) -> None:
    model = load(str(folder), dtype="fp32")
    (own := tmp_path / "own").mkdir()
    (own / "arc.yaml").write_text(json.dumps({**ARC, "dataset_path": str(tmp_path / "nothing")}))
    (own / "pack.yaml").write_text(json.dumps({"group": "pack", "task": ["arc"]}))
    with pytest.raises(DataError, match="could not run arc") as lost:
        evaluate(model, "lm-eval:arc", own, out=tmp_path / "a")
    assert "--data FILE.jsonl" in lost.value.fix
    with pytest.raises(DataError, match="pack takes no rows of your own") as group:
        evaluate(model, "lm-eval:pack", [own, rows], out=tmp_path / "b")
    assert group.value.fix == "leave the file out of --data"
    with pytest.raises(ModelError, match="takes images") as image:
        evaluate(seeing(next(row for row in MULTIMODAL if row.name == "llava")), TASK, rows, out=tmp_path / "c")
    assert "lmms-eval" in image.value.fix
    with pytest.raises(DataError, match=r"(?s)could not run.*did not find any docs"):
        evaluate(model, TASK, rows, out=tmp_path / "d", asking=AskOptions(limit=0))


@pytest.mark.filterwarnings("ignore")
def test_a_row_whose_answers_are_the_same_is_refused(harness: Any, folder: Path, tmp_path: Path) -> None:
    row = {"knowledge": "Rome is in Italy.", "question": "Where is Rome?", "right_answer": "Italy"}
    rows = [{**row, "hallucinated_answer": "Spain"}, {**row, "hallucinated_answer": "Italy "}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    with pytest.raises(DataError, match="row 2: right_answer and hallucinated_answer are the same: 'Italy'"):
        evaluate(load(str(folder), dtype="fp32"), TASK, path, out=tmp_path / "e")


def test_a_choice_between_yes_and_no_becomes_a_line_of_ours() -> None:
    sample = {
        "doc_id": 3, "doc": {"group": "q"}, "target": 1, "prompt_hash": "h", "filter": "none", "metrics": ["acc"],
        "arguments": [("p", " Yes"), ("p", " No")], "filtered_resps": [(-1.0, False), (-2.0, False)], "acc": 0.0,
    }  # fmt: skip
    line = line_of(TASK, "none", "part", sample)
    assert (line["yes"], line["no"], line["gold"], line["parsed"]) == (-1.0, -2.0, "no", {"logits": "yes"})
    other = line_of(TASK, "none", "part", {**sample, "arguments": [("p", " Rome"), ("p", " Paris")]})
    assert other["metrics"] == {"acc": 0.0} and "parsed" not in other
