"""Text questions: exact evidence, answers of one form, disjoint splits, the same rows from the same seed."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import combinations, permutations
from typing import Any

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from truthheads.data.questions import Question
from truthheads.errors import DataError
from truthheads.synthetic.lexicon import SPLITS, form, lexicon, marks, pool_of
from truthheads.synthetic.text import KINDS, NOT_STATED, UNANSWERABLE, Fact, Phrase, make_text, write_context

GOLDEN = "ed186a8f2496d33f3d82afcf477a35a0bc30d7e7775544241ede92ee6e0624b6"


def named(answer: str, text: str) -> int:
    """Count an answer in a text as whole words, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))


def labelled(questions: Iterable[Question]) -> tuple[list[str], np.ndarray, list[str]]:
    rows = [(answer, question.group) for question in questions for answer in question.answers]
    return [a.text for a, _ in rows], np.array([a.truthful for a, _ in rows]), [group for _, group in rows]


def form_features(text: str) -> list[float]:
    """Length, words, capitals, digits, final punctuation, and length in pieces as a tokenizer would cut them."""
    pieces = re.findall(r" ?[A-Z]?[a-z]{1,4}|[A-Z]|[0-9]|[^\w\s]", text)
    counts = len(text), len(text.split()), len(re.findall("[A-Z]", text)), len(re.findall("[0-9]", text)), len(pieces)
    return [*map(float, counts), float(not text[-1].isalnum())]


def form_accuracy(questions: Iterable[Question], change: Callable[[str], str] = str) -> float:
    texts, labels, groups = labelled(questions)
    texts = [text if truthful else change(text) for text, truthful in zip(texts, labels, strict=True)]
    model = make_pipeline(StandardScaler(), LogisticRegression())
    features = np.array([form_features(text) for text in texts])
    return float(cross_val_score(model, features, labels, groups=groups, cv=GroupKFold(5)).mean())


def word_accuracy(questions: Iterable[Question]) -> float:
    texts, labels, groups = labelled(questions)
    model = make_pipeline(CountVectorizer(token_pattern=r"\S+", lowercase=False), LogisticRegression())
    return float(cross_val_score(model, texts, labels, groups=groups, cv=GroupKFold(2)).mean())


@pytest.fixture(scope="module")
def two_thousand() -> list[Question]:
    return make_text(2000, seed=0)


# Laws


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    facts=st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda ends: (min(ends), max(ends))),
    split=st.sampled_from(SPLITS),
    answerable=st.sampled_from([1.0, 0.7, 0.0]),
)
def test_every_row_is_sound(seed: int, facts: tuple[int, int], split: Any, answerable: float) -> None:
    for row in make_text(6, seed=seed, facts=facts, split=split, answerable=answerable):
        assert facts[0] <= row.context.count(".") <= facts[1]
        assert row.truthful and row.untruthful and row.group
        assert row.context.isascii() and "{" not in row.context + row.question and "  " not in row.context
        assert row.question[0].isupper() and row.question.endswith("?")
        assert named(row.untruthful, row.question) == 0
        assert named(row.untruthful, row.context) == (row.kind in ("distractor", UNANSWERABLE))
        if row.kind == UNANSWERABLE:
            assert (row.truthful, row.evidence) == (NOT_STATED, ())
        else:
            ((start, end),) = row.evidence
            assert row.context[start:end] == row.truthful
            assert named(row.truthful, row.context) == 1 and named(row.truthful, row.question) == 0
            assert form(row.truthful) == form(row.untruthful)
            assert len(row.truthful.split()) == len(row.untruthful.split())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), few=st.integers(1, 20), answerable=st.sampled_from([1.0, 0.6]))
def test_fewer_rows_are_the_first_of_more(seed: int, few: int, answerable: float) -> None:
    assert make_text(few, seed=seed, answerable=answerable) == make_text(25, seed=seed, answerable=answerable)[:few]


@given(st.lists(st.text("ab A1", min_size=1), min_size=1), st.integers(1, 4))
def test_groups_of_a_pool_share_the_form_and_are_large_enough(texts: list[str], least: int) -> None:
    pool = pool_of(texts, least=least)
    for text, alike in pool.alike.items():
        assert text in alike and len(alike) >= least and {form(text)} == set(map(form, alike))
        assert all(pool.alike[other] is alike for other in alike)
    left_out = Counter(form(text) for text in set(texts) - set(pool.texts))
    assert all(count < least for count in left_out.values())
    assert not set(left_out) & set(map(form, pool.texts))


# Definition


def test_a_context_says_one_fact_per_sentence_and_points_at_its_value() -> None:
    job = Phrase("person", "job", "job", ("{e} works as {a} {v}",), ("What is {e}'s job?",))
    mayor = Phrase("town", "mayor", "person", ("{v} is the mayor of {e}",), ("Who is the mayor of {e}?",))
    colour = Phrase("thing", "colour", "colour", ("{e} is {v} in colour",), ("What colour is {e}?",))
    stated = [Fact("Ada Vale", job, "editor"), Fact("Elm", mayor, "Bo Hill"), Fact("the oak chair", colour, "red")]
    context, starts = write_context(stated, women=frozenset({"Ada"}), rng=np.random.default_rng(0))
    # "Ada Vale works as an " has 21 characters; the first sentence and a space 29; "The oak chair is " begins at 58.
    assert context == "Ada Vale works as an editor. Bo Hill is the mayor of Elm. The oak chair is red in colour."
    assert starts == [21, 29, 75]


@pytest.mark.parametrize(("name", "owner", "pronoun"), [("Ada Vale", "person", "She"), ("Elm", "town", "It")])
def test_a_pronoun_stands_for_the_subject_of_the_sentence_before(name: str, owner: str, pronoun: str) -> None:
    plain = Phrase(owner, "fame", "trade", ("{e} is known for {v}",), ("What is {e} known for?",))
    person = Phrase(owner, "friend", "person", ("{e} has a friend called {v}",), ("Who is {e}'s friend?",))
    town = Phrase(owner, "twin", "town", ("{e} has ties with {v}",), ("Where has {e} ties?",))
    rng = np.random.default_rng(0)

    def openings(first: Phrase) -> set[str]:
        facts = [Fact(name, first, "Bo Hill"), Fact(name, plain, "maps")]
        contexts = (write_context(facts, women=frozenset({"Ada"}), rng=rng)[0] for _ in range(50))
        return {context.split(". ")[1].split()[0] for context in contexts}

    assert openings(plain) == {pronoun, name.split()[0]}
    assert openings(person if owner == "person" else town) == {name.split()[0]}  # the pronoun could mean Bo Hill


def test_one_fact_gives_a_distractor_that_is_the_other_party_of_it() -> None:
    for row in make_text(60, seed=0, facts=1, kinds=["distractor"]):
        assert row.context.count(".") == 1
        assert row.truthful in row.context and row.untruthful in row.context


def test_a_memory_row_contradicts_the_world() -> None:
    real = lexicon("test").world
    rows = make_text(100, seed=0, kinds=["memory"])
    known = {(subject, answer) for facts in real.values() for subject, answer in facts.items()}
    for row in rows:
        assert any(subject in row.question and row.untruthful == answer for subject, answer in known)
        assert not any(subject in row.question and row.truthful == answer for subject, answer in known)


# Counts


@pytest.mark.parametrize("rows", [1, 7, 30, 301])
@pytest.mark.parametrize("kinds", [KINDS, ("absent", "memory")])
def test_kinds_come_in_equal_parts(rows: int, kinds: tuple[str, ...]) -> None:
    counts = Counter(row.kind for row in make_text(rows, seed=3, kinds=kinds))
    shares = [counts[kind] for kind in kinds]
    assert sum(shares) == rows and max(shares) - min(shares) <= 1


@pytest.mark.parametrize(("answerable", "expected"), [(1.0, 0), (0.9, 20), (0.5, 100), (0.0, 200)])
def test_answerable_sets_the_share_of_rows_the_context_answers(answerable: float, expected: int) -> None:
    rows = make_text(200, seed=1, answerable=answerable)
    missing = [row for row in rows if row.kind == UNANSWERABLE]
    assert len(missing) == expected
    if expected > 50:  # they ask about invented entities and about the real world
        real = {subject for facts in lexicon("test").world.values() for subject in facts}
        asks_real = [any(named(subject, row.question) for subject in real) for row in missing]
        assert 0.2 < np.mean(asks_real) < 0.5


@pytest.mark.parametrize("facts", range(1, 9))
def test_facts_sets_the_number_of_sentences(facts: int) -> None:
    assert {row.context.count(".") for row in make_text(40, seed=0, facts=facts)} == {facts}


def test_a_range_of_facts_uses_all_of_it() -> None:
    assert {row.context.count(".") for row in make_text(60, seed=0, facts=(2, 5))} == {2, 3, 4, 5}


def test_no_question_and_no_id_comes_twice(two_thousand: list[Question]) -> None:
    assert len({row.id for row in two_thousand}) == 2000
    assert len({row.question for row in two_thousand}) >= 1995


def test_memory_rows_do_not_run_out() -> None:
    rows = make_text(4000, seed=0, kinds=["memory"], facts=1)  # there are fewer questions and few contexts
    assert len({row.id for row in rows}) == 4000
    assert len({row.question for row in rows}) > 1500
    assert len({row.context + row.question for row in rows}) > 3950


def test_ids_tell_seed_and_split_apart() -> None:
    files = [make_text(5, seed=seed, split=split) for seed in (0, 1) for split in SPLITS]
    assert len({row.id for rows in files for row in rows}) == 30


# No shortcut


def test_the_answers_form_says_nothing(two_thousand: list[Question]) -> None:
    assert form_accuracy(two_thousand) == pytest.approx(0.5, abs=0.05)
    for kind in KINDS:
        assert form_accuracy(row for row in two_thousand if row.kind == kind) == pytest.approx(0.5, abs=0.05)


def test_the_form_probe_can_fail(two_thousand: list[Question]) -> None:
    assert form_accuracy(two_thousand, lambda text: text + ".") > 0.9


def test_the_answers_words_say_nothing(two_thousand: list[Question]) -> None:
    for kind in KINDS:
        assert word_accuracy(row for row in two_thousand if row.kind == kind) == pytest.approx(0.5, abs=0.05)


def test_the_words_of_memory_answers_would_betray_them_if_one_fact_were_one_group() -> None:
    # Why answers that trade places share a group: Paris is untruthful only where France is asked about.
    rows = make_text(700, seed=0, kinds=["memory"])
    texts, labels, _ = labelled(rows)
    per_fact = [row.untruthful or "" for row in rows for _ in row.answers]
    model = make_pipeline(CountVectorizer(token_pattern=r".+", lowercase=False), LogisticRegression())
    assert cross_val_score(model, texts, labels, groups=per_fact, cv=GroupKFold(5)).mean() < 0.4


def test_the_place_of_the_truthful_answer_says_nothing() -> None:
    rows = make_text(1500, seed=0, kinds=["distractor"])
    before = [not named(row.untruthful or "", row.context[: row.evidence[0][0]]) for row in rows]
    assert np.mean(before) == pytest.approx(0.5, abs=0.04)  # three standard errors of 1,500 coin flips
    places = Counter(row.context[: row.evidence[0][0]].count(".") for row in rows)
    assert all(0.18 < places[place] / 1500 < 0.32 for place in range(4))


def test_rows_of_one_group_share_entity_and_attribute_or_relation(two_thousand: list[Question]) -> None:
    answers: dict[str, str] = {}
    for row in two_thousand:
        if row.kind == "memory":
            for answer in (row.truthful, row.untruthful):
                key = f"{row.group.split(':')[0]} {answer}"
                assert answers.setdefault(key, row.group) == row.group
        else:
            entity = row.group.split(": ")[1]
            assert named(entity, row.question)
    assert len(set(answers.values())) >= 15  # enough for folds


# Splits


def test_names_and_real_facts_are_disjoint_between_splits() -> None:
    for one, two in permutations([lexicon(split) for split in SPLITS], 2):
        for pool in ("person", "town", "thing", "river"):
            assert not set(one.pools[pool].texts) & set(two.pools[pool].texts)
        firsts = [{name.split()[0] for name in words.pools["person"].texts} for words in (one, two)]
        lasts = [{name.split()[1] for name in words.pools["person"].texts} for words in (one, two)]
        assert not firsts[0] & firsts[1] and not lasts[0] & lasts[1]
        texts = [
            {text.lower() for facts in words.world.values() for fact in facts.items() for text in fact}
            for words in (one, two)
        ]
        assert not {text for text in texts[0] & texts[1] if not text.isdigit()}
        everything = " | ".join(texts[1])
        assert not [text for text in texts[0] if not text.isdigit() and named(text.removeprefix("the "), everything)]


@pytest.mark.parametrize("split", SPLITS)
def test_rows_name_only_their_own_split(split: Any) -> None:
    foreign = {
        name
        for other in SPLITS
        if other != split
        for name in (*lexicon(other).pools["town"].texts, *(n.split()[1] for n in lexicon(other).pools["person"].texts))
    }
    words = {word for row in make_text(300, seed=0, split=split) for word in re.findall(r"\w+", row.context)}
    assert not words & foreign


@pytest.mark.parametrize("split", SPLITS)
def test_real_facts_can_trade_answers(split: str) -> None:
    words = lexicon(split)
    for relation, facts in words.world.items():
        assert len(set(facts.values())) == len(facts) >= 6, relation
        assert not [(subject, answer) for subject, answer in facts.items() if marks(subject) & marks(answer)]
        assert all(len(words.pools[relation].alike[answer]) >= 4 for answer in facts.values())


# Same seed, same rows


def test_seeds_and_splits_differ() -> None:
    rows = [make_text(5, seed=seed, split=split) for seed in (0, 1) for split in SPLITS]
    assert all([r.context for r in one] != [r.context for r in two] for one, two in combinations(rows, 2))


def test_golden_rows() -> None:
    rows = [asdict(row) for row in make_text(20, seed=0)]
    assert all(row.pop("aliases") == row.pop("untruthful_aliases") == () for row in rows)  # newer than the golden
    assert all(row.pop("labelled") and row.pop("columns") is None for row in rows)
    text = json.dumps(rows, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


# Bad input


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the run-time type check off: it fires before our own messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rows": 0}, "rows: a whole number of at least 1"),
        ({"seed": -1}, "seed: a whole number of at least 0"),
        ({"kinds": ()}, "kinds: one or more of absent, distractor, memory, each once"),
        ({"kinds": ("absent", "absent")}, "each once"),
        ({"kinds": ("absent", "distracter")}, "distractor"),
        ({"facts": 0}, "facts: 1 to 8"),
        ({"facts": 9}, "facts: 1 to 8"),
        ({"facts": (5, 3)}, "or a pair in that range"),
        ({"facts": (1, 2, 3)}, "or a pair in that range"),
        ({"split": "valid"}, "split: one of train, dev, test"),
        ({"answerable": 1.5}, "answerable: a share from 0 to 1"),
        ({"answerable": float("nan")}, "answerable: a share from 0 to 1"),
    ],
)
def test_bad_arguments_are_explained(change: dict[str, Any], expected: str) -> None:
    ((name, value),) = change.items()
    with pytest.raises(DataError) as caught:
        make_text(**{"rows": 5, "seed": 0, **change})
    assert expected in caught.value.expected
    assert caught.value.got == repr(value)
    assert name in caught.value.problem and caught.value.fix
