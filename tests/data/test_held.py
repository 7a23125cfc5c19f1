"""Rows in memory: dictionaries, tables of pandas and pyarrow, data sets; and what holds no rows."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest

import truthheads as th
from truthheads.data.held import held_rows
from truthheads.data.readers import as_questions

ROWS = [
    {
        "id": f"r{at}",
        "context": f"The {at} is here.",
        "question": f"What is {at}?",
        "truthful": "this",
        "untruthful": "that",
    }
    for at in range(3)
]

TABLES: dict[str, Callable[[], Any]] = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "generator": lambda: iter(ROWS),
    "pandas": lambda: pandas.DataFrame(ROWS),
    "pyarrow": lambda: pyarrow.Table.from_pylist(ROWS),
    "datasets": lambda: datasets.Dataset.from_list(ROWS),
    "streamed": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_table_gives_the_same_questions(table: Callable[[], Any]) -> None:
    found = as_questions(table())
    assert list(found) == list(th.read_questions(ROWS))
    assert [one.id for one in found] == ["r0", "r1", "r2"]
    assert isinstance(found, th.Questions) and found.layout == "pairs" and found.path == ""
    assert len(th.read_questions(table(), limit=2)) == 2


def test_questions_stay_what_they_are() -> None:
    made = th.make_text(3, seed=0)
    assert as_questions(made) is made
    read = th.read_questions(ROWS)
    assert as_questions(read) is read
    pairs = th.make_pairs(made, strategy="swap")
    assert as_questions(pairs) is pairs.questions
    assert as_questions([]) == []


def test_a_file_is_read_by_its_name(tmp_path: Path) -> None:
    pandas.DataFrame(ROWS).to_csv(tmp_path / "rows.csv", index=False)
    assert (
        list(as_questions(tmp_path / "rows.csv"))
        == list(as_questions(str(tmp_path / "rows.csv")))
        == list(th.read_questions(ROWS))
    )


def test_cells_that_hold_nothing_are_none() -> None:
    frame = pandas.DataFrame({"question": ["q"], "answer": ["a"], "label": [1.0], "group": [float("nan")]})
    frame["kind"] = pandas.array([pandas.NA], dtype="string")
    (row,) = held_rows(frame)
    assert row.fields == {"question": "q", "answer": "a", "label": 1.0, "group": None, "kind": None}
    frame["context"] = [["one", "two"]]
    frame["label"] = frame["label"].astype("int64")
    (row,) = held_rows(frame)
    assert row.fields is not None and row.fields["context"] == ["one", "two"] and type(row.fields["label"]) is int


def test_a_bad_row_is_named_and_can_be_left_out() -> None:
    rows = [*ROWS, {**ROWS[0], "id": "r9", "truthful": ""}]
    with pytest.raises(th.TruthHeadsError, match=r"rows in memory:row 4: field 'truthful'"):
        th.read_questions(rows)
    assert th.read_questions(rows, skip_bad_rows=True).skipped == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "what was given holds no rows"),
        (3.5, "got: 3.5"),
        (b"rows", "what was given holds no rows"),
        ([1, 2], "item 1 is no row"),
        ([*ROWS, "text"], "item 4 is no row"),
        (["a.jsonl", "b.jsonl"], "item 1 is no row"),
        ({"question": ["a"], "answer": ["b"]}, "a single dictionary is no list of rows"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)), r"one of them: data\['train'\]"),
        ([{"text": "a"}], "rows in memory:row 1"),
        (object(), "got: <object object"),
        ("nowhere.jsonl", "nowhere.jsonl is not there"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_holds_no_rows_is_refused_in_words(given: Any, words: str) -> None:
    with pytest.raises(th.TruthHeadsError, match=words):
        as_questions(given)


def test_neither_pandas_nor_datasets_is_needed() -> None:
    """In a process in which both are missing, rows are read, and a table of a result says what to install."""
    program = """
import sys
sys.modules["pandas"] = sys.modules["datasets"] = None
import torch, truthheads as th
print(len(th.read_questions([{"question": "q", "truthful": "a", "untruthful": "b"}])))
try:
    th.Gate(torch.ones(2, 2)).to_pandas()
except th.TruthHeadsError as error:
    print(error.fix)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["1", "pip install pandas, or use table(), which returns the rows as a list"], (
        done.stderr
    )


@pytest.mark.parametrize("kind", [list, iter])
def test_labels_and_names_of_columns_are_read_as_in_a_file(kind: Callable[[Any], Any]) -> None:
    rows = [{" Question": f"q{at}?", "answer": "a", "label": word} for at, word in enumerate(["good", "bad"])]
    with pytest.raises(th.TruthHeadsError) as raised:
        th.read_questions(kind(rows))
    told = "'good', 'bad'" if kind is list else "'good'"
    assert f"--label-true WORD (of {told})" in raised.value.fix
    found = th.read_questions(kind(rows), label_true="good")
    assert [one.truthful for one in found] == ["a", None] and found[0].question == "q0?" and found.path == ""
