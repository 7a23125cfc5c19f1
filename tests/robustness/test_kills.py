"""SIGKILL at any moment: nothing is ever half there, and the next run ends with the bytes of one that was left alone.

Every command runs in a real process of its own (see ``forking``), is killed at moments drawn over the time that it
takes, and is then left to finish. Between the two, whatever has its final name has its final bytes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from commands import COMMANDS, contents, digests
from forking import Ended, Nursery
from truthheads.results.gate import Gate
from truthheads.storage.files import recover

PREDICTIONS = "predictions.jsonl"
KILLS = {
    "score": (4, 4, 4),
    "grid": (3, 2),
    "learn": (3, 2),
    "adapt": (3, 2),
    "adapter": (3, 3),
    "checkpoint": (3,),
    "sharded": (3, 2),
    "gguf": (2, 2),
    "pairs": (3, 2),
    "halueval": (3, 2),
    "closed-book": (2, 2),
    "fit": (2, 2),
    "detect": (2, 2),
}
"""So many kills in a row before each run that is left alone."""
WRITING = {"score": 2, "grid": 1, "adapter": 2, "sharded": 2, "gguf": 2}


class Runs:
    """One command: its uninterrupted run, and a folder in which it is interrupted."""

    def __init__(self, name: str, helper: Nursery, place: Path, tmp_path: Path) -> None:
        self.command, self.helper, self.place = COMMANDS[name], helper, place
        self.folder = tmp_path / "interrupted"
        self.folder.mkdir()
        alone = tmp_path / "alone"
        alone.mkdir()
        self.seconds = self.finish(alone).seconds
        self.whole = contents(alone)
        assert self.whole

    def words(self, folder: Path, *more: object) -> tuple[object, ...]:
        return *self.command.words, "--out", folder / self.command.out, *more

    def finish(self, folder: Path, *more: object) -> Ended:
        ended = self.helper.run(*self.words(folder, *more), folder=self.place)
        assert ended.code == 0, ended.stderr
        return ended

    def killed(self, when: Callable[[], bool], *more: object) -> bool:
        """Start the command, kill it as soon as ``when`` says so, and return whether that was soon enough."""
        child = self.helper.start(*self.words(self.folder, *more), folder=self.place)
        while not when() and not child.over():
            time.sleep(0.0005)
        child.kill()
        code = child.wait().code
        assert code in (0, -signal.SIGKILL)
        return code != 0

    def killed_after(self, seconds: float, *more: object) -> bool:
        end = time.monotonic() + seconds
        return self.killed(lambda: time.monotonic() >= end, *more)

    def check_whole_or_not_there(self) -> None:
        """What has a final name is what the uninterrupted run has written under it."""
        found = contents(self.folder)
        for name in found.keys() & self.whole.keys():
            if name.endswith(PREDICTIONS):  # a journal: it grows line by line
                assert self.whole[name].startswith(found[name])
            else:
                assert found[name] == self.whole[name], name
        for name in found.keys() - self.whole.keys():
            assert name.startswith(".") or "/." in name or ".partial/" in name, name
        if (self.folder / self.command.out).is_dir() and self.command.words[0] == "export":
            assert digests(contents(self.folder / self.command.out)) == digests(
                {name.partition("/")[2]: value for name, value in self.whole.items()}
            )

    def check_finished(self) -> None:
        found = contents(self.folder)
        assert digests(found) == digests(self.whole)
        assert sorted(entry.name for entry in self.folder.iterdir()) == [self.command.out.partition("/")[0]]

    def again(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()


@pytest.mark.parametrize("name", KILLS)
def test_killed_at_any_moment(name: str, helper: Nursery, place: Path, tmp_path: Path) -> None:
    runs = Runs(name, helper, place, tmp_path)
    generator = np.random.default_rng(sum(map(ord, name)))
    hits = 0
    # One that had ended before its kill is replaced by the next.
    force = () if runs.command.words[0] == "evaluate" else ("--force",)
    for row in KILLS[name]:
        for share in generator.uniform(0.02, 1.0, row):
            hits += runs.killed_after(float(share) * runs.seconds, *force)
            runs.check_whole_or_not_there()
        runs.finish(runs.folder, *force)
        runs.check_finished()
        runs.again()
    assert hits >= sum(KILLS[name]) / 3  # the others had ended by then


def test_there_are_fifty_kills() -> None:
    assert sum(map(sum, KILLS.values())) >= 50


@pytest.mark.parametrize("name", WRITING)
def test_killed_while_it_writes(name: str, helper: Nursery, place: Path, tmp_path: Path) -> None:
    """What is being written lies in a folder beside its final name: that is when the process is killed."""
    runs = Runs(name, helper, place, tmp_path)
    around = (runs.folder / runs.command.out).parent
    generator = np.random.default_rng(7)
    hits = 0
    for delay in generator.uniform(0, 0.004, WRITING[name]):
        hits += runs.killed(lambda: around.is_dir() and any(one.endswith(".tmp") for one in os.listdir(around)))
        time.sleep(float(delay))
        runs.check_whole_or_not_there()
        runs.finish(runs.folder, "--force")
        runs.check_finished()
        runs.again()
    assert hits or name == "grid"


@pytest.mark.parametrize("name", ["adapter", "sharded"])
def test_an_export_that_replaces_another_is_the_old_or_the_new_one_at_any_moment(
    name: str, helper: Nursery, place: Path, tmp_path: Path
) -> None:
    runs = Runs(name, helper, place, tmp_path)
    Gate.load(place / "gate.safetensors").scaled(0.5).save(place / "other.safetensors")
    before = tmp_path / "before"
    before.mkdir()
    words = tuple("other.safetensors" if word == "gate.safetensors" else word for word in runs.command.words)
    assert helper.run(*words, "--out", before / runs.command.out, folder=place).code == 0
    old, new = contents(before), runs.whole
    assert old != new and old.keys() == new.keys()
    for share in (*np.random.default_rng(3).uniform(0.3, 1.0, 4), None):
        runs.again()
        shutil.copytree(before / runs.command.out, runs.folder / runs.command.out)
        if share is None:  # at the moment when the new one is written
            runs.killed(lambda: any(one.endswith(".tmp") for one in os.listdir(runs.folder)), "--force")
        else:
            end = time.monotonic() + float(share) * runs.seconds
            runs.killed(lambda end=end: time.monotonic() >= end, "--force")  # type: ignore[misc]
        recover(runs.folder / runs.command.out)  # with which the next command begins: needed between the two renames
        visible = {name: found for name, found in contents(runs.folder).items() if not name.startswith(".")}
        assert visible in (old, new)
        runs.finish(runs.folder, "--force")
        runs.check_finished()


BETWEEN_RENAMES = """
import os, signal
from pathlib import Path
from truthheads.storage import files
plain, moved = Path.rename, []
def rename(self, target):
    if files.OLD in (self.name, Path(target).name) or moved:
        moved.append(target)
    if len(moved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, target)
Path.rename = rename
"""


def test_killed_between_two_renames_the_old_folder_comes_back(helper: Nursery, place: Path, tmp_path: Path) -> None:
    """Killed between the two renames, no folder has the name; the next command on it begins with giving it back."""
    runs = Runs("adapter", helper, place, tmp_path)
    runs.finish(runs.folder)
    (runs.folder / "adapter" / "mine.txt").write_text("old", encoding="utf-8")
    old = contents(runs.folder)
    ended = helper.run(*runs.words(runs.folder, "--force"), folder=place, first=BETWEEN_RENAMES)
    assert ended.code == -signal.SIGKILL
    assert not (runs.folder / "adapter").exists()
    refused = helper.run(*runs.words(runs.folder), folder=place)
    assert refused.code == 2 and "exists already" in refused.stderr
    assert contents(runs.folder) == old
    assert sorted(entry.name for entry in runs.folder.iterdir()) == ["adapter"]


def test_a_forked_command_writes_what_a_started_one_writes(helper: Nursery, place: Path, tmp_path: Path) -> None:
    runs = Runs("score", helper, place, tmp_path)
    words = [str(word) for word in runs.words(runs.folder)]
    done = subprocess.run(
        [sys.executable, "-m", "truthheads", *words],
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr and all(line.startswith("warning: ") for line in done.stderr.splitlines())
    runs.check_finished()
    assert "truthheads score model" in json.dumps(str(runs.whole))  # the command line, as typed


def test_the_helper_process_has_one_thread(helper: Nursery) -> None:
    """Locks that another thread holds at the moment of a fork stay locked in the child for ever."""
    assert helper.threads == 1
