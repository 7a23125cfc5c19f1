"""Two commands on one ``--out``: the second is told so and harms nothing; locks end with their process."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import COMMANDS, contents
from forking import Ended, Nursery
from truthheads.errors import ArtifactError
from truthheads.storage.files import OLD, recover, replace_folder, take, temporary_beside
from truthheads.storage.output_lock import locked_folder, locked_output


def refused(ended: Ended, name: str) -> None:
    """It is one line on what was wrong and one on what to do."""
    assert (ended.code, ended.stdout) == (2, "")
    first, second = ended.stderr.splitlines()
    assert first.startswith("error: ") and f"{name} is in use" in first
    assert second == "do: wait for it, or choose another --out"


ANNOUNCED = """
import fcntl, pathlib
plain = fcntl.flock
def flock(handle, how):
    plain(handle, how)
    pathlib.Path({!r}).touch()
fcntl.flock = flock
"""
"""A command says when it holds its first lock; that the file is there is too early, since it is locked a step later."""


@pytest.mark.parametrize("name", ["score", "grid", "adapter", "pairs", "trace", "fit", "detect", "evaluate detect"])
def test_the_second_is_refused_and_the_first_is_whole(name: str, helper: Nursery, place: Path, tmp_path: Path) -> None:
    command, alone, both = COMMANDS[name], tmp_path / "alone", tmp_path / "both"
    for folder in (alone, both):
        folder.mkdir()
    assert helper.run(*command.words, "--out", alone / command.out, folder=place).code == 0
    holds = tmp_path / "holds"
    words = (*command.words, "--out", both / command.out)
    first = helper.start(*words, folder=place, first=ANNOUNCED.format(str(holds)))
    while not holds.exists():
        assert not first.over()
        time.sleep(0.0005)
    first.kill(signal.SIGSTOP)
    try:
        other = () if name == "adapter" else ("--seed", 9)  # an export draws nothing
        second = helper.run(*command.words, *other, "--out", both / command.out, folder=place)
        refused(second, command.out)
    finally:
        first.kill(signal.SIGCONT)
    ended = first.wait()
    assert ended.code == 0, ended.stderr
    assert contents(both) == contents(alone)


def test_another_name_in_the_same_folder_is_no_obstacle_unless_tuning_json_is_meant(
    helper: Nursery, place: Path, tmp_path: Path
) -> None:
    with locked_output(tmp_path / "a.safetensors", tmp_path / "tuning.json"):
        score = helper.run(*COMMANDS["score"].words, "--out", tmp_path / "b.safetensors", folder=place)
        assert score.code == 0, score.stderr
        tune = helper.run(*COMMANDS["grid"].words, "--out", tmp_path / "c.safetensors", folder=place)
        refused(tune, "tuning.json")
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_two_reports_at_once_leave_one_whole_page(helper: Nursery, place: Path, tmp_path: Path) -> None:
    command = COMMANDS["report"]
    alone = helper.run(*command.words, "--out", tmp_path / "alone.html", folder=place)
    assert alone.code == 0, alone.stderr
    words = (*command.words, "--out", tmp_path / "page.html", "--force")
    running = [helper.start(*words, folder=place) for _ in range(3)]
    assert [child.wait().code for child in running] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.html", "page.html"]
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "alone.html").read_bytes()


NO_LOCKS = f"""
import fcntl
def flock(handle, how):
    raise OSError({errno.ENOLCK}, "no locks available")
fcntl.flock = flock
"""


@pytest.mark.parametrize("name", ["score", "sharded", "pairs"])
def test_a_file_system_without_locks_does_as_well(name: str, helper: Nursery, place: Path, tmp_path: Path) -> None:
    command = COMMANDS[name]
    for folder, first in (("with", ""), ("without", NO_LOCKS)):
        (tmp_path / folder).mkdir()
        words = (*command.words, "--out", tmp_path / folder / command.out)
        ended = helper.run(*words, folder=place, first=first)
        assert ended.code == 0, ended.stderr
    assert contents(tmp_path / "without") == contents(tmp_path / "with")


def test_a_lock_file_that_may_only_be_read_locks_as_well(helper: Nursery, place: Path, tmp_path: Path) -> None:
    """Such a file a killed command of another user leaves in a shared folder."""
    lock = tmp_path / ".b.safetensors.lock"
    lock.touch()
    lock.chmod(0o444)
    words = (*COMMANDS["score"].words, "--out", tmp_path / "b.safetensors")
    held = take(lock)
    assert held is not None
    refused(helper.run(*words, folder=place, plain=True), "b.safetensors")
    held.release(remove=False)
    ended = helper.run(*words, folder=place, plain=True)
    assert ended.code == 0, ended.stderr


# --- names that are claimed ------------------------------------------------------------------------------------------


def test_claims_leave_nothing_and_no_empty_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.bin"
    with locked_output(target), locked_folder(tmp_path / "d" / "e"):
        for again in (locked_output(target), locked_folder(tmp_path / "d" / "e")):
            with pytest.raises(ArtifactError, match="is in use"), again:
                pass
        with locked_output(target.with_name("other.bin")):
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), locked_output(target):
        target.write_text("x", encoding="utf-8")
        raise KeyError
    with locked_output(target):
        pass
    assert [path.name for path in target.parent.iterdir()] == ["c.bin"]


def test_the_folder_one_stands_in_is_no_file_and_can_be_filled(helper: Nursery, place: Path, tmp_path: Path) -> None:
    for words in (COMMANDS["score"].words, COMMANDS["grid"].words, ("gate", "scores.safetensors")):
        ended = helper.run(*words, "--out", ".", folder=place)
        assert ended.code == 2 and "is a folder" in ended.stderr
    said = helper.run(*COMMANDS["adapter"].words, "--out", ".", folder=place)
    assert said.code == 2 and said.stderr.startswith("error: ")
    made = helper.run("data", "make", "text", "--rows", 3, "--out", ".", folder=tmp_path)
    assert made.code == 0, made.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["questions.jsonl"]


def test_the_first_process_claims_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked_output(tmp_path / "x"), locked_folder(tmp_path / "f"):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with locked_output(tmp_path / "x"), locked_folder(tmp_path / "f"):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(ArtifactError, match="x is in use"), locked_output(tmp_path / "x"):
            pass


def test_a_lock_that_its_last_holder_removed_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened just before another process removes it: a lock on it would keep nobody out."""
    plain, first = fcntl.flock, take(tmp_path / "lock")
    assert first is not None

    def flock(handle: int, how: int) -> None:
        first.release()
        plain(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = take(tmp_path / "lock")
    monkeypatch.undo()
    assert second is not None and take(tmp_path / "lock") is None
    second.release()
    second.release()  # says nothing
    assert list(tmp_path.iterdir()) == []


ORPHAN = """
import os, sys
from pathlib import Path
from truthheads.storage.files import take
lock = take(Path(sys.argv[1]))
asked, told = os.pipe()
ready, begun = os.pipe()
worker = os.fork()
if worker == 0:
    os.close(told)
    os.write(begun, b"x")
    os.read(asked, 1)
    os._exit(0)
os.read(ready, 1)
os.close(lock._handle)  # what the end of a killed process does
print("free" if take(Path(sys.argv[1])) is not None else "held by the worker")
os.close(told)
os.waitpid(worker, 0)
"""


def test_a_worker_that_outlives_its_killed_parent_keeps_no_lock(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, str(tmp_path / "lock")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "free\n"


# --- what lies beside a name -----------------------------------------------------------------------------------------


def boxes(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


def test_what_a_living_process_writes_is_left_alone_and_what_a_dead_one_left_is_not(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    dead = tmp_path / ".x.bin.abcdefg1.tmp"
    dead.mkdir()
    (dead / "new.bin").write_text("half", encoding="utf-8")
    foreign = tmp_path / ".x.bin.other.tmp", tmp_path / ".x.bin.y.abcdefg1.tmp"
    for one in foreign:
        one.mkdir()
    with temporary_beside(target) as mine:
        assert not dead.exists() and mine.parent.is_dir()
        mine.write_text("mine", encoding="utf-8")
        with temporary_beside(target) as theirs:
            assert mine.read_text(encoding="utf-8") == "mine" and theirs.parent != mine.parent
        recover(target)
        assert mine.read_text(encoding="utf-8") == "mine"
    assert boxes(tmp_path) == sorted(one.name for one in foreign)


def test_folders_change_places(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for text in ("one", "two"):
        with temporary_beside(target) as new:
            new.mkdir()
            (new / text).touch()
            replace_folder(new, target)
        assert [path.name for path in target.iterdir()] == [text]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_old_folder_is_never_thrown_away_as_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither name can be given: the old folder stays aside, for the next start to give it back."""
    target, rename = tmp_path / "folder", Path.rename
    (target / "mine").mkdir(parents=True)

    def only_away(self: Path, other: Path) -> Path:
        if Path(other) == target:
            raise PermissionError(errno.EACCES, "no", str(other))
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", only_away)
    with pytest.raises(PermissionError), temporary_beside(target) as new:
        new.mkdir()
        replace_folder(new, target)
    (box,) = boxes(tmp_path)
    assert (tmp_path / box / OLD / "mine").is_dir()
    recover(target)
    assert boxes(tmp_path) == [box]
    monkeypatch.undo()
    with locked_output(target):
        assert (target / "mine").is_dir()
    assert os.listdir(tmp_path) == ["folder"]
