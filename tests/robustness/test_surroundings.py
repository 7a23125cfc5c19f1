"""Disks that are full, memory that runs out, wrong clocks, foreign locales, folders that may only be read.

A command that cannot do its work ends with one line on what was wrong and one on what to do, exit code 2, and no half
file; as soon as it can, it ends with the bytes that it writes anywhere else.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import COMMANDS, contents
from forking import PERMISSIONS_BIND, Ended, Nursery, nursery
from planted import planted_questions
from truthheads.data.questions import write_questions
from truthheads.errors import ModelError
from truthheads.models import sources

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
    folder = small_disk / name
    folder.mkdir()
    for left in (0, 4 * KB, need // 2 // (4 * KB) * 4 * KB):
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


def test_a_model_cache_on_a_full_disk(small_disk: Path) -> None:
    def write(folder: Path) -> None:
        save_file({"weight": torch.ones(MB // 4)}, folder / "model.safetensors")

    target = small_disk / "cache" / "model"
    target.parent.mkdir()
    ballast = fill(small_disk, 64 * KB)
    with pytest.raises(ModelError, match=r"cannot be written to.*\n.*\n.*No space left.*\n  do: free some space"):
        sources.publish(target, write)
    assert list(target.parent.iterdir()) == []
    ballast.unlink()
    sources.publish(target, write)
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert (target / "model.safetensors").stat().st_size > MB
    sources.publish(target, write)  # another process was first
    assert [path.name for path in target.parent.iterdir()] == ["model"]


# --- little memory ---------------------------------------------------------------------------------------------------

WHEN_IT_COMPUTES = """
import ctypes, resource
from pathlib import Path
from truthheads.models import forward
libc = ctypes.CDLL(None)
libc.mallopt(-3, 65536)  # every large block asks the system for memory
plain, most = forward._halving, []
def halving(members, step):
    if most:
        if len(members) < most[0]:
            Path("{halved}").touch()
        return plain(members, step)
    libc.malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    size = int(status.partition("VmData:")[2].split()[0]) * 1024 + {spare}
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size, before[1]))
    most.append(len(members))
    try:
        plain(members, step)
    finally:  # what is written in Rust ends the process where a block of memory is refused
        most.clear()
        resource.setrlimit(resource.RLIMIT_DATA, before)
forward._halving = halving
"""
MEASURABLE = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def check_nearly(folder: Path, whole: Path) -> None:
    """The same files with the same numbers, to what another size of batch does to sums in fp32."""
    assert contents(folder).keys() == contents(whole).keys()
    for name in contents(whole):
        if name.endswith(".safetensors"):
            ours, theirs = (load_file(one / name) for one in (folder, whole))
            assert all(torch.allclose(ours[key], theirs[key], atol=0.02, equal_nan=True) for key in theirs)
        elif name.endswith("predictions.jsonl"):
            lines = [[json.loads(line) for line in contents(one)[name].splitlines()] for one in (folder, whole)]
            for one, other in zip(*lines, strict=True):
                assert one["id"] == other["id"]
                assert one.get("logp", []) == pytest.approx(other.get("logp", []), abs=1e-3)


SPARE = (2 * MB, MB, MB // 2)
"""Tried in this order: with less, libraries die of any small block; but what a step takes depends on the processor."""


@pytest.mark.skipif(not MEASURABLE, reason="the C library does not tell what it has in stock")
@pytest.mark.parametrize("name", ["score", "learn", "pairs"])
def test_memory_that_runs_out_while_it_computes(name: str, helper: Nursery, place: Path, tmp_path: Path) -> None:
    """A batch is halved until it fits; where nothing fits, that is said, and nothing half is written."""
    command = COMMANDS[name]
    # Only a quarter of the rows that `learn` is given are in its largest batch; of 40 it takes less than 2 MB with AMX.
    write_questions(tmp_path / "rows.jsonl", planted_questions(160 if name == "learn" else 40))
    changed = {"rows.jsonl": tmp_path / "rows.jsonl", 200: 20_000, **({1: 0} if name == "pairs" else {})}  # no controls
    words = [changed.get(word, word) for word in command.words]
    folder, whole, halved = tmp_path / "little", tmp_path / "whole", tmp_path / "halved"
    assert helper.run(*words, "--out", whole / command.out, folder=place).code == 0
    for spare in SPARE:
        shutil.rmtree(folder, ignore_errors=True)
        first = WHEN_IT_COMPUTES.format(spare=spare, halved=halved)
        ended = helper.run(*words, "--out", folder / command.out, folder=place, first=first)
        if halved.exists() or ended.code:
            break
    assert halved.exists() or ended.code
    if ended.code:
        assert "memory" in refused(ended)
        assert not (folder / command.out).is_file()
    else:
        check_nearly(folder, whole)


@pytest.mark.skipif(not MEASURABLE, reason="nothing tells how much memory a process has")
def test_memory_that_is_not_there_at_all(helper: Nursery, place: Path, tmp_path: Path) -> None:
    said = refused(finish(helper, place, "sharded", tmp_path, spare=MB))  # a buffer is larger
    assert "there is not enough memory" in said and "--batch-tokens" in said
    assert list(tmp_path.iterdir()) == []


# --- clocks and locales ----------------------------------------------------------------------------------------------

YEARS = 10 * 365.25 * 86_400
SAME = ("score", "adapter", "sharded", "gguf", "report")
CLOCKS: dict[str, dict[str, Any]] = {
    "ten years ahead": {"clock": YEARS, "variables": {"TZ": "Pacific/Kiritimati"}},
    "ten years back": {"clock": -YEARS, "variables": {"TZ": "America/St_Johns"}},
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("name", SAME)
def test_the_clock_is_no_part_of_a_result(
    name: str, clock: str, helper: Nursery, place: Path, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    ended = finish(helper, place, name, tmp_path, **CLOCKS[clock])
    assert ended.code == 0, ended.stderr
    assert contents(tmp_path) == whole[name]


def test_the_clock_of_a_command_can_be_wrong(helper: Nursery, place: Path) -> None:
    """Without this the test above would prove nothing."""
    shown = "import time, datetime; print(time.time() > 2.0e9, datetime.datetime.now().year > 2033, time.tzname[0])"
    for clock, said in ((YEARS, "True True"), (0.0, "False False")):
        settings: dict[str, Any] = {"clock": clock, "variables": {"TZ": "Asia/Tokyo"}, "first": shown}
        assert helper.run("--version", folder=place, **settings).stdout.startswith(f"{said} JST\n")


@pytest.mark.parametrize("stamp", [0, 2**32, 4_000_000_000])
def test_a_file_that_was_replaced_is_not_mistaken_for_the_old_one_whatever_its_time_says(
    stamp: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash is remembered under size and times, of which that of modification can be set at will."""
    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path / "cache"))
    model, digests = tmp_path / "model.gguf", []
    for content in (b"one", b"two"):
        model.write_bytes(content)
        os.utime(model, (stamp, stamp))
        digests += [sources._cached_sha256(model), sources._cached_sha256(model)]
    assert digests == [hashlib.sha256(content).hexdigest() for content in (b"one", b"one", b"two", b"two")]


COMMA, TURKISH = "de_DE.UTF-8", "tr_TR.UTF-8"


@pytest.fixture(scope="module")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a locale of decimal commas and a Turkish one, made here."""
    folder = tmp_path_factory.mktemp("locales")
    for name in (COMMA, TURKISH):
        words = ["localedef", "-i", name.partition(".")[0], "-f", "UTF-8", str(folder / name)]
        try:
            done = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("localedef is not there")
        if not (folder / name / "LC_NUMERIC").exists():
            pytest.skip(f"{name} cannot be made: {done.stderr[:200]}")
    return folder


@pytest.mark.parametrize("locale", [COMMA, TURKISH])
def test_the_locale_is_no_part_of_a_result(
    locale: str, locales: Path, helper: Nursery, place: Path, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    comma = "import locale; assert locale.localeconv()['decimal_point'] == ','"
    settings: dict[str, Any] = {"variables": {"LOCPATH": str(locales)}, "locale": locale, "first": comma}
    for name in SAME:
        ended = finish(helper, place, name, tmp_path / name, **settings)
        assert ended.code == 0, ended.stderr
        assert contents(tmp_path / name) == whole[name]


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
MORE = "Où est la clé n° 3 – à İstanbul ?"


@pytest.fixture(scope="module")
def ascii_helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("ascii") / "said", ASCII) as made:
        yield made


def test_an_ascii_locale_gives_the_same_bytes_also_with_other_letters_in_names_and_rows(
    helper: Nursery, ascii_helper: Nursery, place: Path, tmp_path: Path
) -> None:
    rows = (place / "rows.jsonl").read_text(encoding="utf-8").replace("which town", f"{MORE} which town")
    (place / "réponses.jsonl").write_text(rows, encoding="utf-8")
    judge = ("--truncate", "--dtype", "fp32", "--gate", "ß.safetensors", "--guard-texts", 0)
    ascii_only = "import sys; assert sys.getfilesystemencoding() == 'ascii' and not sys.flags.utf8_mode"
    found, told = [], []
    for at, (one, first) in enumerate(((helper, ""), (ascii_helper, ascii_only))):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        for words in (
            ("score", "model", "--data", "réponses.jsonl", "--dtype", "fp32", "--truncate", "--out", "é.safetensors"),
            ("gate", "é.safetensors", "--out", "ß.safetensors", "--json"),
            ("export", "model", "--gate", "ß.safetensors", "--to", "adapter", "--out", "übersetzt", "--json"),
            ("evaluate", "pairs", "model", "--data", "réponses.jsonl", *judge, "--out", "après", "--json"),
            ("report", ".", "--out", "page €.html"),
        ):
            given = [word if not (place / str(word)).exists() else place / str(word) for word in words]
            ended = one.run(*given, folder=folder, first=first)
            assert ended.code == 0, (words, ended.stderr)
            if "--json" in words:
                told.append(json.loads(ended.stdout))
        found.append(contents(folder))
    assert found[0].keys() == found[1].keys() and "é.safetensors" in found[0]
    assert found[0] == found[1]
    assert told[:3] == told[3:]


def test_a_file_name_that_is_no_text_can_be_told(helper: Nursery, place: Path, tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/\xff\xe9.safetensors"
    words = (*COMMANDS["score"].words, "--out", os.fsdecode(out))
    ended = helper.run(*words, "--json", folder=place)
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["out"].endswith("\ufffd\ufffd.safetensors") and os.path.exists(out)
    said = refused(helper.run("gate", os.fsdecode(out), "--out", tmp_path / "gate.safetensors", folder=place))
    assert "\ufffd\ufffd.safetensors" in said and "not valid UTF-8" in said  # safetensors opens no such file


# --- folders that may only be read -----------------------------------------------------------------------------------

if not PERMISSIONS_BIND:
    BINDING = pytest.mark.skip(reason="root may write anywhere, and cannot be kept from it here")
else:
    BINDING = pytest.mark.filterwarnings("error")


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Take the right to write away from folders and all that is in them."""
    every = [one for folder in folders for one in (folder, *folder.rglob("*")) if not one.is_symlink()]
    modes = {one: one.stat().st_mode & 0o777 for one in every}
    for one, mode in modes.items():
        one.chmod(mode & 0o555)
    try:
        yield
    finally:
        for one, mode in modes.items():
            one.chmod(mode)


@BINDING
@pytest.mark.parametrize("name", WRITING)
def test_an_out_that_may_only_be_read_is_refused_before_any_work(
    name: str, helper: Nursery, place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shut"
    folder.mkdir()
    nothing_runs = "from truthheads.models import forward; forward.run_batches = None"
    with read_only(folder):
        said = refused(finish(helper, place, name, folder, plain=True, first=nothing_runs))
    assert "could not be written" in said and "PermissionError" in said
    assert list(folder.iterdir()) == []


@BINDING
def test_models_and_rows_that_may_only_be_read_are_read(
    helper: Nursery, place: Path, tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    with read_only(place):
        for name in ("score", "grid", "sharded", "adapter", "gguf", "report"):
            folder = tmp_path / name
            folder.mkdir()
            ended = finish(helper, place, name, folder, plain=True)
            assert ended.code == 0, ended.stderr
            assert contents(folder) == whole[name]


@BINDING
def test_results_that_may_only_be_read_are_refused_in_two_lines(helper: Nursery, place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    assert finish(helper, place, "pairs", tmp_path).code == 0
    (folder / "predictions.jsonl").write_bytes((folder / "predictions.jsonl").read_bytes()[:-9])
    before = contents(tmp_path)
    with read_only(folder):
        assert "could not be written" in refused(finish(helper, place, "pairs", tmp_path, plain=True))
        rescored = helper.run("evaluate", "rescore", folder, folder=place, plain=True)
        assert "could not be written" in refused(rescored)
    (folder / "predictions.jsonl").chmod(0o444)
    assert "could not be written" in refused(finish(helper, place, "pairs", tmp_path, plain=True))
    assert contents(tmp_path) == before


@BINDING
def test_checks_of_folders_that_may_only_be_read(tmp_path: Path) -> None:
    """In a process for which permissions count, the checks say so, and writing does, too."""
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import forking, os
if os.geteuid() == 0:
    forking._give_up_powers()
from truthheads.storage.files import check_target, write_text
from truthheads.errors import ArtifactError
from truthheads.models import sources
from truthheads.errors import ModelError
for write in (check_target, lambda path: write_text(path, "x"), sources.check_cache,
              lambda path: sources.publish(path, print)):
    try:
        write(Path(sys.argv[1]) / "x")
    except (ArtifactError, ModelError) as error:
        print(error.problem)
os.environ["TRUTHHEADS_CACHE"] = sys.argv[1]
assert len(sources._cached_sha256(Path(__import__("truthheads").__file__))) == 64  # costs time, is no error
"""
    with read_only(tmp_path):
        words = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parents[1])]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.count("could not be written") == 2
    assert done.stdout.count("the cache folder") == 2 and list(tmp_path.iterdir()) == []
