"""Files as people bring them: what they hold decides how they are read; what cannot be read says what would help."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from truthheads.data.delimited import find_delimiter
from truthheads.data.lines import made_row, plain_name
from truthheads.data.questions import Questions, write_questions
from truthheads.data.readers import read_questions
from truthheads.data.tables import kind_of, read_rows
from truthheads.errors import DataError

ROWS = [
    {
        "context": f"The {thing} is {colour}.",
        "question": f"Which colour has the {thing}?",
        "truthful": colour,
        "untruthful": other,
    }
    for thing, colour, other in (("door", "red", "blue"), ("boat", "green", "grey"), ("gate", "white", "pink"))
]


def refusal(path: Path, **how: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_questions(path, **how)
    return caught.value


def as_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_csv(
    path: Path, delimiter: str, *, header: list[str] | None = None, front: str = "", encoding: str = "utf-8"
) -> Path:
    lines = [header or list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    path.write_text(front + "".join(delimiter.join(cells) + "\n" for cells in lines), encoding=encoding)
    return path


def same(found: Questions) -> bool:
    return [(q.context, q.question, q.truthful, q.untruthful) for q in found] == [tuple(row.values()) for row in ROWS]


# --- which kind of file


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.txt", "q.ndjson", "q", "q.csv"])
def test_json_lines_under_any_name(tmp_path: Path, name: str) -> None:
    assert same(read_questions(as_lines(tmp_path / name, ROWS)))


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.data"])
@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_under_any_name(tmp_path: Path, name: str, indent: int | None) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ROWS, indent=indent))
    assert same(read_questions(path))


def test_an_array_with_a_row_a_line_under_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("[" + ",\n".join(map(json.dumps, ROWS)) + "]\n")
    assert same(read_questions(path))


def test_one_row_alone_is_a_row_and_what_rows_are_wrapped_in_is_not(tmp_path: Path) -> None:
    row = {"question": "Which?", "documents": [{"text": "The door is red."}], "answer": "red", "label": 1}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(row, indent=1))
    (found,) = read_questions(path)
    assert (found.context, found.truthful) == ("The door is red.", "red")
    path.write_text(json.dumps({"version": 1, "authors": ["me"], "data": ROWS}))
    assert same(read_questions(path))


@pytest.mark.parametrize(
    ("delimiter", "told"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars"), (",", None)]
)
@pytest.mark.parametrize("name", ["q.csv", "q.txt", "q.tsv", "q.jsonl"])
def test_what_stands_between_columns_is_found_and_told(
    tmp_path: Path, delimiter: str, told: str | None, name: str
) -> None:
    found = read_questions(as_csv(tmp_path / name, delimiter))
    assert same(found)
    assert [one for one in found.read_as if "separated" in one] == ([f"columns separated by {told}"] if told else [])


def test_commas_in_texts_do_not_outvote_the_header() -> None:
    assert find_delimiter("context;question;truthful;untruthful", ["a, b, c, d, e;f, g;h;i"]) == ";"
    assert find_delimiter("question", ["Who; when?"]) == ","


def test_a_spreadsheets_own_line_in_front_is_obeyed_and_lines_are_counted(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "q.csv", "^", front="sep=^\n")
    found = read_questions(path)
    assert same(found) and found[0].id == "3"  # after that line and the header
    path.write_text(path.read_text() + "too^many^fields^in^here\n")
    assert "line 6: the row" in str(refusal(path))


def test_tables_without_a_header_and_other_files_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "q.docx"
    path.write_bytes(b"PK\x03\x04rows")
    assert "unknown type" in refusal(path).problem
    (tmp_path / "q.txt").write_text("Some prose, with a comma.\nAnd more of it.\n")
    assert "unknown type" in refusal(tmp_path / "q.txt").problem
    assert kind_of(as_lines(tmp_path / "q.parquet", ROWS)) == "lines"


# --- names of columns


def test_blanks_and_capitals_in_a_header(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    lines = ['"' + '", "'.join(cells) + '"' for cells in [["Context", " QUESTION ", "Truthful", "Untruthful"]]]
    lines += ['"' + '","'.join(row.values()) + '"' for row in ROWS]
    path.write_text("\n".join(lines) + "\n")
    assert same(read_questions(path))
    assert same(
        read_questions(as_lines(tmp_path / "q.jsonl", [{f" {k.title()}": v for k, v in row.items()} for row in ROWS]))
    )


def test_blanks_after_delimiters_do_not_end_a_quoted_cell(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text('question, truthful, untruthful\n"Who, when?", "Ann, in May", "Bo"\n')
    (found,) = read_questions(path)
    assert (found.question, found.truthful) == ("Who, when?", "Ann, in May")


def test_a_plain_name_counts_where_another_column_has_nearly_the_same() -> None:
    assert plain_name("\ufeff Best  Answer") == "best_answer"
    row = made_row("line 1", {"Question": "shown", "question": "asked"})
    assert row.fields == {"question": "asked"}
    assert "two columns called 'question'" in made_row("line 1", {"Question": "a", "QUESTION": "b"}).fault


def test_an_error_spells_a_column_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("Question,Best Answer,Incorrect Answers\nWho?,Ann,;\n")
    assert "field 'Incorrect Answers'" in refusal(path).problem


@pytest.mark.parametrize("context", ["contexts", "documents", "passages", "retrieved_contexts", "source_documents"])
@pytest.mark.parametrize(
    ("question", "answer"), [("question", "answer"), ("query", "response"), ("user_input", "response")]
)
def test_passages_and_a_response(tmp_path: Path, context: str, question: str, answer: str) -> None:
    row = {question: "When?", context: ["The ferry leaves.", {"title": "Times", "text": "At nine."}], answer: "at nine"}
    path = as_lines(tmp_path / "q.jsonl", [row])
    found = read_questions(path, halves=True)
    assert found[0].context == "The ferry leaves.\n\nTimes\nAt nine." and found[0].truthful == "at nine"
    assert not found[0].labelled and "taken as truthful" in found.cautions[0]
    assert f"context from the column {context!r}" in found.read_as
    error = refusal(path)
    assert "'label' is missing" in error.problem and "truthheads data pairs" in error.fix
    assert "hallucination_labels" not in str(error) and context in error.got
    labelled = read_questions(as_lines(path, [row | {"label": 0}]))
    assert labelled[0].untruthful == "at nine" and labelled[0].labelled and labelled.note == ""
    back = read_questions(write_questions(tmp_path / "back.jsonl", found), halves=True)
    assert list(back) == list(found) and not back[0].labelled


# --- columns of no layout


def test_nearly_named_columns_are_refused_with_the_nearest_names(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "q.csv", ",", header=["context", "question", "right answer", "wrong answer"])
    error = refusal(path)
    assert error.got == "context, question, right answer, wrong answer"
    assert "rename 'right answer' to 'truthful' and 'wrong answer' to 'untruthful'" in error.fix
    assert not any(name in str(error) for name in ("HaluEval", "NQ-Swap", "POPE", "TruthfulQA", "RAGTruth"))
    assert "data pairs" not in error.fix


def test_where_untruthful_answers_are_missing_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    rows = [{"context": "C", "question": "Q?", "gold answer": "A"}]
    error = refusal(as_lines(tmp_path / "q.jsonl", rows))
    assert "rename 'gold answer' to 'truthful'" in error.fix and "truthheads data pairs FILE --model MODEL" in error.fix
    assert "data pairs" not in refusal(tmp_path / "q.jsonl", halves=True).fix
    error = refusal(as_lines(tmp_path / "p.jsonl", [{"context": "C", "question": "Q?", "truthful": "A"}]))
    assert "column 'untruthful' is missing" in error.problem and "data pairs" in error.fix


def test_typing_errors_in_names_are_seen(tmp_path: Path) -> None:
    error = refusal(as_lines(tmp_path / "q.jsonl", [{"questoin": "Q?", "truthfull": "A", "untruthful": "B"}]))
    assert "'questoin' to 'question'" in error.fix and "'truthfull' to 'truthful'" in error.fix


def test_a_layout_is_guessed_where_most_of_it_is_there(tmp_path: Path) -> None:
    rows = [{"knowledge": "K", "question": "Q?", "right_answer": "A"}]
    error = refusal(as_lines(tmp_path / "q.jsonl", rows))
    assert "column 'hallucinated_answer' is missing" in error.problem and error.expected.startswith("HaluEval")
    error = refusal(as_lines(tmp_path / "p.jsonl", [{"question_id": 1, "image": "a.jpg", "text": "Is there a cat?"}]))
    assert "'label' is missing" in error.problem and "label is missing: " in error.fix and "rename" not in error.fix


def test_answers_and_captions_are_sent_where_they_are_scored(tmp_path: Path) -> None:
    for row in ({"question_id": 1, "prompt": "Is it?", "text": "Yes"}, {"image_id": 3, "caption": "A cat."}):
        assert "evaluate answers" in refusal(as_lines(tmp_path / "a.jsonl", [row])).fix


# --- labels


@pytest.mark.parametrize(("yes", "no"), [("1.0", "0.0"), (" 1 ", "0"), ("True", "False"), (1.0, 0.0), ("YES", "no")])
def test_labels_as_data_frames_write_them(tmp_path: Path, yes: object, no: object) -> None:
    rows = [{"question": "Q?", "answer": "A", "label": yes}, {"question": "Q?", "answer": "B", "label": no}]
    assert [q.answers[0].truthful for q in read_questions(as_lines(tmp_path / "q.jsonl", rows))] == [True, False]


def test_labels_in_words_need_to_be_told(tmp_path: Path) -> None:
    words = ["NOT SUPPORTED", "SUPPORTED", "NOT SUPPORTED"]
    rows = [{"question": "Q?", "answer": str(at), "label": word} for at, word in enumerate(words)]
    path = as_lines(tmp_path / "q.jsonl", rows)
    error = refusal(path)
    assert "1 (truthful) or 0 (not)" in error.expected
    assert "--label-true SUPPORTED (of 'NOT SUPPORTED', 'SUPPORTED')" in error.fix
    found = read_questions(path, label_true="supported")
    assert [q.answers[0].truthful for q in found] == [False, True, False]
    assert "label 'supported' is truthful, 'NOT SUPPORTED' is not" in found.read_as
    assert "no row has the label 'yes'" in refusal(path, label_true="yes").problem


def test_labels_the_other_way_round(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": "A", "label": "1.0"}, {"question": "Q?", "answer": "B", "label": 0}]
    found = read_questions(as_lines(tmp_path / "q.jsonl", rows), label_true="0")
    assert [q.answers[0].truthful for q in found] == [False, True]


def test_where_there_are_no_labels_the_option_is_refused(tmp_path: Path) -> None:
    assert "does nothing here" in refusal(as_lines(tmp_path / "q.jsonl", ROWS), label_true="yes").problem


# --- encodings


def test_another_encoding_is_offered_with_the_line_and_read(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(
        "context,question,truthful,untruthful\nplain,Who?,Ann,Bo\nKöln,Wo?,Köln,Mainz\n", encoding="latin-1"
    )
    error = refusal(path)
    assert "line 3 is not UTF-8" in error.problem and "0xf6" in error.got and "--encoding latin-1" in error.fix
    found = read_questions(path, encoding="latin-1")
    assert found[1].truthful == "Köln" and "read as latin-1" in found.read_as
    lines = as_lines(tmp_path / "q.jsonl", [])
    lines.write_bytes(
        json.dumps(ROWS[0]).encode() + b'\n{"question": "K\xf6ln?", "truthful": "a", "untruthful": "b"}\n'
    )
    assert "line 2 is not UTF-8" in refusal(lines).problem
    assert read_questions(lines, encoding="cp1252")[1].question == "Köln?"
    array = tmp_path / "q.json"
    array.write_bytes(
        b"[\n" + json.dumps(ROWS[0]).encode() + b',\n{"question": "K\xf6ln?", "truthful": "a", "untruthful": "b"}]'
    )
    assert "line 3 is not UTF-8" in refusal(array).problem
    assert read_questions(array, encoding="latin-1")[1].question == "Köln?"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_encodings_of_several_bytes(tmp_path: Path, encoding: str) -> None:
    assert same(read_questions(as_csv(tmp_path / "q.csv", ";", encoding=encoding), encoding=encoding))
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding=encoding)
    assert same(read_questions(path, encoding=encoding))


def test_utf_16_is_seen_by_its_mark(tmp_path: Path) -> None:
    path = as_csv(tmp_path / "q.csv", ",", encoding="utf-16")
    assert path.read_bytes().startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    assert "--encoding utf-16" in refusal(path).fix


@pytest.mark.parametrize("name", ["latin-17", "base64", ""])
def test_an_encoding_must_be_one(tmp_path: Path, name: str) -> None:
    assert "is not known" in refusal(as_lines(tmp_path / "q.jsonl", ROWS), encoding=name).problem


def test_a_wrong_encoding_is_not_offered_again(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(b"question,truthful,untruthful\nA\x81,b,c\n")
    error = refusal(path, encoding="cp1252")
    assert "line 2 is not cp1252" in error.problem and "latin-1" not in error.fix


# --- TruthfulQA as on the hub


def test_truthfulqa_with_lists(tmp_path: Path) -> None:
    row = {"question": "Q?", "best_answer": "A", "correct_answers": ["A", "A too"], "incorrect_answers": ["B", "C"]}
    found = read_questions(as_lines(tmp_path / "q.jsonl", [row]))
    assert found.layout == "TruthfulQA"
    assert (found[0].truthful, found[0].untruthful, found[0].aliases) == ("A", "B", ("A too",))
    one = read_questions(as_lines(tmp_path / "r.jsonl", [row | {"incorrect_answers": ["B; or not"]}]))
    assert one[0].untruthful == "B; or not"  # of a list no text is divided


@pytest.mark.parametrize(
    "targets",
    [{"choices": ["B", "A", "A too"], "labels": [0, 1, 1]}, {"B": 0, "A": 1, "A too": 1}, json.dumps({"B": 0, "A": 1})],
)
@pytest.mark.parametrize("field", ["mc1_targets", "mc2_targets"])
def test_truthfulqa_multiple_choice(tmp_path: Path, targets: Any, field: str) -> None:
    (found,) = read_questions(as_lines(tmp_path / "q.jsonl", [{"question": "Q?", field: targets}]))
    assert (found.truthful, found.untruthful) == ("A", "B")


def test_truthfulqa_with_the_number_of_the_right_choice(tmp_path: Path) -> None:
    row = {"question": "Q?", "choices": ["B", "A", "C"], "label": 1}
    (found,) = read_questions(as_lines(tmp_path / "q.jsonl", [row]))
    assert (found.truthful, found.untruthful) == ("A", "B")
    assert "0 to 2" in refusal(as_lines(tmp_path / "r.jsonl", [row | {"label": 3}])).expected


@pytest.mark.parametrize(
    "targets", [{"choices": ["A"], "labels": [1]}, {"choices": ["A"], "labels": []}, "x", 3, ["A"]]
)
def test_targets_that_are_none(tmp_path: Path, targets: Any) -> None:
    row = {"question": "Q?", "mc1_targets": targets}
    assert "field 'mc1_targets'" in refusal(as_lines(tmp_path / "q.jsonl", [row])).problem


# --- RAGTruth


def ragtruth(folder: Path, prefix: str = "") -> Path:
    sources = [
        {
            "source_id": "7",
            "task_type": "QA",
            "source_info": {"question": "When?", "passages": "passage 1:At nine."},
            "prompt": "…",
        },
        {
            "source_id": "8",
            "task_type": "Summary",
            "source_info": "The door is red.",
            "prompt": "Sum up in 9 words:\nThe door is red.\noutput:",
        },
        {
            "source_id": "9",
            "task_type": "Data2txt",
            "source_info": {"name": "Inn"},
            "prompt": "Describe:\nStructured data:\n{'name': 'Inn'}\nOverview:",
        },
    ]
    flaw = [{"start": 0, "end": 4, "text": "Blue", "label_type": "Evident Conflict"}]
    rows = [("7", "At nine.", []), ("7", "At ten.", flaw), ("8", "Blue door.", flaw), ("9", "An inn.", [])]
    as_lines(folder / f"{prefix}source_info.jsonl", sources)
    told = [
        {"id": str(at), "source_id": to, "response": text, "labels": labels}
        for at, (to, text, labels) in enumerate(rows)
    ]
    return as_lines(folder / f"{prefix}response.jsonl", told)


@pytest.mark.parametrize("prefix", ["", "ragtruth_"])
def test_ragtruths_two_files_are_read_together(tmp_path: Path, prefix: str) -> None:
    path = ragtruth(tmp_path, prefix)
    found = read_questions(path)
    assert found.layout == "RAGTruth" and found == read_questions(tmp_path / f"{prefix}source_info.jsonl")
    assert [(q.context, q.question, q.truthful, q.untruthful, q.group, q.kind) for q in found] == [
        ("passage 1:At nine.", "When?", "At nine.", None, "7", "QA"),
        ("passage 1:At nine.", "When?", None, "At ten.", "7", "QA"),
        ("The door is red.", "Sum up in 9 words:", None, "Blue door.", "8", "Summary"),
        ('{"name": "Inn"}', "Describe:", "An inn.", None, "9", "Data2txt"),
    ]
    assert f"with the sources in {prefix}source_info.jsonl" in found.read_as


def test_ragtruth_without_its_other_file(tmp_path: Path) -> None:
    path = ragtruth(tmp_path)
    (tmp_path / "source_info.jsonl").unlink()
    error = refusal(path)
    assert "source_info.jsonl in the same folder" in error.expected and "put RAGTruth's source_info.jsonl" in error.fix


def test_a_response_to_a_source_that_is_not_there_is_a_bad_row(tmp_path: Path) -> None:
    path = ragtruth(tmp_path)
    path.write_text(path.read_text() + json.dumps({"id": "9", "source_id": "no", "response": "x", "labels": []}) + "\n")
    assert "line 5: the row" in refusal(path).problem and "'no'" in refusal(path).got
    assert read_questions(path, skip_bad_rows=True).skipped == 1


def test_ragtruth_in_one_file(tmp_path: Path) -> None:
    rows = [
        {"query": "When?", "context": "At nine.", "output": text, "task_type": "QA", "hallucination_labels": labels}
        for text, labels in (("Nine.", "[]"), ("Ten.", '[{"start": 0}]'))
    ]
    found = read_questions(as_lines(tmp_path / "q.jsonl", rows))
    assert [(q.question, q.answers[0]) for q in found] == [("When?", ("Nine.", True)), ("When?", ("Ten.", False))]


# --- the files of the reference folder


WHAT_BECOMES: dict[str, dict[str, Any] | str] = {
    "json_lines.json": {"layout": "HaluEval", "rows": 6},
    "array.jsonl": {"layout": "HaluEval", "rows": 6},
    "label_text_float.jsonl": {"layout": "singles", "rows": 12},
    "label_words.jsonl": "--label-true SUPPORTED",
    "label_contradiction.jsonl": "line 2: the same answer",
    "truthfulqa_hub.jsonl": {"layout": "TruthfulQA", "rows": 6},
    "truthfulqa_mc.jsonl": {"layout": "TruthfulQA, multiple choice", "rows": 6},
    "semicolon.csv": {"layout": "pairs", "rows": 6, "read_as": "columns separated by semicolons"},
    "blanks_in_header.csv": {"layout": "pairs", "rows": 6},
    "nearly_named.csv": "rename 'right answer' to 'truthful'",
    "latin1.csv": "--encoding latin-1",
    "five_rows.jsonl": {"layout": "pairs", "rows": 5},
    "context_list.jsonl": {"layout": "pairs", "rows": 2},
    "passages_list.jsonl": "'label' is missing",
    "pope_questions_llava.jsonl": "label is missing: ",
    "ragtruth_response.jsonl": {"layout": "RAGTruth", "rows": 6},
    "ragtruth_source_info.jsonl": {"layout": "RAGTruth", "rows": 6},
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", WHAT_BECOMES)
def test_every_case_at_hand_becomes_what_it_should(cases: Path, name: str) -> None:
    path, expected = cases / name, WHAT_BECOMES[name]
    if isinstance(expected, str):
        assert expected in str(refusal(path))
        return
    found = read_questions(path)
    assert (found.layout, len(found)) == (expected["layout"], expected["rows"])
    assert expected.get("read_as", found.read_as[0]) in found.read_as


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = as_lines(tmp_path / "q.jsonl", ROWS)
    assert next(read_rows(path)).columns == list(ROWS[0])
