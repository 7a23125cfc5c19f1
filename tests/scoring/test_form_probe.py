"""The form probe: what length, punctuation and capitals alone give away."""

from pathlib import Path

import numpy as np
import pytest

from truthheads.data.answers import list_answers
from truthheads.data.questions import Question
from truthheads.data.readers import read_questions
from truthheads.scoring.form_probe import FEATURES, FormProbe, form_features, probe_form
from truthheads.scoring.probes import dealt_folds
from truthheads.stats.figures import Figure
from truthheads.stats.thresholds import FORM_PROBE_WARNING_ACCURACY


def features_of(texts: list[str]) -> np.ndarray:
    return np.array([form_features(text) for text in texts])


def formed(questions: list[Question]) -> FormProbe:
    answers = list_answers(questions, features=form_features)
    fold = dealt_folds(answers.group, answers.order, num_folds=5)
    return probe_form(answers.features, answers.label, fold, answers.group, answers.question)


def test_features_of_an_answer() -> None:
    found = dict(zip(FEATURES, form_features(" In May 1999, at Oslo. "), strict=True))
    assert found == {
        "characters": 21.0,
        "words": 5.0,
        "mean word length": 21 / 5,
        "ends with a period": 1.0,
        "ends with other punctuation": 0.0,
        "capital letters": 3.0,
        "starts with a capital": 1.0,
        "digits": 4.0,
        "commas": 1.0,
    }
    asked = dict(zip(FEATURES, form_features("what?"), strict=True))
    assert (asked["ends with a period"], asked["ends with other punctuation"], asked["starts with a capital"]) == (
        0,
        1,
        0,
    )
    assert np.isfinite(form_features("")).all()


NAMES = ["Ann", "Bob", "Cleo", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon"]


def named(count: int, ending: str) -> list[Question]:
    """Return questions whose answers are names drawn alike; the untruthful ones end with ``ending``."""
    generator = np.random.default_rng(0)
    questions = []
    for i in range(count):
        truthful, untruthful = map(str, generator.choice(NAMES, size=2, replace=False))
        questions.append(Question(str(i), "c", f"who is number {i}", truthful, untruthful + ending))
    return questions


def test_a_period_at_the_end_separates() -> None:
    probe = formed(named(100, "."))
    assert probe.accuracy.value == 1.0
    assert (probe.best_feature, probe.best_accuracy) == ("ends with a period", 1.0)
    assert probe.warns


def test_answers_of_one_form_do_not() -> None:
    probe = formed(named(200, ""))
    assert abs(probe.accuracy.value - 0.5) < 0.06
    assert probe.accuracy.low < 0.5 < probe.accuracy.high + 0.06
    assert not probe.warns


def test_the_best_threshold_is_worked_by_hand() -> None:
    # Lengths 1 1 2 3 3 with labels T T F F F, four times: "characters > 1" is wrong nowhere, words never differ.
    texts = ["a", "b", "cc", "ddd", "eee"] * 4
    label = np.array([True, True, False, False, False] * 4)
    probe = probe_form(features_of(texts), label, np.arange(20) % 5, np.arange(20), np.arange(20))
    assert (probe.best_feature, probe.best_accuracy) == ("characters", 1.0)
    # With the labels of "cc" alone the other way round, the best cut is at 2 or at 1: one text in five is wrong.
    label = np.array([True, False, True, False, False] * 4)
    probe = probe_form(features_of(texts), label, np.arange(20) % 5, np.arange(20), np.arange(20))
    assert probe.best_accuracy == pytest.approx(0.8)


def test_the_warning_starts_above_the_limit() -> None:
    assert not FormProbe(Figure(FORM_PROBE_WARNING_ACCURACY, 0.5, 0.7), "words", 0.7).warns
    assert FormProbe(Figure(FORM_PROBE_WARNING_ACCURACY + 0.01, 0.5, 0.7), "words", 0.7).warns


@pytest.mark.real_data
def test_halueval_is_told_by_its_form(reference_data: Path) -> None:
    probe = formed(list(read_questions(reference_data / "halueval_qa_1000.jsonl", limit=200)))
    assert probe.accuracy.value > 0.9
    assert probe.accuracy.low > 0.85
    assert probe.best_feature in ("ends with a period", "characters", "words")
    assert probe.best_accuracy > 0.9
    assert probe.warns
