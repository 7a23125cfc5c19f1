"""The page behind ``truthheads trace --pictures``: a few rows, the best heads beside the worst."""

from collections.abc import Sequence

import numpy as np
import torch

from truthheads.data import Question
from truthheads.errors import DataError
from truthheads.evidence import Trace
from truthheads.models import Model
from truthheads.pictures import Drawing, page
from truthheads.tracing import Attention, attention_of

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
) -> str:
    """Return an HTML page of traced rows: the attention of the best heads, and of the worst, at the trace's position.

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
    return page(f"{model.name}: what the {len(best)} best and {len(worst)} worst heads by {order} look at", drawings)


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
