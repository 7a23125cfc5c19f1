"""Lists in question files: passages are joined, every other list has a meaning or is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planted import PLANTED_HEAD, planted_questions, save_planted
from truthheads.benchmarks.conflict import conflicts
from truthheads.benchmarks.halueval import read_halueval
from truthheads.data.passages import PASSAGE_SEPARATOR, join_passages
from truthheads.data.questions import Question, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import DataError
from truthheads.models.load import load
from truthheads.scoring.score import score
from truthheads.tracing.trace import trace

FIRST, SECOND = "The weather was mild.", "The ferry to Norwick leaves at nine."
BOTH = f"{FIRST}\n\n{SECOND}"
ROW = {"context": [FIRST, SECOND], "question": "When does it leave?", "truthful": "at nine", "untruthful": "at seven"}


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(path: Path, row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        read_questions(jsonl(path, [row]))
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (BOTH, BOTH),
        ("  ", "  "),
        ([], ""),
        (None, ""),
        ([FIRST, SECOND], BOTH),
        ((FIRST, SECOND), BOTH),
        (np.array([FIRST, SECOND], dtype=object), BOTH),
        ([FIRST, None, " ", SECOND], BOTH),
        ([[FIRST], [SECOND]], BOTH),
        ([{"text": FIRST}, {"text": SECOND}], BOTH),
        ([{"content": FIRST, "meta": {"n": 1}}, {"contents": SECOND, "docid": 3}], BOTH),  # Haystack, Pyserini
        # LangChain
        ([{"page_content": FIRST, "metadata": {"source": "a"}}, {"kwargs": {"page_content": SECOND}}], BOTH),
        ([{"node": {"text": FIRST}, "score": 0.5}, {"node": {"text": SECOND}, "score": 0.1}], BOTH),  # LlamaIndex
        ([{"title": "Ferry", "text": SECOND}], f"Ferry\n{SECOND}"),
        ([{"title": "The ferry", "text": SECOND}], SECOND),  # the text begins with its title already
        ([{"title": None, "text": SECOND}], SECOND),
        ([["Norwick", ["It is a town.", " It has a ferry."]], ["Bees", ["They fly."]]],  # HotpotQA
         "Norwick\nIt is a town. It has a ferry.\n\nBees\nThey fly."),
        ({"title": ["Norwick", "Bees"], "sentences": [["It is a town.", "It has a ferry."], ["They fly."]]},
         "Norwick\nIt is a town. It has a ferry.\n\nBees\nThey fly."),
        ({"is_selected": [0, 1], "passage_text": [FIRST, SECOND]}, BOTH),  # MS MARCO
        ({"contexts": [FIRST, SECOND], "labels": ["A", "B"]}, BOTH),  # PubMedQA
        ({"text": SECOND}, SECOND),
    ],
)  # fmt: skip
def test_passages_of_every_kind_become_one_text(value: Any, text: str) -> None:
    assert join_passages(value).text == text


@pytest.mark.parametrize("value", [[1, 2], [FIRST, 3.5], {"a": FIRST}, [{"label": 1}], [[FIRST, {"a": 1}]], True])
def test_what_is_no_passage_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="passages"):
        join_passages(value)


def test_titles_and_passages_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="as many titles as passages, not 1 and 2"):
        join_passages({"title": ["A"], "sentences": [["a"], ["b"]]})


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
def test_a_passage_stands_where_its_span_says(passages: list[str]) -> None:
    found = join_passages(passages)
    assert [found.text[start:end] for start, end in found.spans] == [one if one.strip() else "" for one in passages]
    assert found.text == PASSAGE_SEPARATOR.join(one for one in passages if one.strip())


@pytest.mark.parametrize(
    ("evidence", "said"),
    [([[23, 44]], "The ferry to Norwick "), ([[1, 0, 20]], "The ferry to Norwick"), ("[[1, 28, 35]]", "at nine")],
)
def test_evidence_counts_in_the_joined_text_or_in_its_passage(tmp_path: Path, evidence: Any, said: str) -> None:
    (question,) = read_questions(jsonl(tmp_path / "q.jsonl", [{**ROW, "evidence": evidence}]))
    ((start, end),) = question.evidence
    assert question.context == BOTH and question.context[start:end] == said


def test_evidence_counts_in_a_passage_without_its_title(tmp_path: Path) -> None:
    row = {**ROW, "context": [{"title": "W", "text": FIRST}, {"title": "Norwick", "text": SECOND}]}
    (question,) = read_questions(jsonl(tmp_path / "q.jsonl", [{**row, "evidence": [[1, 28, 35], [0, 0, 3]]}]))
    assert [question.context[start:end] for start, end in question.evidence] == ["at nine", "The"]


@pytest.mark.parametrize("span", [[2, 0, 3], [-1, 0, 3], [1, 0, 99], [0, 5, 5], [1, -2, 3]])
def test_evidence_outside_of_its_passage_is_refused(tmp_path: Path, span: list[int]) -> None:
    assert "line 1: field 'evidence'" in refusal(tmp_path / "q.jsonl", {**ROW, "evidence": [span]})


def test_lists_in_parquet_and_in_known_layouts(tmp_path: Path) -> None:
    halueval = {"question": "When?", "right_answer": "at nine", "hallucinated_answer": "at ten"}
    swapped = {"question": "When?", "sub_answer": ["at nine"], "org_answer": ["at ten"]}
    for name, row in (
        ("h", {**halueval, "knowledge": [FIRST, SECOND]}),
        ("n", {**swapped, "sub_context": [FIRST, SECOND]}),
    ):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
        (question,) = read_questions(tmp_path / f"{name}.parquet")
        assert question.context == BOTH
        assert [BOTH[start:end] for start, end in question.evidence] == ["at nine"]  # in the second passage


def test_halueval_is_judged_on_all_passages(tmp_path: Path) -> None:
    row = {"question": "When?", "right_answer": "at nine", "hallucinated_answer": "at ten"}
    texts = [{**row, "knowledge": knowledge} for knowledge in ([FIRST, SECOND], BOTH)]
    lists, plain = (read_halueval(jsonl(tmp_path / f"{at}.jsonl", [one]))[1] for at, one in enumerate(texts))
    assert lists == plain and SECOND in lists[0].prompt


# --- lists of something else -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["question", "id", "group", "kind", "image"])
def test_a_list_where_one_text_belongs(tmp_path: Path, field: str) -> None:
    (question,) = read_questions(jsonl(tmp_path / "q.jsonl", [{**ROW, field: ["a.png"]}]))
    assert Path(str(getattr(question, field))).name == "a.png"
    message = refusal(tmp_path / "q.jsonl", {**ROW, field: ["a", "b"]})
    assert f"line 1: field {field!r}" in message and "one text, not a list of several" in message


def test_a_list_of_truthful_answers_holds_forms_of_one(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{**ROW, "truthful": ["", "at nine", "nine", "at nine", 9]}])
    (question,) = read_questions(path)
    assert (question.truthful, question.aliases) == ("at nine", ("nine", "9"))
    (again,) = read_questions(write_questions(tmp_path / "again.jsonl", [question]))
    assert (again, again.aliases) == (question, question.aliases)
    (found,) = conflicts([question], path)
    assert (found.context, found.memory) == (("at nine", "nine", "9"), ("at seven",))


def test_of_several_untruthful_answers_none_is_chosen(tmp_path: Path) -> None:
    message = refusal(tmp_path / "q.jsonl", {**ROW, "untruthful": ["at seven", "at ten"]})
    assert "line 1: field 'untruthful'" in message and "write a row for each of several, with one `group`" in message
    (question,) = read_questions(jsonl(tmp_path / "q.jsonl", [{**ROW, "untruthful": ["at seven", "At seven."]}]))
    assert (question.untruthful, question.untruthful_aliases) == ("at seven", ("At seven.",))


@pytest.mark.parametrize("label", [0, 1])
def test_answers_that_come_singly_in_several_forms(tmp_path: Path, label: int) -> None:
    row = {"question": "When?", "answer": ["at nine", "At nine!"], "label": label}
    (question,) = read_questions(jsonl(tmp_path / "q.jsonl", [row]))
    assert [answer.text for answer in question.answers] == ["at nine"]
    (again,) = read_questions(write_questions(tmp_path / "again.jsonl", [question]))
    assert (again.answers, again.aliases, again.untruthful_aliases) == (
        question.answers, question.aliases, question.untruthful_aliases
    )  # fmt: skip
    assert (again.aliases or again.untruthful_aliases) == ("At nine!",)


# --- what comes of it ------------------------------------------------------------------------------------------------


def test_scores_and_traces_are_those_of_the_joined_text(tmp_path: Path) -> None:
    model = load(str(save_planted(tmp_path / "model")), dtype="fp32")
    opening = planted_questions(24)[0].context.split(".")[0].strip() + "."
    rows = []
    for question in planted_questions(24):
        spans = [[1, start, end] for start, end in question.evidence]
        rows.append({"context": [opening, question.context], "question": question.question, "evidence": spans})
        rows[-1] |= {"truthful": question.truthful, "untruthful": question.untruthful}
    begun = len(opening) + len(PASSAGE_SEPARATOR)
    joined = [
        {**row, "context": PASSAGE_SEPARATOR.join(row["context"]),
         "evidence": [[start + begun, end + begun] for _, start, end in row["evidence"]]}
        for row in rows
    ]  # fmt: skip
    first = [{**row, "context": row["context"][0], "evidence": None} for row in rows]
    lists, texts, cut = (
        read_questions(jsonl(tmp_path / f"{name}.jsonl", each))
        for name, each in (("lists", rows), ("texts", joined), ("cut", first))
    )
    assert lists == texts != cut
    found = [score(model, each) for each in (lists, texts, cut)]
    assert torch.equal(found[0].accuracy, found[1].accuracy) and torch.equal(found[0].sample, found[1].sample)
    assert not torch.equal(found[0].sample, found[2].sample)
    assert found[0].accuracy[PLANTED_HEAD] > found[2].accuracy[PLANTED_HEAD]  # the first passage has no answer
    traced, plain = trace(model, lists), trace(model, texts)
    assert torch.equal(traced.sample.nan_to_num(-1), plain.sample.nan_to_num(-1))
    assert traced.meta["summary"]["sources"] == {"spans": 24}
    assert float(traced.auroc[PLANTED_HEAD]) > 0.9


def test_several_untruthful_answers_are_written_so_that_they_are_read_again(tmp_path: Path) -> None:
    """NQ-Swap gives several original answers to one question; only the first is scored."""
    question = Question("a", "In Rome.", "Where?", "Rome", "Paris", untruthful_aliases=("London", "Oslo"))
    single = replace(question, id="b", truthful=None, question="Where then?")
    again = read_questions(write_questions(tmp_path / "rows.jsonl", [question, single]))
    assert [(one.answers, one.untruthful_aliases) for one in again] == [
        (one.answers, one.untruthful_aliases) for one in (question, single)
    ]
