"""Pairs whose two answers are one answer, and cells that hold none: said with count and rows, or refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invoked import run
from planted import planted_questions, save_planted
from truthheads.data.answers import describe_data
from truthheads.data.questions import Question, write_questions
from truthheads.data.readers import read_questions
from truthheads.data.same_answers import same_answer
from truthheads.errors import DataError
from truthheads.results.scores import Scores
from truthheads.workflows.make_pairs import fits, make_pairs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", "paris"),
        ("Paris", "Paris."),
        ("Paris", " the Paris "),
        ("Beatles", "The Beatles"),
        ("U.S.", "US"),
        ("well-known", "well known"),
        ("well-known", "wellknown"),
        ("1,000", "1000"),
        ("O'Brien", "O’Brien"),
        ("ＡＢＣ", "abc"),
        ("Straße", "STRASSE"),
        ('"yes"', "Yes!"),
    ],
)
def test_one_answer_in_two_forms(one: str, other: str) -> None:
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", "Parish"),
        ("3.5", "35"),
        ("-5", "5"),
        ("1/2", "12"),
        ("1,5", "15"),
        ("10:30", "1030"),
        ("C", "C++"),
        ("C", "C#"),
        ("A+", "A-"),
        ("?", "!"),
        ("a", "the"),
        ("Obama", "Barack Obama"),
        ("yes", "no"),
    ],
)
def test_two_answers(one: str, other: str) -> None:
    assert not same_answer(one, other) and not same_answer(other, one)


@given(st.text(), st.text())
def test_it_is_the_same_both_ways_and_for_the_answer_itself(one: str, other: str) -> None:
    assert same_answer(one, one) and same_answer(one, one.upper().upper()) == same_answer(one.upper(), one)
    assert same_answer(one, other) == same_answer(other, one)


def questions_at(path: Path, *, alike: int, wide: bool = False) -> Path:
    """Write 30 planted questions, the first few with the truthful answer in capitals as the untruthful one.

    ``wide``: in full-width letters, which are other words to SQuAD's normalisation.
    """
    write_questions(path, planted_questions(30))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:alike]:
        row["untruthful"] = f"The {row['truthful'].upper()}."
        if wide:
            row["untruthful"] = "".join(chr(ord(letter) + 0xFEE0) for letter in row["truthful"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_they_are_counted_with_their_rows(tmp_path: Path) -> None:
    found = read_questions(questions_at(tmp_path / "q.jsonl", alike=7))
    assert (found.alike.rows, found.alike.first) == (7, ("line 1", "line 2", "line 3", "line 4", "line 5"))
    (caution,) = found.cautions
    assert "In 7 of 30 rows" in caution and "line 4, line 5, …" in caution
    assert describe_data(found)["alike"] == {"rows": 7, "first": ["line 1", "line 2", "line 3", "line 4", "line 5"]}
    assert describe_data(list(found)[5:])["alike"] == {"rows": 2, "first": ["id planted-5", "id planted-6"]}
    assert found.without([found[0], found[20]]).alike.rows == 6
    assert read_questions(questions_at(tmp_path / "q.jsonl", alike=0)).cautions == []


def test_an_alias_of_the_truthful_answer_is_not_untruthful(tmp_path: Path) -> None:
    row = {"question": "When?", "sub_context": "In 1963.", "sub_answer": ["November 1963", "1963"]}
    rows = [{**row, "org_answer": ["1964"]}, {**row, "question": "And?", "org_answer": ["that year", "1963"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "n.parquet")
    assert read_questions(tmp_path / "n.parquet").alike == (1, ("row 2",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("models") / "planted")


@pytest.mark.parametrize(
    "words",
    [
        ("score",),
        ("trace",),
        ("tune", "learn", "--epochs", "1"),
        ("evaluate", "pairs"),
        ("evaluate", "conflict"),
    ],
)
def test_every_command_says_so_on_standard_error_and_in_json(
    model: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    rows = questions_at(tmp_path / "q.jsonl", alike=2, wide="conflict" in words)
    at = 2 if words[0] in ("evaluate", "tune") else 1
    command = (*words[:at], model, *words[at:])
    result = run(*command, "--data", rows, "--out", tmp_path / "out", "--dtype", "fp32", "--json")
    found = json.loads(result.stdout)
    said = [text for text in found.get("warnings", found.get("notes", [])) if "In 2 of 30 rows" in text]
    assert len(said) == 1 and "(line 1, line 2)" in said[0]
    assert "In 2 of 30 rows" in " ".join(result.stderr.split())


def test_where_a_right_answer_counts_for_both_sides_a_conflict_is_refused(model: Path, tmp_path: Path) -> None:
    rows = questions_at(tmp_path / "q.jsonl", alike=2)
    result = run("evaluate", "conflict", model, "--data", rows, "--out", tmp_path / "out", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "row 'planted-0' is no conflict" in result.stderr and "counts for both sides" in result.stderr


def test_data_pairs_says_so(tmp_path: Path) -> None:
    rows = questions_at(tmp_path / "q.jsonl", alike=2)
    result = run("data", "pairs", rows, "--strategy", "swap", "--out", tmp_path / "pairs.jsonl", "--json")
    (said,) = json.loads(result.stdout)["warnings"]
    assert "In 2 of 30 rows" in said and "In 2 of 30 rows" in result.stderr


def test_it_stays_with_the_score_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    run("score", model, "--data", questions_at(tmp_path / "q.jsonl", alike=1), "--out", out, "--dtype", "fp32")
    assert Scores.load(out).meta["data"]["alike"] == {"rows": 1, "first": ["line 1"]}


def test_no_form_of_the_truthful_answer_is_made_the_untruthful_one() -> None:
    question = Question("1", "", "Who?", "Ann Smith", None, aliases=("Anna Smyth",))
    assert fits("Bob Smith", question)
    assert not fits("Anna Smyth", question) and not fits("Ann-Smith", question)
    others = [Question(str(at), "", f"Who {at}?", name, None) for at, name in enumerate(("Anna Smyth", "Bob Jones"), 2)]
    made = make_pairs([question, *others], strategy="swap").questions
    assert made[0].untruthful == "Bob Jones"


# --- cells that hold no answer ---------------------------------------------------------------------------------------


def table(path: Path, answers: list[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["question", "truthful", "untruthful", "group"])
        writer.writerows([f"Where {at}?", "Rome", answer, "None"] for at, answer in enumerate(answers))
    return path


@pytest.mark.parametrize("cell", ["nan", "NaN", "None", "null", "NA", "N/A", "<NA>", " nan "])
def test_a_csv_cell_without_an_answer_is_a_bad_row(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path / "q.csv", ["Paris", cell, "Oslo"])
    with pytest.raises(DataError) as caught:
        read_questions(path)
    assert "q.csv:line 3: field 'untruthful'" in str(caught.value) and "--skip-bad-rows" in str(caught.value)
    found = read_questions(path, skip_bad_rows=True)
    assert ([question.untruthful for question in found], found.skipped) == (["Paris", "Oslo"], 1)
    assert found[0].group == "None"  # only answers are meant
    halves = read_questions(path, halves=True)
    assert [question.untruthful for question in halves] == ["Paris", None, "Oslo"]


@pytest.mark.parametrize("word", ["None", "null", "nan", "NA"])
def test_such_a_word_is_an_answer_where_files_know_null(tmp_path: Path, word: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "How many?", "truthful": "two", "untruthful": word}) + "\n")
    assert read_questions(path)[0].untruthful == word


def test_a_number_that_is_none_is_a_missing_answer(tmp_path: Path) -> None:
    row = {"question": "Where?", "truthful": "Rome"}
    (tmp_path / "q.json").write_text(f"[{json.dumps({**row, 'untruthful': float('nan')})}]")
    pq.write_table(pa.Table.from_pylist([{**row, "untruthful": float("nan")}]), tmp_path / "q.parquet")
    for path in (tmp_path / "q.json", tmp_path / "q.parquet"):
        with pytest.raises(DataError, match="row 1: field 'untruthful'"):
            read_questions(path)
        assert read_questions(path, halves=True)[0].untruthful is None
