"""Results kept part by part: whole after a kill, the same numbers, nothing of another work."""

from pathlib import Path

import pytest
import torch

from truthheads.errors import ArtifactError
from truthheads.storage.kept_results import KeptResults, LoopState


def fails() -> float:
    raise AssertionError("made again")


def test_what_is_kept_is_found_again_and_is_the_same(tmp_path: Path) -> None:
    first = KeptResults(tmp_path / "w", {"of": 1})
    values = [0.1, 1 / 3, 1e-300, float("inf")]
    assert first.result("a", lambda: values) == values
    again = KeptResults(tmp_path / "w", {"of": 1})
    assert again.result("a", fails) == values and "a" in again and "b" not in again  # type: ignore[comparison-overlap]
    assert "a" not in KeptResults(tmp_path / "w", {"of": 2})
    assert "a" not in KeptResults(tmp_path / "w", {"of": 1})


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    kept = KeptResults(tmp_path / "w", {})
    kept.result("a", lambda: 1)
    whole = (tmp_path / "w" / "results.jsonl").read_bytes()
    for rest in (b'["b", 2', b'["b", 2]', b"\xff\n", b"[1, 2]\n", b"{}\n"):
        (tmp_path / "w" / "results.jsonl").write_bytes(whole + rest)
        again = KeptResults(tmp_path / "w", {})
        assert "a" in again and "b" not in again
        assert again.result("b", lambda: 3) == 3
        assert KeptResults(tmp_path / "w", {}).result("b", fails) == 3


def test_a_state_replaces_the_one_before(tmp_path: Path) -> None:
    kept = KeptResults(tmp_path / "w", {})
    assert kept.load_state("s") is None
    for step in (1, 2):
        kept.save_state("s", LoopState({"x": torch.full((2, 3), step / 3)}, step, [(0.1, 1 / 3)]))
    found = KeptResults(tmp_path / "w", {}).load_state("s")
    assert found is not None and torch.equal(found.tensors["x"], torch.full((2, 3), 2 / 3))
    assert (found.steps, found.losses) == (2, [(0.1, 1 / 3)])
    (tmp_path / "w" / "s.safetensors").write_bytes(b"damaged")
    assert kept.load_state("s") is None
    assert KeptResults(tmp_path / "w", {"other": 1}).load_state("s") is None


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = KeptResults(None, {})
    assert kept.result("a", lambda: 1) == 1 == kept.result("a", fails)
    kept.save_state("s", LoopState({"x": torch.ones(1)}, 1, []))
    assert kept.load_state("s") is None and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match="could not be written"):
        KeptResults(tmp_path / "file" / "w", {})
