"""Files that are whole or not there, that say what they are, and that are the same bytes for the same content."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from truthheads.errors import ArtifactError
from truthheads.storage import artifacts
from truthheads.storage.artifacts import FORMAT_VERSION, KEY, load_artifact, provenance, save_artifact
from truthheads.storage.files import check_target, dumps, replaced, write_json
from truthheads.storage.row_store import JOURNAL, Field, RowStore

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1, -2]), "half": torch.tensor([0.1]).half()}
META = {"kind": "scores", "seed": 3, "settings": {"z": 1, "a": [1.5, "x"]}}


# --- atomic writes ---------------------------------------------------------------------------------------------------


def test_a_block_that_succeeds_leaves_the_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "x.txt"
    with replaced(target) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        assert not target.exists()
        assert temporary.parent.parent == target.parent  # a rename across file systems would be a copy
    assert [path.name for path in target.parent.iterdir()] == ["x.txt"]
    assert target.read_text(encoding="utf-8") == "whole"
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask  # as any file, not the 0600 of temporary ones


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_block_that_fails_changes_nothing(tmp_path: Path, error: type[BaseException], before: str | None) -> None:
    target = tmp_path / "x.txt"
    if before is not None:
        target.write_text(before, encoding="utf-8")
    with pytest.raises(ArtifactError if error is OSError else error), replaced(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error("half-way")
    assert [path.name for path in tmp_path.iterdir()] == ([] if before is None else ["x.txt"])
    assert before is None or target.read_text(encoding="utf-8") == before


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    target = tmp_path / "file" / "scores.safetensors"
    for write in (lambda: check_target(target), lambda: save_artifact(target, TENSORS, META)):
        with pytest.raises(ArtifactError, match="could not be written"):
            write()


def test_check_target(tmp_path: Path) -> None:
    check_target(tmp_path / "not" / "yet" / "there.json")
    assert list(tmp_path.iterdir()) == []  # it only looks
    with pytest.raises(ArtifactError, match="is a folder"):
        check_target(tmp_path)


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_by_the_systems_own_word(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught, replaced(tmp_path / "x.bin"), Path("/dev/full").open("wb") as full:
        full.write(b"0" * 100_000)
    assert "x.bin could not be written" in str(caught.value)
    assert "got: the disk is full" in str(caught.value)
    assert "free some space and run the same command again" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_by_the_word_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise artifacts.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(artifacts, "save_file", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        save_artifact(tmp_path / "x.safetensors", TENSORS, META)
    assert list(tmp_path.iterdir()) == []


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_an_artefact_comes_back_bit_for_bit_and_twice_the_same_bytes(tmp_path: Path) -> None:
    save_artifact(tmp_path / "a", TENSORS, META)
    save_artifact(tmp_path / "b", dict(reversed(TENSORS.items())), dict(reversed(META.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_artifact(tmp_path / "a", kind="scores")
    assert found.meta == META | {"format_version": FORMAT_VERSION}
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_tensors_that_share_memory_or_are_views_are_written_whole(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    save_artifact(tmp_path / "a", {"one": whole, "two": whole, "part": whole[:, 1], "turned": whole.T}, META)
    found = load_artifact(tmp_path / "a", kind="scores").tensors
    assert torch.equal(found["one"], whole)
    assert torch.equal(found["two"], whole)
    assert torch.equal(found["part"], whole[:, 1])
    assert torch.equal(found["turned"], whole.T)


def test_the_metadata_is_one_key_of_sorted_json(tmp_path: Path) -> None:
    save_artifact(tmp_path / "a", TENSORS, META)
    with safe_open(tmp_path / "a", framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata == {
        KEY: '{"format_version": 1, "kind": "scores", "seed": 3, "settings": {"a": [1.5, "x"], "z": 1}}'
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(item) for item in value]
    return {key: finite(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(value=VALUES)
def test_what_is_not_finite_becomes_null(value: Any) -> None:
    text = dumps(value)
    assert json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) == finite(value)


def test_json_files(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": (1, math.nan), "a": {"é": -math.inf, 2: math.inf}})
    expected = '{\n  "a": {\n    "2": null,\n    "é": null\n  },\n  "b": [\n    1,\n    null\n  ]\n}\n'
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == expected


def test_where_a_file_lies_is_no_part_of_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    for words in (["--out", "a"], ["--out=b/c"], []):
        monkeypatch.setattr("sys.argv", ["/usr/bin/truthheads", "score", "m", *words, "--seed", "1"])
        commands.append(provenance()["command"])
    assert commands == ["truthheads score m --seed 1"] * 3
    monkeypatch.setattr("sys.argv", ["/somewhere/truthheads/__main__.py", "--version"])
    assert provenance()["command"] == "truthheads --version"
    monkeypatch.setattr("sys.argv", ["pytest", "--out"])
    assert provenance()["command"] is None
    assert {"truthheads", "torch", "safetensors"} <= provenance()["packages"].keys()


# --- files that are not ours -----------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def foreign(path: Path) -> None:
    save_file(TENSORS, path, {"format": "pt"})


def no_metadata(path: Path) -> None:
    save_file(TENSORS, path)


def not_json(path: Path) -> None:
    save_file(TENSORS, path, {KEY: "{"})


def not_an_object(path: Path) -> None:
    save_file(TENSORS, path, {KEY: "[1]"})


def other_kind(path: Path) -> None:
    save_artifact(path, TENSORS, {"kind": "gate"})


def other_version(path: Path) -> None:
    save_file(TENSORS, path, {KEY: json.dumps({"kind": "scores", "format_version": FORMAT_VERSION + 1})})


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "cannot be read"),
        (empty, "cannot be read"),
        (noise, "cannot be read"),
        (not_json, "cannot be read"),
        (foreign, "is not an artefact of truthheads"),
        (no_metadata, "is not an artefact of truthheads"),
        (not_an_object, "got: a JSON list"),
        (other_kind, "got: kind 'gate', format version 1"),
        (other_version, "got: kind 'scores', format version 2"),
        (gone, "is not there"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "x.safetensors"
    save_artifact(path, TENSORS, META)
    assert load_artifact(path, kind="scores").meta["seed"] == 3
    damage(path)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(path, kind="scores")
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n  do: " in str(caught.value)


# --- rows that survive a kill ----------------------------------------------------------------------------------------

FIELDS = {"z": Field((2, 3), torch.bfloat16), "margin": Field((), torch.float32)}


def fill(store: RowStore, batch: int) -> None:
    rows = torch.tensor([2 * batch, 2 * batch + 1])
    store.write("z", rows, torch.full((2, 2, 3), float(batch)))
    store.write("margin", rows, torch.tensor([batch + 0.25, batch + 0.5]))


def test_a_store_goes_on_after_the_last_complete_batch(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "s", FIELDS, rows=4, identity="one")
    assert store.done == set()
    fill(store, 1)
    store.complete(1)
    fill(store, 0)  # never completed
    store.close()
    again = RowStore(tmp_path / "s", FIELDS, rows=4, identity="one")
    assert again.done == {1}
    assert again.read("z").dtype == torch.bfloat16
    assert again.read("z")[2:].unique().tolist() == [1.0]
    assert again.read("margin")[2:].tolist() == [1.25, 1.5]
    again.delete()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("changed", [{"identity": "two"}, {"rows": 6}, {"fields": {"z": FIELDS["z"]}}])
def test_another_identity_starts_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"fields": FIELDS, "rows": 4, "identity": "one"}
    store = RowStore(tmp_path / "s", **plain)
    fill(store, 1)
    store.complete(1)
    store.close()
    other = RowStore(tmp_path / "s", **(plain | changed))
    assert other.done == set()
    assert other.read("z").float().abs().sum() == 0
    other.close()


def test_values_that_are_gone_are_not_believed(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "s", FIELDS, rows=4, identity="one")
    fill(store, 1)
    store.complete(1)
    store.close()
    (tmp_path / "s" / "margin.bin").unlink()
    store = RowStore(tmp_path / "s", FIELDS, rows=4, identity="one")
    assert store.done == set()
    store.close()


def test_a_journal_line_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "s", FIELDS, rows=100, identity="one")
    store.complete(3)
    store.close()
    journal = tmp_path / "s" / JOURNAL
    journal.write_text(journal.read_text(encoding="ascii") + "1", encoding="ascii")  # of "17\n"
    store = RowStore(tmp_path / "s", FIELDS, rows=100, identity="one")
    assert store.done == {3}
    store.complete(5)
    store.close()
    store = RowStore(tmp_path / "s", FIELDS, rows=100, identity="one")
    assert store.done == {3, 5}  # not 15
    store.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "s", FIELDS, rows=4, identity="one")
    fill(store, 1)
    with pytest.raises(ArtifactError, match="is in use"):
        RowStore(tmp_path / "s", FIELDS, rows=4, identity="two")
    assert store.read("margin")[2] == 1.25  # nothing was cleared
    store.close()
    RowStore(tmp_path / "s", FIELDS, rows=4, identity="one").close()


def test_a_store_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ArtifactError, match="the disk is full"):
            RowStore(tmp_path / "s", FIELDS, rows=4, identity="one")
    RowStore(tmp_path / "s", FIELDS, rows=4, identity="one").close()  # nothing is locked once there is room
