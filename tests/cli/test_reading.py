"""What commands check before they load anything, and rows that a model cannot take."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from invoked import run
from planted import planted_questions, save_planted
from truthheads.cli.reading import usable
from truthheads.data.questions import Question, Questions, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import DataError, RowError
from truthheads.models.load import load, loading_faults
from truthheads.models.prompts import encode
from truthheads.models.row_lengths import unusable_rows
from vision_zoo import seeing
from zoo import MULTIMODAL


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("models") / "planted")


LONG = "far too long " * 60


def rows(count: int = 24) -> list[Question]:
    return list(planted_questions(count))


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file whose third row has a context that is too long for the model, and the sixth an answer."""
    made = rows()
    made[2] = replace(made[2], context=f"{LONG}{made[2].context}", evidence=())
    made[5] = replace(made[5], untruthful=LONG)
    return write_questions(tmp_path_factory.mktemp("long") / "q.jsonl", made)


# --- all complaints at once


def complaints(*words: object) -> list[str]:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    wrong, cure = result.stderr.splitlines()
    assert wrong.startswith("error: ") and cure.startswith("do: ")
    found = re.split(r"(?:things are wrong: |; )\(\d\) ", wrong)
    cures = re.split(r"(?:do: |; )\(\d\) ", cure)
    assert len(found) == len(cures)
    return found[1:] or found


COMMANDS: dict[str, list[str]] = {
    "score": ["score", "MODEL", "--data", "DATA"],
    "trace": ["trace", "MODEL", "--data", "DATA"],
    "tune learn": ["tune", "learn", "MODEL", "--data", "DATA"],
    "evaluate pairs": ["evaluate", "pairs", "MODEL", "--data", "DATA"],
    "evaluate halueval": ["evaluate", "halueval", "MODEL", "--data", "DATA"],
    "ground": ["ground", "MODEL", "--data", "DATA"],
    "data pairs": ["data", "pairs", "DATA", "--model", "MODEL"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_data_model_device_dtype_and_output_are_refused_together(command: str, tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_text("in the way")
    words = [
        {"MODEL": str(tmp_path / "no-model"), "DATA": str(tmp_path / "no-data.jsonl")}.get(word, word)
        for word in COMMANDS[command]
    ]
    found = complaints(*words, "--out", out / "below", "--device", "abacus", "--dtype", "fp7")
    told = "\n".join(found)
    assert len(found) == 5
    for part in ("no-data.jsonl is not there", "no-model' is not there", "device 'abacus'", "dtype 'fp7'", "file"):
        assert part in told
    assert out.read_text() == "in the way"


@pytest.mark.parametrize("command", ["score", "trace", "tune learn", "evaluate pairs", "ground", "data pairs"])
def test_nothing_is_loaded_before_the_data_is_read(command: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip  # noqa: E501
    monkeypatch.setattr("truthheads.models.load.load", lambda *_, **__: pytest.fail("a model was loaded"))
    data = tmp_path / "q.csv"
    data.write_text("context,question,right answer,wrong answer\nA,B,C,D\n")
    words = [{"MODEL": str(model), "DATA": str(data)}.get(word, word) for word in COMMANDS[command]]
    (told,) = complaints(*words, "--out", tmp_path / "out")
    assert "columns of no known layout" in told


@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_where_no_image_is_there_skipping_leaves_nothing_and_says_so(skip_bad_rows: bool, tmp_path: Path) -> None:
    seer = seeing(next(row for row in MULTIMODAL if row.name == "llava"))
    shown = [replace(one, image=str(tmp_path / "none.png")) for one in rows(3)]
    with pytest.raises(DataError, match="no row is left") as raised:
        usable(seer, Questions(shown), skip_bad_rows=skip_bad_rows, skip_missing=True, chat=False, truncate=False)
    assert "--images" in raised.value.fix and raised.value.got == "3 rows left out"
    Image.new("RGB", (8, 8)).save(tmp_path / "none.png")  # where the images are there, all rows are
    found = usable(seer, Questions(shown), skip_bad_rows=False, skip_missing=True, chat=False, truncate=False)
    assert len(found) == 3


def test_faults_of_loading(model: Path, tmp_path: Path) -> None:
    assert loading_faults(str(model)) == []
    assert loading_faults("smollm2:reader", device="cpu", dtype="bf16") == []
    faults = loading_faults(str(tmp_path), device="cpu:x", max_memory="much")
    assert [type(one).__name__ for one in faults][-1] == "ModelError" and len(faults) == 2
    assert "memory" in faults[0].problem and str(tmp_path) in faults[1].problem


# --- rows that are too long


def test_the_advice_cures_the_row_at_hand(model: Path) -> None:
    loaded = load(str(model), dtype="fp32")
    first, second = rows(2)
    in_context = replace(first, context=f"{LONG}{first.context}", evidence=())
    in_answer = replace(second, untruthful=LONG)
    for truncate in (False, True):
        with pytest.raises(RowError) as caught:
            encode(loaded, [in_answer], truncate=truncate)
        assert "shorten the question or the answers" in caught.value.fix
        assert "--skip-bad-rows" in caught.value.fix and "pass --truncate" not in caught.value.fix
    with pytest.raises(RowError) as caught:
        encode(loaded, [in_context])
    assert caught.value.fix.startswith("pass --truncate") and "--skip-bad-rows" in caught.value.fix
    assert [one.question.id for one in unusable_rows(loaded, [first, in_context, in_answer])] == [first.id, second.id]
    assert [one.question.id for one in unusable_rows(loaded, [in_context, in_answer], truncate=True)] == [second.id]


LEFT_OUT: dict[str, list[Any]] = {
    "score": ["score"],
    "trace": ["trace", "--untruthful"],
    "tune learn": ["tune", "learn", "--epochs", 1],
    "evaluate pairs": ["evaluate", "pairs"],
}


def counted(found: dict[str, Any]) -> Iterator[int]:
    """Yield every ``skipped`` that a result has."""
    for name, value in found.items():
        if name == "skipped" and isinstance(value, int):
            yield value
        elif isinstance(value, dict):
            yield from counted(value)


@pytest.mark.parametrize("command", LEFT_OUT)
def test_rows_too_long_are_left_out_and_counted(command: str, model: Path, long_rows: Path, tmp_path: Path) -> None:
    first, *more = LEFT_OUT[command]
    head = [first, *more[:1]] if command in ("tune learn", "evaluate pairs") else [first]
    rest = more[1:] if len(head) == 2 else more
    words = [*head, model, "--data", long_rows, "--dtype", "fp32", "--json", *rest]
    refused = run(*words, "--out", tmp_path / "refused")
    assert refused.exit_code == 2 and "is too long for the model" in refused.stderr
    assert "--skip-bad-rows" in refused.stderr
    result = run(*words, "--skip-bad-rows", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert 2 in set(counted(json.loads(result.stdout))), result.stdout[:2000]
    cut = run(*words, "--skip-bad-rows", "--truncate", "--out", tmp_path / "cut")
    assert 1 in set(counted(json.loads(cut.stdout)))


def test_where_every_row_is_too_long_the_first_is_named(model: Path, tmp_path: Path) -> None:
    data = write_questions(
        tmp_path / "q.jsonl", [replace(one, truthful=LONG + str(at)) for at, one in enumerate(rows(4))]
    )
    words = ("--data", data, "--dtype", "fp32", "--skip-bad-rows")
    for command in (("score",), ("evaluate", "pairs")):
        result = run(*command, model, *words, "--out", tmp_path / "o")
        assert result.exit_code == 2 and "is too long for the model" in result.stderr


# --- what is said of the reading


def test_the_output_says_how_rows_were_read_and_grouped(model: Path, tmp_path: Path) -> None:
    made = [replace(one, question="which town is it ?", group="") for one in rows(12)]
    data = tmp_path / "q.csv"
    lines = ["Context;Question;Truthful;Untruthful"]
    lines += [f"{one.context};{one.question};{one.truthful};{one.untruthful}" for one in made]
    data.write_text("\n".join(lines))
    told = (
        "read: 12 rows (pairs); columns separated by semicolons; grouped by context (12 groups), since one question is"
    )
    for command in (["score"], ["trace"], ["evaluate", "pairs"], ["data", "pairs"], ["tune", "learn"]):
        target = [data, "--strategy", "swap"] if command[0] == "data" else [model, "--data", data, "--dtype", "fp32"]
        result = run(*command, *target, "--out", tmp_path / "-".join(command))
        assert result.exit_code == 0, (command, result.stderr)
        assert told.partition("pairs); ")[2] in result.stdout, command
    found = json.loads(run("score", model, "--data", data, "--dtype", "fp32", "--json", "--out", tmp_path / "s").stdout)
    assert found["data"]["read_as"] == read_questions(data).read_as


def test_encoding_and_labels_are_options_of_every_command(model: Path, tmp_path: Path) -> None:
    made = rows(10)
    lines = [{"context": one.context, "question": one.question, "answer": text, "label": word}
             for one in made for text, word in ((one.truthful, "SUPPORTED"), (one.untruthful, "REFUTED"))]  # fmt: skip
    data = tmp_path / "q.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-16")
    words = ["score", model, "--data", data, "--dtype", "fp32", "--out", tmp_path / "s", "--json"]
    assert "--encoding utf-16" in run(*words).stderr
    assert "--label-true SUPPORTED" in run(*words, "--encoding", "utf-16").stderr
    result = run(*words, "--encoding", "utf-16", "--label-true", "supported")
    assert result.exit_code == 0 and json.loads(result.stdout)["data"]["rows"] == 20
