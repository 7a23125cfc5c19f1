"""Answers and captions that were made elsewhere, in the files that POPE's, LLaVA's, VCD's and CHAIR's scripts write."""

import json
from pathlib import Path
from typing import Any

import pytest

from invoked import run
from truthheads.benchmarks.chair import read_captions
from truthheads.benchmarks.pope_answers import Matched, match_answers
from truthheads.benchmarks.pope_questions import SPLITS, PopeQuestion, read_pope
from truthheads.errors import DataError

Row = dict[str, Any]

THINGS = ("dog", "kite", "bench", "boat", "cup", "fork")

GOLD = ("yes", "no", "yes", "no", "yes", "no")

SAID = ("Yes, there is.", "No.", "Yes", "There is no boat.", "no", "Yes, on the table.")
"""Right but for the last two: POPE's evaluator counts 2 hits, 2 rejections, 1 miss and 1 false alarm."""


def asked(thing: str) -> str:
    return f"Is there a {thing} in the image?"


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(folder: Path, name: str = "coco_pope_random.json", things: tuple[str, ...] = THINGS) -> Path:
    told = zip(things, GOLD, strict=True)
    rows = [
        {"question_id": at, "image": "COCO_val2014_000000000042.jpg", "text": asked(thing), "label": gold}
        for at, (thing, gold) in enumerate(told, start=1)
    ]
    return jsonl(folder / name, rows)


def matched(folder: Path, rows: list[Row], *files: list[PopeQuestion]) -> Matched:
    return match_answers([jsonl(folder / "answers.jsonl", rows)], files or (read_pope([questions(folder)]),))


OFFICIAL = [{"question": asked(thing), "answer": said} for thing, said in zip(THINGS, SAID, strict=True)]

LLAVA = [
    {
        "question_id": at,
        "prompt": f"{row['question']}\nAnswer the question using a single word or phrase.",
        "text": row["answer"],
        "answer_id": f"a{at}",
        "model_id": "m",
        "metadata": {},
    }
    for at, row in enumerate(OFFICIAL, start=1)
]

VCD = [
    {
        "question_id": row["question_id"],
        "prompt": f"<image>\n{asked(thing)}",
        "text": row["text"],
        "image": "COCO_val2014_000000000042.jpg",
    }
    for thing, row in zip(THINGS, LLAVA, strict=True)
]

SHIFTED = [{**row, "question_id": row["question_id"] + 2910} for row in LLAVA]


@pytest.mark.parametrize(
    ("rows", "by"),
    [
        (OFFICIAL, "their order and the question"),
        (LLAVA, "question_id"),
        (VCD, "question_id"),
        (SHIFTED, "their order and the question"),
        (LLAVA[::-1], "question_id"),
        ([{"answer": said} for said in SAID], "their order alone, since they do not repeat the question"),
    ],
    ids=["POPE", "LLaVA", "VCD", "LLaVA's second split", "another order", "answers alone"],
)
def test_answers_as_each_script_writes_them(tmp_path: Path, rows: list[Row], by: str) -> None:
    found = matched(tmp_path, rows)
    assert [text for _, text in found.pairs[0]] == list(SAID)
    assert found.by == by


def test_llavas_answers_to_three_splits_in_any_order(tmp_path: Path) -> None:
    """LLaVA's question file goes adversarial, popular, random, with ids that run on; POPE's ids begin anew in each."""
    parts = {split: (*THINGS[:5], f"{split} thing") for split in SPLITS}
    files = [read_pope([questions(tmp_path, f"coco_pope_{split}.json", things)]) for split, things in parts.items()]
    rows = [
        {"question_id": at, "prompt": f"{asked(thing)}\nAnswer …", "text": f"{split} {thing}"}
        for at, (split, thing) in enumerate((s, t) for s in ("adversarial", "popular", "random") for t in parts[s])
    ]
    found = matched(tmp_path, rows, *files)
    for split, pairs in zip(SPLITS, found.pairs, strict=True):
        assert [(one.split, text) for one, text in pairs] == [(split, f"{split} {thing}") for thing in parts[split]]
    with pytest.raises(DataError, match="one --data for each"):
        matched(tmp_path, rows, files[0])


def test_the_figures_are_those_of_popes_own_evaluator(tmp_path: Path) -> None:
    data = questions(tmp_path)
    figures = []
    for name, rows in (("official", OFFICIAL), ("llava", LLAVA)):
        path = jsonl(tmp_path / f"{name}.jsonl", rows)
        result = run("evaluate", "answers", "pope", path, "--data", data, "--out", tmp_path / name, "--json")
        assert result.exit_code == 0, result.output
        figures.append({key: one["value"] for key, one in json.loads(result.stdout)["runs"][0]["metrics"].items()})
    assert figures[0] == figures[1]
    assert figures[0]["accuracy_original"] == pytest.approx(4 / 6)
    assert figures[0]["precision_original"] == figures[0]["recall_original"] == pytest.approx(2 / 3)
    assert figures[0]["yes_rate_original"] == pytest.approx(3 / 6)


def test_a_limit_is_counted_in_questions_and_leaves_the_other_answers_alone(tmp_path: Path) -> None:
    words = ("--data", questions(tmp_path), "--limit", 2, "--out", tmp_path / "out", "--json")
    result = run("evaluate", "answers", "pope", jsonl(tmp_path / "a.jsonl", OFFICIAL), *words)
    assert json.loads(result.stdout)["rows"] == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (OFFICIAL[:5], "5 answers"),
        (OFFICIAL[::-1], "to another question"),
        ([{**row, "image": "other.jpg"} for row in LLAVA], "to another question"),
        ([{**LLAVA[0], "prompt": asked("cow")}, *LLAVA[1:]], "to another question"),
        ([{"question": asked("dog")}], "field 'answer'"),
        (
            [{"question_id": at, "text": row["question"]} for at, row in enumerate(OFFICIAL, 1)],
            "not the question itself",
        ),
        ([{"question_id": 1, "text": asked("dog"), "label": "yes"}], "field 'answer'"),
    ],
)
def test_answers_to_other_questions_are_refused(tmp_path: Path, rows: list[Row], words: str) -> None:
    with pytest.raises(DataError) as caught:
        matched(tmp_path, rows)
    assert words in str(caught.value)


def test_a_question_file_without_labels_says_so(tmp_path: Path) -> None:
    rows = [{"question_id": 1, "image": "a.jpg", "text": asked("dog"), "category": "popular"}]
    data = jsonl(tmp_path / "llava_pope_test.jsonl", rows)
    result = run(
        "evaluate", "answers", "pope", jsonl(tmp_path / "a.jsonl", OFFICIAL), "--data", data, "--out", tmp_path / "o"
    )
    assert result.exit_code == 2 and "label is missing: " in result.stderr
    assert "coco_pope_adversarial.json" in result.stderr


def test_a_bad_answer_is_not_to_be_left_out(tmp_path: Path) -> None:
    rows = [*OFFICIAL[:5], {"question": asked("fork")}]
    words = ("--data", questions(tmp_path), "--out", tmp_path / "o")
    result = run("evaluate", "answers", "pope", jsonl(tmp_path / "a.jsonl", rows), *words)
    assert result.exit_code == 2 and "--skip-bad-rows" not in result.stderr and "correct the row" in result.stderr


def test_every_file_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    words = ("--data", tmp_path / "q.jsonl", "--out", tmp_path / "o")
    result = run("evaluate", "answers", "pope", tmp_path / "a.jsonl", *words)
    assert result.exit_code == 2 and result.stderr.count("is not there") == 2


# --- captions


TRUTH = {"42": ["bench", "dog"], "73": ["kite", "person"]}

CAPTIONS = {
    "LLaVA": [
        {"question_id": 42, "image": "COCO_val2014_000000000042.jpg", "text": "A dog.", "prompt": "Describe."},
        {
            "question_id": 73,
            "image": "COCO_val2014_000000000073.jpg",
            "text": "A kite and a boat.",
            "prompt": "Describe.",
        },
    ],
    "LLaVA without images": [{"question_id": 42, "text": "A dog."}, {"question_id": 73, "text": "A kite and a boat."}],
    "COCO": [{"image_id": 42, "caption": "A dog."}, {"image_id": 73, "caption": "A kite and a boat."}],
    "file names": [
        {"file_name": "COCO_val2014_000000000042.jpg", "caption": "A dog."},
        {"image": "73.jpg", "answer": "A kite and a boat."},
    ],
}

CHAIR_PY = {
    "overall_metrics": {"CHAIRs": 0.5, "CHAIRi": 0.2},
    "sentences": [
        {"image_id": row["image_id"], "caption": row["caption"], "mscoco_hallucinated_words": [["boat", "boat"]]}
        for row in CAPTIONS["COCO"]
    ],
}


@pytest.mark.parametrize("kind", CAPTIONS)
def test_captions_as_each_script_writes_them(tmp_path: Path, kind: str) -> None:
    found = read_captions(jsonl(tmp_path / "c.jsonl", CAPTIONS[kind]), TRUTH)
    assert [(one.image, one.text) for one in found] == [("42", "A dog."), ("73", "A kite and a boat.")]


@pytest.mark.parametrize("indent", [None, 1])
def test_what_chair_py_writes(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "chair.json"
    path.write_text(json.dumps(CHAIR_PY, indent=indent))
    assert [one.text for one in read_captions(path, TRUTH)] == ["A dog.", "A kite and a boat."]


def test_own_words_are_not_called_the_published_ones(tmp_path: Path) -> None:
    captions = jsonl(tmp_path / "c.jsonl", CAPTIONS["LLaVA"])
    data = jsonl(tmp_path / "truth.jsonl", [{"image": image, "objects": held} for image, held in TRUTH.items()])
    result = run("evaluate", "answers", "chair", captions, "--data", data, "--out", tmp_path / "own")
    assert result.exit_code == 0, result.output
    assert "not the published one" in result.stdout.splitlines()[0]
    assert "--synonyms FILE" in result.stderr and "not the published one" in result.stderr
    words = tmp_path / "words.txt"
    words.write_text("dog, puppy\nkite\nboat\nbench\nperson, man\n")
    given = ("--synonyms", words, "--out", tmp_path / "given")
    result = run("evaluate", "answers", "chair", captions, "--data", data, *given)
    assert result.exit_code == 0 and "not the published" not in result.output
    assert "words.txt" in result.stdout.splitlines()[0]


def test_scenes_in_an_array_are_ground_truth_as_well(tmp_path: Path) -> None:
    captions = jsonl(tmp_path / "c.jsonl", CAPTIONS["COCO"])
    data = tmp_path / "truth.json"
    data.write_text(json.dumps([{"image": image, "objects": held} for image, held in TRUTH.items()]))
    assert run("evaluate", "answers", "chair", captions, "--data", data, "--out", tmp_path / "o").exit_code == 0


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["pope_answers_official.jsonl", "pope_answers_llava.jsonl"])
def test_every_file_of_answers_at_hand(cases: Path, name: str, tmp_path: Path) -> None:
    words = ("--data", cases / "pope_questions.jsonl", "--out", tmp_path / "o", "--json")
    result = run("evaluate", "answers", "pope", cases / name, *words)
    assert json.loads(result.stdout)["runs"][0]["metrics"]["accuracy_original"]["value"] == pytest.approx(4 / 6)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["captions_llava.jsonl", "captions_chair_output.json"])
def test_every_file_of_captions_at_hand(cases: Path, name: str) -> None:
    assert [one.image for one in read_captions(cases / name, TRUTH)] == ["42", "73"]
