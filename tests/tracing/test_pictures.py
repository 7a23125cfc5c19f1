"""Pictures of attention: every token where it stands, shades as weights say, nothing from outside runs as markup."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from truthheads.results.pictures import AttentionPictures
from truthheads.tracing import pictures
from truthheads.tracing.pictures import DARKEST, Drawing, prepare, write_pictures

TEXT = "Context:\n<b>Ann</b> lives in Rome.\nAnswer: Rome"


def drawing(**changes: object) -> Drawing:
    """Return a row of words, the first a sink, with two heads: one looks at the evidence, one at the sink."""
    spans = [match.span() for match in re.finditer(r"\S+", TEXT)]
    count = len(spans)
    weights = np.full((2, count), 0.01)
    weights[0, 4], weights[0, 3], weights[1, 0] = 0.6, 0.3, 0.9
    marks = np.zeros((3, count), bool)
    marks[0, 0] = marks[1, 4] = True
    given: dict[str, object] = {
        "title": "Where does <i>Ann</i> live?",
        "note": "row 1 & more",
        "text": TEXT,
        "spans": spans,
        "sink": marks[0],
        "evidence": marks[1],
        "distractor": marks[2],
        "query": count - 1,
        "heads": [("L0H1", "Truth Score 0.9"), ("L3H2", "")],
        "weights": weights,
    }
    return Drawing(**{**given, **changes})  # type: ignore[arg-type]


def page(title: str, drawings: list[Drawing]) -> str:
    return pictures.page(prepare(title, drawings))


def panels(html: str) -> list[str]:
    return html.split("<figure>")[1:]


def shade(panel: str, word: str) -> float:
    found = re.search(rf'--w:([0-9.]+)" title="[^"]*">{re.escape(word)}</span>', panel)
    assert found, word
    return float(found.group(1))


def test_shades_go_with_weights_outside_of_sinks() -> None:
    looks, sinks = panels(page("heads", [drawing()]))
    assert shade(looks, "Rome.") == DARKEST
    assert abs(shade(looks, "in") - DARKEST / 2) < 1e-3
    assert shade(sinks, "Context:") == 0  # sinks do not set the scale, and are not shaded
    assert "90% of the attention on sinks" in sinks


def test_marks_stand_at_their_tokens() -> None:
    looks = panels(page("heads", [drawing()]))[0]
    classes = dict(re.findall(r'class="([esdq ]*)" style="[^"]*" title="[^"]*">([^<]*)</span>', looks))
    assert classes["e"] == "Rome."
    assert classes["s"] == "Context:"
    assert classes["q"] == "Rome"


def test_the_text_is_whole_and_escaped() -> None:
    html = page("<script>alert(1)</script>", [drawing()])
    assert "<script>" not in html
    assert "<b>Ann" not in html
    assert "Where does &lt;i&gt;Ann" in html
    body = re.search(r'<div class="text">(.*?)</div>', html, re.S)
    assert body is not None
    import html as library

    assert library.unescape(re.sub(r"<[^>]+>", "", body.group(1))) == TEXT


def test_the_page_needs_nothing_else() -> None:
    html = page("heads", [drawing()])
    assert not re.search(r"(src|href)=.?http", html)
    assert "prefers-color-scheme: dark" in html


def test_heat_lies_over_the_pixels_that_tokens_cover(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "green").save(tmp_path / "a.png")
    spans = [(0, 0), (0, 0), (0, 0), (0, 4)]
    cells = np.array([[0, 0, 20, 20], [20, 0, 40, 20], [np.nan] * 4])
    html = page(
        "heads",
        [
            drawing(
                text="What",
                spans=spans,
                sink=np.zeros(4, bool),
                evidence=np.array([False, True, False, False]),
                distractor=np.zeros(4, bool),
                query=3,
                weights=np.array([[0.2, 0.4, 0.1, 0.3]]),
                heads=[("L0H0", "")],
                image=str(tmp_path / "a.png"),
                cells=cells,
                pixels=np.array([True, True, False, False]),
                boxes=[(25.0, 5.0, 35.0, 15.0)],
            )
        ],
    )
    found = re.findall(r'class="cell" x="([0-9.]+)" .*? fill-opacity="([0-9.]+)"', html)
    assert found == [("0.0", f"{DARKEST / 2:.3f}"), ("20.0", f"{DARKEST:.3f}")]
    assert 'class="box" x="25.0" y="5.0" width="10.0" height="10.0"' in html
    assert "data:image/jpeg;base64," in html


def test_what_was_drawn_is_read_back_beside_the_page(tmp_path: Path) -> None:
    drawn = prepare("heads \udcff", [drawing(), drawing(title="half \ud83d", image=None)])
    write_pictures(tmp_path / "looks.html", drawn)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["looks.html", "looks.pictures.json"]
    read = AttentionPictures.load(tmp_path / "looks.pictures.json")
    assert read.pictures[0] == drawn.pictures[0]
    assert (read.title, read.pictures[1].title) == ("heads \ufffd", "half \ufffd")
    assert pictures.page(read) in (tmp_path / "looks.html").read_text(encoding="utf-8")
