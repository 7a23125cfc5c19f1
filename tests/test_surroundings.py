"""Disks that are full, memory that runs out, wrong clocks, foreign locales, folders that may only be read.

A command that cannot do its work ends with one line on what was wrong and one on what to do, exit code 2, and no half
file; as soon as it can, it ends with the bytes that it writes anywhere else.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commands import COMMANDS, contents
from forking import NOBODY, TREES, Ended, Nursery, nursery

WRITING = ("score", "grid", "adapter", "sharded", "gguf", "pairs", "trace", "report")
KB, MB = 1 << 10, 1 << 20
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def refused(ended: Ended) -> str:
    """Return the error after checking that it is two lines and code 2."""
    assert ended.code == 2, (ended.code, ended.stderr[-3000:])
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("[transformers]") and line]
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("do: "), ended.stderr[-3000:]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def whole(helper: Nursery, place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Return what every command writes where nothing is in its way."""
    found = {}
    for name in WRITING:
        folder = tmp_path_factory.mktemp("whole") / "out"
        folder.mkdir()
        assert finish(helper, place, name, folder).code == 0
        found[name] = contents(folder)
        assert found[name]
    return found


def finish(helper: Nursery, place: Path, name: str, folder: Path, **settings: Any) -> Ended:
    command = COMMANDS[name]
    return helper.run(*command.words, "--out", folder / command.out, folder=place, **settings)


def check_no_half_file(folder: Path, whole: dict[str, bytes]) -> None:
    """Whatever has a final name is whole; beside it is nothing but what a next run goes on from."""
    for name, found in contents(folder).items():
        if name.endswith("predictions.jsonl"):
            assert whole[name].startswith(found) and (found.endswith(b"\n") or not found)
        elif ".partial/" not in name:
            assert found == whole[name], name


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("disk")
    words = ["mount", "-t", "tmpfs", "-o", "size=3m", "truthheads-test", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free."""
    ballast = disk / "ballast"
    ballast.write_bytes(b"")
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - left)
    return ballast


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk(
    name: str, helper: Nursery, place: Path, small_disk: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    need = sum(map(len, whole[name].values()))
    for left in (0, 4 * KB, need // 2 // (4 * KB) * 4 * KB):
        folder = small_disk / name
        folder.mkdir(exist_ok=True)
        ballast = fill(small_disk, left)
        said = refused(finish(helper, place, name, folder))
        assert "could not be written" in said and ("disk is full" in said or "free space" in said), said
        check_no_half_file(folder, whole[name])
        ballast.unlink()
        assert finish(helper, place, name, folder).code == 0
        assert contents(folder) == whole[name]
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", WRITING)
def test_no_file_may_grow(
    name: str, helper: Nursery, place: Path, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    """The portable form of a full disk: writing beyond a size is an error."""
    folder = tmp_path / "out"
    folder.mkdir()
    most = max(map(len, whole[name].values()))
    for size in (1 * KB, most - 1):
        said = refused(finish(helper, place, name, folder, limits={"FSIZE": size}))
        assert "could not be written" in said
        check_no_half_file(folder, whole[name])
    assert finish(helper, place, name, folder).code == 0
    assert contents(folder) == whole[name]


# --- little memory ---------------------------------------------------------------------------------------------------

WHEN_IT_COMPUTES = """
import resource
from pathlib import Path
from truthheads import forward
plain = forward._halving
def halving(members, step):
    forward._halving = plain
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + {spare}
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    plain(members, step)
forward._halving = halving
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing tells how much memory a process has")
@pytest.mark.parametrize("name", ["score", "learn", "pairs"])
def test_memory_that_runs_out_while_it_computes(name: str, helper: Nursery, place: Path, tmp_path: Path) -> None:
    """A batch is halved until it fits; where nothing fits, that is said. What is written is the same, or nothing."""
    from planted import planted_questions
    from truthheads.data import write_questions

    write_questions(place / "sixty.jsonl", planted_questions(60))
    replaced = {"rows.jsonl": "sixty.jsonl", 200: 20_000}
    words = [replaced.get(word, word) for word in COMMANDS[name].words]  # type: ignore[call-overload]
    ended = {}
    for spare in (0, 2 * MB, 16 * MB, 1024 * MB):
        out = tmp_path / str(spare)
        first = WHEN_IT_COMPUTES.format(spare=spare)
        ended[spare] = helper.run(*words, "--out", out / COMMANDS[name].out, folder=place, first=first)
        print(name, spare, ended[spare].code, ended[spare].computed, ended[spare].stderr[-200:])
