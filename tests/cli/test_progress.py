"""How far long work is: lines on a pipe with the time left, and what a stopped command says."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from planted import planted_questions, save_planted
from truthheads.cli import app, console
from truthheads.data.questions import write_questions
from truthheads.models import progress as layers
from truthheads.models.forward import plan_batches, prepare_tails, run_batches
from truthheads.models.load import load
from truthheads.models.progress import WorkParts
from truthheads.models.prompts import encode

LINE = re.compile(
    r"(?P<label>.+): (?P<done>[\d,]+) of (?P<total>[\d,]+) \((?P<share>\d+)%\)(?P<left>, \d:\d\d:\d\d left)?"
)


def test_a_pipe_gets_a_line_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console, "Progress", lambda *columns, **how: Bar(*columns, get_time=lambda: now[0], **how))
    with console.progress_bar("rows") as advance:
        for second in range(1, 41):
            now[0] += 1
            advance(second, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "rows: 10 of 100 (10%), 0:01:30 left",
        "rows: 20 of 100 (20%), 0:01:20 left",
        "rows: 30 of 100 (30%), 0:01:10 left",
        "rows: 40 of 100 (40%), 0:01:00 left",
    ]


Bar = console.Progress


def test_short_work_and_finished_work_leave_no_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress_bar("rows") as advance:
        advance(1, 2)
    monkeypatch.setattr(console, "LINE_AFTER_SECONDS", 0.0)
    with console.progress_bar("rows") as advance:
        advance(2, 2)
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("progress")
    save_planted(folder / "model")
    write_questions(folder / "rows.jsonl", planted_questions(60))
    return folder


RUN = ("model", "--data", "rows.jsonl", "--dtype", "fp32", "--batch-tokens", "400")

COMMANDS = {
    "score": ("score", *RUN, "--out", "s.safetensors"),
    "attribution": ("score", *RUN, "--method", "attribution", "--out", "a.safetensors"),
    "trace": ("trace", *RUN, "--out", "t.safetensors"),
    "tune": ("tune", "learn", *RUN, "--epochs", "2", "--out", "g.safetensors"),
    "evaluate": ("evaluate", "pairs", *RUN, "--out", "pairs"),
    "pairs": ("data", "pairs", "rows.jsonl", "--model", "model", "--dtype", "fp32", "--out", "p.jsonl"),
    "ground": ("ground", *RUN, "--controls", "1", "--out", "grounded"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_long_command_says_how_far_it_is(name: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    monkeypatch.setattr(console, "LINE_AFTER_SECONDS", 0.0)
    result = CliRunner().invoke(app, list(COMMANDS[name]))
    assert result.exit_code == 0, result.stderr
    told = [found for line in result.stderr.splitlines() if (found := LINE.fullmatch(line))]
    assert any(found["left"] for found in told)
    for label in {found["label"] for found in told}:
        done = [int(found["done"].replace(",", "")) for found in told if found["label"] == label]
        totals = {found["total"] for found in told if found["label"] == label}
        assert done == sorted(done) and len(totals) == 1
    assert max(int(found["share"]) for found in told) >= 50


def test_a_batch_that_takes_long_tells_its_layers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SLOW_SECONDS", 0.0)
    model = load(str(work / "model"), dtype="fp32")
    encoded = encode(model, planted_questions(8))
    batches = plan_batches(encoded, batch_tokens=10_000)
    assert len(batches) == 1
    told: list[tuple[int, int]] = []

    def step(batch: object) -> None:
        with torch.inference_mode():
            model.network(**prepare_tails(model, encoded).inputs)

    run_batches(
        model, encoded, batches, step, done=set(), complete=lambda _: None, progress=lambda *at: told.append(at)
    )
    total = sum(one.unique_tokens for one in encoded)
    # Two passes, over prefixes and tails, through two layers: three quarters, and then the whole.
    assert told == [(total * part // 4, total) for part in (1, 2, 3, 4)]
    assert not any(module._forward_hooks for module in model.network.modules())


def test_a_quick_batch_tells_its_end_alone(work: Path) -> None:
    model = load(str(work / "model"), dtype="fp32")
    told: list[float] = []
    begun = time.monotonic()
    with layers.told_by_layer(model, told.append):
        model.network(torch.tensor([[1, 2, 3]]))
    assert time.monotonic() - begun > layers.SLOW_SECONDS or told == []


def test_parts_of_work_are_one_count() -> None:
    told: list[tuple[int, int]] = []
    parts = WorkParts(lambda *at: told.append(at), {"a": 100.0, "b": 300.0})
    a = parts.part("a")
    assert a is not None
    a(1, 2)
    for turn in range(2):
        b = parts.part("b", turn=turn, turns=2)
        assert b is not None
        b(0, 5)
        b(5, 5)
    a(2, 2)
    assert told == [(50, 400), (50, 400), (200, 400), (200, 400), (350, 400), (400, 400)]
    assert WorkParts(None, {"a": 1.0}).part("a") is None


def stopped_by(command: Callable[..., None]) -> Callable[[], str]:
    def run() -> str:
        import typer

        @command  # type: ignore[misc]
        def stop() -> None:
            raise KeyboardInterrupt

        with pytest.raises(typer.Exit) as error:
            stop()
        assert error.value.exit_code == 130
        return ""

    return run


def test_a_stopped_command_says_whether_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    stopped_by(lambda stop: console.guarded(console.resumable(stop)))()
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"
    stopped_by(console.guarded)()
    assert capsys.readouterr().err == "stopped; nothing was kept: the same command begins again\n"
