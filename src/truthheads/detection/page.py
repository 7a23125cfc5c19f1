"""A page that shows answers with their sentences coloured by how probable it is that the context supports them."""

from collections.abc import Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from truthheads.results.detections import VERDICTS, Detection, DetectionsMeta, Verdict, read_detections
from truthheads.stats.calibration import Cuts
from truthheads.storage.files import write_text

MOST_ANSWERS = 500
"""Answers on a page; a browser is slow with more."""

MOST_CHARACTERS = 20_000
"""Characters of one context on the page."""

TONES = {"supported": "good", "not supported": "bad", "unsure": "unsure"}


class Piece(NamedTuple):
    """A part of an answer.

    Attributes:
        text: Its characters.
        tone: ``good``, ``bad``, ``unsure``, or empty between sentences.
        strength: Percent of the colour: how far the probability is from the cut.
        supported: Its probability as it is shown.
    """

    text: str
    tone: str
    strength: int
    supported: str


class Shown(NamedTuple):
    """One answer on the page."""

    id: str
    verdict: Verdict
    tone: str
    supported: str
    asked: str
    context: str
    pieces: list[Piece]


def pieces_of(found: Detection, cuts: Cuts) -> list[Piece]:
    """Divide an answer into its sentences and what stands between them."""
    pieces, at = [], 0
    for one in found.sentences:
        if found.answer[at : one.start]:
            pieces.append(Piece(found.answer[at : one.start], "", 0, ""))
        tone = "good" if one.supported >= cuts.high else "bad" if one.supported < cuts.low else "unsure"
        far = (
            (one.supported - cuts.high) / max(1e-9, 1 - cuts.high)
            if tone == "good"
            else (cuts.low - one.supported) / max(1e-9, cuts.low)
        )
        strength = 30 if tone == "unsure" else round(20 + 45 * min(1.0, max(0.0, far)))
        pieces.append(Piece(found.answer[one.start : one.end], tone, strength, f"{one.supported:.2f}"))
        at = one.end
    return [*pieces, Piece(found.answer[at:], "", 0, "")] if found.answer[at:] else pieces


def write_page(detections: Path, out: Path, made: DetectionsMeta) -> None:
    """Write the page of a file of detections; it needs no network and no other file, and every text is escaped.

    Args:
        detections: The file.
        out: The page.
        made: How it was made.

    Raises:
        ArtifactError: The file cannot be read, or the page not be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    low, high = made.get("low"), made.get("high")
    cuts = Cuts(float("-inf") if low is None else low, float("inf") if high is None else high)
    counts = dict.fromkeys(VERDICTS, 0)
    for one in read_detections(detections):
        counts[one.verdict] += 1
    shown = [_shown(one, cuts) for one in islice(read_detections(detections), MOST_ANSWERS)]
    environment = Environment(
        loader=PackageLoader("truthheads.detection"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    total = sum(counts.values())
    page = environment.get_template("detections.html").render(
        model=_name(made.get("model")),
        fitted=_name((made.get("detector") or {}).get("model")),
        counts=[(name, TONES[name], count) for name, count in counts.items()],
        total=total,
        left_out=total - len(shown),
        cut="" if low is None or high is None else f"{low:.2f}" if low == high else f"{low:.2f} and {high:.2f}",
        answers=shown,
        warnings=made.get("warnings") or [],
        version=metadata.version("truthheads"),
    )
    write_text(out, page + "\n")


def _shown(found: Detection, cuts: Cuts) -> Shown:
    columns = found.columns
    context = next((text for name in CONTEXT_NAMES if (text := _told(columns.get(name)))), "")
    asked = next((text for name in QUESTION_NAMES if (text := _told(columns.get(name)))), "")
    if len(context) > MOST_CHARACTERS:
        context = f"{context[:MOST_CHARACTERS]} …"
    tone = TONES[found.verdict]
    return Shown(found.id, found.verdict, tone, f"{found.supported:.2f}", asked, context, pieces_of(found, cuts))


CONTEXT_NAMES = (
    "context", "contexts", "documents", "passages", "retrieved_contexts", "source_documents", "docs", "ctxs",
    "chunks", "search_results", "knowledge", "sub_context", "source", "document",
)  # fmt: skip

QUESTION_NAMES = ("question", "query", "user_input")


def _told(value: Any) -> str:
    from truthheads.data.passages import join_passages

    try:
        return join_passages(value).text.strip()
    except ValueError:
        return ""


def _name(model: Mapping[str, Any] | None) -> str:
    return str((model or {}).get("name") or "")
