"""A chain of steps: nothing is done twice, nothing stale is kept, nothing foreign is lost."""

from pathlib import Path

import pytest

from truthheads.errors import ArtifactError
from truthheads.workflows.steps import NAME, Steps, content_sha256


def write(path: Path, text: str, times: list[str]) -> None:
    times.append(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_step_is_done_again_only_where_its_inputs_or_results_changed(tmp_path: Path) -> None:
    source, target, times = tmp_path / "source", tmp_path / "out" / "target", list[str]()
    source.write_text("one", encoding="utf-8")

    def run(seed: int = 0) -> bool:
        steps = Steps(tmp_path)  # a new process reads what the last one left
        return steps.run("copy", {"source": source, "seed": seed}, [target], lambda: write(target, f"{seed}", times))

    assert [run(), run(), run(1), run(1)] == [True, False, True, False]
    source.write_text("two", encoding="utf-8")
    assert [run(1), run(1)] == [True, False]
    target.write_text("touched", encoding="utf-8")
    assert [run(1), run(1)] == [True, False]
    target.unlink()
    assert [run(1), run(1)] == [True, False]
    assert len(times) == 5


def test_what_was_begun_stays_and_what_is_stale_goes(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    seen: list[list[str]] = []

    def work(fail: bool) -> None:
        folder.mkdir(exist_ok=True)
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / f"part-{len(seen)}").touch()
        if fail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Steps(tmp_path).run("a", {"seed": 0}, [folder], lambda: work(True))
    Steps(tmp_path).run("a", {"seed": 0}, [folder], lambda: work(False))
    Steps(tmp_path).run("a", {"seed": 1}, [folder], lambda: work(False))
    assert seen == [[], ["part-1"], []]


def test_a_file_that_no_step_made_is_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"mine\.txt is there, and no step of this folder made it"):
        Steps(tmp_path).run("a", {}, [mine], lambda: mine.write_text("yours", encoding="utf-8"))
    assert mine.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("content", ["", "[]", '{"a": 3}', "{", '{"a": {"given": 1}}'])
def test_a_damaged_record_means_that_nothing_is_known(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content, encoding="utf-8")
    target, times = tmp_path / "target", list[str]()
    assert Steps(tmp_path).run("a", {}, [target], lambda: write(target, "x", times))
    assert not Steps(tmp_path).run("a", {}, [target], lambda: write(target, "x", times))


def test_a_folder_counts_as_its_names_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "a").write_text("1", encoding="utf-8")
    before = content_sha256(folder)
    (folder / "in" / "a").rename(folder / "in" / "b")
    assert content_sha256(folder) != before
    (folder / "in" / "b").rename(folder / "in" / "a")
    assert content_sha256(folder) == before
    assert content_sha256(tmp_path / "none") is None
