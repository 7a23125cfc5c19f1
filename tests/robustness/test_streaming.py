"""Any number of rows: kept on disk, run window by window, probed head by head; the same as all at once."""

import csv
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_server import hub
from planted import planted_model, planted_questions, save_planted
from truthheads.data.hub import HubData, address, parse_hub
from truthheads.data.questions import Question, QuestionRows, RowsOnDisk, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import ArtifactError, DataError, NotFirstRank
from truthheads.models.architectures import locate_heads
from truthheads.models.load import Model
from truthheads.results.scores import TENSORS, Scores
from truthheads.scoring import activations, fit
from truthheads.scoring.score import score

ROWS = 60

text = st.text(st.characters(exclude_categories=["Cs"]))
# Questions are made in the tests: their constructor is checked, and what checks it draws random numbers of its own.
fields = st.fixed_dictionaries(
    {
        "id": text,
        "context": text,
        "question": text,
        "truthful": st.none() | text,
        "untruthful": st.none() | text,
        "evidence": st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))).map(tuple),
        "image": st.none() | text,
        "boxes": st.lists(st.tuples(*[st.floats(0, 9)] * 4)).map(tuple),
        "group": text,
        "kind": st.none() | text,
    }
)


@pytest.fixture(scope="module")
def planted() -> Model:
    network, tokenizer, _ = planted_model()
    return Model(network.eval().requires_grad_(False), tokenizer, None, locate_heads(network), "planted")


@pytest.fixture
def few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truthheads.data.questions.IN_MEMORY", 3)


# --- rows on disk ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.lists(fields, max_size=9), st.slices(9))
def test_rows_on_disk_are_the_rows_that_were_given(drawn: list[dict[str, Any]], part: slice) -> None:
    given_rows = [Question(**one) for one in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("truthheads.data.questions.IN_MEMORY", 3)
        rows = QuestionRows(given_rows)
    assert len(rows) == len(given_rows) and list(rows) == given_rows and rows == given_rows
    assert rows[part] == given_rows[part]
    assert [rows[at] for at in range(-len(given_rows), len(given_rows))] == given_rows * 2
    with pytest.raises(IndexError):
        rows[len(given_rows)]
    assert rows != [*given_rows, Question("more", "", "", None, None)]


def asked(at: int, text: str = "x") -> Question:
    return Question(str(at), text, "what?", "yes", None)


def test_rows_can_be_added_after_others_were_read_and_while_they_are() -> None:
    rows = RowsOnDisk()
    given_rows = [asked(at, "x" * (997 * at % 90_001)) for at in range(200)]
    for row in given_rows[:150]:
        rows.append(row)
    assert list(rows.read(0, 150)) == given_rows[:150] and list(rows.read(13, 14)) == [given_rows[13]]
    reading = rows.read(140, 150)
    assert next(reading) == given_rows[140]
    for row in given_rows[150:]:
        rows.append(row)
    assert list(reading) == given_rows[141:150]
    assert list(rows.read(149, 200)) == given_rows[149:] and len(rows) == 200


def test_half_a_character_and_a_zero_byte_come_back_from_disk() -> None:
    rows = RowsOnDisk()
    odd = asked(0, "half \ud800 of a pair, \x00, \U0001f600")
    rows.append(odd)
    assert list(rows.read(0, 1)) == [odd]


def test_a_full_temporary_folder_is_an_error() -> None:
    rows = RowsOnDisk()
    rows._rows.execute("PRAGMA max_page_count = 64")  # what SQLite then says is what it says on a full disk
    with pytest.raises(ArtifactError, match="could not be kept in the temporary folder") as caught:
        for at in range(100):
            rows.append(asked(at, "x" * 10_000))
    assert "full" in caught.value.got and "TMPDIR" in caught.value.fix


def test_a_temporary_file_that_cannot_grow_is_an_error() -> None:
    rows = RowsOnDisk()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(ArtifactError, match="could not be kept in the temporary folder"):
            for at in range(1000):
                rows.append(asked(at, "x" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


KILLED = """
import os, signal, sys
from truthheads.data.questions import Question, RowsOnDisk
rows = RowsOnDisk()
for at in range(1000):
    rows.append(Question(str(at), "x" * 10_000, "what?", "yes", None))
sizes = []
for number in range(3, 100):
    try:
        sizes.append(os.fstat(number).st_size)
    except OSError:
        pass
print(sum(size > 5_000_000 for size in sizes), os.listdir(os.environ["TMPDIR"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1 []\n"), done.stderr  # on the disk, without a name
    assert list(tmp_path.iterdir()) == []


def test_every_format_gives_the_same_rows_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted_questions(12)
    write_questions(tmp_path / "a.jsonl", rows)
    plain = [
        {name: asdict(one)[name] for name in ("id", "context", "question", "truthful", "untruthful")} for one in rows
    ]
    (tmp_path / "a.json").write_text(json.dumps(plain), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), tmp_path / "a.parquet", row_group_size=5)
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, plain[0])
        writer.writeheader()
        writer.writerows(plain)
    for suffix in ("jsonl", "json", "parquet", "csv"):
        few = read_questions(tmp_path / f"a.{suffix}")
        with monkeypatch.context() as patch:
            patch.setattr("truthheads.data.questions.IN_MEMORY", 3)
            many = read_questions(tmp_path / f"a.{suffix}")
        assert many._many is not None and few._many is None and many == few
        assert (many.sha256, many.layout) == (few.sha256, few.layout)
        assert many.without([many[2], many[7]]) == [*few[:2], *few[3:7], *few[8:]]
        assert read_questions(tmp_path / f"a.{suffix}", limit=5) == few[:5]


@pytest.mark.usefixtures("few_in_memory")
def test_a_row_twice_and_opposite_labels_are_found_among_rows_on_disk(tmp_path: Path) -> None:
    rows = [json.dumps(asdict(one)) for one in planted_questions(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*rows, rows[1]]), encoding="utf-8")
    with pytest.raises(DataError, match=r":line 9: field 'id'"):
        read_questions(path)
    assert len(read_questions(path, skip_bad_rows=True)) == 8
    said = [
        {"id": str(at), "question": "cat?", "answer": f"{at % 5}", "label": at % 2 if at < 6 else 1, "image": "a.png"}
        for at in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, said)), encoding="utf-8")
    with pytest.raises(DataError, match=r":line 6: .* opposite labels") as caught:
        read_questions(path)
    assert caught.value.expected == f"untruthful, as in {path}:line 1"


# --- windows and blocks ----------------------------------------------------------------------------------------------


def same(a: Scores, b: Scores, *, tolerance: float) -> None:
    for name in TENSORS:
        x, y = getattr(a, name).double(), getattr(b, name).double()
        assert x.shape == y.shape, name
        assert torch.allclose(x, y, atol=tolerance, rtol=tolerance, equal_nan=True), name


def test_windows_and_blocks_give_the_scores_of_one(planted: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = planted_questions(ROWS)
    whole = score(planted, rows, batch_tokens=300)
    with monkeypatch.context() as patch:
        patch.setattr(activations, "WINDOW", 7)
        patch.setattr(activations, "WINDOW_BYTES", 1 << 60)
        told: list[tuple[int, int]] = []
        parts = score(planted, rows, batch_tokens=300, progress=lambda *at: told.append(at))
        assert told[-1] == (ROWS, ROWS) and told == sorted(told)
    same(whole, parts, tolerance=2e-3)  # other batches, so other roundings; logits are kept in fp16
    assert torch.equal(whole.accuracy, parts.accuracy)
    fitted: list[int] = []
    probe = fit.fit_block
    with monkeypatch.context() as patch:
        patch.setattr(fit, "BLOCK_BYTES", 1)
        patch.setattr(fit, "fit_block", lambda z, *given: (fitted.append(len(z)), probe(z, *given))[1])
        one_by_one = score(planted, rows, batch_tokens=300)
    assert fitted == [1] * 8
    same(whole, one_by_one, tolerance=2e-3)
    assert torch.equal(whole.accuracy, one_by_one.accuracy)


def test_killed_between_windows_and_between_layers(
    planted: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "WINDOW", 10)
    monkeypatch.setattr(fit, "WORTH_KEEPING", 1)
    rows = planted_questions(ROWS)
    whole = score(planted, rows, batch_tokens=300)

    def go_until(place: object, name: str, calls: int) -> int:
        """Run until something is called for the n-th time; return how often it was called."""
        made, original = [], getattr(place, name)

        def counted(*given: Any, **named: Any) -> Any:
            made.append(1)
            if len(made) == calls:
                raise KeyboardInterrupt
            return original(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, counted)
            if calls:
                with pytest.raises(KeyboardInterrupt):
                    score(planted, rows, batch_tokens=300, work_dir=tmp_path)
            else:
                same(score(planted, rows, batch_tokens=300, work_dir=tmp_path), whole, tolerance=0)
        return len(made)

    assert go_until(activations, "collect", 4) == 4  # three windows are complete
    assert go_until(fit, "_fit_layer", 2) == 2  # all windows, one layer
    assert len(list((tmp_path / "probes").glob("layer-*"))) == 1
    assert go_until(activations, "collect", 0) == 0
    (tmp_path / "probes" / "layer-1.safetensors").unlink()
    assert go_until(fit, "_fit_layer", 0) == 1
    # probes of another seed are not taken for these; what a killed process was writing aside does not stand in the way
    for folder in (tmp_path / "probes", tmp_path / "window-000000"):
        (folder / ".x.abcdefg1.tmp").mkdir(parents=True)
    other = score(planted, rows, batch_tokens=300, work_dir=tmp_path, seed=1)
    same(other, score(planted, rows, batch_tokens=300, seed=1), tolerance=0)
    same(score(planted, rows, batch_tokens=290, work_dir=tmp_path), score(planted, rows, batch_tokens=290), tolerance=0)


def test_several_processes_deal_windows_where_there_are_many(
    planted: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = planted_questions(ROWS)
    monkeypatch.setattr(activations, "WINDOW", 5)
    monkeypatch.setattr(activations, "WINDOWS_EACH", 3)
    whole = score(planted, rows, batch_tokens=200)
    for place in ("truthheads.storage.row_store", "truthheads.scoring.activations", "truthheads.scoring.fit"):
        monkeypatch.setattr(f"{place}.barrier", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    # One after the other, where they would wait for each other: the second one's share of the rows, the first one's,
    # then the probes. What lacks a part is an error, never a result.
    ran: dict[str, set[str]] = {"0": set(), "1": set()}
    collect = activations.collect

    def noted(*given: Any, **named: Any) -> Any:
        ran[os.environ["RANK"]].add(given[3].name)
        return collect(*given, **named)

    monkeypatch.setattr(activations, "collect", noted)
    for rank, wanted in (("1", ArtifactError), ("0", ArtifactError), ("1", NotFirstRank)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(wanted):
            score(planted, rows, batch_tokens=200, work_dir=tmp_path)
    monkeypatch.setenv("RANK", "0")
    same(score(planted, rows, batch_tokens=200, work_dir=tmp_path), whole, tolerance=0)
    assert not ran["0"] & ran["1"] and len(ran["0"] | ran["1"]) == ROWS // 5


def test_several_processes_share_the_batches_of_few_windows(tmp_path: Path) -> None:
    save_planted(tmp_path / "model")
    write_questions(tmp_path / "rows.jsonl", planted_questions(ROWS))
    program = "import truthheads.scoring.activations as w; w.WINDOW = 25; from truthheads.cli import main; main()"
    words = ["score", "model", "--data", "rows.jsonl", "--dtype", "fp32", "--batch-tokens", "200", "--out"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = []
    for rank in (None, 0, 1):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}
        environment = {**shared, **({**place, "MASTER_ADDR": "127.0.0.1"} if rank is not None else {})}
        out = "one.safetensors" if rank is None else "two.safetensors"
        command = [sys.executable, "-c", program, *words, out]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_a_disk_that_is_too_small_is_said_before_anything_is_run(
    planted: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})()
    monkeypatch.setattr("truthheads.scoring.activations.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ArtifactError, match="activations could not be written") as caught:
        score(planted, planted_questions(ROWS), work_dir=tmp_path)
    assert "1.0 kB an answer" in caught.value.expected  # 2 layers of 4 heads of 32 fp32 numbers
    assert not list(tmp_path.glob("window-*"))


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_addresses_on_the_hub() -> None:
    whole = HubData("owner/name", None, None, None, None)
    assert parse_hub("hf://datasets/owner/name") == parse_hub(Path("hf://datasets/owner/name")) == whole
    file = "hf://datasets/owner/na.me@v1.0/data/train-*.parquet?split=dev&config=qa"
    assert parse_hub(file) == HubData("owner/na.me", "v1.0", "data/train-*.parquet", "dev", "qa")
    assert address(Path(file)) == file and address("rows.jsonl") == "rows.jsonl"
    for bad in ("hf://datasets/owner", "hf://models/owner/name", "hf://datasets/owner/name?splat=1"):
        with pytest.raises(DataError, match="names no data set"):
            parse_hub(bad)


@pytest.mark.skipif(find_spec("datasets") is None, reason="the package datasets is not installed")
def test_rows_are_streamed_from_the_hub(tmp_path: Path) -> None:
    rows = [
        {name: asdict(one)[name] for name in ("id", "context", "question", "truthful", "untruthful")}
        for one in planted_questions(ROWS)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    files = {"data/train.jsonl": lines, "other/part.parquet": table.getvalue(), "odd.py": b"raise SystemExit(3)\n"}
    files["data/test.jsonl"] = lines
    splits = "".join(f"\n  - split: {name}\n    path: data/{name}.jsonl" for name in ("train", "test"))
    files["README.md"] = f"---\nconfigs:\n- config_name: default\n  data_files:{splits}\n---\n".encode()
    (tmp_path / "rows.jsonl").write_bytes(lines)
    save_planted(tmp_path / "model")
    program = (
        "import json, sys\n"
        "import provoked\n"
        "from truthheads.errors import DataError\n"
        "from truthheads.data.readers import read_questions\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        with provoked.recorded():\n"
        "            found = read_questions(path)\n"
        "        print(json.dumps([len(found), found[0].id, found.layout, found.path, found.sha256]))\n"
        "    except DataError as error:\n"
        "        print(json.dumps(str(error)))\n"
    )
    with hub("me/rows", files) as (server, _):
        own = {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(sys.path)}

        def run(words: Sequence[str]) -> str:
            made = subprocess.run(
                [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert made.returncode == 0, made.stderr[-3000:]
            return made.stdout

        names = ["/data/train.jsonl", "/other/part.parquet", "@main/data/train.jsonl", "/nothing.jsonl"]
        told = [*(f"hf://datasets/me/rows{name}" for name in names), "hf://datasets/me/absent", "hf://datasets/me/rows"]
        *found, lost, absent, parted = map(json.loads, run(["-c", program, *told]).splitlines())
        for name, one in zip(told, found, strict=False):
            assert one[:4] == [ROWS, rows[0]["id"], "pairs", name]
        assert len({one[4] for one in found}) == 1  # the same rows, whatever the file
        assert "cannot be read" in lost and "cannot be read" in absent
        assert "has several splits" in parted and "do: give hf://datasets/me/rows?split=train" in parted
        words = ["-m", "truthheads", "score", "model", "--dtype", "fp32", "--json", "--data"]
        streamed = json.loads(run([*words, told[0], "--out", "hub.safetensors"]))
        assert streamed["data"]["path"] == told[0]
    run([*words, "rows.jsonl", "--out", "file.safetensors"])
    a, b = (Scores.load(tmp_path / f"{name}.safetensors") for name in ("hub", "file"))
    assert all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in TENSORS)
