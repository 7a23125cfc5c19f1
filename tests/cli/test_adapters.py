"""A head adapter on its whole way: trained with controls, evaluated beside them, exported in every format."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import ggufs
import truthheads as th
from planted import planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.tuning.adapt import AdaptSchedule

WORDS = ("--epochs", "2", "--guard", "9", "--heads", "0.25", "--dtype", "fp32", "--controls", "2")


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "q.jsonl", planted_questions(40))


@pytest.fixture(scope="module")
def adapter(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "grounded"
    run("tune", "adapt", model, "--data", rows, "--out", out, *WORDS)
    return out


def test_it_is_evaluated_beside_the_controls_that_were_trained_with_it(
    model: Path, rows: Path, adapter: Path, tmp_path: Path
) -> None:
    words = ("--adapter", adapter, "--controls", 2, "--baseline", "prompt", "--guard-texts", 4, "--dtype", "fp32")
    run("evaluate", "pairs", model, "--data", rows, "--out", tmp_path / "e", *words)
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    names = ["none", "grounded", "grounded/random-1", "grounded/random-2", "prompt"]
    assert [run["name"] for run in summary["runs"]] == names
    assert set(summary["runs"][1]["ahead"]) == {"grounded/random-1", "grounded/random-2"}
    assert summary["runs"][1]["guard"]["texts"] == 4 and "in_words" in summary["best"]
    again = th.evaluate(str(model), "pairs", rows, out=tmp_path / "p", adapter=adapter, controls=1, guard_texts=0)
    assert [run["name"] for run in again["runs"]] == names[:3]


@pytest.mark.parametrize("to", ["adapter", "checkpoint", "gguf-lora"])
def test_it_is_exported_and_names_no_folder_of_this_machine(
    to: str, model: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("out.gguf" if to == "gguf-lora" else "out")
    run("export", model, "--adapter", adapter, "--to", to, "--out", out)
    for file in [out, *adapter.rglob("*")] if out.is_file() else [*out.rglob("*"), *adapter.rglob("*")]:
        assert not file.is_file() or str(model.parent).encode() not in file.read_bytes(), file
    if to == "gguf-lora":
        return
    ids = torch.arange(4, 14)[None]
    base = th.load(str(model), dtype="fp32")
    with torch.inference_mode(), th.adapted(base, adapter):
        hook = base.network(input_ids=ids).logits
    if to == "adapter":
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == model.name
        out.rename(model.parent / f"served-{tmp_path.name}")
        out = model.parent / f"served-{tmp_path.name}"  # an adapter is looked for beside its base
    with torch.inference_mode():
        shipped = th.load(str(out), dtype="fp32").network(input_ids=ids).logits
    torch.testing.assert_close(shipped, hook, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_a_gguf_file_is_known_by_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights are dequantised: a card that named the model that the file was made from would be wrong."""
    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path / "cache"))
    (source,) = ggufs.write_gguf(tmp_path / "small.gguf")
    training = AdaptSchedule(epochs=2, rate=0.05, kl_first=0.1, kl_last=0.01)
    rows = [
        replace(one, truthful="yes", untruthful="no") for one in planted_questions(40)
    ]  # can be learned by anything
    found = th.tune(str(source), rows, method="adapt", choose="all", guard=50.0, training=training)
    assert found.adapter is not None and found.adapter.base == "small.gguf"
    found.save(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "made on the weights of the GGUF file small.gguf, dequantised" in " ".join(card.split())
    assert "base_model" not in card.split("---")[1] and "gguf_file='small.gguf'" in card
    beside = th.load(str(tmp_path / "adapter"), dtype="fp32")  # small.gguf lies beside the adapter's folder
    ids = torch.arange(4, 14)[None]
    base = th.load(str(source), dtype="fp32")
    with torch.inference_mode(), th.adapted(base, found.adapter):
        hook = base.network(input_ids=ids).logits
        torch.testing.assert_close(beside.network(input_ids=ids).logits, hook, atol=1e-4, rtol=1e-4)
    for to in ("gguf", "gguf-lora"):
        out = th.export(str(source), adapter=tmp_path / "adapter", to=to, out=tmp_path / f"{to}.gguf", measure=False)
        assert str(tmp_path).encode() not in out.read_bytes()
    with torch.inference_mode():
        merged = th.load(str(tmp_path / "gguf.gguf"), dtype="fp32").network(input_ids=ids).logits
    torch.testing.assert_close(merged, hook, atol=1e-4, rtol=1e-4)
    again = th.export(str(source), adapter=tmp_path / "adapter", to="adapter", out=tmp_path / "served")
    assert "small.gguf, dequantised" in " ".join((again / "README.md").read_text().split())
