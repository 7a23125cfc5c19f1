"""Yes/no benchmarks: parsers and figures as released and as they should be; answers that belong to their questions."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthheads.benchmarks.halueval import read_halueval
from truthheads.benchmarks.pope_answers import match_answers
from truthheads.benchmarks.pope_questions import describe_pope, pope_notes, read_pope, split_of
from truthheads.benchmarks.yes_no import (
    POPE_PARSERS,
    best_threshold,
    calibrated,
    measure_yesno,
    original_halueval,
    original_pope,
    released,
    released_halueval,
    strict,
    two_golds,
)
from truthheads.errors import DataError
from truthheads.evaluation.summary import metric_figures

Row = dict[str, Any]


def jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pope_row(number: int, label: str, *, image: str = "a.jpg", thing: str = "dog") -> Row:
    return {"question_id": number, "image": image, "text": f"Is there a {thing} in the image?", "label": label}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # strict, released, released HaluEval, POPE's own, HaluEval's own
        ("Yes", ("yes", "yes", "yes", "yes", "yes")),
        (" no.", ("no", "no", "no", "no", None)),
        ("**Yes**, there is.", ("yes", None, "no", "yes", "yes")),
        ("Yes and no", (None, "yes", "yes", "no", "yes")),
        ("Not really", (None, None, "no", "yes", "no")),
        ("There is no dog.", (None, None, "no", "no", None)),
        ("Yesterday", (None, None, "no", "yes", "yes")),
        ("No, there is not. Yes", ("no", "no", "no", "no", None)),
        ("", (None, None, "no", "yes", None)),
        ("I think so.\n\nYes", (None, None, "no", "yes", "yes")),
    ],
)
def test_each_parser_reads_as_its_evaluator_does(text: str, words: tuple[str | None, ...]) -> None:
    parsers: tuple[Callable[[str], str | None], ...] = (
        strict, released, released_halueval, original_pope, original_halueval,
    )  # fmt: skip
    assert tuple(parse(text) for parse in parsers) == words


def lines_of(rows: Sequence[tuple[str, str]], **fixed: Any) -> list[Row]:
    """Lines from (gold, answer)."""
    return [
        {
            "gold": gold, "group": str(at), "prompt": str(at), "split": "",
            "parsed": {name: parse(text) for name, parse in POPE_PARSERS.items()}, **fixed,
        }
        for at, (gold, text) in enumerate(rows)
    ]  # fmt: skip


SIX = [("yes", "Yes"), ("yes", "No"), ("yes", "Maybe"), ("no", "No"), ("no", "Yes"), ("no", "no")]


def test_figures_of_six_answers_worked_by_hand() -> None:
    found = {name: figure.value for name, figure in metric_figures(measure_yesno(lines_of(SIX)), seed=0).items()}
    # One of three yes-items is hit, one missed, one neither; of three no-items one is a false alarm.
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["precision"] == pytest.approx(1 / 2)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert found["balanced_accuracy"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["tpr_minus_fpr"] == pytest.approx(1 / 3 - 1 / 3)
    assert found["yes_rate"] == pytest.approx(2 / 6)
    assert found["unparsed"] == pytest.approx(1 / 6)
    # Released: "Maybe" is no false negative, and the yes-rate is that of the gold answers.
    assert found["accuracy_released"] == pytest.approx(3 / 6)
    assert found["recall_released"] == pytest.approx(1 / 2)
    assert found["yes_rate_released"] == pytest.approx(3 / 6)
    # POPE's own evaluator reads "Maybe" as yes.
    assert found["accuracy_original"] == pytest.approx(4 / 6)
    assert found["recall_original"] == pytest.approx(2 / 3)
    assert found["yes_rate_original"] == pytest.approx(3 / 6)


@given(st.lists(st.tuples(st.sampled_from(("yes", "no")), st.sampled_from(("yes", "No, sir", "unsure"))), min_size=1))
def test_released_figures_are_what_the_released_loops_count(rows: list[tuple[str, str]]) -> None:
    found = {name: figure.value for name, figure in metric_figures(measure_yesno(lines_of(rows)), seed=0).items()}
    said = [(gold, {"y": "yes", "n": "no"}.get(text[0].lower(), "unknown")) for gold, text in rows]
    hit, alarm = said.count(("yes", "yes")), said.count(("no", "yes"))
    missed, refused = said.count(("yes", "no")), said.count(("no", "no"))
    precision = hit / (hit + alarm) if hit + alarm else 0
    recall = hit / (hit + missed) if hit + missed else 0
    both = precision + recall
    assert found["accuracy_released"] == pytest.approx((hit + refused) / len(rows))
    assert found["precision_released"] == pytest.approx(precision)
    assert found["recall_released"] == pytest.approx(recall)
    assert found["f1_released"] == pytest.approx(2 * precision * recall / both if both else 0)
    assert found["yes_rate_released"] == pytest.approx(sum(gold == "yes" for gold, _ in rows) / len(rows))


def test_logits_come_first_and_give_an_area() -> None:
    lines = lines_of([("yes", "No"), ("no", "No"), ("yes", "No"), ("no", "No")])
    for line, margin in zip(lines, (2.0, 1.0, 3.0, 2.0), strict=True):
        line |= {"yes": margin, "no": 0.0}
        line["parsed"]["logits"] = "yes"
    found = metric_figures(measure_yesno(lines), seed=0)
    # Pairs (2,1), (2,2), (3,1), (3,2): three won and one tie.
    assert found["auroc"].value == pytest.approx(3.5 / 4)
    assert found["accuracy"].value == 0.5 and found["accuracy_strict"].value == 0.5
    assert found["yes_rate"].value == 1.0 and found["yes_rate_strict"].value == 0.0


def test_a_question_of_three_splits_counts_once_in_the_pooled_figure() -> None:
    lines = []
    for split in ("random", "popular", "adversarial"):
        for at, (gold, text) in enumerate([("yes", "No"), ("no", "No")]):
            line = lines_of([(gold, text)], split=split, group="a.jpg")[0]
            lines.append({**line, "prompt": "same" if gold == "yes" else f"{split}{at}"})
    found = {name: figure.value for name, figure in metric_figures(measure_yesno(lines), seed=0).items()}
    assert found["accuracy"] == pytest.approx(3 / 4)  # one yes-question, wrong; three no-questions, right
    assert found["accuracy_released"] == pytest.approx(3 / 6)  # as the method pools its 9,000
    assert found["accuracy_random"] == pytest.approx(1 / 2)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=12))
def test_the_best_threshold_is_the_best_of_all(items: list[tuple[int, bool]]) -> None:
    margin = np.array([float(value) for value, _ in items])
    gold = np.array([label for _, label in items])
    found = ((margin > best_threshold(margin, gold)) == gold).mean()
    assert found == max(((margin > edge) == gold).mean() for edge in np.arange(-3.5, 4.0))


def test_calibration_learns_no_threshold_from_the_items_that_it_judges() -> None:
    generator = np.random.default_rng(0)
    margin, gold = generator.normal(size=400), generator.random(400) < 0.5
    groups = [str(at) for at in range(400)]
    assert abs(calibrated(margin, gold, groups, seed=0).mean() - 0.5) < 0.08  # nothing to learn
    assert calibrated(gold + 5.0, gold, groups, seed=0).all()  # a bias and nothing else


def test_pope_questions_are_read_with_their_split(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "coco_pope_popular.json", [pope_row(1, "yes"), pope_row(2, "no", thing="cat")])
    questions = read_pope([path])
    assert [(q.id, q.split, q.gold) for q in questions] == [("1", "popular", "yes"), ("2", "popular", "no")]
    assert split_of(Path("random_popular.jsonl")) == ""
    other = jsonl(tmp_path / "aokvqa.jsonl", [{"question_id": 7, "image_path": "x/a.jpg", "question": "Is there a dog in the image?", "answer": "Yes"}])  # fmt: skip  # noqa: E501
    assert read_pope([other])[0].key == questions[0].key


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([pope_row(1, "maybe")], "line 1: field 'label'"),
        ([pope_row(1, "yes"), pope_row(1, "no", thing="cat")], "question 1 is there twice"),
        ([pope_row(1, "yes"), pope_row(2, "no")], "one question has two labels"),
        ([{"question_id": 1, "text": "?", "label": "yes"}], "field 'image'"),
    ],
)
def test_pope_files_that_are_refused(rows: list[Row], problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        read_pope([jsonl(tmp_path / "p.jsonl", rows)])


def test_answers_must_belong_to_the_questions(tmp_path: Path) -> None:
    questions = read_pope([jsonl(tmp_path / "random.jsonl", [pope_row(1, "yes"), pope_row(2, "no", thing="cat")])])

    def answers(*rows: Row) -> list[str]:
        found = match_answers([jsonl(tmp_path / "answers.jsonl", rows)], [questions])
        assert found.by == "question_id"
        return [text for _, text in found.pairs[0]]

    assert answers({"question_id": 2, "answer": "No"}, {"question_id": "1", "answer": "Yes"}) == ["Yes", "No"]
    with pytest.raises(DataError, match="1 without an answer, 0 unknown"):
        answers({"question_id": 1, "answer": "Yes"})
    with pytest.raises(DataError, match="0 without an answer, 1 unknown"):
        answers(*({"question_id": number, "answer": "Yes"} for number in (1, 2, 3)))
    with pytest.raises(DataError, match="answered twice"):
        answers(*({"question_id": 1, "answer": "Yes"} for _ in range(2)))
    with pytest.raises(DataError, match="to another question"):
        answers({"question_id": 1, "answer": "Yes", "text": "Is there a cow in the image?"})


def test_the_two_editions_of_the_random_split_are_told_apart(tmp_path: Path) -> None:
    rows = [pope_row(at, "no", image=f"{at}.jpg") for at in range(3000)]
    whole = read_pope([jsonl(tmp_path / "coco_random.jsonl", rows)])
    short = read_pope([jsonl(tmp_path / "coco_pope_random.jsonl", rows[:2910])])
    described = [describe_pope([], part) for part in (whole, short)]
    assert [each["splits"]["random"]["edition"] for each in described] == ["3,000-row", "2,910-row"]
    assert pope_notes(described[0]) == [] and "2,910-row edition" in pope_notes(described[1])[0]
    answers = jsonl(tmp_path / "a.jsonl", [{"question_id": at, "answer": "No"} for at in range(2910)])
    with pytest.raises(DataError) as caught:
        match_answers([answers], [whole])
    assert "the two editions of the random split" in caught.value.expected


@pytest.mark.real_data
def test_every_pope_file_at_hand_is_read(reference_data: Path) -> None:
    for name in ("coco", "aokvqa", "gqa"):
        paths = [reference_data / "pope" / f"{name}_{split}.jsonl" for split in ("random", "popular", "adversarial")]
        questions = read_pope(paths)
        yes = {question.key for question in questions if question.gold == "yes"}
        assert len(questions) == 9000 and len(yes) == 1500
        assert describe_pope(paths, questions)["repeated_within_split"] == (name != "coco")
    pooled = read_pope([reference_data / "reference_eval" / "aokvqa_pope.jsonl"])
    assert len(pooled) == 9000 and sum(q.gold == "yes" for q in {q.key: q for q in pooled}.values()) == 1500
    parts = read_pope(
        [reference_data / "pope" / f"aokvqa_{split}.jsonl" for split in ("random", "popular", "adversarial")]
    )
    assert [(q.id, q.split, q.key) for q in pooled] == [(q.id, q.split, q.key) for q in parts]


QA = {"knowledge": "Rome is in Italy.", "question": "Where is Rome?", "right_answer": "Italy", "hallucinated_answer": "Spain"}  # fmt: skip  # noqa: E501


def test_halueval_shows_both_answers_under_one_opening(tmp_path: Path) -> None:
    part, judged = read_halueval(jsonl(tmp_path / "qa.jsonl", [QA]))
    assert part == "qa" and [item.gold for item in judged] == ["no", "yes"]
    assert judged[0].opening == judged[1].opening and "Rome is in Italy." in judged[0].opening
    assert judged[0].group == judged[1].group
    _, hidden = read_halueval(jsonl(tmp_path / "qa.jsonl", [QA]), knowledge=False)
    assert "Rome is in Italy." not in hidden[0].prompt


def test_halueval_with_the_benchmarks_instruction_is_the_benchmarks_prompt(tmp_path: Path) -> None:
    _, judged = read_halueval(jsonl(tmp_path / "qa.jsonl", [QA]), instruction="Judge it.", knowledge=False)
    assert judged[1].prompt == "Judge it.\n\n#Question#: Where is Rome?\n#Answer#: Spain\n#Your Judgement#:"


def test_one_shown_answer_is_a_coin_that_seed_and_row_throw(tmp_path: Path) -> None:
    rows = [{**QA, "question": f"Where is place {at}?"} for at in range(200)]
    path = jsonl(tmp_path / "qa.jsonl", rows)
    first, again, other = ([item.gold for item in read_halueval(path, shown="one", seed=seed)[1]] for seed in (1, 1, 2))
    assert first == again != other and len(first) == 200
    assert 70 < first.count("yes") < 130  # five standard deviations are 35


@pytest.mark.parametrize(
    ("row", "part", "heading"),
    [
        ({"knowledge": "k", "dialogue_history": "Hi", "right_response": "a", "hallucinated_response": "b"}, "dialogue", "#Response#: b"),  # noqa: E501
        ({"document": "d", "right_summary": "a", "hallucinated_summary": "b"}, "summarization", "#Summary#: b"),
    ],
)  # fmt: skip
def test_dialogue_and_summarisation_are_the_same_code(row: Row, part: str, heading: str, tmp_path: Path) -> None:
    found, judged = read_halueval(jsonl(tmp_path / "rows.jsonl", [row]), instruction="I")
    assert found == part and heading in judged[1].prompt


def test_halueval_files_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="twice"):
        read_halueval(jsonl(tmp_path / "qa.jsonl", [QA, QA]))
    with pytest.raises(DataError, match="no part of HaluEval"):
        read_halueval(jsonl(tmp_path / "qa.jsonl", [{"question": "?"}]))
    with pytest.raises(DataError, match="an empty text"):
        read_halueval(jsonl(tmp_path / "qa.jsonl", [{**QA, "right_answer": " "}]))


@pytest.mark.parametrize("shown", ["both", "one"])
def test_a_halueval_row_whose_answers_are_the_same_is_refused(shown: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "qa.jsonl", [QA, {**QA, "question": "Where?", "hallucinated_answer": " Italy\n"}])
    with pytest.raises(DataError) as caught:
        read_halueval(path, shown=shown)
    assert caught.value.problem == f"{path}:line 2: both answers are the same"
    assert caught.value.expected == "a hallucinated_answer that differs from the right_answer"
    assert caught.value.got == "'Italy' as both"
    assert caught.value.fix == "correct or remove the row: one answer cannot count as right and as hallucinated"


@pytest.mark.parametrize("knowledge", [True, False])
def test_halueval_rows_that_contradict_each_other_are_refused_and_both_named(knowledge: bool, tmp_path: Path) -> None:
    turned = {**QA, "right_answer": "France", "hallucinated_answer": "Italy "}
    path = jsonl(tmp_path / "qa.jsonl", [QA, turned])
    with pytest.raises(DataError) as caught:
        read_halueval(path, knowledge=knowledge)
    assert caught.value.problem == f"{path}:line 2: the same answer to the same question has opposite labels"
    assert caught.value.expected == f"right_answer, as in {path}:line 1"
    assert caught.value.got == "hallucinated_answer 'Italy'"
    other = jsonl(tmp_path / "other.jsonl", [QA, {**turned, "knowledge": "Romes are many."}])
    assert len(read_halueval(other, knowledge=knowledge)[1]) == 4  # by another text it may be so


@pytest.mark.real_data
def test_no_real_halueval_row_contradicts_itself_or_another(reference_data: Path) -> None:
    assert len(read_halueval(reference_data / "halueval_qa_1000.jsonl")[1]) == 2000


@pytest.mark.parametrize("first", ["yes", "no"])
def test_a_prompt_with_two_gold_answers_counts_both_whatever_their_order(first: str) -> None:
    lines = lines_of([("yes", "Yes")] * 5 + [("no", "No")] * 4 + [("no", "Yes")])
    golds = [first, "no" if first == "yes" else "yes"]
    same = [{**line, "gold": gold, "prompt": "same"} for line, gold in zip(lines[:2], golds, strict=True)]
    found = {name: figure.value for name, figure in metric_figures(measure_yesno([*same, *lines]), seed=0).items()}
    assert found["accuracy"] == pytest.approx((9 + 1) / 12)  # before: 10 / 11 or 9 / 11, by the order of the two
    assert [(one["gold"], other["gold"]) for one, other in two_golds([*lines, *same])] == [tuple(golds)]
    assert two_golds(lines) == []
