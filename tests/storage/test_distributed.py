"""Several processes of one command: the same bytes as one, and nothing lost when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from planted import planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.errors import ArtifactError, TruthHeadsError
from truthheads.evaluation.predictions import NAME, Journal, files_of, gathered, key_of
from truthheads.results.gate import Gate
from truthheads.storage.distributed import check_launched, my_share, on_cpus, ranks
from truthheads.storage.row_store import Field, RowShards, RowStore, open_rows

FIELDS = {"value": Field((2,), torch.float32)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]


def place(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for module in ("storage.distributed", "storage.row_store", "evaluation.predictions"):
        monkeypatch.setattr(f"truthheads.{module}.barrier", lambda: None)


ALONE = """
import os, sys
from datetime import timedelta
import provoked
from truthheads.storage import distributed
distributed.ARRIVAL = timedelta(seconds=int(sys.argv[1]))
with provoked.recorded():
    try:
        distributed.barrier()
        print("met", flush=True)
        if distributed.ranks().rank == 1:
            os._exit(0)
        distributed.barrier()
    except distributed.PeerLostError as error:
        print(error)
os._exit(0)
"""


def one_of_two(rank: int, port: int, seconds: int) -> "subprocess.Popen[str]":
    """Start one process of two, which says what it meets with."""
    own = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-c", ALONE, str(seconds)]
    return subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_a_process_that_is_alone_says_that_the_others_are_to_be_started() -> None:
    with socket.socket() as taken:  # where the first process would wait for the second
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = one_of_two(0, taken.getsockname()[1], 5).communicate(timeout=120)[0]
    assert said.startswith("rank 0 of 2 did not meet the others") and "a free MASTER_PORT" in said
    assert "do: start all of them; for one process alone, unset WORLD_SIZE" in said


def test_a_process_whose_peer_has_ended_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [one_of_two(rank, port, 100) for rank in range(2)]
    first, second = (one.communicate(timeout=120)[0] for one in both)
    assert second == "met\n" and first.startswith("met\nanother process of this command has ended")
    assert "do: see what the other process has said; then start the same command again" in first


def test_every_batch_is_somebodys_and_loads_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [int(cost) for cost in torch.randint(1, 400, (57,), generator=torch.Generator().manual_seed(0))]
    shares = []
    for rank in range(3):
        place(monkeypatch, rank, 3)
        shares.append(my_share(costs))
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
        assert isinstance(parts, RowShards)
        for batch in (0, 2) if rank == 0 else (1,):
            rows = torch.tensor([2 * batch, 2 * batch + 1])
            parts.write("value", rows, values[rows])
            parts.complete(batch)
        if rank == 1:
            assert parts.whole(3) is None
            continue
        store = parts.whole(3)
        assert isinstance(store, RowStore) and torch.equal(store.read("value"), values)
        store.close()
    assert not (tmp_path / "work.parts").exists()


def test_parts_of_something_else_go_and_a_missing_part_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, 0, 2)
    first = RowShards(tmp_path / "work", FIELDS, rows=4, identity="a")
    first.write("value", torch.tensor([0, 1]), torch.ones(2, 2))
    first.complete(0)
    assert RowShards(tmp_path / "work", FIELDS, rows=4, identity="a").done == {0}
    other = RowShards(tmp_path / "work", FIELDS, rows=4, identity="b")
    assert other.done == set()
    with pytest.raises(ArtifactError, match="batch 0 of 2 is missing"):
        other.whole(2)
    place(monkeypatch, 1, 2)
    with pytest.raises(ArtifactError, match="not the same folder for all processes"):
        RowShards(tmp_path / "elsewhere", FIELDS, rows=4, identity="a")


def test_a_batch_that_came_in_halves_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch, 0, 2)
    parts = open_rows(tmp_path / "work", FIELDS, rows=4, identity="a")
    assert isinstance(parts, RowShards)
    values = torch.arange(8.0).view(4, 2)
    for rows in (torch.tensor([0, 3]), torch.tensor([1, 2])):
        parts.write("value", rows, values[rows])
    parts.complete(0)
    store = parts.whole(1)
    assert torch.equal(store.read("value"), values)
    store.close()


def test_one_process_goes_on_from_several_and_several_from_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.arange(12.0).view(6, 2)

    def begun(world: int, batch: int, identity: str = "a") -> RowStore | RowShards:
        place(monkeypatch, 0, world)
        rows = torch.tensor([2 * batch, 2 * batch + 1])
        store = open_rows(tmp_path / "work", FIELDS, rows=6, identity=identity)
        before = set(store.done)
        assert before == set(range(batch))
        store.write("value", rows, values[rows])
        store.complete(batch)
        return store

    begun(3, 0).close()
    begun(1, 1).close()
    last = begun(2, 2)
    assert isinstance(last, RowShards)
    store = last.whole(3)
    assert torch.equal(store.read("value"), values)
    store.close()
    begun(1, 0, identity="b").close()
    begun(2, 0, identity="c").close()
    begun(1, 0, identity="d").close()


def line(run: str, number: int) -> dict[str, object]:
    return {"task": "pairs", "run": run, "id": str(number), "logp": [number / 3, -1.0]}


def test_predictions_of_one_and_of_several_go_on_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(run, number) for run in ("none", "gate") for number in range(4)]
    alone = Journal(tmp_path / "alone" / NAME)
    alone.add(lines)
    path = tmp_path / NAME
    for rank, world, which in ((2, 3, [1, 5]), (0, 1, [0, 7]), (1, 2, [3, 2]), (0, 2, [6])):
        place(monkeypatch, rank, world)
        journal = Journal(path)
        journal.add(lines[at] for at in which)
    for rank, world in ((1, 2), (0, 1)):
        place(monkeypatch, rank, world)
        assert Journal(path).done == {key_of(lines[at]) for at in (0, 1, 2, 3, 5, 6, 7)}
    Journal(path).add([lines[4]])
    whole = gathered(path, [key_of(each) for each in lines])
    assert whole.path.read_bytes() == alone.path.read_bytes() and whole.lines == alone.lines
    assert files_of(path) == [path]
    # A run that a command does not ask for stays where it stands.
    place(monkeypatch, 1, 2)
    Journal(path).add([line("other", 0)])
    place(monkeypatch, 0, 2)
    again = gathered(path, [key_of(line("other", 0)), *(key_of(each) for each in lines[4:])])
    assert [each["run"] for each in again.lines] == ["none"] * 4 + ["other"] + ["gate"] * 4


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


@pytest.mark.parametrize(
    ("accelerators", "names", "cpus"),
    [
        (0, {}, True),
        (2, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, False),
        (2, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "True"}, True),
        (1, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, True),  # shared: nccl refuses two processes on one
        (1, {"LOCAL_RANK": "3"}, True),  # each process sees its own alone
        (8, {"LOCAL_RANK": "7", "ACCELERATE_USE_CPU": "False"}, False),
    ],
)
def test_processes_meet_on_cpus_unless_each_has_an_accelerator(
    accelerators: int, names: dict[str, str], cpus: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerators > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: accelerators)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert on_cpus() == cpus


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_planted(folder / "model")
    write_questions(folder / "rows.jsonl", planted_questions(60))
    write_questions(folder / "many.jsonl", planted_questions(400))
    Gate(torch.tensor([[1.0, 1.1, 1.0, 0.9], [1.0, 1.0, 1.3, 1.0]])).save(folder / "gate.safetensors")
    return folder


def shared(out: str, *, data: str = "rows.jsonl", tokens: int = 200) -> list[str]:
    return ["--data", data, "--dtype", "fp32", "--batch-tokens", str(tokens), "--out", out]


def command(
    folder: Path,
    words: Sequence[str],
    out: str,
    *,
    launcher: Sequence[str] = (sys.executable,),
    **how: Any,
) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        environment.pop(name, None)
    return subprocess.Popen(
        [*launcher, "-m", "truthheads", *words, *shared(out, **how)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def alone(folder: Path, words: Sequence[str], out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in this process what :func:`command` does in one of its own: no second start of Python and torch."""
    monkeypatch.chdir(folder)
    argv = ["truthheads", *words, *shared(out)]
    monkeypatch.setattr(sys, "argv", argv)  # an artefact holds the command that made it
    done = CliRunner().invoke(app, argv[1:])
    assert done.exit_code == 0, done.output[-3000:]


def finished(started: subprocess.Popen[str]) -> str:
    told, _ = started.communicate(timeout=240)
    assert started.returncode == 0, told[-3000:]
    return told


def test_two_processes_write_the_bytes_of_one(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = ["evaluate", "pairs", "model", "--gate", "gate.safetensors", "--controls", "1"]
    evaluate += ["--guard-texts", "4", "--baseline", "cad", "--baseline", "prompt"]
    alone(setting, ["score", "model"], "scores-1.safetensors", monkeypatch)
    alone(setting, evaluate, "evaluation-1", monkeypatch)
    finished(command(setting, ["score", "model"], "scores-2.safetensors", launcher=TORCHRUN))
    by_accelerate = [*ACCELERATE, "--multi_gpu", "--main_process_port", str(free_port())]
    told = finished(command(setting, evaluate, "evaluation-2", launcher=by_accelerate))
    assert told.count("written: evaluation-2/summary.json") == 1  # one process speaks
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def of_rank(launcher: int, rank: int) -> int | None:
    """Return the process of a rank below a launcher, None where there is none (yet)."""
    for at in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = at.joinpath("stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
            if int(parent) == launcher and f"RANK={rank}".encode() in at.joinpath("environ").read_bytes().split(b"\0"):
                return int(at.name)
    return None


def wait_for_batches(parts: Path, started: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list(parts.glob("batch-*"))) < 5 and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="ranks are read from Linux's /proc")
@pytest.mark.parametrize("victim", [1, 0])
def test_a_process_that_is_killed_ends_the_other_and_loses_one_batch(setting: Path, victim: int) -> None:
    out = f"killed-{victim}.safetensors"
    parts = setting / f"{out}.partial" / "window-000000.parts"
    words = ["score", "model"]
    started = command(setting, words, out, launcher=TORCHRUN, data="many.jsonl", tokens=60)
    wait_for_batches(parts, started)
    ranks_of = [of_rank(started.pid, rank) for rank in (0, 1)]
    assert None not in ranks_of
    os.kill(ranks_of[victim] or 0, signal.SIGKILL)
    begun = time.monotonic()
    told = started.communicate(timeout=50)[0]
    assert time.monotonic() - begun < 30 and started.returncode == 1
    assert f"rank      : {victim} " in told and "SIGKILL" in told  # in torchrun's own words
    assert not Path(f"/proc/{ranks_of[1 - victim]}").exists()
    there = len(list(parts.glob("batch-*.safetensors")))
    assert there >= 5
    if victim == 1:  # what both have left is what one goes on from, to the bytes of one that was left in peace
        for name in (out, "whole.safetensors"):
            finished(command(setting, words, name, data="many.jsonl", tokens=60))
        assert (setting / out).read_bytes() == (setting / "whole.safetensors").read_bytes()
        assert not parts.exists()


def test_a_process_that_fails_says_why_and_ends_the_other(setting: Path) -> None:
    rows = 'data=rows.jsonl; [ "$RANK" = 1 ] && data=absent.jsonl; exec "$PYTHON" -m truthheads trace model --data'
    done = subprocess.run(
        [*TORCHRUN, "--no-python", "sh", "-c", f"{rows} $data --out failed.safetensors"],
        cwd=setting,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "error: absent.jsonl" in done.stderr and "rank      : 1 " in done.stderr
    assert "exitcode  : 2 " in done.stderr
    assert not (setting / "failed.safetensors").exists()


def by_hand(folder: Path, port: int, words: Sequence[Sequence[str]]) -> list[subprocess.Popen[str]]:
    """Start the processes of one command as several machines do, with nobody to look after them; a rank each."""
    place = {"WORLD_SIZE": str(len(words)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "truthheads", *each],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, each in enumerate(words)
    ]


def test_without_a_launcher_a_killed_process_is_noticed_by_who_waits_for_it(setting: Path) -> None:
    """As srun starts them: nobody ends the other, which does its share and then says what has happened."""
    parts = setting / "alone.safetensors.partial" / "window-000000.parts"
    words = ["score", "model", "--data", "many.jsonl", "--dtype", "fp32", "--batch-tokens", "60"]
    first, second = by_hand(setting, free_port(), [[*words, "--out", "alone.safetensors"]] * 2)
    wait_for_batches(parts, second)
    second.kill()
    told = first.communicate(timeout=120)[1]
    second.communicate()
    assert first.returncode == 2
    assert "error: another process of this command has ended before its part was done" in told
    assert "start the same command again, it goes on from here" in told


def test_accelerate_that_starts_one_process_for_several_is_one_error(setting: Path) -> None:
    started = command(setting, ["score", "model"], "one.safetensors", launcher=[*ACCELERATE, "--cpu", "--quiet"])
    told = " ".join(started.communicate(timeout=120)[0].split())
    assert started.returncode != 0
    assert "error: accelerate launch was asked for several processes and has started only one" in told
    assert "torchrun --nproc-per-node N -m truthheads" in told and "--multi_gpu" in told
    assert not (setting / "one.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "several"),
    [
        ({}, False),
        ({"MASTER_PORT": "29500"}, False),  # no launcher of ours
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),  # one was asked for
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "PMI_RANK": "0", "PMI_SIZE": "1"}, False),
    ],
)
def test_one_process_in_place_of_several_is_told_from_one(
    names: dict[str, str], several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TruthHeadsError, match="only one") if several else nullcontext():
        check_launched()
