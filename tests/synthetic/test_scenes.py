"""Scenes: exact boxes, true answers, files as pinned, splits that share nothing."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from truthheads.synthetic.drawing import (
    BACKGROUNDS,
    CATEGORIES,
    PAIRS,
    SIDE,
    Scene,
    SceneError,
    SceneObject,
    draw_categories,
    draw_scene,
    scene_generator,
    training_statistics,
)
from truthheads.synthetic.scenes import KINDS, NUMBERS, POPE_SPLITS, ask, caption, make_scenes, named, plural, pope_rows

SEEDS = st.integers(0, 2**31)


def scene(seed: int, cooccurrence: float = 0.8) -> Scene:
    return draw_scene(scene_generator("train", seed=seed, index=0), cooccurrence=cooccurrence)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_scene_shows_one_to_five_categories_inside_the_picture(seed) -> None:
    drawn = scene(seed)
    assert drawn.pixels.shape == (SIDE, SIDE, 3)
    assert 1 <= len(drawn.categories) <= 5
    for item in drawn.objects:
        x0, y0, x1, y1 = item.box
        assert 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_same_generator_gives_the_same_scene(seed) -> None:
    first, second = scene(seed), scene(seed)
    assert np.array_equal(first.pixels, second.pixels)
    assert first.objects == second.objects


def test_a_box_holds_exactly_what_its_sprite_changed() -> None:
    # Difficulty 0: no noise, no blots, no turning; the picture differs from its shaded ground only where sprites are.
    drawn = draw_scene(scene_generator("dev", seed=3, index=1), cooccurrence=0.0, categories=["car"], difficulty=0.0)
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    for item in drawn.objects:
        x0, y0, x1, y1 = (int(edge) for edge in item.box)
        inside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = True
    steps = np.abs(np.diff(drawn.pixels.astype(int), axis=1)).max(2)
    assert steps[~inside[:, 1:] & ~inside[:, :-1]].max() <= 2  # the ground's slope
    for item in drawn.objects:
        x0, y0, x1, y1 = (int(edge) for edge in item.box)
        assert steps[y0:y1, x0 : x1 - 1].max() > 20


def test_splits_never_share_a_generator() -> None:
    draws = {split: scene_generator(split, seed=5, index=7).integers(2**62) for split in ("train", "dev", "test")}
    assert len(set(draws.values())) == 3


def test_companions_come_as_often_as_asked() -> None:
    for cooccurrence in (0.0, 1.0):
        for index in range(300):
            wanted = draw_categories(scene_generator("dev", seed=1, index=index), cooccurrence=cooccurrence)
            if cooccurrence == 1.0 and len(wanted) < 5:
                assert all(PAIRS[name] in wanted for name in wanted if name in PAIRS)
    pairs = [draw_categories(scene_generator("train", seed=2, index=i), cooccurrence=0.8) for i in range(2000)]
    together = np.mean([PAIRS["car"] in wanted for wanted in pairs if "car" in wanted])
    assert 0.7 < together < 0.95  # 0.8, a little more where the companion was drawn by itself


def test_training_statistics_know_the_planted_pairs() -> None:
    popular, beside = training_statistics()
    assert sorted(popular) == sorted(CATEGORIES)
    assert all(beside[anchor][0] == companion for anchor, companion in PAIRS.items())
    assert all(name not in others and len(others) == len(CATEGORIES) - 1 for name, others in beside.items())


@given(SEEDS, st.sampled_from(KINDS))
@settings(max_examples=100, deadline=None)
def test_answers_are_true_of_the_scene(seed, kind) -> None:
    drawn = scene(seed)
    asked = ask(drawn, kind, np.random.default_rng(seed))
    if asked is None:
        assert kind == "position"
        return
    assert asked.truthful != asked.untruthful
    if kind == "presence":
        name = asked.question.removeprefix("Is there a").removeprefix("n").removesuffix("in the image?").strip()
        assert (asked.truthful == "Yes") == (name in drawn.categories) == bool(asked.boxes)
    elif kind == "which":
        assert asked.truthful in drawn.categories and asked.untruthful not in drawn.categories
    elif kind == "count":
        assert NUMBERS[len(asked.boxes) - 1] == asked.truthful
    elif kind == "background":
        assert asked.truthful == drawn.background and asked.untruthful in BACKGROUNDS


def test_position_is_told_from_the_middle_of_the_box() -> None:
    # One cup whose middle is (20, 40): left, and neither top nor bottom.
    cup = Scene(np.zeros((SIDE, SIDE, 3), np.uint8), (SceneObject("cup", (10.0, 30.0, 30.0, 50.0)),), "black")
    asked = ask(cup, "position", np.random.default_rng(0))
    assert asked is not None
    assert (asked.question, asked.truthful) == ("Is the cup on the left or on the right of the image?", "left")


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_caption_names_every_category_once_in_one_to_three_sentences(seed) -> None:
    drawn = scene(seed)
    text = caption(drawn, np.random.default_rng(seed))
    assert 1 <= text.count(".") <= 3
    for name in drawn.categories:
        assert named(name, len(drawn.boxes(name))) in text
    for name in set(CATEGORIES) - set(drawn.categories):
        assert f" {name} " not in f" {text.replace(',', ' ').replace('.', ' ')} "


def test_words_for_numbers() -> None:
    assert [named("apple"), named("car"), named("sheep", 2), named("bus", 3), plural("person")] == [
        "an apple",
        "a car",
        "two sheep",
        "three buses",
        "people",
    ]


@given(SEEDS, st.sampled_from(POPE_SPLITS))
@settings(max_examples=60, deadline=None)
def test_pope_rows_are_balanced_and_true(seed, split) -> None:
    drawn = scene(seed)
    rows = pope_rows(drawn, split, np.random.default_rng(seed))
    assert all((label == "yes") == (name in drawn.categories) for name, label in rows)
    assert [first[1] != second[1] for first, second in pairwise(rows)] == [True] * (len(rows) - 1)
    assert len({name for name, _ in rows}) == len(rows)


def test_files_are_as_pinned_and_the_same_bytes_again(tmp_path) -> None:
    made = make_scenes(10, seed=4, out=tmp_path / "a")
    again = make_scenes(10, seed=4, out=tmp_path / "b")
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "images",
        "questions.jsonl",
        "captions.jsonl",
        "pope_random.jsonl",
        "pope_popular.jsonl",
        "pope_adversarial.jsonl",
    }
    questions = [json.loads(line) for line in made.questions.read_text().splitlines()]
    assert len(questions) == 10 and {row["kind"] for row in questions} <= set(KINDS)
    assert {"id", "context", "question", "truthful", "untruthful", "image", "boxes"} <= set(questions[0])
    pope = [json.loads(line) for line in again.pope["random"].read_text().splitlines()]
    assert set(pope[0]) == {"question_id", "image", "text", "label"}
    assert [row["question_id"] for row in pope] == list(range(1, len(pope) + 1))
    captions = [json.loads(line) for line in made.captions.read_text().splitlines()]
    assert {"image", "objects", "captions"} <= set(captions[0])
    with Image.open(made.captions.parent / captions[0]["image"]) as picture:
        assert picture.size == (SIDE, SIDE)


def test_positives_are_the_same_in_all_three_pope_files(tmp_path) -> None:
    made = make_scenes(20, seed=1, out=tmp_path)
    positives = []
    for path in made.pope.values():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        positives.append([(row["image"], row["text"]) for row in rows if row["label"] == "yes"])
    assert positives[0] == positives[1] == positives[2]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [({"rows": 0}, "1 or more"), ({"cooccurrence": 1.5}, "0 to 1"), ({"split": "holdout"}, "train, dev, test")],
)
def test_bad_settings_say_what_to_do(tmp_path, wrong, expected) -> None:
    settings_ = {"rows": 2, "seed": 0, "out": tmp_path, **wrong}
    with pytest.raises(SceneError, match=expected):
        make_scenes(settings_.pop("rows"), **settings_)
