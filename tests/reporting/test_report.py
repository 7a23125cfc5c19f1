"""The report: it says what the artefacts carry and no more, nothing unsafe gets into it, it is the same every time."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from typer.testing import CliRunner

import truthheads
from reported import BEST, EVIL, drift, evaluation, fill, scores, tuning
from truthheads.cli import app
from truthheads.errors import ArtifactError
from truthheads.evaluation.summary import summarise_runs
from truthheads.reporting.artifacts import find
from truthheads.reporting.charts import Arrays, panels
from truthheads.reporting.report import _inside_script, report, write_report
from truthheads.reporting.wording import chance, figure, listed, number, short_name, signed
from truthheads.results.drift import Drift
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.storage.files import write_json

HEAD = f"L{BEST[0]}H{BEST[1]}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every kind of artefact; tests that change it take a copy."""
    return fill(tmp_path_factory.mktemp("artefacts"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


class Tags(HTMLParser):
    """Collects start tags, and text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.raw = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.raw = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.raw = False

    def handle_data(self, data: str) -> None:
        self.words += "" if self.raw else data


CELL = ("x", "y", "width", "height", "shade", "weight")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return dict(json.loads(found[1]))


def test_every_planted_truth_is_said(whole: Path, tmp_path: Path) -> None:
    found = write_report(whole, tmp_path / "page.html")
    scored, inherited, evidence, gates, effect = found.summary
    assert f"the best, {HEAD}, is right on 0.980" in scored and "Of 90 heads of base" in scored
    assert "base\u2009/\u2009descendant use the same heads" in inherited and "base\u2009/\u2009stranger" in inherited
    assert "not related" in inherited.split("descendant use the same heads")[1]
    assert f"{HEAD} finds the evidence best" in evidence and "find it better" in evidence
    assert "1 gate was built" in gates and "tuning chose epoch 1: +0.40 [0.30, 0.50]" in gates
    assert "the gate own is better: it changed accuracy by +0.300" in effect and "ahead of its only control" in effect
    words = Tags((tmp_path / "page.html").read_text(encoding="utf-8")).words
    assert all(sentence in words for sentence in found.summary)
    assert found.artefacts == {
        **dict.fromkeys(("comparison", "drift", "trace", "gate", "tuning", "evaluation", "pictures"), 1),
        "scores": 3,
    }


def test_arrays_of_the_page_are_those_of_the_artefacts(whole: Path, tmp_path: Path) -> None:
    page = report(whole, tmp_path / "page.html").read_text(encoding="utf-8")
    data = data_of(page)
    panels = {(one["group"], one["title"]): one for one in data["maps"]}
    base = Scores.load(whole / "base.safetensors")
    view = panels["scores", "base"]["views"][0]
    shown = np.array(data["arrays"][view["values"]]).reshape(panels["scores", "base"]["shape"])
    np.testing.assert_allclose(shown, base.values.numpy(), rtol=1e-3)
    low, high = base.intervals()
    np.testing.assert_allclose(np.array(data["arrays"][view["low"]]), low.ravel(), rtol=1e-3)
    np.testing.assert_allclose(np.array(data["arrays"][view["high"]]), high.ravel(), rtol=1e-3)
    gate = data["arrays"][panels["gates", "own"]["views"][0]["values"]]
    np.testing.assert_allclose(gate, Gate.load(whole / "gates/own.safetensors").gate.numpy().ravel(), rtol=1e-3)
    moved = panels["drift", "base → tuned"]["views"]
    assert [one["name"] for one in moved] == ["mean of q, k, v, o", "queries", "keys", "values", "output"]
    assert set(data["arrays"][moved[0]["values"]]) == {0.025}  # (0.01 + 0.02 + 0.03 + 0.04) / 4
    scatter = data["scatters"][0]
    assert (scatter["a"], scatter["b"]) == ("base", "descendant") and scatter["x"] == view["values"]


@given(some.floats(allow_infinity=False, allow_nan=False, min_value=-1e9, max_value=1e9))
def test_numbers_keep_four_digits_and_no_more(value: float) -> None:
    arrays = Arrays()
    (shown,) = arrays.lists[arrays.add([value])]
    wanted = float(f"{value:.4g}") if abs(value) > 1e-18 else 0.0
    assert shown is not None and abs(shown - value) <= abs(wanted - value) * (1 + 1e-9) + 1e-18
    assert len(re.sub(r"e.*|[-.]", "", repr(shown)).strip("0")) <= 4


def test_a_head_that_was_not_measured_is_null_and_never_zero(tmp_path: Path) -> None:
    values = torch.tensor([[0.7, float("nan")], [0.6, 0.5]])
    Scores.of("probe", values, meta={}).save(tmp_path / "s.safetensors")
    data = data_of(report(tmp_path, tmp_path / "p.html").read_text(encoding="utf-8"))
    assert data["arrays"][data["maps"][0]["views"][0]["values"]] == [0.7, None, 0.6, 0.5]


def test_a_gate_that_does_nothing_is_said_to_do_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", evaluation(gain=0.0))
    effect = write_report(tmp_path, tmp_path / "p.html").summary[-1]
    assert "the gate own did not help measurably: it changed accuracy by 0.000" in effect
    assert "not ahead of its only control" in effect
    write_json(tmp_path / "summary.json", evaluation(gain=0.0, names=("own", "base")))
    assert "none of the 2 gates helped measurably" in write_report(tmp_path, tmp_path / "p.html").summary[-1]


def test_what_a_user_could_do_stands_side_by_side(tmp_path: Path) -> None:
    """Kind, cost and harm of an adapter, its control and baselines; the best in a sentence; paired differences."""
    lines = [
        {"task": "pairs", "run": run, "id": str(at), "group": str(at), "logp": [float(at % 10 < share) - 0.5, 0.0]}
        for run, share in (("none", 5), ("own", 8), ("own/random-1", 6), ("prompt", 5), ("cad", 7))
        for at in range(200)
    ]
    lines += [{"task": "neutral", "run": "own", "id": f"text-{at}", "kl": 0.004, "loss": 0.0} for at in range(8)]
    marks = {
        "adapters": {"own": {"digest": "d"}},
        "baselines": {
            "prompt": {"text": f"Read it. {EVIL}", "passes": 1, "prompt_tokens": 31.0},
            "cad": {"alpha": 0.5, "passes": 2, "prompt_tokens": 12.0},
        },
    }
    write_json(tmp_path / "summary.json", summarise_runs(lines, settings=marks))  # type: ignore[arg-type]
    made = write_report(tmp_path, tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    words = " ".join(Tags(page).words.split())
    assert "own is best: pair accuracy changes by +0.300 [" in made.summary[-1]
    for said in (
        "no cost per token once it is exported", "two forward passes per new token", "31 more tokens per prompt",
        "begins every prompt with “Read it. <script>", "(1 + 0.50) × logits with the context − 0.50 × logits",
        "there is no harm to measure", "Paired differences", "own/random-1",
    ):  # fmt: skip
        assert said in words, said
    assert EVIL not in page and not made.warnings
    old = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    del old["best"], old["settings"]
    old["runs"] = [
        {key: value for key, value in run.items() if key not in ("cost", "ahead")} | {"kind": "gate"}
        for run in old["runs"] if run["kind"] in ("none", "adapter")
    ]  # fmt: skip
    old["runs"][0]["kind"] = "none"
    write_json(tmp_path / "summary.json", old)
    assert "the gate own is better" in write_report(tmp_path, tmp_path / "p.html").summary[-1]


def test_a_gate_that_harms_is_said_to_harm(tmp_path: Path) -> None:
    summary = evaluation(gain=0.3)
    for run in summary["runs"][1:2]:
        run["verdict"] = "worse"
        run["effect"]["accuracy"] = {"value": -0.1, "low": -0.15, "high": -0.05}
    write_json(tmp_path / "summary.json", summary)
    page = report(tmp_path, tmp_path / "p.html").read_text(encoding="utf-8")
    assert "the gate own made it worse: it changed accuracy by \u22120.100" in Tags(page).words


def test_sentences_claim_nothing_where_nothing_was_measured(tmp_path: Path) -> None:
    write_json(tmp_path / "tuning.json", tuning(chosen=None))
    scored, inherited, evidence, gates, effect = write_report(tmp_path, tmp_path / "p.html").summary
    assert scored.startswith("No Truth Scores") and inherited.startswith("No two models")
    assert evidence.startswith("Attention was not traced") and effect.startswith("No gate was evaluated")
    assert gates == "Tuning chose none of its candidates, since none gained enough within the guard."


def test_scores_without_samples_come_without_certainty(tmp_path: Path) -> None:
    np.save(tmp_path / "released.npy", np.array([[0.5, 0.9], [0.6, 0.7]]))
    scored = write_report(tmp_path, tmp_path / "p.html").summary[0]
    assert "L0H1 has the highest score, 0.900 accuracy" in scored and "how sure that is cannot be said" in scored


def test_scores_that_measure_the_form_of_answers_are_doubted(tmp_path: Path) -> None:
    one, _, _ = scores("base", 60)
    form = {"accuracy": {"value": 0.9, "low": 0.85, "high": 0.95}, "warns": True}
    type(one)(**{**{name: getattr(one, name) for name in one.__slots__}, "meta": {"summary": {"form": form}}}).save(
        tmp_path / "s.safetensors"
    )
    assert "scores may measure form" in write_report(tmp_path, tmp_path / "p.html").summary[0]


def test_the_same_artefacts_give_the_same_bytes_even_with_the_report_among_them(folder: Path, tmp_path: Path) -> None:
    first = report(folder, tmp_path / "first.html").read_bytes()
    assert report(folder, folder / "report.html").read_bytes() == first
    assert report(folder, folder / "report.html").read_bytes() == first


def test_markup_in_names_and_texts_stays_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    fill(folder, model=EVIL, rows=40)
    summary = evaluation(gain=0.3, names=(EVIL,))
    write_json(folder / "pope/summary.json", {**summary, "notes": [EVIL, "</script>"]})
    page = report(folder, tmp_path / "p.html").read_text(encoding="utf-8")
    found = Tags(page)
    scripts = [given for tag, given in found.tags if tag == "script"]
    assert [one.get("type") for one in scripts] == ["application/json", None]
    assert EVIL in found.words and "alert(1)" in json.dumps(data_of(page))
    assert page.count("</script>") == 2


def test_the_page_asks_nothing_of_any_network(whole: Path, tmp_path: Path) -> None:
    page = report(whole, tmp_path / "p.html").read_text(encoding="utf-8")
    linked = [given.get(name) or "" for _, given in Tags(page).tags for name in ("src", "href", "srcset", "action")]
    assert [link for link in linked if link and not re.match(r"(data:|#)", link)] == []
    rules = next(given["content"] for tag, given in Tags(page).tags if tag == "meta" and "http-equiv" in given)
    assert rules is not None and rules.startswith("default-src 'none'") and "script-src 'sha256-" in rules


@pytest.mark.parametrize(("method", "centre"), [("probe", 0.5), ("evidence", 0.5), ("attribution", 0.0)])
def test_scores_have_one_centre_on_the_report_and_in_their_own_chart(
    method: str, centre: float, tmp_path: Path
) -> None:
    replace(scores("base", 40)[0], method=method).save(tmp_path / "scores.safetensors")
    (panel,) = panels(find(tmp_path), Arrays())
    assert panel["views"][0]["middle"] == centre
    chart = Scores.load(tmp_path / "scores.safetensors").chart().to_dict()
    shown = chart["hconcat"][0] if "hconcat" in chart else chart
    assert shown["encoding"]["color"]["scale"]["domainMid"] == centre


def test_pictures_come_back_as_they_were_drawn(whole: Path) -> None:
    (read,) = find(whole).pictures
    assert read.item.title.endswith("what the 1 best and 1 worst heads by Truth Score look at")
    words, seen = read.item.pictures
    assert (words.title, words.note, words.image) == ("Where?", "row 1", "")
    best, worst = words.panels
    assert (best.head, worst.head) == (HEAD, "L0H0") and best.note.startswith("Truth Score 0.98")
    assert "".join(piece.text for piece in best.pieces) == f"Context:\n{EVIL} lives in Rome.\nAnswer: Rome"
    rome = next(piece for piece in best.pieces if piece.marks == "e")
    assert (rome.shade, rome.weight) == (0.75, 0.6)
    assert seen.image.startswith("data:image/jpeg;base64,") and (seen.width, seen.height) == (32, 32)
    assert len(seen.panels[0].cells) == 2 and seen.boxes == ((0.0, 0.0, 16.0, 16.0),)


def test_pictures_are_on_the_report_as_on_their_own_page(whole: Path, tmp_path: Path) -> None:
    report_page = report(whole, tmp_path / "p.html").read_text(encoding="utf-8")
    own = (whole / "pictures.html").read_text(encoding="utf-8")
    for pattern in (
        r'<rect class="cell" [^>]*><title>[^<]*</title>',
        r'<rect class="box" [^>/]*',
        r'style="--w:[^>]*>[^<]*',
    ):
        drawn = re.findall(pattern, own)
        assert drawn and re.findall(pattern, report_page) == drawn, pattern


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("image",), "https://example.org/a.png"),
        (("width",), "9 onload=x"),
        (("panels", 0, "cells", 0, "shade"), "url(//x)"),
        (("panels", 0, "pieces", 0, "marks"), 'e" onclick="x'),
        (("boxes",), [[0, 0, 1]]),
        (("title",), None),
    ],
)
def test_pictures_made_to_deceive_are_left_out(where: tuple[str | int, ...], value: object, tmp_path: Path) -> None:
    piece, cell = {"text": "word", "marks": "e", "shade": 0.5, "weight": 0.5}, dict.fromkeys(CELL, 1)
    panel = {"head": "L0H0", "note": "", "pieces": [piece], "cells": [cell]}
    picture: dict[str, Any] = {"title": "row", "note": "", "panels": [panel], "image": "", "width": 9, "height": 9}
    for folder in ("good", "bad"):
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "x.pictures.json", {"title": "t", "pictures": [picture], "version": 1})
        inner: Any = picture
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value
    assert len(find(tmp_path / "good").pictures) == 1
    with pytest.raises(ArtifactError, match="nothing to report") as caught:
        report(tmp_path / "bad", tmp_path / "p.html")
    assert "x.pictures.json was left out: expected the pictures that truthheads trace" in caught.value.got
    assert ".".join(map(str, where)) in caught.value.got


def test_text_of_pictures_is_shown_as_text(tmp_path: Path) -> None:
    panel = {"head": '"><script>steal()</script>', "note": "<b>", "pieces": [{"text": "<script>word"}], "cells": []}
    picture = {"title": "<i>row", "note": "<u>", "panels": [panel]}
    write_json(tmp_path / "x.pictures.json", {"title": "<s>t", "pictures": [picture], "version": 1})
    page = report(tmp_path, tmp_path / "p.html").read_text(encoding="utf-8")
    assert [tag for tag, _ in Tags(page).tags].count("script") == 2 and "<script>word" in Tags(page).words


def test_broken_artefacts_are_named_and_the_rest_is_shown(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "base.safetensors").read_bytes()
    (folder / "torn.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "tuning.json").write_text('{"path": [', encoding="utf-8")
    (folder / "torn.pictures.json").write_text('{"title": "x", "pictures": [', encoding="utf-8")
    (folder / "half.json").write_text('{"meta": {"command": "truthheads compare a b"}, "pairs"', encoding="utf-8")
    Drift.save(drift("base"), folder / "odd.safetensors")
    (folder / "empty.npy").write_bytes(b"")
    found = write_report(folder, tmp_path / "p.html")
    for name in ("torn.safetensors", "tuning.json", "torn.pictures.json", "half.json", "empty.npy"):
        assert sum(warning.startswith(name) for warning in found.warnings) == 1, name
    assert len(found.warnings) == 5 and found.artefacts["scores"] == 3 and "tuning" not in found.artefacts
    words = Tags((tmp_path / "p.html").read_text(encoding="utf-8")).words
    assert all(warning in words for warning in found.warnings)


def test_a_result_with_fields_missing_is_named_and_the_rest_is_shown(folder: Path, tmp_path: Path) -> None:
    broken = json.loads((folder / "tuning.json").read_text(encoding="utf-8"))
    del broken["path"][0]["harm"]
    write_json(folder / "tuning.json", broken)
    write_json(folder / "comparison.json", {"pairs": [{"a": 1}], "models": [{}], "meta": {}})
    write_json(folder / "pope" / "summary.json", {"task": "pope", "rows": 1, "primary": "accuracy", "runs": []})
    found = write_report(folder, tmp_path / "p.html")
    assert sorted(warning.split()[0] for warning in found.warnings) == [
        "comparison.json",
        "pope/summary.json",
        "tuning.json",
    ]
    assert found.artefacts["scores"] == 3


def test_strangers_are_passed_by(folder: Path, tmp_path: Path) -> None:
    before = report(folder, tmp_path / "a.html").read_bytes()
    (folder / "package.json").write_text('{"name": "x"}', encoding="utf-8")
    (folder / "notes.json").write_text("{", encoding="utf-8")
    (folder / "table.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (folder / "index.html").write_text("<title>Hello</title>", encoding="utf-8")
    np.save(folder / "cube.npy", np.zeros((2, 2, 2)))
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "tuning.json").write_text("{", encoding="utf-8")
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "model.safetensors").write_bytes(b"torn")
    assert report(folder, tmp_path / "b.html").read_bytes() == before


def test_a_folder_without_artefacts_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"nothing to report(.|\n)*comparison\.json(.|\n)*truthheads score"):
        report(tmp_path, tmp_path / "p.html")
    with pytest.raises(ArtifactError, match="is not a folder"):
        report(tmp_path / "nowhere", tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def test_the_command_prints_five_sentences_and_json_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    (folder / "tuning.json").write_text('{"path": [', encoding="utf-8")
    plain = CliRunner().invoke(app, ["report", str(folder), "--out", str(out)])
    assert plain.exit_code == 0 and re.findall(r"^(\d)\. ", plain.stdout, re.MULTILINE) == list("12345")
    assert "tuning.json" in plain.stderr
    told = CliRunner().invoke(app, ["report", str(folder), "--out", str(out), "--json", "--force"])
    result = json.loads(told.stdout)
    assert result["out"] == str(out) and len(result["summary"]) == 5 and result["size"] == out.stat().st_size
    failed = CliRunner().invoke(app, ["report", str(tmp_path / "none"), "--out", str(out)])
    assert failed.exit_code == 2 and failed.stderr.count("\n") == 2


def test_the_function_is_public_and_stays_a_function() -> None:
    assert truthheads.report is report and truthheads.report is report and "report" in truthheads.__all__


def test_eighty_layers_of_sixty_four_heads_of_six_models_stay_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for at in range(6):
        values = torch.from_numpy(random.uniform(0.4, 0.9, size=(80, 64)))
        Scores.of("probe", values, accuracy=values.float(), auroc=values.float(), meta={}).save(
            tmp_path / f"{at}.safetensors"
        )
        for other in range(at):
            parts = {part: torch.from_numpy(random.uniform(size=(80, 64))).float() for part in "qkvo"}
            Drift(f"m{other}", f"m{at}", parts, {}, parts, torch.zeros(80, 4)).save(
                tmp_path / f"drift-{other}-{at}.safetensors"
            )
    made = write_report(tmp_path, tmp_path / "p.html")
    assert 2**20 < made.size < 15 * 2**20


@given(some.recursive(some.text() | some.floats(allow_nan=False, allow_infinity=False), some.lists))
def test_json_in_a_script_is_the_same_and_cannot_end_it(value: Any) -> None:
    inside = _inside_script(json.dumps(value, ensure_ascii=False))
    assert json.loads(inside) == value and not set("<>&") & set(inside)


def test_numbers_are_written_for_people() -> None:
    assert [number(value) for value in (None, float("nan"), -0.5, -0.0001)] == ["–", "–", "\u22120.500", "0.000"]
    assert figure({"value": 0.5, "low": -0.25, "high": 1}, 2) == "0.50 [\u22120.25, 1.00]"
    assert signed({"value": 0.5, "low": 0.25, "high": 1}, 1) == "+0.5 [0.2, 1.0]" and signed(None) == "–"
    assert chance(0.0001) == "p\u00a0<\u00a00.001" and chance(None) == "–"
    assert listed(["a", "b", "c"]) == "a, b and c" and listed(list("abcdef"), most=3) == "a, b and 4 more"
    assert [short_name(name) for name in ("/data/x/m", "owner/model", "./m", "a\\b")] == ["m", "owner/model", "m", "b"]
