"""CHAIR: the objects that captions name, ground truth from any of its files, and figures worked by hand."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from truthheads.benchmarks.chair import (
    check_vocabulary,
    image_key,
    measure_chair,
    parse_caption,
    read_captions,
    read_truth,
    whole_sentences,
)
from truthheads.benchmarks.coco_objects import Vocabulary, _official, matcher, own_vocabulary, plural, read_vocabulary
from truthheads.errors import DataError, TruthHeadsError
from truthheads.evaluation.summary import metric_figures

MENTIONS = matcher(own_vocabulary())


def categories(text: str) -> list[str]:
    return [mention.category for mention in MENTIONS(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A hot dog and two dogs.", ["hot dog", "dog"]),
        ("Three teddy bears; a teddy-bear. A bear!", ["teddy bear", "teddy bear", "bear"]),
        ("The train tracks run past a train station.", []),
        ("Trains on a train track", ["train"]),
        ("The toilet seat is up", ["toilet"]),
        ("The seat of the toilet is near a chair", ["toilet", "chair"]),
        ("A seat by the window", ["chair"]),
        ("A baby elephant follows adult elephants", ["elephant", "elephant"]),
        ("A baby follows an elephant", ["person", "elephant"]),
        ("Two wine glasses and men's knives", ["wine glass", "person", "knife"]),
        ("A couple of cats", ["cat"]),
        ("A stop sign, a stop-light", ["stop sign", "traffic light"]),
        ("Mice, geese, oxen and calves", ["mouse", "bird", "cow", "cow"]),
        ("A hot, dog-eared thing", ["dog"]),
        ("A bowtie and a bow tie", ["tie", "tie"]),
        ("A dining table and a coffee table", ["dining table", "dining table"]),
        ("A catcher's mitt and a baseball glove", ["baseball glove", "baseball glove"]),
        ("Nothing of note in the hotdogger's carpet", []),
        ("", []),
    ],
)
def test_objects_are_found_as_compounds_and_in_every_form(text: str, found: list[str]) -> None:
    assert categories(text) == found


def test_every_category_is_found_by_its_own_name_and_plural() -> None:
    vocabulary = own_vocabulary()
    assert len(vocabulary.categories) == 80
    odd = {"person": "people", "mouse": "mice", "knife": "knives", "skis": "skis", "scissors": "scissors"}
    odd |= {"sheep": "sheep", "broccoli": "broccoli"}
    for name in vocabulary.categories:
        assert categories(f"A {name} here.") == [name]
        assert categories(f"Two {odd.get(name, plural(name))} here.") == [name]


@pytest.mark.real_data
def test_our_words_stand_for_the_categories_of_the_official_file(reference_data: Path) -> None:
    official = read_vocabulary(reference_data / "chair" / "synonyms.txt")
    assert official.categories == own_vocabulary().categories
    truth = read_truth([reference_data / "chair" / "coco_objects.json.gz"], MENTIONS)
    assert len(truth) == 123_287
    check_vocabulary(truth, official, Path("x"))
    shared = {word: name for word, name in official.words.items() if word in own_vocabulary().words}
    assert len(shared) > 300
    assert all(own_vocabulary().words[word] == name for word, name in shared.items())


def test_words_in_the_official_format(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("dog, pup,  grey hound\nperson, woman, gnu herder\ntoilet\n")
    vocabulary = read_vocabulary(path)
    found = matcher(vocabulary)("Grey hounds, pups, two women, gnu herders, a baby dog, a toilet seat, a cat.")
    assert [mention.category for mention in found] == ["dog", "dog", "person", "person", "dog", "toilet"]
    path.write_text("dog, pup\ncat, pup\n")
    with pytest.raises(DataError, match="two categories"):
        read_vocabulary(path)


def test_the_official_procedure_keeps_its_bugs(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("motorcycle, scooter,  motor bike\ncell phone, iPhone, phone\noven, stove, stove top oven\n")
    vocabulary = read_vocabulary(path)

    def official(text: str) -> list[str]:
        return [mention.words for mention in _official(text.split(), vocabulary)]

    assert official("motor bike and iphone") == []  # a stray blank, a capital
    assert official("stove top oven") == ["stove", "oven"]  # three words are never merged
    assert official("phone on a train track") == ["phone"]
    assert [m.category for m in matcher(vocabulary)("motor bike, iphone, stove top oven")] == [
        "motorcycle", "cell phone", "oven",
    ]  # fmt: skip


def test_official_word_pairs() -> None:
    words = {"bear": "bear", "tie": "tie", "toilet": "toilet", "seat": "chair", "plane": "airplane", "jet": "airplane"}
    vocabulary = Vocabulary("x", frozenset(words.values()), words, {}, words)

    def official(text: str) -> list[str]:
        return [mention.category for mention in _official(text.split(), vocabulary)]

    assert official("baby bear wear bow tie") == ["bear", "tie"]
    assert official("toilet with a seat") == ["toilet"]
    assert official("seat in a passenger jet") == ["chair", "airplane"]


def test_nltk_that_is_not_there_is_named() -> None:
    try:
        found = matcher(own_vocabulary(), "nltk")
    except TruthHeadsError as error:
        assert "--lemmatizer nltk" in error.problem and "pip install nltk" in error.fix
    else:
        assert [mention.category for mention in found("Two dogs.")] == ["dog"]


@pytest.mark.parametrize(
    ("text", "finished", "kept"),
    [
        ("A dog. A cat on the", None, "A dog."),
        ("A dog. A cat.", None, "A dog. A cat."),
        ("A dog. A cat on the", True, "A dog. A cat on the"),
        ("A dog on the", None, ""),
        ('He says "stop." Then', False, 'He says "stop."'),
        ("A dog at 3.5 m from the", None, ""),
        ("", None, ""),
    ],
)
def test_the_sentence_that_the_cap_cut_off(text: str, finished: bool | None, kept: str) -> None:
    assert whole_sentences(text, finished) == kept


def line(image: str, text: str, gold: Sequence[str], finished: bool | None = None) -> dict[str, Any]:
    return {
        "id": image,
        "group": image,
        "gold": list(gold),
        "captions": {"64": parse_caption(text, finished, MENTIONS)},
    }


def test_figures_of_three_captions_worked_by_hand() -> None:
    lines = [
        line("1", "A dog and a cat. A dog near a", ["dog", "car"]),  # mentions dog, cat, dog; cat is absent
        line("2", "A car.", ["car", "dog"]),
        line("3", "Nothing here.", ["person"]),
    ]
    found = {name: figure.value for name, figure in metric_figures(measure_chair(lines), seed=0).items()}
    assert found["chair_i"] == pytest.approx(1 / 4)
    assert found["chair_s"] == pytest.approx(1 / 3)
    assert found["recall"] == pytest.approx(2 / 5)  # dog of the first, car of the second; five objects in all
    assert found["objects_per_caption"] == pytest.approx(4 / 3)
    assert found["words_per_caption"] == pytest.approx((9 + 2 + 2) / 3)
    assert found["cut_off"] == pytest.approx(1 / 3)
    # Without "A dog near a": dog, cat and car are left.
    assert found["chair_i_whole"] == pytest.approx(1 / 3)
    assert found["words_per_caption_whole"] == pytest.approx((5 + 2 + 2) / 3)


def test_the_lowest_cap_is_the_main_one() -> None:
    one = line("1", "A dog.", ["dog"])
    one["captions"]["512"] = parse_caption("A dog. A cat.", None, MENTIONS)
    found = {name: figure.value for name, figure in metric_figures(measure_chair([one]), seed=0).items()}
    assert found["chair_i"] == 0 and found["chair_i_at_512"] == 0.5


@pytest.mark.parametrize("name", [322791, "322791", "COCO_val2014_000000322791.jpg", "val2014/000000322791.jpg"])
def test_one_image_has_one_key(name: str | int) -> None:
    assert image_key(name) == "322791"
    assert image_key("kitchen.png") == "kitchen.png"


def test_ground_truth_from_every_kind_of_file(tmp_path: Path) -> None:
    packed = tmp_path / "objects.json.gz"
    packed.write_bytes(gzip.compress(json.dumps({"7": ["dog"], "8": []}).encode()))
    assert read_truth([packed], MENTIONS) == {"7": ["dog"], "8": []}
    instances, captions = tmp_path / "instances.json", tmp_path / "captions.json"
    categories_of = [{"id": 18, "name": "dog"}]
    instances.write_text(json.dumps({"categories": categories_of, "images": [{"id": 8}], "annotations": [{"image_id": 7, "category_id": 18}]}))  # fmt: skip  # noqa: E501
    captions.write_text(json.dumps({"annotations": [{"image_id": 7, "caption": "Two cats."}]}))
    assert read_truth([instances, captions], MENTIONS) == {"7": ["cat", "dog"], "8": []}
    scenes = tmp_path / "captions.jsonl"
    scenes.write_text(json.dumps({"image": "images/000003.png", "objects": ["horse"], "captions": ["A horse."]}) + "\n")
    assert read_truth([scenes], MENTIONS) == {"3": ["horse"]}
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match="no ground truth"):
        read_truth([tmp_path / "list.json"], MENTIONS)
    packed.write_bytes(packed.read_bytes()[:20])
    with pytest.raises(DataError, match="cannot be read"):
        read_truth([packed], MENTIONS)


def test_captions_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"

    def captions(*rows: dict[str, Any]) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        read_captions(path, {"7": ["dog"]})

    captions({"image_id": 7, "caption": "A dog."})
    with pytest.raises(DataError, match="1 of 2 images have no ground truth"):
        captions({"image_id": 7, "caption": "A dog."}, {"image_id": 9, "caption": "A dog."})
    with pytest.raises(DataError, match="two captions"):
        captions({"image_id": 7, "caption": "A dog."}, {"image_id": "7", "caption": "A cat."})
    with pytest.raises(DataError, match="field 'caption'"):
        captions({"image_id": 7})
    with pytest.raises(DataError, match="categories that the words do not know: unicorn"):
        check_vocabulary({"7": ["unicorn"]}, own_vocabulary(), path)
