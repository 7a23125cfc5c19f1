"""The untruthful side of a pair: it disagrees, has the same form, and says how it was made."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from planted import planted_model, planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import Question, occurrences, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import DataError
from truthheads.models import forward
from truthheads.models.generate import answer
from truthheads.models.prompts import encode, prompt_of
from truthheads.synthetic.text import make_text
from truthheads.workflows.make_pairs import (
    answer_type,
    closed_book,
    cut,
    differs,
    fits,
    is_whole,
    make_pairs,
    short_span,
    spans_of,
)

if TYPE_CHECKING:
    from truthheads.models.load import Model


@pytest.fixture(scope="module")
def planted(wrap: "Callable[..., Model]") -> "Model":
    made = planted_model()
    return wrap(made.network, made.tokenizer, "planted")


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def question(truthful: str, context: str = "", number: int = 0) -> Question:
    return Question(f"q{number}", context, "who was it ?", truthful, None, group=f"g{number}")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Yes", "yes-no"),
        ("no.", "yes-no"),
        ("42", "number"),
        ("$1,200", "number"),
        ("Twenty-one", "number"),
        ("3rd", "number"),
        ("Seven Years", "name"),
        ("1987", "date"),
        ("3 March 2001", "date"),
        ("Rosalind Franklin", "name"),
        ("Isle of Man", "name"),
        ("made of wood", "phrase"),
    ],
)
def test_types_of_answers(text: str, kind: str) -> None:
    assert answer_type(text) == kind


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (" Paris\nQuestion: and", "Paris"),
        (" Paris. It is a town", "Paris"),
        (' "Dr. No"', "Dr. No"),
        (" J. R. Ewing.", "J. R. Ewing"),
        (" 12 (twelve)", "12"),
        ("", ""),
    ],
)
def test_an_answer_ends_where_it_ends(said: str, answer: str) -> None:
    assert cut(said) == answer


def test_answers_that_contain_each_other_do_not_differ() -> None:
    assert not differs("the Paris", "Paris") and not differs("Paris", "paris, France") and not differs("", "Paris")
    assert differs("Parisian", "Paris") and differs("Rome", "Paris")


def test_numbers_in_words_and_in_digits_are_the_same_answer() -> None:
    assert not differs("three", "3") and not differs("21", "Twenty-one ships") and not differs("third", "3rd")
    assert differs("three", "4") and differs("third", "3") and differs("one", "1990")
    one = question("three", "Three ships and 4 boats left.")
    assert not fits("3", one) and not fits("four", one) and fits("seven", one)


def test_a_remembered_answer_must_disagree_and_have_the_form() -> None:
    row = question("Ada Lovelace", "Ada Lovelace met Mary Shelley .")
    assert fits("Grace Hopper", row)
    for bad in ("Ada Lovelace", "Lovelace", "Mary Shelley", "42", "a woman", "Augusta Ada King Countess", ""):
        assert not fits(bad, row), bad


def test_spans_of_a_context_are_names_and_numbers() -> None:
    found = spans_of(
        "The king met Ada Lovelace in 1842, paid $1,200 and left for the Isle of Man. After Rome he slept."
    )
    assert {"Ada Lovelace", "1842", "$1,200", "Isle of Man", "Rome"} <= set(found)
    assert "The" not in found and "After" not in found


def test_swaps_have_the_form_and_never_the_answer() -> None:
    rows = [replace(row, untruthful=None) for row in make_text(200, seed=3, split="dev")]
    made = make_pairs(rows, strategy="swap", seed=1)
    assert len(made.questions) == 200 == made.counts["swap-row"] + made.counts["swap-context"]
    for row in made.questions:
        truthful, untruthful = str(row.truthful), str(row.untruthful)
        assert differs(untruthful, truthful) and answer_type(untruthful) == answer_type(truthful)
        if row.kind == "swap-context":
            assert occurrences(row.context, untruthful)
    assert made.form is not None and made.form.accuracy.low < 0.55 and not made.form.warns


def test_the_other_of_yes_and_no() -> None:
    rows = [question(answer, "it was so .", number) for number, answer in enumerate(["Yes", "no", "Yes", "No"])]
    made = make_pairs(rows, strategy="swap")
    assert [row.untruthful for row in made.questions] == ["No", "yes", "No", "Yes"]
    assert made.form is None


def test_the_seed_decides() -> None:
    rows = [replace(row, untruthful=None) for row in make_text(60, seed=4, split="dev")]
    first, again, other = (
        [row.untruthful for row in make_pairs(rows, strategy="swap", seed=s).questions] for s in (1, 1, 2)
    )
    assert first == again != other


def test_closed_book_is_the_models_own_answer_without_the_context(planted: "Model") -> None:
    rows = planted_questions(5)
    said = closed_book(planted, rows, 2, None)
    for row, remembered in zip(rows, said, strict=True):
        bare = prompt_of(replace(row, context=""))
        assert row.context not in bare
        ids = planted.tokenizer(bare, return_tensors="pt").input_ids
        alone = planted.network.generate(ids, do_sample=False, max_new_tokens=16, pad_token_id=0)
        text = planted.tokenizer.decode(alone[0, ids.shape[1] :], skip_special_tokens=True)
        assert alone.shape[1] == ids.shape[1] + 16  # the limit was reached, and the last word may be half a word
        assert remembered == cut(text.rsplit(maxsplit=1)[0])


def test_closed_book_leaves_out_what_it_cannot_use_and_both_swaps_it(planted: "Model") -> None:
    rows = [replace(row, untruthful=None) for row in planted_questions(30)]
    said = closed_book(planted, rows, 8)
    usable = [short_span(answer, row) is not None for answer, row in zip(said, rows, strict=True)]
    both = make_pairs(rows, planted, strategy="both")
    assert len(both.questions) == 30 and both.counts["closed-book"] == sum(usable)
    assert [row.kind == "closed-book" for row in both.questions] == usable
    if any(usable):
        alone = make_pairs(rows, planted, strategy="closed-book")
        assert alone.counts["left out"] == 30 - sum(usable)
    else:
        with pytest.raises(DataError, match="no untruthful answer"):
            make_pairs(rows, planted, strategy="closed-book")


@pytest.mark.parametrize(
    ("asked", "truthful", "said", "span"),
    [
        ("how many episodes are in season 4", "775", "There are 10 episodes in Season 4", "10"),
        ("how many seasons are on netflix", "263", "Netflix has twelve seasons of prison break", None),
        ("how many seasons are on netflix", "nine", "Netflix has twelve seasons of prison break", "twelve"),
        ("who is the best golfer", "Tin Woodman", "The best golfer right now is Steve Smith", "Steve Smith"),
        ("who leads the party", "Jo Bloggs", "The leader of the party is John McNeil. He is", "John McNeil"),
        ("when did it close", "3 May 1990", "It closed in Ghent on 1 October 2007", "1 October 2007"),
        ("when did it close", "1990", "It may have closed on October 1, 2007", "2007"),
        ("what is it made of", "old wood", "It is made of hard stone", "hard stone"),
        ("what plays general hux", "Sly Stallone", "General Hux plays General Hux", None),
        ("is it so", "Yes", "No", "No"),
        ("who wrote it", "Ada Lovelace", "Ada Lovelace wrote it", None),
    ],
)
def test_of_a_sentence_the_short_span_is_taken(asked: str, truthful: str, said: str, span: str | None) -> None:
    assert short_span(said, replace(question(truthful), question=asked)) == span


@pytest.mark.parametrize(
    ("text", "whole"),
    [(" Paris", False), ("\n", False), (" Paris\n", True), (" Paris. It", True), (" Dr. No", False), (" 12 (tw", True)],
)
def test_an_answer_is_whole_at_its_first_line(text: str, whole: bool) -> None:
    assert is_whole(text) is whole


def test_generation_ends_at_the_first_line(model_of: "Callable[..., Model]") -> None:
    from zoo import ROWS

    model = model_of(ROWS[0])
    encoded = encode(model, [replace(question("x"), untruthful="y")])
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    written = answer(model, encoded[:1], new_tokens=12, ended=lambda tokens: len(tokens) == 3)
    handle.remove()
    whole = answer(model, encoded[:1], new_tokens=12)
    assert len(calls) == 3 and written.tokens[0] == whole.tokens[0][:3]


def test_a_question_of_several_contexts_is_asked_once_and_no_row_is_lost(planted: "Model") -> None:
    one, other = planted_questions(2)
    asked: list[int] = []
    said = closed_book(planted, [one, other, replace(one, context=other.context)], 1, lambda *_: asked.append(1))
    assert said[0] == said[2] and len(asked) == len({one.question, other.question})


def test_killed_closed_book_answers_go_on_from_the_last_batch_to_the_same_bytes(
    planted: "Model", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(row, untruthful=None) for row in planted_questions(12)]
    asked: list[int] = []
    whole = make_pairs(rows, planted, batch=2, progress=lambda *_: asked.append(1))
    batches = len(asked)
    assert batches >= 3

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    run_batch = forward._halving
    batch: list[int] = []
    monkeypatch.setattr(forward, "_halving", lambda part, step: (batch.append(1), run_batch(part, step))[1])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_pairs(rows, planted, batch=2, progress=stop, work_dir=tmp_path / "w")
    journal = tmp_path / "w" / "results.jsonl"
    assert len(journal.read_text().splitlines()) == 1 == len(batch)  # the second was stopped when it told what is there
    journal.write_bytes(journal.read_bytes() + b'["1", ["cut o')
    again = make_pairs(rows, planted, batch=2, work_dir=tmp_path / "w")
    assert len(batch) == batches
    write_questions(tmp_path / "a.jsonl", whole.questions)
    write_questions(tmp_path / "b.jsonl", again.questions)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    others = [replace(row, question=f"{row.question} now") for row in rows[:2]]
    make_pairs(others, planted, batch=2, work_dir=tmp_path / "w")
    assert len(batch) == batches + 1  # of other questions nothing is taken over


def test_what_cannot_be_paired_is_one_clear_error() -> None:
    with pytest.raises(DataError, match="nothing to pair"):
        make_pairs([])
    with pytest.raises(DataError, match="asks a model"):
        make_pairs([question("Ada Lovelace")])
    with pytest.raises(DataError, match="no untruthful answer"):
        make_pairs([question("Ada Lovelace")], strategy="swap")


@pytest.mark.parametrize(("column", "layout"), [("truthful", "pairs"), ("answer", "answers")])
def test_half_rows_are_read_for_pairs_alone(tmp_path: Path, column: str, layout: str) -> None:
    path = tmp_path / "half.jsonl"
    path.write_text(json.dumps({"context": "c", "question": "q", column: "a"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="column"):
        read_questions(path)
    found = read_questions(path, halves=True)
    assert (found[0].truthful, found[0].untruthful, found.layout) == ("a", None, layout)


def test_the_command_writes_a_question_file(tmp_path: Path) -> None:
    model = save_planted(tmp_path / "planted")
    lines = [
        json.dumps({"id": row.id, "context": row.context, "question": row.question, "answer": row.truthful})
        for row in planted_questions(20)
    ]
    (tmp_path / "half.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "pairs.jsonl"
    result = run("data", "pairs", tmp_path / "half.jsonl", "--model", model, "--out", out, "--json")
    counts = json.loads(result.stdout)["counts"]
    assert sum(counts.values()) == 20 and counts["left out"] == 0
    assert all(len(row.answers) == 2 for row in read_questions(out))
    shown = run("data", "pairs", tmp_path / "half.jsonl", "--strategy", "swap", "--out", out, "--force")
    assert shown.exit_code == 0 and "form probe" in shown.output
    bad = run("data", "pairs", tmp_path / "half.jsonl", "--out", out, "--force")
    assert bad.exit_code == 2 and "asks a model" in bad.stderr
