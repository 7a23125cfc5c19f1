"""Question files: every layout, in files written here and in the real ones; every way a file can be bad."""

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthheads.data.questions import Question, answer_kind, occurrences, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import ArtifactError, DataError, TruthHeadsError

PAIR = {"id": "a", "context": "Oslo lies in Norway.", "question": "Where is Oslo?", "truthful": "Norway"}
PAIR |= {"untruthful": "Sweden", "evidence": [[13, 19]]}
MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(**changed: Any) -> dict[str, Any]:
    return {name: value for name, value in (PAIR | changed).items() if value is not ...}


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_questions(path, **options)
    return str(caught.value)


# --- layouts, in small files -----------------------------------------------------------------------------------------


def test_pairs(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [pair(boxes=[[0, 1, 2.5, 3]], image="a/b.png", group="g", kind="absent")])
    questions = read_questions(path)
    assert questions == [
        Question(
            id="a",
            context="Oslo lies in Norway.",
            question="Where is Oslo?",
            truthful="Norway",
            untruthful="Sweden",
            evidence=((13, 19),),
            image=str(tmp_path / "a" / "b.png"),  # from the file's own folder
            boxes=((0.0, 1.0, 2.5, 3.0),),
            group="g",
            kind="absent",
        )
    ]
    assert (questions.layout, questions.path, questions.skipped) == ("pairs", str(path), 0)


def test_optional_fields_may_be_missing(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"question": "Where is  OSLO?", "truthful": "Norway", "untruthful": "Sweden"}])
    (question,) = read_questions(path)
    assert question == Question("1", "", "Where is  OSLO?", "Norway", "Sweden", group="where is oslo")


@pytest.mark.parametrize(
    ("label", "truthful"),
    [
        (1, True),
        (0, False),
        (True, True),
        (False, False),
        ("1", True),
        (" Gold ", True),
        ("hallucinated", False),
        (1.0, True),
        (0.0, False),
        ("no", False),
    ],
)
def test_singles(tmp_path: Path, label: object, truthful: bool) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"question": "Q?", "answer": "A", "label": label}])
    questions = read_questions(path)
    assert questions.layout == "singles"
    assert [tuple(answer) for answer in questions[0].answers] == [("A", truthful)]
    assert (questions[0].truthful, questions[0].untruthful) == (("A", None) if truthful else (None, "A"))


@pytest.mark.parametrize("label", [2, -1, 0.5, "maybe", None, [1]])
def test_a_label_is_truthful_or_not(tmp_path: Path, label: object) -> None:
    message = refusal(jsonl(tmp_path / "q.jsonl", [{"question": "Q?", "answer": "A", "label": label}]))
    assert "q.jsonl:line 1: field 'label'" in message
    assert "1 (truthful) or 0 (not)" in message


def test_halueval(tmp_path: Path) -> None:
    row = {"knowledge": "A bee has six legs. Bees fly.", "question": "How many legs?", "right_answer": "six"}
    questions = read_questions(jsonl(tmp_path / "h.jsonl", [row | {"hallucinated_answer": "It has eight legs."}]))
    assert questions.layout == "HaluEval"
    assert questions == [
        Question(
            "1",
            "A bee has six legs. Bees fly.",
            "How many legs?",
            "six",
            "It has eight legs.",
            evidence=((10, 13),),
            group="how many legs",
        )
    ]


def test_nq_swap_takes_the_swapped_context_as_the_truth(tmp_path: Path) -> None:
    path = tmp_path / "n.parquet"
    row = {"question": "who sang it", "org_context": "Ann sang it.", "org_answer": ["Ann", "Anna"]}
    row |= {"sub_context": "Bob sang it. Bobby did not; BOB did.", "sub_answer": ["Bob"]}
    pq.write_table(pa.Table.from_pylist([row]), path)
    questions = read_questions(path)
    assert questions.layout == "NQ-Swap"
    (question,) = questions
    assert (question.context, question.truthful, question.untruthful) == (row["sub_context"], "Bob", "Ann")
    assert [question.context[start:end] for start, end in question.evidence] == ["Bob", "BOB"]


def test_rlhfv_and_phd(tmp_path: Path) -> None:
    row = {"question_id": 1, "question": "What is it?", "answer": "A cat.", "image_id": "7", "label": "gold"}
    rows = [row, row | {"label": "hallucinated", "answer": "A dog.", "image_file": "7.jpg"}]
    questions = read_questions(jsonl(tmp_path / "d.jsonl", rows))
    assert questions.layout == "RLHF-V / PhD"
    assert [(q.truthful, q.untruthful, q.image, q.group) for q in questions] == [
        ("A cat.", None, str(tmp_path / "7"), "7"),
        (None, "A dog.", str(tmp_path / "7.jpg"), "7.jpg"),
    ]


def test_pope(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "x.jpg", "text": "Is there a cat?", "label": "no"}
    questions = read_questions(jsonl(tmp_path / "p.json", [[row]]))  # a .json file is one array
    assert questions.layout == "POPE"
    image = str(tmp_path / "x.jpg")
    assert questions == [Question("1", "", "Is there a cat?", "no", "yes", image=image, group="x.jpg")]
    (elsewhere,) = read_questions(tmp_path / "p.json", images="/pictures")
    assert (elsewhere.image, elsewhere.group) == ("/pictures/x.jpg", "x.jpg")
    assert elsewhere.digest == questions[0].digest  # the same row, wherever its picture lies
    message = refusal(jsonl(tmp_path / "bad.jsonl", [row | {"label": "perhaps"}]))
    assert "bad.jsonl:line 1: field 'label'" in message
    assert "yes or no" in message


def test_truthfulqa_with_a_byte_order_mark_and_cells_of_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    header = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    first = 'A,B,"What\nnow?",Best,Best; Good,Worst; Bad,S\n'
    path.write_text("\ufeff" + header + first + "A,B,Next?,Yes,Yes, ; ,S\n", encoding="utf-8")
    questions = read_questions(path, limit=1)
    assert questions.layout == "TruthfulQA"
    assert questions == [Question("2", "", "What\nnow?", "Best", "Worst", group="what now")]
    message = refusal(path)
    assert "t.csv:line 4: field 'Incorrect Answers'" in message  # the cell of two lines is counted


def test_a_blank_line_in_a_csv_is_counted_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,truthful,untruthful\nA?,b,c\n\nD?,,e\n", encoding="utf-8")
    assert "t.csv:line 4: field 'truthful'" in refusal(path)


def test_a_json_object_around_one_array_is_read(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"version": 1, "data": [pair(), pair(id="b")]}), encoding="utf-8")
    assert [question.id for question in read_questions(path)] == ["a", "b"]


def test_csv_spans_come_as_json(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, [*PAIR])
        writer.writeheader()
        writer.writerow(PAIR)
    assert read_questions(path)[0].evidence == ((13, 19),)


@pytest.mark.parametrize(
    ("untruthful", "kind"),
    [("Sweden", "not in context"), ("oslo", "in context"), ("Os", "not in context"), ("lies in", "in context")],
)
def test_kind_is_derived_from_the_text(tmp_path: Path, untruthful: str, kind: str) -> None:
    (question,) = read_questions(jsonl(tmp_path / "q.jsonl", [pair(untruthful=untruthful)]))
    assert answer_kind(question) == kind


def test_kind_is_the_columns_own_where_there_is_one_and_none_without_a_context() -> None:
    assert answer_kind(Question("1", "Oslo", "Q?", "a", "b", kind="memory")) == "memory"
    assert answer_kind(Question("1", "", "Q?", "a", "b")) is None
    assert answer_kind(Question("1", "Oslo", "Q?", "a", None)) is None


# --- layouts, in the real files --------------------------------------------------------------------------------------


def test_where_the_reference_files_are_there_they_are_read(request: pytest.FixtureRequest) -> None:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not (beside / "nqswap.parquet").is_file():
        pytest.skip("no reference data beside the checkout")
    try:
        found = request.getfixturevalue("reference_data")
    except pytest.skip.Exception as skipped:
        pytest.fail(f"the reference data is there, and its tests are skipped: {skipped}")
    assert (Path(found) / "nqswap.parquet").samefile(beside / "nqswap.parquet")


@pytest.mark.real_data
def test_real_halueval(reference_data: Path) -> None:
    questions = read_questions(reference_data / "halueval_qa_1000.jsonl")
    assert (len(questions), questions.layout) == (1000, "HaluEval")
    assert questions[0].truthful == "Arthur's Magazine"
    assert questions[0].untruthful == "First for Women was started first."
    assert questions[0].context.startswith("Arthur's Magazine (1844–1846) was an American literary periodical")
    assert questions[0].evidence == ((0, 17),)
    # The data's own description: right answers stand verbatim in 95.8 % of the contexts.
    assert 955 <= sum(q.truthful in q.context for q in questions if q.truthful) <= 960
    assert 1 <= sum(answer_kind(q) == "in context" for q in questions) <= 9


@pytest.mark.real_data
def test_real_nq_swap(reference_data: Path) -> None:
    questions = read_questions(reference_data / "nqswap.parquet")
    rows = pq.read_table(reference_data / "nqswap.parquet").to_pylist()
    assert (len(questions), questions.layout) == (4746, "NQ-Swap")
    for question, row in zip(questions, rows, strict=True):
        assert question.context == row["sub_context"]
        assert question.truthful == row["sub_answer"][0]
        assert question.untruthful == row["org_answer"][0]
        for start, end in question.evidence:
            assert question.context[start:end].casefold() == question.truthful.strip().casefold()
    assert sum(bool(question.evidence) for question in questions) > 0.98 * len(questions)
    assert len({question.group for question in questions}) <= 1667


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "rows", "truthful", "empty"),
    [
        ("setC_images_phd10k.jsonl", 10_000, 5_000, 0),
        ("setD_images_rlhfv.jsonl", 2_726, 1_391, 1),  # one answer is empty: question 1378
        ("setE_images_rlhfv_phd.jsonl", 12_726, None, 1),
    ],
)
def test_real_image_sets(reference_data: Path, name: str, rows: int, truthful: int | None, empty: int) -> None:
    path = reference_data / "probing_sets" / name
    questions = read_questions(path, skip_bad_rows=True)
    assert (len(questions), questions.skipped, questions.layout) == (rows - empty, empty, "RLHF-V / PhD")
    gold = sum(question.truthful is not None for question in questions)
    assert truthful is None or truthful - empty <= gold <= truthful
    if empty:
        assert "field 'answer'" in refusal(path)


@pytest.mark.real_data
@pytest.mark.parametrize("part", ["random", "popular", "adversarial"])
def test_real_pope(reference_data: Path, part: str) -> None:
    questions = read_questions(reference_data / "pope" / f"coco_{part}.jsonl")
    assert (len(questions), questions.layout) == (3000, "POPE")
    assert sum(question.truthful == "yes" for question in questions) == 1500
    assert len({question.group for question in questions}) == 500
    assert questions[0].question == "Is there a snowboard in the image?"


@pytest.mark.real_data
def test_real_truthfulqa(reference_data: Path) -> None:
    questions = read_questions(reference_data / "truthfulqa.csv")
    assert (len(questions), questions.layout) == (817, "TruthfulQA")
    assert questions[0].question == "What happens to you if you eat watermelon seeds?"
    assert questions[0].truthful == "The watermelon seeds pass through your digestive system"
    assert questions[0].untruthful == "You grow watermelons in your stomach"


# --- bad input -------------------------------------------------------------------------------------------------------


def test_missing_file_folder_and_suffix(tmp_path: Path) -> None:
    assert "nowhere.jsonl is not there" in refusal(tmp_path / "nowhere.jsonl")
    assert "no such file" in refusal(tmp_path / "nowhere.jsonl")
    assert "got: a folder" in refusal(tmp_path)
    other = tmp_path / "q.xlsx"
    other.write_bytes(b"rows")
    message = refusal(other)
    assert "has an unknown type" in message
    assert ".jsonl, .json, .csv, .parquet" in message
    assert "got: .xlsx" in message


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"q{suffix}"
    path.write_bytes(b"")
    message = refusal(path)
    assert f"q{suffix} is empty" in message
    assert "0 bytes" in message


@pytest.mark.parametrize(("name", "text"), [("q.jsonl", "\n\n"), ("q.json", "[]"), ("q.csv", "question,truthful\n")])
def test_no_row(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert f"{name} holds no usable row" in refusal(path)


def test_json_error_on_line_17(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [pair(id=str(i)) for i in range(20)])
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[16] = lines[16][:-1]
    path.write_text("\n".join(lines), encoding="utf-8")
    message = refusal(path)
    assert "q.jsonl:line 17: the row" in message
    assert "not JSON" in message
    questions = read_questions(path, skip_bad_rows=True)
    assert (len(questions), questions.skipped) == (19, 1)
    assert "16" not in [question.id for question in questions]
    lines[16] = '{"id" 16}'
    array = tmp_path / "q.json"
    array.write_text("[\n" + ",\n".join(lines) + "\n]", encoding="utf-8")
    assert "q.json:18: not JSON" in refusal(array)  # one line more for the bracket


@pytest.mark.parametrize("row", [[1, 2], "text", 3, None])
def test_a_row_is_an_object(tmp_path: Path, row: object) -> None:
    message = refusal(jsonl(tmp_path / "q.jsonl", [pair(), row]))
    assert "q.jsonl:line 2: the row" in message
    assert "not an object" in message


def test_a_missing_column_is_named_with_the_nearest_layout(tmp_path: Path) -> None:
    message = refusal(jsonl(tmp_path / "q.jsonl", [pair(untruthful=...)]))
    assert "q.jsonl:line 1: column 'untruthful' is missing" in message
    assert "pairs (question, truthful, untruthful)" in message
    assert "got: context, evidence, id, question, truthful" in message
    row = {"knowledge": "K", "question": "Q", "hallucinated_answer": "A"}
    message = refusal(jsonl(tmp_path / "h.jsonl", [row]))
    assert "column 'right_answer' is missing" in message


def test_a_column_that_is_missing_further_down_names_its_line(tmp_path: Path) -> None:
    message = refusal(jsonl(tmp_path / "q.jsonl", [pair(), pair(id="b", truthful=...)]))
    assert "q.jsonl:line 2: field 'truthful'" in message


@pytest.mark.parametrize(
    ("changed", "field", "expected"),
    [
        ({"truthful": "  "}, "truthful", "an answer that is not empty"),
        ({"untruthful": ""}, "untruthful", "an answer that is not empty"),
        ({"untruthful": " Norway "}, "untruthful", "an answer that differs from the truthful one"),
        ({"truthful": None}, "truthful", "text"),
        ({"truthful": {"text": "Norway"}}, "truthful", "text"),
        ({"truthful": float("nan")}, "truthful", "text"),
        ({"context": "", "question": " "}, "question", "a question that is not empty"),
        ({"question": "lone \ud800 surrogate"}, "question", "text that is valid Unicode"),
        ({"context": "\udfff"}, "context", "text that is valid Unicode"),
        ({"evidence": [[13, 21]]}, "evidence", "spans [start, end) inside the context"),
        ({"evidence": [[-1, 3]]}, "evidence", "spans [start, end) inside the context"),
        ({"evidence": [[3, 3]]}, "evidence", "spans [start, end) inside the context"),
        ({"evidence": [[1.5, 3]]}, "evidence", "whole character positions"),
        ({"evidence": [[1, 2, 3]]}, "evidence", "a list of lists of 2 numbers"),
        ({"evidence": [1, 2]}, "evidence", "a list of lists of 2 numbers"),
        ({"evidence": "13-19"}, "evidence", "a list of lists of 2 numbers"),
        ({"boxes": [[0, 0, 5]]}, "boxes", "a list of lists of 4 numbers"),
        ({"boxes": {"x": 1}}, "boxes", "a list of lists of 4 numbers"),
        ({"boxes": [[0, 0, 5, True]]}, "boxes", "a list of lists of 4 numbers"),
        ({"boxes": [[0, 0, float("inf"), 5]]}, "boxes", "a list of lists of 4 numbers"),
        ({"boxes": [[0, 0, 10**400, 5]]}, "boxes", "a list of lists of 4 numbers"),
        ({"boxes": [[5, 0, 1, 5]]}, "boxes", "x0 < x1 and y0 < y1"),
        ({"boxes": [[-1, 0, 1, 5]]}, "boxes", "x0 < x1 and y0 < y1"),
    ],
)
def test_a_bad_field_is_named(tmp_path: Path, changed: dict[str, Any], field: str, expected: str) -> None:
    path = jsonl(tmp_path / "q.jsonl", [pair(id="first"), pair(**changed)])
    message = refusal(path)
    assert f"q.jsonl:line 2: field {field!r}" in message
    assert expected in message
    assert "--skip-bad-rows" in message
    message.encode()  # can be printed
    questions = read_questions(path, skip_bad_rows=True)
    assert ([question.id for question in questions], questions.skipped) == (["first"], 1)


def test_an_id_stands_once(tmp_path: Path) -> None:
    message = refusal(jsonl(tmp_path / "q.jsonl", [pair(), pair(id="b"), pair()]))
    assert "q.jsonl:line 3: field 'id'" in message
    assert "an id of its own" in message
    assert "got: 'a'" in message


def test_bad_single_answers(tmp_path: Path) -> None:
    row = {"question": "Q?", "answer": " ", "label": 1}
    assert "q.jsonl:line 1: field 'answer'" in refusal(jsonl(tmp_path / "q.jsonl", [row]))


def test_csv_with_too_many_fields(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,truthful,untruthful\nA?,b,c\nD?,e,f,g,h\n", encoding="utf-8")
    message = refusal(path)
    assert "q.csv:line 3: the row" in message
    assert "2 more fields than the header has" in message
    assert read_questions(path, skip_bad_rows=True).skipped == 1


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.csv"])
def test_invalid_utf8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"question": "caf\xe9", "truthful": "a", "untruthful": "b"}\n')
    message = refusal(path)
    assert f"{name} cannot be read" in message
    assert "in UTF-8" in message


def test_truncated_parquet(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.Table.from_pylist([{"question": "Q?", "truthful": "a", "untruthful": "b"}] * 50), whole)
    assert "field 'id'" not in str(read_questions(whole))
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(whole.read_bytes()[:-20])
    assert "cut.parquet cannot be read" in refusal(cut)
    assert "a whole .parquet file" in refusal(cut)


def test_deep_json(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("[" * 200_000 + "\n", encoding="utf-8")
    assert "q.jsonl:line 1: the row" in refusal(path)


# --- limit and skipping ----------------------------------------------------------------------------------------------


def test_limit_counts_good_rows_and_reads_no_further(tmp_path: Path) -> None:
    rows = [pair(id="1", truthful=""), pair(id="2"), pair(id="3"), pair(id="4", truthful=""), pair(id="5")]
    path = jsonl(tmp_path / "q.jsonl", rows)
    found = read_questions(path, limit=2, skip_bad_rows=True)
    assert ([question.id for question in found], found.skipped) == (["2", "3"], 1)
    everything = read_questions(path, skip_bad_rows=True)
    assert ([question.id for question in everything], everything.skipped) == (["2", "3", "5"], 2)
    good = jsonl(tmp_path / "good.jsonl", [*rows[1:3], rows[3]])
    assert len(read_questions(good, limit=2)) == 2  # the bad row stands behind the limit


def test_a_first_row_without_a_column_is_skipped_like_any_other(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [pair(untruthful=...), pair(id="b")])
    found = read_questions(path, skip_bad_rows=True)
    assert ([question.id for question in found], found.skipped) == (["b"], 1)
    nothing = jsonl(tmp_path / "none.jsonl", [{"a": 1}, {"b": 2}])
    assert "none.jsonl:line 1: column" in refusal(nothing, skip_bad_rows=True)


def test_only_bad_rows(tmp_path: Path) -> None:
    message = refusal(jsonl(tmp_path / "q.jsonl", [pair(truthful="")] * 3), skip_bad_rows=True)
    assert "q.jsonl holds no usable row" in message
    assert "0 good rows, 3 bad ones" in message


# --- laws ------------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SOLID = TEXT.filter(lambda text: text.strip() != "")


@st.composite
def question_lists(draw: st.DrawFn) -> list[dict[str, Any]]:
    questions: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 4))):
        context = draw(TEXT)
        answers = draw(st.tuples(SOLID, SOLID).filter(lambda pair: pair[0].strip() != pair[1].strip()))
        single = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
        cuts = sorted(draw(st.sets(st.integers(0, len(context)), max_size=4)))
        box = draw(st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(51, 99)] * 2))
        questions.append(
            {
                "id": f"{number}{draw(TEXT)}",
                "context": context,
                "question": draw(TEXT if context.strip() else SOLID),
                "truthful": answers[0] if single[0] else None,
                "untruthful": answers[1] if single[1] else None,
                "evidence": tuple(zip(cuts[::2], cuts[1::2], strict=False)),
                "image": draw(st.none() | SOLID.filter(lambda name: not name.startswith("/"))),  # that lies elsewhere
                "boxes": draw(st.sampled_from([(), (box,)])),
                "group": draw(SOLID),
                "kind": draw(st.none() | SOLID),
            }
        )
    return questions


def agree(rows: list[dict[str, Any]]) -> bool:
    """Return whether no answer is truthful in one row and untruthful in another; such files are refused."""
    sides = {"truthful": set[tuple[str, ...]](), "untruthful": set[tuple[str, ...]]()}
    for row in rows:
        asked = row["context"].strip(), row["question"].strip(), os.path.normpath(row["image"] or "")
        for side, seen in sides.items():
            if row[side] is not None:
                seen.add((*asked, row[side].strip()))
    return not sides["truthful"] & sides["untruthful"]


@settings(MANY, max_examples=60)
@given(rows=question_lists().filter(agree))
def test_what_is_written_is_read_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    questions = [Question(**row) for row in rows]
    placed = [
        question if question.image is None else replace(question, image=str(tmp_path / question.image))
        for question in questions
    ]
    found = read_questions(write_questions(tmp_path / "q.jsonl", placed))
    # Paths are written relative to the file: another spelling may come back, of the same place.
    assert [spelt(question) for question in found] == [spelt(question) for question in placed]


def spelt(question: Question) -> Question:
    return question if question.image is None else replace(question, image=os.path.normpath(question.image))


def test_writing_fails_whole(tmp_path: Path) -> None:
    def rows() -> Any:
        yield Question("1", "c", "q", "a", "b")
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_questions(tmp_path / "q.jsonl", rows())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(ArtifactError, match="could not be written"):
        write_questions(tmp_path / "file" / "q.jsonl", [])


def _parquet_bytes(folder: Path) -> bytes:
    path = folder / "seed.parquet"
    pq.write_table(pa.Table.from_pylist([{"question": "Q?", "truthful": "a", "untruthful": "b"}] * 3), path)
    return path.read_bytes()


SEEDS: dict[str, Callable[[Path], bytes]] = {
    ".jsonl": lambda _: json.dumps(PAIR).encode() + b"\n" + json.dumps(PAIR).encode(),
    ".json": lambda _: json.dumps([PAIR, PAIR]).encode(),
    ".csv": lambda _: b'question,truthful,untruthful\n"a",b,c\n',
    ".parquet": _parquet_bytes,
}


@pytest.mark.parametrize("suffix", SEEDS)
@settings(MANY, max_examples=150)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """Bytes from nowhere, and good files with some bytes changed or cut off."""
    good = SEEDS[suffix](tmp_path)
    if data.draw(st.booleans()):
        content = data.draw(st.binary(max_size=80))
    else:
        changed = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        content = bytes(changed[: data.draw(st.integers(0, len(good)))])
    path = tmp_path / f"q{suffix}"
    path.write_bytes(content)
    for skip in (False, True):
        try:
            assert len(read_questions(path, skip_bad_rows=skip)) > 0
        except TruthHeadsError as error:
            assert f"q{suffix}" in str(error)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ("id", "context", "question", "truthful", "untruthful", "answer", "label", "evidence", "boxes", "image")
FIELDS += ("group", "kind", "knowledge", "right_answer", "hallucinated_answer", "text", "question_id", "image_id")


@MANY
@given(row=st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_any_object_is_read_or_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "q.jsonl", [row, pair() | row])
    try:
        assert len(read_questions(path)) == 2
    except TruthHeadsError as error:
        assert "q.jsonl" in str(error)


@MANY
@given(words=st.lists(SOLID, min_size=1, max_size=5), answer=SOLID)
def test_occurrences_are_the_answer(words: list[str], answer: str) -> None:
    context = " ".join([*words, answer, *words])
    spans = occurrences(context, answer)
    for start, end in spans:
        found = context[start:end]
        assert re.fullmatch(re.escape(answer.strip()), found, re.IGNORECASE)
    assert spans


def test_opposite_labels_of_one_answer_are_refused(tmp_path: Path) -> None:
    row = {"question": "What is on the door?", "answer": "4001", "image_id": "7", "image_file": "7.jpg"}
    rows = [{**row, "question_id": n, "label": label} for n, label in enumerate(["gold", "gold", "hallucinated"])]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in rows[:2]))
    assert "gold is truthful" in read_questions(path).note
    path.write_text("\n".join(json.dumps(one) for one in rows))
    with pytest.raises(DataError, match="opposite labels"):
        read_questions(path)


FERRY = {"context": "The ferry leaves at nine.", "question": "When does the ferry leave?"}


@pytest.mark.parametrize(("rows", "first", "answer"), [
    ([{"answer": "at nine", "label": 1}, {"answer": "at ten", "label": 0}, {"answer": " at nine", "label": 0}],
     "truthful, as in {}:line 1", "' at nine'"),
    ([{"answer": "at ten", "label": 1}, {"answer": "at nine", "label": 0}, {"answer": "at ten", "label": 0}],
     "truthful, as in {}:line 1", "'at ten'"),
    ([{"truthful": "at nine", "untruthful": "at ten"}, {"truthful": "at nine", "untruthful": "at one"},
      {"truthful": "at ten", "untruthful": "at six"}], "untruthful, as in {}:line 1", "'at ten'"),
])  # fmt: skip
def test_opposite_labels_about_a_text_are_refused_and_both_rows_named(
    rows: list[dict[str, Any]], first: str, answer: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({**FERRY, **one}) for one in rows))
    for skip in (False, True):  # which of the two is wrong, nobody knows
        with pytest.raises(DataError) as caught:
            read_questions(path, skip_bad_rows=skip)
        assert caught.value.problem == f"{path}:line 3: the same answer to the same question has opposite labels"
        assert caught.value.expected == first.format(path)
        assert caught.value.got == f"{answer} to 'When does the ferry leave?'"
        assert caught.value.fix == "correct one of the two rows, or remove both"
    changed = [{**FERRY, **one, "context": f"{FERRY['context']} {at}"} for at, one in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, changed)))
    assert len(read_questions(path)) == 3  # by another text it may be so


def test_the_first_of_several_contradictions_is_named(tmp_path: Path) -> None:
    said = [("a", 1), ("b", 0), ("c", 1), ("c", 0), ("b", 1), ("a", 1), ("a", 0)]
    path = tmp_path / "rows.csv"
    lines = [f"Where?,{answer},{label}" for answer, label in said]
    path.write_text("\n".join(["question,answer,label", *lines]))
    with pytest.raises(DataError, match=r"rows\.csv:line 5: the same answer") as caught:
        read_questions(path)
    assert caught.value.expected == f"truthful, as in {path}:line 4"


def test_two_equal_answers_are_a_bad_row_that_may_be_skipped_and_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    pairs = [("at nine", "at ten"), ("at nine", " at nine ")]
    path.write_text("\n".join(json.dumps({**FERRY, "truthful": a, "untruthful": b}) for a, b in pairs))
    with pytest.raises(DataError, match="line 2: field 'untruthful'"):
        read_questions(path)
    found = read_questions(path, skip_bad_rows=True)
    assert (len(found), found.skipped) == (1, 1)


def test_released_sets_disagree_and_are_not_mixed(reference_data: Path, tmp_path: Path) -> None:
    folder = reference_data / "probing_sets"
    both = [(folder / name).read_text() for name in ("setD_images_rlhfv.jsonl", "setE_images_rlhfv_phd.jsonl")]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(both))
    with pytest.raises(DataError, match="opposite labels"):
        read_questions(path, skip_bad_rows=True)
