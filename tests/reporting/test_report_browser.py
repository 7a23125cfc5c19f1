"""The report in a real browser: nothing breaks, nothing leaves, a chosen head is marked everywhere, it fits a phone."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from browser import Page, browse, where
from reported import BEST, EVIL, evaluation, fill
from truthheads.reporting.report import report
from truthheads.results.scores import Scores
from truthheads.storage.files import write_json

HEAD = f"L{BEST[0]}H{BEST[1]}"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = where()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with browse(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose model, gate and notes are named by markup."""
    folder = fill(tmp_path_factory.mktemp("artefacts"), model=EVIL, rows=40)
    summary = evaluation(gain=0.3, names=(EVIL,))
    write_json(folder / "pope/summary.json", {**summary, "notes": [EVIL]})
    return folder


@pytest.fixture(scope="module")
def html(artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(artefacts, tmp_path_factory.mktemp("page") / "report.html")


def panel(title: str, more: str = "") -> str:
    """Return an expression for the figure of this title."""
    found = (
        f"[...document.querySelectorAll('figure.chart')].find(f => f.querySelector('.name').textContent === '{title}')"
    )
    return f"({found}){more}"


def place(tab: Page, title: str, layer: int, head: int) -> tuple[float, float]:
    """Return the middle of a head's square in the window, scrolled to."""
    script = f"""(() => {{
      const element = {panel(title)}; element.scrollIntoView({{ block: 'center' }});
      const figure = figures.find(one => one.element === element), spot = figure.sheet.place({layer}, {head});
      const edge = figure.canvas.getBoundingClientRect();
      return [edge.left + spot.x + spot.w / 2, edge.top + spot.y + spot.h / 2];
    }})()"""
    x, y = tab.evaluate(script)
    return float(x), float(y)


def pixel(tab: Page, title: str, x: float, y: float) -> list[int]:
    """Return the colour that stands at a place of the window, as the canvas has it."""
    script = f"""(() => {{
      const canvas = {panel(title)}.querySelector('canvas'), edge = canvas.getBoundingClientRect();
      const share = canvas.width / edge.width;
      return [...canvas.getContext('2d').getImageData(({x} - edge.left) * share, ({y} - edge.top) * share, 1, 1).data];
    }})()"""
    return list(tab.evaluate(script))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_error_no_request_no_sideways_scroll_and_every_figure_is_drawn(
    tab: Page, html: Path, width: int, dark: bool
) -> None:
    tab.open(html, width=width, dark=dark)
    assert tab.errors() == []
    assert [one for one in tab.requests() if not one.startswith(("file:", "data:"))] == []
    assert len([one for one in tab.requests() if one.startswith("file:")]) == 1
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    drawn = tab.evaluate("figures.map(f => [f.canvas.width, f.canvas.getBoundingClientRect().right, innerWidth])")
    assert len(drawn) >= 9 and all(wide > 100 and right <= inner for wide, right, inner in drawn)
    bright = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(bright) < 60) == dark


def test_markup_in_names_has_not_run(tab: Page, html: Path) -> None:
    tab.open(html)
    assert tab.evaluate("document.scripts.length") == 2
    assert EVIL in tab.evaluate("document.querySelector('h1').textContent")


def test_hover_shows_the_value_and_colours_follow_it(tab: Page, html: Path, artefacts: Path) -> None:
    tab.open(html)
    values = Scores.load(artefacts / "base.safetensors").values
    high, low = (divmod(int(at), values.shape[1]) for at in (values.argmax(), values.argmin()))
    for layer, head in (high, low):
        x, y = place(tab, "base", layer, head)
        tab.mouse("mouseMoved", x, y)
        shown = tab.evaluate("document.getElementById('tip').textContent")
        assert shown.startswith(f"L{layer}H{head}: {float(values[layer, head]):.3f} [") and "of 90" in shown
    best, worst = (pixel(tab, "base", *place(tab, "base", *at)) for at in (high, low))
    warm, cold = (colour[0] - colour[2] for colour in (best, worst))  # from blue over white, at chance, to orange
    assert warm > 80, "the best head is orange"
    assert cold < warm - 40, "the worst head is less so, or blue"


def test_a_head_chosen_by_click_is_marked_and_named_in_all_panels(tab: Page, html: Path) -> None:
    tab.open(html)
    tab.click(*place(tab, "own", *BEST))
    readings = tab.evaluate("[...document.querySelectorAll('figure.chart .reading')].map(one => one.textContent)")
    assert len(readings) >= 7 and all(reading.startswith(f"{HEAD}: ") for reading in readings)
    assert tab.evaluate("[...document.querySelectorAll('.mark')].every(one => !one.hidden && one.offsetWidth > 4)")
    pictured = tab.evaluate(f"[...document.querySelectorAll('[data-head=\"{HEAD}\"]')].map(one => one.className)")
    assert pictured and set(pictured) == {"chosen"}
    assert tab.evaluate("location.hash") == f"#{HEAD}"
    assert tab.evaluate("document.querySelectorAll('#everywhere li').length") == 6
    tab.evaluate("document.getElementById('clear').click()")
    assert tab.evaluate("[...document.querySelectorAll('.mark')].every(one => one.hidden)")


def test_heads_are_chosen_by_keys_by_name_and_by_the_address(tab: Page, html: Path, artefacts: Path) -> None:
    layer, head = Scores.load(artefacts / "base.safetensors").top(1)[0]
    tab.open(html, place="#L2H3")
    name = "document.getElementById('head').value"
    assert tab.evaluate(name) == "L2H3"
    tab.evaluate(panel("base", ".querySelector('canvas').focus()"))
    moves = {"ArrowUp": "L3H3", "ArrowRight": "L3H4", "ArrowDown": "L2H4", "Home": f"L{layer}H{head}", "Escape": ""}
    for key, wanted in moves.items():
        tab.press(key)
        assert tab.evaluate(name) == wanted
    tab.evaluate("(() => { field.value = '4 1'; field.dispatchEvent(new Event('change')); })()")
    assert tab.evaluate("document.getElementById('said').textContent").startswith("base L4H1: ")
    tab.evaluate("(() => { field.value = 'L99H99'; field.dispatchEvent(new Event('change')); })()")
    assert "no such head" in tab.evaluate("document.getElementById('said').textContent") and tab.errors() == []


def test_the_theme_can_be_chosen(tab: Page, html: Path) -> None:
    tab.open(html)
    seen = []
    for _ in range(3):
        seen.append(
            tab.evaluate("[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]")
        )
        tab.evaluate("document.getElementById('theme').click()")
    assert [name for name, _ in seen] == ["auto", "light", "dark"]
    assert seen[0][1] == seen[1][1] != seen[2][1]


def test_files_of_a_figure_hold_its_numbers(tab: Page, html: Path, artefacts: Path, tmp_path: Path) -> None:
    tab.open(html)
    tab.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for kind in ("csv", "svg", "png"):
        tab.evaluate(panel("base", f".querySelector('[data-save={kind}]').click()"))
        tab.until(
            lambda kind=kind: (tmp_path / f"base.{kind}").is_file() and (tmp_path / f"base.{kind}").stat().st_size
        )
    with (tmp_path / "base.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    values = Scores.load(artefacts / "base.safetensors").values
    assert len(rows) == values.numel()
    for row in rows:
        assert float(row["score"]) == pytest.approx(float(values[int(row["layer"]), int(row["head"])]), rel=1e-3)
        assert float(row["score low"]) <= float(row["score"]) <= float(row["score high"])
    svg = (tmp_path / "base.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg ") and svg.count("<rect") > 90
    assert (tmp_path / "base.png").read_bytes().startswith(b"\x89PNG")


def test_every_figure_gives_svg_and_csv(tab: Page, html: Path) -> None:
    tab.open(html)
    made: list[dict[str, Any]] = json.loads(
        tab.evaluate(
            "JSON.stringify(figures.map(f => ({ kind: f.element.dataset.kind, svg: f.sheet.svg(f.title, '#fff'), "
            "rows: f.kind.csv(f.item, f.pick).length })))"
        )
    )
    assert {one["kind"] for one in made} == {"map", "scatter", "matrix", "bars", "path"}
    for one in made:
        assert (
            one["rows"] >= 2
            and "NaN" not in one["svg"]
            and "undefined" not in one["svg"]
            and "<script" not in one["svg"]
        )


def test_a_table_is_saved_with_formulas_made_harmless(tab: Page, html: Path) -> None:
    tab.open(html)
    assert tab.evaluate("csv([['=1+1', 'a,b', -0.5, null, 'say \"x\"']])") == '\'=1+1,"a,b",-0.5,,"say ""x"""\r\n'


def test_other_views_of_a_panel_are_drawn_and_read(tab: Page, html: Path) -> None:
    tab.open(html, place=f"#{HEAD}")
    script = """(() => {
      const figure = figures.find(one => one.item.group === 'drift'), select = figure.element.querySelector('select');
      select.value = '4'; select.dispatchEvent(new Event('change'));
      return figure.reading.textContent;
    })()"""
    assert tab.evaluate(script) == f"{HEAD}: 0.040 relative drift, 1. of 90"


def test_the_page_prints_in_light_colours_with_everything_open(tab: Page, html: Path) -> None:
    tab.open(html, dark=True)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.documentElement.dataset.theme") == "auto"


def test_six_models_of_5120_heads_open(tab: Page, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for at in range(6):
        values = torch.from_numpy(random.uniform(0.4, 0.9, size=(80, 64)))
        Scores.of("probe", values, meta={}).save(tmp_path / f"model{at}.safetensors")
    tab.open(report(tmp_path, tmp_path / "large.html"), width=390, place="#L79H63")
    assert tab.errors() == [] and tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert (
        tab.evaluate(
            "[...document.querySelectorAll('.reading')].filter(one => one.textContent.startsWith('L79H63: 0.')).length"
        )
        == 6
    )
