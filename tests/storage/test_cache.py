"""The cache of converted models: listed, cleared by name and age, and held below its limit."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from truthheads.cli import app
from truthheads.errors import ModelError
from truthheads.storage import cache
from truthheads.storage.cache import DEFAULT_LIMIT, GIGABYTE, entries, limit, make_room, mark_used, note_source, remove

DAY = 86_400


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRUTHHEADS_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def put(folder: Path) -> Callable[..., Path]:
    def put(name: str, size: int, *, days: float = 0.0, made_from: str = "") -> Path:
        path = folder / name
        path.mkdir(parents=True)
        if made_from:
            note_source(path, made_from)
        used = sum(file.stat().st_size for file in path.iterdir())
        (path / "model.safetensors").write_bytes(bytes(size - used))
        os.utime(path, (1_700_000_000 - days * DAY,) * 2)
        return path

    return put


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", *words])
    return result.exit_code, result.output


def test_what_was_used_last_comes_first_and_nothing_foreign_is_shown(folder: Path, put: Callable[..., Path]) -> None:
    put("gguf-aaa-v2", 900, days=2, made_from="one.gguf")
    old = put("smollm2-reader-x", 700, days=9)
    put("thesis", 10)  # somebody's own
    (folder / "gguf-link").symlink_to(folder / "thesis")
    (folder / "detectors").mkdir()
    (folder / "detectors" / "abc.safetensors").write_bytes(bytes(50))
    found = [(one.name, one.kind, one.made_from, one.size) for one in entries()]
    assert found == [
        ("abc.safetensors", "detector", "", 50),
        ("gguf-aaa-v2", "converted GGUF file", "one.gguf", 900),
        ("smollm2-reader-x", "embedded model", "", 700),
    ]
    mark_used(old)
    assert entries()[0].name == "smollm2-reader-x"


def test_a_folder_that_is_not_there_holds_nothing(folder: Path) -> None:
    assert entries() == [] and run("list") == (0, f"{folder}: 0.0 MB of at most 50.00 GB\n")


def test_clear_takes_names_beginnings_sources_and_ages(folder: Path, put: Callable[..., Path]) -> None:
    for name, days, source in (("gguf-a-v2", 1, "one.gguf"), ("gguf-b-v2", 40, "two.gguf"), ("gguf-c-v1", 3, "x.gguf")):
        put(name, 500, days=days, made_from=source)
    mine = put("thesis", 10)
    now = 1_700_000_000.0
    assert [one.name for one in cache.unused_for(30.0, now=now)] == ["gguf-b-v2"]
    assert run("clear", "two.gguf") == (0, "removed: 1 of 3, 0.0 MB\n") and not (folder / "gguf-b-v2").exists()
    assert run("clear", "gguf-c…")[0] == 0 and [one.name for one in entries()] == ["gguf-a-v2"]
    code, said = run("clear", "--all", "--json")
    assert code == 0 and json.loads(said) == {"removed": ["gguf-a-v2"], "freed": 500}
    assert entries() == [] and mine.is_dir()


def test_clear_refuses_what_is_not_there_and_nothing_at_all(folder: Path, put: Callable[..., Path]) -> None:
    put("gguf-a-v2", 500)
    for words in ((), ("thesis",), ("…",)):
        assert run("clear", *words)[0] == 2
    assert len(entries()) == 1


def test_the_oldest_go_until_there_is_room_and_are_named(
    folder: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put("gguf-a-v2", 400, days=1, made_from="one.gguf")
    put("gguf-b-v2", 400, days=5, made_from="two.gguf")
    put("gguf-c-v2", 150, days=3)
    monkeypatch.setenv("TRUTHHEADS_CACHE_LIMIT", "0.000001")  # 1,000 bytes
    make_room(50, "small.gguf")
    assert not caplog.records and len(entries()) == 3
    make_room(400, "new.gguf")
    assert [one.name for one in entries()] == ["gguf-a-v2", "gguf-c-v2"]
    (said,) = (record.getMessage() for record in caplog.records)
    assert "gguf-b-v2 (two.gguf)" in said and "unused for longest" in said


def test_what_does_not_fit_is_refused_before_it_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHHEADS_CACHE_LIMIT", "2")
    with pytest.raises(ModelError, match=r"no room for big\.gguf") as small:
        make_room(3 * GIGABYTE, "big.gguf")
    assert small.value.fix == "set TRUTHHEADS_CACHE_LIMIT to 4"
    monkeypatch.setenv("TRUTHHEADS_CACHE_LIMIT", "999999999")
    with pytest.raises(ModelError, match="no room for huge") as full:
        make_room(10**17, "huge")
    assert "cache clear --all" in full.value.fix and "GB free" in full.value.got


@pytest.mark.parametrize("said", ["much", "0", "-3", ""])
def test_a_limit_that_is_no_size_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHHEADS_CACHE_LIMIT", said)
    if not said:  # set to nothing is not set
        assert limit() == DEFAULT_LIMIT * GIGABYTE
        return
    with pytest.raises(ModelError, match="no size") as caught:
        limit()
    assert "unset it" in caught.value.fix


def test_what_another_process_has_removed_is_no_error_and_what_cannot_be_removed_is(
    folder: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("gguf-a-v2", 400)
    (entry,) = entries()
    assert remove([entry]) == 400 and remove([entry]) == 0
    put("gguf-b-v2", 400)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(ModelError, match="cannot be removed") as caught:
        remove(entries())
    assert caught.value.fix == "check who owns it"
