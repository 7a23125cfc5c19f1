"""The page behind ``truthheads trace --pictures``: attention drawn on text and on images."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image

from truthheads.data.images import load_image
from truthheads.data.questions import Question
from truthheads.errors import DataError
from truthheads.models.load import Model
from truthheads.results.pictures import SUFFIX, AttentionPicture, AttentionPictures, Cell, Panel, Piece
from truthheads.results.trace import Trace
from truthheads.storage.files import write_text
from truthheads.tracing.trace import Attention, attention_of

DARKEST = 0.75

LONGEST_EDGE = 640
"""Pixels of a picture on the page; larger ones are made smaller."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One row with its tokens, and the attention of some heads to them.

    Attributes:
        title: Above the row.
        note: Below the title.
        text: Prompt and answer as they were tokenised.
        spans: For each token its characters in ``text``; ``(0, 0)`` for tokens of an image.
        sink: Tokens left out of the scale.
        evidence: Tokens of the evidence.
        distractor: Tokens of the distractor.
        query: Position of the token that looks.
        heads: Name and remark of each head.
        weights: Attention of each head to every token.
        image: Path of the image, or None.
        cells: For every image token the pixels it covers, NaN where none; in the order of the tokens at ``pixels``.
        pixels: Tokens that stand for places in the image.
        boxes: Evidence in the image, in pixels.
    """

    title: str
    note: str
    text: str
    spans: Sequence[tuple[int, int]]
    sink: Bool[np.ndarray, " seq"]
    evidence: Bool[np.ndarray, " seq"]
    distractor: Bool[np.ndarray, " seq"]
    query: int
    heads: Sequence[tuple[str, str]]
    weights: Float[np.ndarray, "heads seq"]
    image: str | None = None
    cells: Float[np.ndarray, "tokens 4"] | None = None
    pixels: Bool[np.ndarray, " seq"] | None = None
    boxes: Sequence[tuple[float, float, float, float]] = ()


def prepare(title: str, drawings: Sequence[Drawing]) -> AttentionPictures:
    """Work out what is drawn: shades, text cut at its tokens, images made smaller.

    Args:
        title: Title of the page.
        drawings: One picture each.

    Raises:
        DataError: An image cannot be read.
    """
    return AttentionPictures(title, [_picture(one) for one in drawings])


def page(pictures: AttentionPictures) -> str:
    """Return one self-contained HTML page, readable in light and dark; every text from outside is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = Environment(loader=PackageLoader("truthheads.tracing"), autoescape=True, undefined=StrictUndefined)
    return loader.get_template("attention.html").render(title=pictures.title, rows=pictures.pictures)


def write_pictures(path: Path, pictures: AttentionPictures) -> None:
    """Write the page, and beside it as ``NAME.pictures.json`` what :func:`truthheads.report` reads.

    Raises:
        ArtifactError: A file could not be written.
    """
    write_text(path, page(pictures))
    pictures.save(path.with_suffix(SUFFIX))


def _picture(drawing: Drawing) -> AttentionPicture:
    panels = [_panel(drawing, at) for at in range(len(drawing.heads))]
    if drawing.image is None or drawing.cells is None or drawing.pixels is None:
        return AttentionPicture(drawing.title, drawing.note, panels)
    picture = load_image(drawing.image)
    width, height = picture.size
    boxes = tuple((round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)) for x0, y0, x1, y1 in drawing.boxes)
    return AttentionPicture(drawing.title, drawing.note, panels, _embedded(picture), width, height, boxes)


def _panel(drawing: Drawing, head: int) -> Panel:
    name, note = drawing.heads[head]
    weights = drawing.weights[head]
    free = ~drawing.sink
    free[drawing.query] = False
    largest = float(weights[free].max()) if free.any() else 0.0
    shades = np.where(free, np.minimum(weights / max(largest, 1e-12), 1.0) * DARKEST, 0.0)
    sinks = f"{float(weights[drawing.sink].sum()):.0%} of the attention on sinks"
    pieces, cells = _pieces(drawing, weights, shades), _cells(drawing, weights, shades)
    return Panel(name, f"{note}; {sinks}" if note else sinks, pieces, cells)


def _pieces(drawing: Drawing, weights: Float[np.ndarray, " seq"], shades: Float[np.ndarray, " seq"]) -> list[Piece]:
    """Return the text cut at its tokens; characters that no token holds stay plain."""
    found: list[Piece] = []
    reached = 0
    for at, (start, end) in enumerate(drawing.spans):
        if end <= reached:
            continue
        start = max(start, reached)
        if start > reached:
            found.append(Piece(drawing.text[reached:start]))
        marks = {
            "e": drawing.evidence[at],
            "d": drawing.distractor[at],
            "s": drawing.sink[at],
            "q": at == drawing.query,
        }
        letters = " ".join(mark for mark, holds in marks.items() if holds)
        found.append(Piece(drawing.text[start:end], letters, *_rounded(shades[at], weights[at])))
        reached = end
    return [*found, Piece(drawing.text[reached:])]


def _cells(drawing: Drawing, weights: Float[np.ndarray, " seq"], shades: Float[np.ndarray, " seq"]) -> list[Cell]:
    """Return a rectangle for each token that covers pixels."""
    if drawing.cells is None or drawing.pixels is None:
        return []
    where = np.flatnonzero(drawing.pixels)
    cells = []
    for at, (x0, y0, x1, y1) in zip(where, drawing.cells[np.isfinite(drawing.cells[:, 0])], strict=True):
        x, y, width, height = (round(float(edge), 1) for edge in (x0, y0, x1 - x0, y1 - y0))
        cells.append(Cell(x, y, width, height, *_rounded(shades[at], weights[at])))
    return cells


def _rounded(shade: float, weight: float) -> tuple[float, float]:
    return round(float(shade), 3), round(float(weight), 4)


def _embedded(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
    target = io.BytesIO()
    small.save(target, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


ROWS = 4

HEADS = 2


def draw(
    model: Model,
    questions: Sequence[Question],
    trace: Trace,
    *,
    rows: int = ROWS,
    heads: int = HEADS,
    chat: bool = False,
    truncate: bool = False,
) -> AttentionPictures:
    """Draw traced rows: the attention of the best heads, and of the worst, at the trace's position.

    Heads are ordered by Truth Score where the trace was given scores, else by AUROC for the evidence.

    Args:
        model: The model that was traced.
        questions: The questions that were traced.
        trace: Its result; says which questions had evidence and which heads are best.
        rows: Questions shown, evenly spread over those that were traced.
        heads: How many of the best and of the worst.
        chat: As in :func:`truthheads.trace`.
        truncate: As in :func:`truthheads.trace`.

    Raises:
        DataError: The trace kept no questions, or is of other ones.
    """
    kept = trace.sample_question.tolist()
    if not kept or max(kept) >= len(questions):
        raise DataError(
            "there are no rows to draw",
            expected="a trace of these questions that kept samples",
            got=f"{len(kept)} samples, {len(questions)} questions",
            fix="trace again with a larger --max-samples, and leave --pictures to the same command",
        )
    by_truth = bool(torch.isfinite(trace.truth).any())
    ranked = trace.truth if by_truth else trace.auroc
    best, worst = _ends(ranked, heads)
    shown = [*best, *worst]
    chosen = [kept[at] for at in np.unique(np.linspace(0, len(kept) - 1, min(rows, len(kept))).astype(int))]
    notes = [_note(trace, head, by_truth) for head in shown]
    drawings = []
    for row in chosen:
        found = attention_of(model, questions[row], shown, position=trace.position, chat=chat, truncate=truncate)
        drawings.append(_drawing(questions[row], found, notes, trace.position))
    order = "Truth Score" if by_truth else "AUROC for the evidence"
    return prepare(f"{model.name}: what the {len(best)} best and {len(worst)} worst heads by {order} look at", drawings)


def _ends(values: torch.Tensor, count: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the heads with the largest and with the smallest values; both in falling order, none twice."""
    known = [(layer, head) for layer, head in np.ndindex(tuple(values.shape)) if torch.isfinite(values[layer, head])]
    ordered = sorted(known, key=lambda head: -float(values[head]))
    each = min(count, max(1, len(ordered) // 2))
    return ordered[:each], ordered[len(ordered) - each :] if len(ordered) > each else []


def _note(trace: Trace, head: tuple[int, int], by_truth: bool) -> tuple[str, str]:
    figures = f"AUROC for the evidence over all rows {float(trace.auroc[head]):.2f}"
    truth = f"Truth Score {float(trace.truth[head]):.2f}, " if by_truth else ""
    return f"L{head[0]}H{head[1]}", truth + figures


def _drawing(
    question: Question,
    found: Attention,
    notes: Sequence[tuple[str, str]],
    position: str,
) -> Drawing:
    places = found.places
    pixels = places.image.numpy() if places.boxes is not None else None
    return Drawing(
        title=question.question or str(question.id),
        note=f"row {question.id}; {position}'s last token looks; truthful answer: {question.truthful}",
        text=places.text,
        spans=places.spans,
        sink=places.sink.numpy(),
        evidence=places.evidence.numpy(),
        distractor=places.distractor.numpy(),
        query=found.query,
        heads=notes,
        weights=found.weights.double().numpy(),
        image=question.image if pixels is not None else None,
        cells=None if places.boxes is None else places.boxes.double().numpy(),
        pixels=pixels,
        boxes=question.boxes,
    )
