"""Pictures of attention, read back from the pages that ``truthheads trace --pictures`` wrote.

Such a page is the only place that keeps what a picture needs. It is read as text, never shown as it is: every piece
goes through the report's own template, so that nothing but text, shades and JPEG images can come from it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

PEEK = 4096

TITLE = re.compile(r"what the \d+ best and \d+ worst heads by .+ look at\s*$", re.DOTALL)

IMAGE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")

NUMBER = re.compile(r"-?\d+(\.\d+)?")

HEAD = re.compile(r"L(\d+)H(\d+)")

MARKS = frozenset("edsq")


@dataclass(slots=True)
class Panel:
    """What one head looks at.

    Attributes:
        head: Its name.
        note: Below the name.
        pieces: Text with the classes, shade and weight of its token; classes None for plain text.
        shapes: Cells and boxes over the image: ``cell`` or ``box``, x, y, width, height, shade, weight.
    """

    head: str = ""
    note: str = ""
    pieces: list[tuple[str, str | None, str, str]] = field(default_factory=list)
    shapes: list[tuple[str, str, str, str, str, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Picture:
    """One row, and what the best and worst heads look at in it.

    Attributes:
        page: Title of the page that it comes from.
        title: The question.
        note: Below it.
        image: The image as a data URI, empty for text.
        width: Of the image, in pixels.
        height: Likewise.
        panels: One for each head.
    """

    page: str = ""
    title: str = ""
    note: str = ""
    image: str = ""
    width: str = "0"
    height: str = "0"
    panels: list[Panel] = field(default_factory=list)


def read_pictures(path: Path, *, peek: bool = False) -> list[Picture]:
    """Return the rows of a page of pictures; nothing where the file is another kind of page.

    Args:
        path: An HTML file.
        peek: Only say what it is: a list of one empty row where it is such a page.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as opened:
        start = opened.read(PEEK)
        title = re.search(r"<title>(.*?)</title>", start, re.DOTALL)
        if title is None or not TITLE.search(title[1]):
            return []
        if peek:
            return [Picture()]
        parser = _Reader()
        parser.feed(start + opened.read())
    parser.close()
    return [picture for picture in parser.pictures if picture.panels]


class _Reader(HTMLParser):
    """Walks through the page; text goes to the place that the innermost known tag opens."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pictures: list[Picture] = []
        self.page = ""
        self.place: list[str] = []
        self.token: tuple[str, str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        known = set((given.get("class") or "").split())
        if tag == "section":
            self.pictures.append(Picture(page=self.page))
        if not self.pictures:
            self.place.append("page" if tag == "h1" else "")
            return
        picture = self.pictures[-1]
        panel = picture.panels[-1] if picture.panels else None
        if tag == "figure":
            picture.panels.append(Panel())
        elif tag == "span" and panel is not None:
            shade = NUMBER.search(given.get("style", ""))
            self.token = (" ".join(sorted(known & MARKS)), shade[0] if shade else "0", given.get("title", ""))
        elif tag == "svg":
            edges = [match.group() for match in NUMBER.finditer(given.get("viewbox", ""))]
            if len(edges) == 4:
                picture.width, picture.height = edges[2], edges[3]
        elif tag == "image" and IMAGE.fullmatch(given.get("href", "")):
            picture.image = given["href"]
        elif tag == "rect" and panel is not None:
            kind = "cell" if "cell" in known else "box"
            panel.shapes.append((kind, *_edges(given), _number(given.get("fill-opacity", "0")), ""))
        self._open(tag, known)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self.token = None
        if self.place and tag not in ("meta", "br"):
            self.place.pop()

    def handle_data(self, data: str) -> None:
        place = next((name for name in reversed(self.place) if name), "")
        if place == "page":
            self.page += data
        if not self.pictures:
            return
        picture = self.pictures[-1]
        panel = picture.panels[-1] if picture.panels else None
        if place == "title" and panel is None:
            picture.title += data
        elif place == "note" and panel is None:
            picture.note += data
        elif panel is None:
            return
        elif place == "head":
            panel.head += data.strip()
        elif place == "head note":
            panel.note += data.strip()
        elif place == "weight" and panel.shapes:
            panel.shapes[-1] = (*panel.shapes[-1][:-1], data)
        elif place == "text":
            classes, shade, weight = self.token or (None, "0", "")
            panel.pieces.append((data, classes, shade, weight))

    def _open(self, tag: str, known: set[str]) -> None:
        names = {"h2": "title", "figcaption": "head", "small": "head note", "title": "weight"}
        if tag == "p" and "note" in known:
            name = "note"
        elif tag == "div" and "text" in known:
            name = "text"
        else:
            name = names.get(tag, "")
        if tag not in ("meta", "br"):
            self.place.append(name)


def _edges(given: Mapping[str, str]) -> tuple[str, str, str, str]:
    return tuple(_number(given.get(name, "0")) for name in ("x", "y", "width", "height"))  # type: ignore[return-value]


def _number(text: str) -> str:
    return text if NUMBER.fullmatch(text) else "0"
