"""``detect`` and ``evaluate detect`` follow the ways of the other commands."""

import json
from pathlib import Path

import pytest

from commands import workplace
from invoked import run
from planted import planted_questions
from truthheads.cli import console
from truthheads.data.readers import read_questions
from truthheads.detection import fit as fitting
from truthheads.results.detector import Detector

ROWS = 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = workplace(tmp_path_factory.mktemp("detecting") / "home")
    singles = [
        {"id": one.id, "context": one.context, "question": one.question, "answer": answer, "said": word}
        for one in planted_questions(ROWS)
        for answer, word in ((one.truthful, "ja"), (one.untruthful, "nein"))
    ]
    named = [{**row, "id": str(at), "verdict": row["said"]} for at, row in enumerate(singles)]
    write(folder / "bare.jsonl", [{key: row[key] for key in ("id", "context", "question", "answer")} for row in named])
    write(folder / "said.jsonl", [{**row, "label": row["said"]} for row in named])
    old = "Grüße"
    (folder / "old.jsonl").write_bytes(json.dumps({**named[0], "note": old}, ensure_ascii=False).encode("latin-1"))
    return folder


@pytest.fixture
def home(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path))
    monkeypatch.chdir(place)
    return place


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_all_that_is_wrong_is_said_at_once(home: Path) -> None:
    told = run("detect", "nowhere.gguf", "--data", "gone.jsonl", "--detector", "gone.safetensors", "--out",
               "rows.jsonl")  # fmt: skip
    assert told.exit_code == 2 and "4 things are wrong" in told.stderr
    for part in ("rows.jsonl exists already", "gone.jsonl", "gone.safetensors is not there", "nowhere.gguf"):
        assert part in told.stderr
    assert len(told.stderr.strip().splitlines()) == 2
    both = run("detect", "nowhere.gguf", "--data", "rows.jsonl", "--fit", "gone.jsonl")
    assert both.exit_code == 2 and "3 things are wrong" in both.stderr and "not clear what to do" in both.stderr
    assert "detector.safetensors exists already" in both.stderr  # --out goes by what is made
    judged = run("evaluate", "detect", "nowhere.gguf", "--data", "rows.jsonl", "--beside", "hhem", "--detector",
                 "gone.safetensors", "--out", "new")  # fmt: skip
    assert judged.exit_code == 2 and "3 things are wrong" in judged.stderr and "--beside hhem" in judged.stderr
    assert not (home / "new").exists()


def test_the_label_of_a_file_is_said_where_a_detector_is_fitted(home: Path) -> None:
    words = ("detect", "model", "--fit", "said.jsonl", "--heads", 1, "--dtype", "fp32", "--out=~/deep/said.safetensors")
    asked = run(*words)
    assert asked.exit_code == 2 and "--label-true" in asked.stderr
    made = run(*words, "--label-true", "ja")
    assert made.exit_code == 0, made.stderr
    detector = Detector.load(home / "deep/said.safetensors")
    assert detector.table()[0]["auroc"] == 1
    assert "'ja' is truthful" in " ".join(detector.meta["data"]["read_as"])
    words = ("evaluate", "detect", "model", "--data", "said.jsonl", "--detector=~/deep/said.safetensors", "--dtype",
             "fp32", "--label-true", "ja", "--out=~/deep/judged")  # fmt: skip
    judged = run(*words, "--json")
    assert judged.exit_code == 0, judged.stderr
    assert json.loads(judged.stdout)["detection"]["metrics"]["auroc"]["value"] == 1
    again = run(*words)
    assert again.exit_code == 2 and "exists already" in again.stderr and "--force" in again.stderr
    (home / "deep/judged/predictions.jsonl").write_text("of another evaluation\n")
    assert run(*words, "--force").exit_code == 0
    assert not (home / "deep/judged/predictions.jsonl").exists()


def test_an_old_encoding_and_a_bad_row(home: Path) -> None:
    words = ("detect", "model", "--data", "old.jsonl", "--detector", "detector.safetensors", "--dtype", "fp32", "--out",
             "old/d.jsonl")  # fmt: skip
    asked = run(*words)
    assert asked.exit_code == 2 and "--encoding" in asked.stderr
    made = run(*words, "--encoding", "latin-1")
    assert made.exit_code == 0, made.stderr
    (line,) = (home / "old/d.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["note"] == "Grüße"
    good = (home / "bare.jsonl").read_text().splitlines()[:3]
    (home / "bad.jsonl").write_text("\n".join([good[0], '{"id": "x", "context": "c", "answer": ""}', *good[1:]]) + "\n")
    words = ("detect", "model", "--data", "bad.jsonl", "--detector", "detector.safetensors", "--dtype", "fp32", "--out",
             "old/b.jsonl")  # fmt: skip
    refused = run(*words)
    assert refused.exit_code == 2 and "bad.jsonl:line 2" in refused.stderr and "--skip-bad-rows" in refused.stderr
    left = run(*words, "--skip-bad-rows", "--json")
    assert left.exit_code == 0, left.stderr
    found = json.loads(left.stdout)
    assert (found["rows"], found["meta"]["data"]["skipped"]) == (3, 1)


def test_the_first_detector_of_a_model_shows_how_far_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --detector it is fitted once; a log gets lines with the time left, then the rows' own."""
    monkeypatch.setattr(fitting, "generated_rows", lambda *, seed=0: planted_questions(60, seed))
    monkeypatch.setattr(console, "LINE_AFTER_SECONDS", 0.0)
    words = ("detect", "model", "--data", "bare.jsonl", "--dtype", "fp32", "--batch-tokens", 40, "--out")
    first = run(*words, "first.jsonl")
    assert first.exit_code == 0, first.stderr
    lines = [line for line in first.stderr.splitlines() if " left" in line]
    fitted = [line for line in lines if line.startswith("a detector for model, once, on generated rows: ")]
    rows = [line for line in lines if line.startswith("80 rows through model: ")]
    assert fitted and rows
    shares = [int(line.split("(")[1].split("%")[0]) for line in fitted]
    assert shares == sorted(shares) and shares[0] < 30 and shares[-1] > 70
    second = run(*words, "second.jsonl")
    assert second.exit_code == 0 and "a detector for" not in second.stderr
    assert (home / "first.jsonl").read_bytes() == (home / "second.jsonl").read_bytes()


PUBLISHED = {
    "RAGTruth": {
        "response.jsonl": [
            {"id": "7", "source_id": "s1", "model": "gpt-4", "labels": [], "response": "In Oslo. It rained."},
            {"id": "8", "source_id": "s1", "model": "gpt-4", "response": "In Rome.",
             "labels": [{"start": 3, "end": 7, "text": "Rome", "label_type": "Evident Conflict"}]},
        ],
        "source_info.jsonl": [
            {"source_id": "s1", "task_type": "QA", "prompt": "p",
             "source_info": {"question": "Where is it?", "passages": "It is in Oslo.\n\nIt rained."}},
        ],
    },
    "FaithBench": {
        "faithbench.jsonl": [
            {"id": "1-0", "context": "It is in Oslo. It rained.", "answer": " In Oslo. It rained.", "label": 1,
             "worst_label": "Consistent", "unwanted_spans": [], "summarizer": "m", "hhem-2.1": 0.5},
            {"id": "1-1", "context": "It is in Oslo. It rained.", "answer": "In Rome.", "label": 0,
             "worst_label": "Unwanted", "unwanted_spans": [[3, 7]], "summarizer": "m", "hhem-2.1": 0.9},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_are_recognised(name: str, home: Path, tmp_path: Path) -> None:
    """Labels, groups, the rows' own columns, and where each sentence stands in the answer as it was given."""
    for file, rows in PUBLISHED[name].items():
        write(tmp_path / file, rows)
    read = read_questions(tmp_path / next(iter(PUBLISHED[name])), answers=True)
    assert [one.answers[0].truthful for one in read] == [True, False] and len({one.group for one in read}) == 1
    made = run("detect", "model", "--data", tmp_path / next(iter(PUBLISHED[name])), "--detector",
               "detector.safetensors", "--dtype", "fp32", "--out", tmp_path / "d.jsonl", "--html",
               tmp_path / "page.html")  # fmt: skip
    assert made.exit_code == 0, made.stderr
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    given = next(iter(PUBLISHED[name].values()))
    assert all(row.items() <= line.items() for row, line in zip(given, lines, strict=True))
    assert [line["label"] for line in lines] == [1, 0]
    said = [line.get("answer", line.get("response")) for line in lines]
    spans = [
        [text[one["start"] : one["end"]] for one in line["sentences"]] for text, line in zip(said, lines, strict=True)
    ]
    assert spans == [["In Oslo.", "It rained."], ["In Rome."]]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<mark ") == 3 and "It is in Oslo." in page
