"""Several processes of one command: the same bytes as one, and nothing lost when one of them dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from planted import planted_questions, save_planted
from truthheads.data import write_questions
from truthheads.errors import ArtifactError, PartDone
from truthheads.gates import Gate
from truthheads.ranks import Parts, open_rows, ranks, share
from truthheads.store import Field, RowStore

FIELDS = {"value": Field((2,), torch.float32)}
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes"]


def place(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setattr("truthheads.ranks.together", lambda: None)


def test_every_batch_is_somebodys_and_loads_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [int(cost) for cost in torch.randint(1, 400, (57,), generator=torch.Generator().manual_seed(0))]
    shares = []
    for rank in range(3):
        place(monkeypatch, rank, 3)
        shares.append(share(costs))
    assert sorted(number for one in shares for number in one) == list(range(57))
    loads = [sum(costs[number] for number in one) for one in shares]
    assert max(loads) - min(loads) <= max(costs)


def test_parts_of_two_processes_are_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(12.0).view(6, 2)
    for rank in (1, 0):
        place(monkeypatch, rank, 2)
        if rank == 1:
            (tmp_path / "work.parts").mkdir()
            (tmp_path / "work.parts" / "plan.json").write_text('{"identity": "a", "rows": 6}\n', encoding="utf-8")
        parts = open_rows(tmp_path / "work", FIELDS, rows=6, identity="a")
        assert isinstance(parts, Parts)
        for batch in (0, 2) if rank == 0 else (1,):
            rows = torch.tensor([2 * batch, 2 * batch + 1])
            parts.write("value", rows, values[rows])
            parts.complete(batch)
        if rank == 1:
            with pytest.raises(PartDone):
                parts.whole(3)
            continue
        store = parts.whole(3)
        assert isinstance(store, RowStore) and torch.equal(store.read("value"), values)
        store.close()
    assert not (tmp_path / "work.parts").exists()


def test_parts_of_something_else_go_and_a_missing_part_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, 0, 2)
    first = Parts(tmp_path / "work", FIELDS, rows=4, identity="a")
    first.write("value", torch.tensor([0, 1]), torch.ones(2, 2))
    first.complete(0)
    assert Parts(tmp_path / "work", FIELDS, rows=4, identity="a").done == {0}
    other = Parts(tmp_path / "work", FIELDS, rows=4, identity="b")
    assert other.done == set()
    with pytest.raises(ArtifactError, match="batch 0 of 2 is missing"):
        other.whole(2)
    place(monkeypatch, 1, 2)
    with pytest.raises(ArtifactError, match="not the same folder for all processes"):
        Parts(tmp_path / "elsewhere", FIELDS, rows=4, identity="a")


@pytest.mark.parametrize(
    ("names", "expected"),
    [({}, (0, 1)), ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)), ({"PMI_RANK": "1", "PMI_SIZE": "3"}, (1, 3))],
)
def test_a_process_knows_its_place(
    names: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert ranks() == expected


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_planted(folder / "model")
    write_questions(folder / "rows.jsonl", planted_questions(60))
    Gate(torch.tensor([[1.0, 1.1, 1.0, 0.9], [1.0, 1.0, 1.3, 1.0]])).save(folder / "gate.safetensors")
    return folder


def command(folder: Path, processes: int, words: Sequence[str], out: str) -> subprocess.Popen[str]:
    launcher = [*LAUNCH, str(processes), "-m"] if processes > 1 else [sys.executable, "-m"]
    shared = ["--data", "rows.jsonl", "--dtype", "fp32", "--batch-tokens", "200", "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*launcher, "truthheads", *words, *shared],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(started: subprocess.Popen[str]) -> str:
    told, _ = started.communicate(timeout=240)
    assert started.returncode == 0, told[-3000:]
    return told


def children_of(parent: int) -> list[int]:
    """Return the processes that a launcher has started and that are still there."""
    path = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(number) for number in path.read_text(encoding="ascii").split()] if path.is_file() else []


def test_two_processes_write_the_bytes_of_one(setting: Path) -> None:
    evaluate = ["evaluate", "model", "--task", "pairs", "--gate", "gate.safetensors", "--controls", "1"]
    evaluate += ["--guard-texts", "4"]
    for processes in (1, 2):
        finished(command(setting, processes, ["score", "model"], f"scores-{processes}.safetensors"))
        told = finished(command(setting, processes, evaluate, f"evaluation-{processes}"))
        assert told.count("summary.json") == 1  # one process speaks
    pairs = [(setting / f"scores-{n}.safetensors") for n in (1, 2)]
    assert pairs[0].read_bytes() == pairs[1].read_bytes()
    for name in ("predictions.jsonl", "summary.json", "run.json"):
        one, two = ((setting / f"evaluation-{n}" / name).read_bytes() for n in (1, 2))
        assert one == two, name
    assert sorted(path.name for path in (setting / "evaluation-2").iterdir()) == [
        "predictions.jsonl",
        "run.json",
        "summary.json",
    ]
    assert not list(setting.glob("*.partial*"))


def test_a_process_that_dies_ends_the_others_and_loses_one_batch(setting: Path) -> None:
    out = "killed.safetensors"
    parts = setting / f"{out}.partial.parts"
    started = command(setting, 2, ["score", "model"], out)
    deadline = time.monotonic() + 120
    while not list(parts.glob("batch-*")) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    workers = [number for number in children_of(started.pid) if started.poll() is None]
    if workers:
        os.kill(workers[-1], signal.SIGKILL)
    text, _ = started.communicate(timeout=60)
    assert started.returncode != 0 or not workers, text[-2000:]
    before = {path.name for path in parts.glob("batch-*")} if parts.is_dir() else set()
    finished(command(setting, 2, ["score", "model"], out))
    finished(command(setting, 1, ["score", "model"], "whole.safetensors"))
    assert (setting / out).read_bytes() == (setting / "whole.safetensors").read_bytes()
    assert before or (setting / out).is_file()
