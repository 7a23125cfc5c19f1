"""Files meant to do harm: paths that lead elsewhere, bombs, and markup in every field that is shown."""

import gzip
import io
import json
import os
import resource
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from reported import evaluation, fill, tuning
from simulated import simulated
from truthheads.benchmarks.chair import chair_images
from truthheads.benchmarks.rows import placed_image, read_value
from truthheads.cli import app, console
from truthheads.data import lines, tables
from truthheads.data.images import load_image
from truthheads.data.questions import write_questions
from truthheads.data.readers import read_questions
from truthheads.data.tables import read_rows
from truthheads.errors import DataError
from truthheads.exporting.card import Base, write_card
from truthheads.lineage.compare import compare
from truthheads.plots.charts import save_chart
from truthheads.reporting.report import report
from truthheads.results.comparison import Comparison
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.storage.files import dumps, write_json

EVIL = "</script><script>fetch('http://x.invalid/')</script><img src=x onerror=alert(1)>\"'>"
PAIR = {"question": "A cat?", "truthful": "yes", "untruthful": "no"}
MEMORY = 2 * 2**30


def within_memory(act: Callable[[], Any]) -> str:
    """Run something in a child that may reserve 2 GiB more than this process; return the error that ended it."""
    tell, told = os.pipe()
    child = os.fork()
    if not child:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        try:
            act()
            text = "read"
        except DataError as error:
            text = str(error)
        except BaseException as error:
            text = f"{type(error).__name__}: not on purpose"
        os.write(told, text.encode()[:4000])
        os._exit(0)
    os.close(told)
    with os.fdopen(tell, "rb") as heard:
        text = heard.read().decode()
    os.waitpid(child, 0)
    return text


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        act()
    return str(caught.value)


# --- images lie where they may


def rows(path: Path, *images: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({**PAIR, "question": f"{n}?", "image": one}) + "\n" for n, one in enumerate(images))
    )
    return path


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a picture; the current folder is another one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "there").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "there" / "a.png")
    return tmp_path / "there"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "/dev/zero", "a/../../there/a.png", "..", ".", "link/a.png", "one.png"]
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, elsewhere: Path, name: str) -> None:
    data = rows(tmp_path / "data" / "q.jsonl", "fine.png", name)
    (data.parent / "link").symlink_to(elsewhere)
    (data.parent / "one.png").symlink_to(elsewhere / "a.png")
    message = refused(lambda: read_questions(data))
    assert "q.jsonl:line 2: field 'image'" in message and "--images" in message
    assert [question.question for question in read_questions(data, skip_bad_rows=True)] == ["0?"]
    for task in (lambda: placed_image(name, data, None), lambda: _chair(data, name)):
        assert "--images" in refused(task)


def _chair(data: Path, name: str) -> list[Path]:
    scenes = data.with_name("scenes.jsonl")
    scenes.write_text(json.dumps({"image": name, "objects": []}) + "\n")
    return chair_images(scenes, None)


def test_paths_inside_the_folders_work_relative_and_absolute(tmp_path: Path, elsewhere: Path) -> None:
    inside, here = tmp_path / "data" / "img" / "a.png", tmp_path / "here" / "b.png"
    data = rows(tmp_path / "data" / "q.jsonl", "img/a.png", "img/../img/a.png", str(inside), str(here))
    found = [str(question.image) for question in read_questions(data)]
    assert found == [str(inside), str(data.parent / "img/../img/a.png"), str(inside), str(here)]
    given = rows(tmp_path / "data" / "r.jsonl", "a.png", str(elsewhere / "a.png"))
    assert [one.image for one in read_questions(given, images=elsewhere)] == [str(elsewhere / "a.png")] * 2
    (tmp_path / "linked").symlink_to(elsewhere)  # the folder that the user gives may be a link itself
    assert len(read_questions(given, images=tmp_path / "linked")) == 2
    assert "--images" in refused(lambda: read_questions(given))


@pytest.mark.parametrize("out", ["data/more.jsonl", "out/deep/more.jsonl"])
def test_what_the_package_writes_can_be_read(tmp_path: Path, elsewhere: Path, out: str) -> None:
    data = tmp_path / "data"
    questions = read_questions(rows(data / "q.jsonl", "img/a.png"))
    written = write_questions(tmp_path / out, questions)
    (read,) = read_questions(written, images=data)
    assert os.path.normpath(str(read.image)) == str(data / "img" / "a.png")
    os.chdir(tmp_path)
    assert len(read_questions(written)) == 1, "all of it lies in the current folder"


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        assert "no such file" in refused(lambda: load_image(tmp_path / name))  # noqa: B023
    for read in (read_questions, read_value):
        os.mkfifo(tmp_path / f"{read.__name__}.jsonl")
        refused(lambda: read(tmp_path / f"{read.__name__}.jsonl"))  # noqa: B023


# --- bombs


def png(size: tuple[int, int], *chunks: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    parts = [
        (b"IHDR", head),
        *chunks,
        (b"IDAT", zlib.compress(bytes((3 * min(size[0], 8) + 1) * min(size[1], 8)))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


ZEROS = zlib.compress(bytes(200 * 2**20))


@pytest.mark.parametrize("name", ["pixels", "sides", "gif", "text", "texts", "profile", "frames", "half", "script"])
def test_pictures_that_unpack_to_too_much(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    frames = io.BytesIO()
    if name == "frames":
        one = Image.new("P", (8, 8))
        one.save(
            frames, "GIF", save_all=True, append_images=[Image.new("P", (8, 8), at % 250) for at in range(1, 3000)]
        )
    data = {
        "pixels": png((50_000, 50_000)),
        "sides": png((2**31 - 1, 2**31 - 1)),
        "gif": b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0)
        + bytes(6)
        + struct.pack("<BHHHHB", 0x2C, 0, 0, 65535, 65535, 0)
        + b"\x02\x01\x00\x00;",
        "text": png((8, 8), (b"zTXt", b"a\0\0" + ZEROS)),
        "texts": png((8, 8), *[(b"zTXt", b"a%d\0\0" % at + zlib.compress(bytes(1_000_000))) for at in range(90)]),
        "profile": png((8, 8), (b"iCCP", b"a\0\0" + ZEROS)),
        "frames": frames.getvalue(),
        "half": png((8, 8))[:45],
        "script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n",
    }[name]
    path.write_bytes(data)
    text = within_memory(lambda: load_image(path))
    if name == "frames":  # the first is shown
        assert text == "read"
    else:
        assert "cannot be read" in text, text


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "objects.json.gz"
    with gzip.open(path, "wb", compresslevel=9) as packed:
        for _ in range(300):
            packed.write(b" " * 2**20)
    assert path.stat().st_size < 2**20
    assert "more than 64 MiB of JSON" in within_memory(lambda: read_value(path))


def test_a_parquet_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    long = pa.array(["x" * (20 * 2**20)])
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), long)
    plain = {"truthful": ["a"] * 60, "untruthful": ["b"] * 60}
    pq.write_table(pa.table({"question": many, **plain}), tmp_path / "dictionary.parquet", compression="zstd")
    one = pa.table({"question": ["x" * (40 * 2**20)], "truthful": ["a"], "untruthful": ["b"]})
    pq.write_table(one, tmp_path / "row.parquet", compression="zstd")
    lists = pa.table({"question": [["x" * 2**20] * 20 for _ in range(16)]})
    pq.write_table(lists, tmp_path / "lists.parquet", compression="zstd")
    for name, expected in (
        ("dictionary", "unpacks to far more than its size allows"),
        ("row", "row 1: the row is too large"),
        ("lists", "unpacks to far more than its size allows"),
    ):
        path = tmp_path / f"{name}.parquet"
        assert path.stat().st_size < 2**20
        assert expected in within_memory(lambda: sum(1 for _ in read_rows(path))), name  # noqa: B023


@pytest.mark.parametrize("name", ["line.jsonl", "line.csv", "record.csv", "cells.csv", "whole.json"])
def test_a_row_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(lines, "LARGEST_ROW", 2**16)
    monkeypatch.setattr(tables, "LARGEST_ARRAY", 2**16)
    text = {
        "line.jsonl": '{"question": "a", "truthful": "b", "untruthful": "c"}\n{"question": "' + "x" * 2**17 + '"}\n',
        "line.csv": "question,truthful,untruthful\na,b,c\n" + "x" * 2**17,
        "record.csv": 'question,truthful,untruthful\na,b,c\n"' + "x\n" * 2**16,
        "cells.csv": "question,truthful,untruthful\na,b,c\n" + "," * 2**17,
        "whole.json": "[" + " " * 2**17 + "]",
    }[name]
    (tmp_path / name).write_text(text)
    message = refused(lambda: read_questions(tmp_path / name, skip_bad_rows=True))
    assert "too large" in message
    if name.endswith("jsonl"):
        assert "line.jsonl:line 2" in message


# --- markup in every field


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def harmless(text: str, *, scripts: int) -> None:
    """Check that a page has no script but its own, no handler, and no address to be asked for."""
    found = Tags(text).found
    assert sum(tag == "script" for tag, _ in found) == scripts
    for tag, given in found:
        assert not any(name.startswith("on") for name in given), (tag, given)
        assert tag not in ("iframe", "object", "embed", "base", "form"), tag
        for name in ("src", "href"):
            assert (given.get(name) or "#").startswith(("#", "data:image/jpeg;base64,", "data:,")), (tag, given)


def spoil(value: Any) -> Any:
    """Return JSON with markup in every text but those that say what a thing is."""
    if isinstance(value, dict):
        kept = ("task", "primary", "kind", "positions", "position", "method", "verdict", "low", "high", "value")
        return {key: one if key in kept else spoil(one) for key, one in value.items()}
    if isinstance(value, list):
        return [spoil(one) for one in value]
    return f"{EVIL}{value}" if isinstance(value, str) and value != "none" else value


def test_markup_in_every_text_of_every_artefact_stays_text(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", model=EVIL, rows=12)
    summary = evaluation(gain=0.3, names=(EVIL,), rows=40)
    write_json(folder / "pope" / "summary.json", spoil(summary) | {"notes": [EVIL]})
    write_json(folder / "tuning.json", spoil(tuning()))
    told = json.loads((folder / "comparison.json").read_text())
    for pair in told["pairs"]:
        pair |= {"notes": [EVIL], "verdict": EVIL}
    told["triples"] = [{"in_words": EVIL}]
    write_json(folder / "comparison.json", told)
    base = Scores.load(folder / "base.safetensors")
    kinds = replace(
        base, kind_values=base.values.repeat(2, 1, 1), meta={**spoil(dict(base.meta)), "kinds": [EVIL, "b"]}
    )
    kinds.save(folder / f"{EVIL.replace('/', '_')}.safetensors")
    gate = Gate.load(folder / "gates" / "own.safetensors")
    replace(gate, meta=spoil(dict(gate.meta)) | {"method": EVIL}).save(folder / "gates" / "other.safetensors")
    page = report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    harmless(page, scripts=2)
    assert EVIL[9:30] not in page


def test_charts_and_notebooks_show_markup_as_text(tmp_path: Path) -> None:
    made = simulated(3, rho=0.9, questions=12)
    scores = replace(made.a, meta={"model": {"name": EVIL}})
    gate = replace(Gate.from_scores(scores), site="z")
    compared = compare(scores, made.b, names=[EVIL, "b"])
    compared.save(tmp_path / "c.json")
    save_chart(scores.chart(), tmp_path / "plot.html")
    pages = [scores._repr_html_(), gate._repr_html_(), Comparison.load(tmp_path / "c.json")._repr_html_()]
    for text in (*pages, (tmp_path / "plot.html").read_text(encoding="utf-8")):
        assert "<script>fetch" not in text and "<img src=x" not in text
    assert "\\u003c/script>\\u003cscript>fetch" in pages[0]


def test_a_model_card_shows_text_and_does_nothing(tmp_path: Path) -> None:
    evil = f"{EVIL} | x | [a](http://x.invalid) ![b](http://x.invalid/b.png)\n---\nlicense: mit\n---\n# Hello ```"
    gate = Gate(
        torch.full((2, 3), 1.5), meta={"method": evil, evil: evil, "evidence": {evil: {"value": 0.5, "low": evil}}}
    )
    source = tmp_path / "source"
    source.mkdir()
    (source / "README.md").write_text(
        f"---\nlicense: |\n  mit\n  base_model: x\nlicense_name: {json.dumps(evil)}\n---\n"
    )
    write_card(tmp_path, gate, Base(evil, evil, False, False, source), to="checkpoint", name="name")
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    told = yaml.safe_load(front)
    assert {"license", "license_name", "base_model"}.isdisjoint(told) and told["library_name"] == "transformers"
    assert "<script" not in body and "<img" not in body and "](http" not in body
    assert body.count("\n# ") <= 1 and "\n# Hello" not in body
    for line in body.splitlines():
        if line.startswith("| ") and "fetch" in line:
            assert line.replace("\\|", "").count("|") == 3, line


def test_the_terminal_gets_text_and_no_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x1b[2J[bold]x[/]\r\u202eabc\ud800 :smile:"
    from rich.markup import escape

    console.out.print(escape(evil))
    console.out.print(console.grid(evil, ["a", evil], [[evil, "[/]"]]))
    console.warn(evil)
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\r\u202e\ud800") & set(shown)
    assert "[bold]x[/]" in shown and ":smile:" in shown and "title" in shown
    path = rows(tmp_path / "q.jsonl", "a.png")
    path.write_text(json.dumps({"question": evil[:-10], "truthful": evil[:8], "untruthful": evil[:8]}) + "\n")
    result = CliRunner().invoke(app, ["data", "pairs", str(path), "--out", str(tmp_path / "o.jsonl")])
    assert result.exit_code == 2 and "\x1b" not in result.output and "error" in result.output


def test_half_characters_are_written_as_escapes_and_come_back(tmp_path: Path) -> None:
    value = {"a\ud800": ["\udfff", "é😀", "\\ud800"]}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert dumps("é") == '"é"'


def test_a_long_name_is_an_error_of_ours(tmp_path: Path) -> None:
    path = rows(tmp_path / "q.jsonl", "x" * 5000)
    assert len(read_questions(path)) == 1
    assert "no such file" in refused(lambda: load_image(str(read_questions(path)[0].image)))
    result = CliRunner().invoke(app, ["inspect", "m" * 5000])
    assert result.exit_code == 2 and "error" in result.output
