"""The page of ``--plot``: what it says, what a tooltip tells, and how it looks on a phone and in the dark."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from browser import Page, browse, where
from simulated import simulated
from truthheads.errors import ArtifactError
from truthheads.lineage.compare import compare
from truthheads.plots.charts import check_suffix, frontier_chart, save_chart
from truthheads.plots.page import chart_html
from truthheads.results.comparison import Comparison
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.results.tuning import Tuning


def figure(value: float, reach: float) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


PATH = [
    {
        "name": f"strength {at}",
        "harm": {"kl": figure(0.002 * (at + 1) ** 2, 0.001)},
        "effect": {"margin": figure(0.2 * at, 0.15)},
    }
    for at in range(4)
]


@pytest.fixture(scope="module")
def scores() -> Scores:
    """Return scores of a model with one layer without attention, of a file in somebody's folder."""
    made = simulated(3, rho=0.9, questions=40).a
    values = made.values.clone()
    values[1] = float("nan")
    data = {"rows": 80, "path": "/home/somebody/nqswap.jsonl"}
    return replace(made, values=values, meta={"model": {"name": "/home/somebody/qwen"}, "data": data, "groups": 40})


@pytest.fixture(scope="module")
def charts(scores: Scores, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = simulated(3, rho=0.9, questions=40)
    file = tmp_path_factory.mktemp("compared") / "comparison.json"
    found = {"score": scores.chart(), "gate": Gate.from_scores(scores).chart()}
    for name, more in (("compare", []), ("matrix", [made.a])):
        compare(made.a, made.b, *more, names=["base", "tuned", "again"][: 2 + len(more)]).save(file)
        found[name] = Comparison.load(file).chart()
    result: Any = {
        "path": PATH,
        "guard": 0.02,
        "chosen": 2,
        "why": "strength 2 gains most within the guard",
        "rows": {"dev": 60, "train": 120},
        "neutral": {"held out": 24, "learned from": 24},
        "model": {"name": "smollm2"},
    }
    return found | {"tune": Tuning(Gate.from_scores(scores), result).chart()}


SAID = {
    "score": ["accuracy per head qwen", "0.5 is chance", "From 80 rows (40 independent questions) of nqswap.jsonl"],
    "gate": ["gate per head, site z: qwen", "1 leaves it as it is", "From 80 rows"],
    "compare": ["base and tuned: inherited", "From score files that do not tell their rows"],
    "matrix": ["Within-layer correlation of scores (95 % interval)", "Pairs without a square"],
    "tune": ["What each candidate gains and what it costs", "judged on 60 questions", "24 neutral texts", "smollm2:"],
}


@pytest.mark.parametrize("name", SAID)
def test_a_page_has_a_title_says_what_it_shows_and_from_how_many_rows(name: str, charts: dict[str, Any]) -> None:
    page = chart_html(charts[name])
    head, _, body = page.rpartition("</head>\n<body>")  # the first may stand in the script that draws
    title, *notes = SAID[name]
    assert re.search(rf"<title>{re.escape(title)}[^<]*</title>", head)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in head
    assert 'lang="en"' in head and "prefers-color-scheme: dark" in head
    words = re.sub(r"<script>.*?</script>", "", body, flags=re.DOTALL)
    assert f"<h1>{title}" in words
    assert all(note in words for note in notes)
    assert "/home/somebody" not in page


def test_what_is_grey_is_explained_where_something_is(scores: Scores, charts: dict[str, Any]) -> None:
    heads = scores.shape[1]
    said = f"Grey: {heads} of {scores.values.numel()} places have no value (layers without softmax attention"
    assert said in chart_html(charts["score"]) and said in chart_html(charts["gate"])
    whole = simulated(3, rho=0.9, questions=40).a
    assert "Grey:" not in json.dumps(whole.chart().to_dict())


def layers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every part of a chart that has marks."""
    for part in ("layer", "hconcat", "vconcat"):
        for one in spec.get(part, ()):
            yield from layers(one)
    if "mark" in spec:
        yield spec


def test_a_tooltip_tells_the_interval_of_each_head(scores: Scores) -> None:
    squares, missing = layers(scores.chart().to_dict())
    told = [one["field"] for one in squares["encoding"]["tooltip"]]
    assert told == ["id", "value", "interval"]
    low, high = scores.intervals()
    rows = {row["id"]: row for row in squares["data"]["values"]}
    assert rows["L0H2"]["interval"] == f"[{low[0, 2]:.3f}, {high[0, 2]:.3f}]"
    assert {row["id"] for row in missing["data"]["values"]} == {f"L1H{head}" for head in range(scores.shape[1])}
    assert {row["why"] for row in missing["data"]["values"]} == {"no value"}


def test_a_tooltip_tells_both_intervals_of_a_candidate() -> None:
    chart = frontier_chart(PATH, guard=0.02, chosen=2).to_dict()
    points = next(one for one in layers(chart) if one["mark"]["type"] == "circle")
    told = [one["field"] for one in points["encoding"]["tooltip"]]
    assert told == ["name", "harm_value", "harm_interval", "gain_value", "gain_interval"]
    rows = chart["datasets"] if "datasets" in chart else {"all": next(layers(chart["layer"][1]))["data"]["values"]}
    row = next(iter(rows.values()))[1]
    # .002 times 4, give or take .001; .2, give or take .15
    assert (row["harm_interval"], row["gain_interval"]) == ("[0.0070, 0.0090]", "[0.050, 0.350]")


def test_scores_without_samples_say_that_the_interval_is_unknown(scores: Scores) -> None:
    bare = Scores.of("probe", scores.values, meta={"source": "cv5.npy"})
    squares = next(layers(bare.chart().to_dict()))
    assert {row["interval"] for row in squares["data"]["values"]} == {"unknown"}


def test_a_chart_is_not_written_under_another_ending() -> None:
    with pytest.raises(ArtifactError) as raised:
        check_suffix(Path("plot.pdf"))
    assert "choose one of these endings for --plot" in raised.value.fix
    check_suffix(Path("plot.svg"))  # as it advises


def test_two_charts_in_one_notebook_have_places_of_their_own(charts: dict[str, Any]) -> None:
    places = [re.search(r'<div id="(chart-\w+)">', chart_html(charts[name])) for name in ("score", "gate")]
    assert None not in places and len({found[1] for found in places if found}) == 2
    assert chart_html(charts["score"]) == chart_html(charts["score"])


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = where()
    if program is None:
        pytest.skip("no Chromium to look with")
    with browse(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", SAID)
def test_a_page_fits_screens_and_themes(
    name: str, width: int, dark: bool, tab: Page, charts: dict[str, Any], tmp_path: Path
) -> None:
    save_chart(charts[name], tmp_path / "plot.html")
    tab.open(tmp_path / "plot.html", width=width, dark=dark)
    tab.until(lambda: tab.evaluate("document.querySelector('.chart svg') !== null"))
    assert tab.errors() == []
    assert [one for one in tab.requests() if not one.startswith(("file:", "data:", "about:"))] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.querySelector('.truthheads-plot')).backgroundColor")
    ink = tab.evaluate("document.querySelector('.role-axis-label text').getAttribute('fill')")
    assert (paper, ink) == (("rgb(20, 23, 26)", "#c9ced4") if dark else ("rgb(255, 255, 255)", "#000"))


def test_pointing_at_a_head_shows_its_interval(
    tab: Page, scores: Scores, charts: dict[str, Any], tmp_path: Path
) -> None:
    save_chart(charts["score"], tmp_path / "plot.html")
    tab.open(tmp_path / "plot.html")
    tab.until(lambda: tab.evaluate("document.querySelectorAll('.mark-rect path').length > 0"))
    box = json.loads(tab.evaluate("JSON.stringify(document.querySelector('.mark-rect path').getBoundingClientRect())"))
    tab.mouse("mouseMoved", box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.until(lambda: tab.evaluate("document.querySelector('#vg-tooltip-element.visible') !== null"))
    low, high = scores.intervals()
    assert f"[{low[0, 0]:.3f}, {high[0, 0]:.3f}]" in tab.evaluate(
        "document.querySelector('#vg-tooltip-element').innerText"
    )
