"""Groups: rows of a general question are grouped by what it is asked about, others by their question."""

import json
from pathlib import Path
from typing import Any

import pytest

from truthheads.data.questions import IN_MEMORY, Questions
from truthheads.data.readers import read_questions


def read(folder: Path, rows: list[dict[str, Any]], **how: Any) -> Questions:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(path, **how)


def row(context: str, question: str, answer: str = "a", **more: Any) -> dict[str, Any]:
    return {"context": context, "question": question, "truthful": answer, "untruthful": f"not {answer}", **more}


def groups(found: Questions) -> int:
    return len({question.group for question in found})


@pytest.mark.parametrize("question", ["Summarize the text.", ""])
def test_rows_that_all_ask_the_same_are_grouped_by_context(tmp_path: Path, question: str) -> None:
    found = read(tmp_path, [row(f"Text {at // 2}.", question, f"a{at}") for at in range(40)])
    assert groups(found) == 20  # two rows about each text
    assert found[0].group == found[1].group != found[2].group
    assert found.read_as == ["grouped by context (20 groups), since one question is asked of many contexts"]


def test_questions_of_their_own_are_groups(tmp_path: Path) -> None:
    found = read(tmp_path, [row("One text.", f"Question {at}?") for at in range(10)])
    assert groups(found) == 10 and found.read_as == ["grouped by question (10 groups)"]


def test_a_question_with_a_few_variants_of_one_context_stays_a_group(tmp_path: Path) -> None:
    """NQ-Swap: up to five contexts of one question, which are one text with other names in it."""
    rows = [row(f"Text {at} with name {name}.", f"Question {at}?") for at in range(9) for name in range(5)]
    assert groups(read(tmp_path, rows)) == 9


def test_a_general_question_among_others(tmp_path: Path) -> None:
    rows = [row(f"Text {at}.", "Sum up!") for at in range(8)] + [row("Text 3.", f"Question {at}?") for at in range(30)]
    found = read(tmp_path, rows)
    assert groups(found) == 38
    assert found.read_as == ["grouped by context or question (38 groups), since one question is asked of many contexts"]


def test_three_rows_of_one_question(tmp_path: Path) -> None:
    assert groups(read(tmp_path, [row(f"Text {at}.", "Sum up!") for at in range(3)])) == 3
    assert groups(read(tmp_path, [row(f"Text {at}.", "Who?") for at in range(2)])) == 1


def test_groups_and_images_of_the_rows_count_first(tmp_path: Path) -> None:
    found = read(tmp_path, [row(f"Text {at}.", "Sum up!", group=f"g{at % 2}") for at in range(8)])
    assert groups(found) == 2 and found.read_as == ["grouped by the rows' own groups (2 groups)"]
    found = read(tmp_path, [row("", "Is there a dog?", image=f"{at % 4}.png", id=str(at)) for at in range(8)])
    assert groups(found) == 4 and found.read_as == ["grouped by image (4 groups)"]


def test_without_contexts_a_question_is_a_group(tmp_path: Path) -> None:
    assert groups(read(tmp_path, [row("", "The same?", f"a{at}") for at in range(8)])) == 1


def test_many_rows_are_grouped_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truthheads.data.questions.IN_MEMORY", 5)
    found = read(tmp_path, [row(f"Text {at}.", "Sum up!") for at in range(12)])
    assert (groups(found), len(found), found.path) == (12, 12, str(tmp_path / "q.jsonl")) and IN_MEMORY > 5
    assert found.layout == "pairs" and len(found.sha256) == 64


@pytest.mark.real_data
def test_real_nq_swap_is_grouped_by_question(reference_data: Path) -> None:
    found = read_questions(reference_data / "nqswap.parquet", limit=400)
    assert found.read_as[-1].startswith("grouped by question (")
