"""Command lines of 0.1.0: each is rewritten to what it is called now, with a note on standard error."""

import subprocess
import sys

import pytest

from truthheads.cli.old_forms import old_form


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("tune m --data q.jsonl --method grid --scores s", "tune grid m --data q.jsonl --scores s"),
        ("tune m --data q.jsonl --method=learn", "tune learn m --data q.jsonl"),
        ("tune m --data q.jsonl --epochs 2", "tune learn m --data q.jsonl --epochs 2"),
        ("tune --data q.jsonl m --json", "tune learn --data q.jsonl m --json"),
        ("tune --json m --data q.jsonl", "tune learn --json m --data q.jsonl"),
        ("tune --chat --method grid --data q.jsonl -- m", "tune grid --chat --data q.jsonl -- m"),
        ("tune learn --method grid --data q.jsonl", "tune grid learn --data q.jsonl"),  # a model in a folder "learn"
    ],
)
def test_tune_with_a_method(given: str, wanted: str) -> None:
    argv, note = old_form(given.split())
    assert " ".join(argv) == wanted
    assert note is not None
    assert note.startswith("`tune MODEL") and f"is now `tune {argv[1]} MODEL`" in note
    assert "left out" not in note


def test_options_that_the_method_ignored_are_left_out_and_named() -> None:
    given = "tune m --data q --strengths 1,2 --standardise --epochs 3 --scores=s"
    argv, note = old_form(given.split())
    assert argv == ["tune", "learn", "m", "--data", "q", "--epochs", "3"]
    assert note is not None and note.endswith("; --strengths, --standardise, --scores left out: no effect on learn")
    argv, note = old_form(["tune", "m", "--method", "grid", "--site", "output", "--scores", "s", "--data", "q"])
    assert argv == ["tune", "grid", "m", "--scores", "s", "--data", "q"]
    assert note is not None and note.endswith("; --site left out: no effect on grid")


@pytest.mark.parametrize(
    "given",
    [
        "",
        "tune",
        "tune --help",
        "tune learn m --data q.jsonl",
        "tune grid m --data q.jsonl --scores s",
        "tune learn --help",
        "tune adapt m",
        "score m --data q.jsonl --method evidence",
    ],
)
def test_what_is_not_old_stays_as_it_is(given: str) -> None:
    assert old_form(given.split()) == (given.split(), None)


def typed(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "truthheads", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_program_accepts_the_old_form_and_says_so() -> None:
    found = typed("tune", "nowhere/at/all", "--method", "grid", "--data", "none.jsonl", "--scores", "none")
    assert found.returncode == 2 and found.stdout == ""
    note, error, do = found.stderr.splitlines()
    assert note == "note: `tune MODEL --method grid` is now `tune grid MODEL`"
    assert error.startswith("error: 3 things are wrong: (1) none.jsonl is not there") and do.startswith("do: (1) ")
    now = typed("tune", "grid", "nowhere/at/all", "--data", "none.jsonl", "--scores", "none")
    assert now.stderr.splitlines() == [error, do]
