"""Habits at a command line: ``~``, ``-h``, completion, ``--force``, ``--seed``, and a line before the first wait."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.test_help import COMMANDS, shown
from commands import workplace
from invoked import run
from truthheads.results.gate import Gate
from truthheads.storage.files import check_new, distinct_names


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workplace(tmp_path_factory.mktemp("habits") / "home")


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(place)
    return place


def typed(*words: object, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the program as people do, in a process of its own."""
    command = [sys.executable, "-m", "truthheads", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env})


# --- ~ ---------------------------------------------------------------------------------------------------------------


def test_home_in_every_path_of_an_option(home: Path) -> None:
    """A shell replaces ``~`` where a word begins with it, and leaves it in ``--out=~/x``."""
    made = run("gate", "~/scores.safetensors", "--out=~/deep/g.safetensors", "--plot=~/deep/g.html", "--for=~/model")
    assert made.exit_code == 0, made.stderr
    scored = run("score", "~/model", "--data=~/rows.jsonl", "--out=~/deep/s.safetensors", "--dtype", "fp32")
    assert scored.exit_code == 0, scored.stderr
    compared = run("compare", "~/deep/s.safetensors", "~/scores.safetensors", "--out=~/deep/c.json")
    assert compared.exit_code == 0, compared.stderr
    tested = run("evaluate", "pairs", "~/model", "--data=~/rows.jsonl", "--gate=~/deep/g.safetensors",
                 "--guard-texts", 0, "--out=~/deep/pairs")  # fmt: skip
    assert tested.exit_code == 0, tested.stderr
    assert {"g.safetensors", "g.html", "s.safetensors", "c.json", "pairs"} <= {
        one.name for one in (home / "deep").iterdir()
    }
    assert not (home / "~").exists()


# --- -h, completion, width -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [(), ("gate",), ("tune",), ("tune", "learn"), ("evaluate",), ("evaluate", "pope")], ids=" ".join
)
def test_help_by_its_short_name(words: tuple[str, ...]) -> None:
    short, whole = run(*words, "-h"), run(*words, "--help")
    assert short.exit_code == 0 and short.stdout == whole.stdout and "Usage: truthheads" in short.stdout


def test_help_of_tune_is_no_old_form() -> None:
    asked = typed("tune", "-h")
    assert (asked.returncode, asked.stderr) == (0, "") and "learn" in asked.stdout


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    told = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # this process has no shell
    done = typed("--install-completion", "bash", **told)
    assert done.returncode == 0 and "installed" in done.stdout, done.stderr
    files = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert any("_TRUTHHEADS_COMPLETE" in one.read_text() for one in files)
    asked = {"_TRUTHHEADS_COMPLETE": "complete_bash", "COMP_WORDS": "truthheads ga", "COMP_CWORD": "1"}
    found = typed(**asked)
    assert found.stdout.split() == ["gate"] and found.stderr == ""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_option_is_cut_at_80_columns(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(words, monkeypatch, width=80)
    assert max(map(len, text.splitlines())) <= 80
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert f" {name} " in text, name


@pytest.mark.parametrize(("words", "option", "values"), [
    (("score",), "--method", "probe, attribution or evidence"),
    (("gate",), "--control", "constant, shuffled or random"),
    (("export",), "--to", "adapter"),
], ids=["method", "control", "to"])  # fmt: skip
def test_values_of_a_choice_stand_whole_in_the_help(
    words: tuple[str, ...], option: str, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(part for part in shown(words, monkeypatch).replace("│", " ").split())
    assert values in text and option in text


# --- seed ------------------------------------------------------------------------------------------------------------

WITHOUT_CHANCE = {("inspect",), ("report",), ("reproduce",), ("cache", "list"), ("cache", "clear")}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_seed_says_what_it_draws_or_is_not_there(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    (seed,) = (one for one in COMMANDS[words].params if one.name == "seed")  # every command accepts it
    if words in WITHOUT_CHANCE:
        assert seed.hidden and "--seed" not in shown(words, monkeypatch)
    else:
        assert not seed.hidden and seed.help.startswith("Random seed of ")


def test_a_seed_without_effect_is_taken_with_a_note(home: Path) -> None:
    told = run("inspect", "model", "--seed", 3, "--json")
    assert told.exit_code == 0 and json.loads(told.stdout)["num_layers"] == 2
    assert told.stderr == "note: --seed has no effect here and was left out: nothing is drawn at random\n"
    assert run("inspect", "model", "--json").stderr == ""


# --- force -----------------------------------------------------------------------------------------------------------

AGAIN = {
    "gate": ("gate", "scores.safetensors", "--out", "again/g.safetensors"),
    "score": ("score", "model", "--data", "rows.jsonl", "--dtype", "fp32", "--out", "again/s.safetensors"),
    "compare": ("compare", "scores.safetensors", "scores.safetensors", "--out", "again/c.json"),
    "grid": ("tune", "grid", "model", "--data", "rows.jsonl", "--scores", "scores.safetensors", "--strengths", 1,
             "--norms", "centred", "--sites", "z", "--out", "again/t.safetensors"),
    "adapt": ("tune", "adapt", "model", "--data", "rows.jsonl", "--dtype", "fp32", "--epochs", 1, "--guard", 9,
              "--out", "again/adapted"),
    "adapter": ("export", "model", "--gate", "gate.safetensors", "--to", "adapter", "--out", "again/adapter"),
    "text": ("data", "make", "text", "--rows", 3, "--out", "again/rows"),
    "pairs": ("data", "pairs", "rows.jsonl", "--strategy", "swap", "--out", "again/p.jsonl"),
    "report": ("report", "shown", "--out", "again/r.html"),
    "fit": ("detect", "model", "--fit", "rows.jsonl", "--heads", 2, "--dtype", "fp32", "--out", "again/f.safetensors"),
    "detect": ("detect", "model", "--data", "rows.jsonl", "--detector", "detector.safetensors", "--dtype", "fp32",
               "--out", "again/d.jsonl"),
    "inspect": ("inspect", "model", "--out", "again/i.json"),
}  # fmt: skip


@pytest.mark.parametrize("words", AGAIN.values(), ids=AGAIN)
def test_what_is_there_is_replaced_only_by_force(words: tuple[object, ...], home: Path) -> None:
    first = run(*words)
    assert first.exit_code == 0, first.stderr
    out = home / str(words[-1])
    files = {one: one.stat().st_mtime_ns for one in [out, *out.rglob("*")] if one.is_file()}
    second = run(*words)
    assert second.exit_code == 2 and second.stdout == ""
    assert "exists already" in second.stderr and "--force" in second.stderr
    assert {one: one.stat().st_mtime_ns for one in files} == files
    forced = run(*words, "--force")
    assert forced.exit_code == 0, forced.stderr
    assert any(one.stat().st_mtime_ns != before for one, before in files.items())


def test_a_run_that_was_killed_goes_on_without_force(tmp_path: Path) -> None:
    """While its folder of partial results is there, the run is not finished, whatever lies under the final name."""
    out = tmp_path / "s.safetensors"
    out.touch()
    (tmp_path / "s.safetensors.partial").mkdir()
    check_new(out, force=False, unfinished=tmp_path / "s.safetensors.partial")
    check_new(tmp_path / "other", force=False)


def test_an_evaluation_goes_on_by_itself_and_begins_anew_by_force(home: Path) -> None:
    words = ("evaluate", "pairs", "model", "--data", "rows.jsonl", "--out", "pairs", "--guard-texts", 0)
    assert run(*words, "--limit", 6).exit_code == 0
    before = (home / "pairs/predictions.jsonl").read_bytes()
    assert run(*words, "--limit", 6).exit_code == 0 and (home / "pairs/predictions.jsonl").read_bytes() == before
    other = run(*words, "--limit", 8)
    assert other.exit_code == 2 and "another evaluation" in other.stderr and "--force" in other.stderr
    assert run(*words, "--limit", 8, "--force").exit_code == 0
    assert len((home / "pairs/predictions.jsonl").read_bytes().splitlines()) == 8


# --- the first second ------------------------------------------------------------------------------------------------


def test_a_line_says_that_libraries_are_loading_before_they_are(tmp_path: Path) -> None:
    """On a terminal; a program that reads standard error still gets an error as two lines."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "truthheads", "gate", "nowhere.safetensors", "--out", str(tmp_path / "g")]
    child = subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    first = os.read(ours, 1000).decode()
    assert "loading …" in first and "error" not in first
    assert child.wait() == 2
    os.close(ours)
    done = typed("gate", "nowhere.safetensors", "--out", tmp_path / "g")
    assert done.returncode == 2 and [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "do"]


def test_the_line_comes_before_torch() -> None:
    program = """
import sys
from truthheads.cli import console
console.err._force_terminal = True
console.announce_loading()
class Late:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.stderr.write("torch is asked for\\n")
            raise ImportError("late")
sys.meta_path.insert(1, Late())
try:
    import torch
except ImportError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    loading, asked = done.stderr.splitlines()
    assert "loading …" in loading and asked == "torch is asked for"


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paths", "names"), [
    (["a.csv", "b.csv"], ["a", "b"]),
    (["llava/cv5_head_metrics.csv", "vicuna/cv5_head_metrics.csv"], ["llava", "vicuna"]),
    (["llava/out/cv5.csv", "vicuna/out/cv5.csv"], ["llava", "vicuna"]),
    (["x/a/s.csv", "x/b/s.csv", "y/a/s.csv"], ["x/a", "x/b", "y/a"]),
    (["base/probe.npy", "base/other.npy", "tuned/probe.npy"], ["base/probe", "other", "tuned/probe"]),
    (["a/s.csv", "a/s.csv"], ["s (1)", "s (2)"]),
    (["s.csv", "a/s.csv", "b/s.csv"], None),
])  # fmt: skip
def test_files_of_one_name_are_told_apart_by_their_folder(paths: list[str], names: list[str] | None) -> None:
    found = distinct_names(list(map(Path, paths)))
    assert found == names if names is not None else len(set(found)) == len(paths)


def test_compare_names_files_by_their_folders(home: Path) -> None:
    for folder in ("llava", "vicuna"):
        (home / folder).mkdir(exist_ok=True)
        (home / folder / "cv5_head_metrics.csv").write_text("layer,head,accuracy\n0,0,0.5\n0,1,0.7\n1,0,0.6\n1,1,0.9\n")
    files = [f"{folder}/cv5_head_metrics.csv" for folder in ("llava", "vicuna")]
    found = run("compare", *files, "--out", "named.json", "--json", "--force")
    pair = json.loads(found.stdout)["pairs"][0]
    assert (pair["a"], pair["b"]) == ("llava", "vicuna")


def test_gates_of_one_name_keep_their_file_in_the_name(tmp_path: Path) -> None:
    from truthheads.evaluation.evaluate import named_gates

    files = [tmp_path / folder / "gate.safetensors" for folder in ("one", "two")]
    for file in files:
        Gate(torch.ones(1, 2)).save(file)
    assert list(named_gates(files)) == ["one-gate", "two-gate"]
    assert list(named_gates([Gate(torch.ones(1, 2)), files[0]])) == ["gate-1", "gate"]
