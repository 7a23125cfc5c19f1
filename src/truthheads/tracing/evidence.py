"""Where a question's evidence and its sinks stand among the tokens, and how well a row of attention finds them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from truthheads.data.images import load_image
from truthheads.data.questions import Question, occurrences
from truthheads.errors import DataError, ModelError
from truthheads.models.image_inputs import ImageTexts, placeholder, tokens_with_images
from truthheads.models.load import Model
from truthheads.models.prompts import answered, framed, shortened, shows_image
from truthheads.stats.thresholds import BOX_COVERAGE
from truthheads.tracing.image_patches import token_boxes


def evidence_metrics(
    weights: Float[Tensor, "heads seq"],
    query: int,
    *,
    sink: Bool[Tensor, " seq"],
    context: Bool[Tensor, " seq"],
    evidence: Bool[Tensor, " seq"],
    distractor: Bool[Tensor, " seq"],
) -> Float[Tensor, "measures heads"]:
    """Return every measure of one query's attention, in the order of ``MEASURES``.

    Args:
        weights: Attention of the query to every token, for any number of heads.
        query: Its position; later ones are not seen.
        sink: Tokens that take attention which is wanted nowhere.
        context: Tokens among which the evidence is looked for.
        evidence: Tokens of the evidence; none of them a sink.
        distractor: Tokens of the distractor, likewise.

    Returns:
        NaN where there is no evidence (or distractor), or for ``auroc`` nothing else in the context. ``lift`` is 1
        where all attention goes to sinks.
    """
    seen = torch.arange(weights.shape[1], device=weights.device) <= query
    kept = seen & ~sink
    sinks = weights[:, sink & seen].sum(1)
    found = _found(weights, kept, context, evidence)
    wrong = _found(weights, kept, context, distractor)
    return torch.stack([*found, sinks, *wrong])


def _found(
    weights: Float[Tensor, "heads seq"], kept: Bool[Tensor, " seq"], context: Bool[Tensor, " seq"], target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return AUROC, lift and pointing for the tokens of a target."""
    target = target & kept
    if not bool(target.any()):
        nothing = torch.full((len(weights),), torch.nan, device=weights.device)
        return nothing, nothing, nothing
    share = target.sum() / kept.sum()
    total, inside = weights[:, kept].sum(1), weights[:, target].sum(1)
    lift = torch.where(total > 0, inside / (total * share), 1.0)
    largest = weights[:, kept].amax(1, keepdim=True)
    pointing = (weights[:, target] == largest).sum(1) / (weights[:, kept] == largest).sum(1)
    return auroc(weights[:, target], weights[:, kept & context & ~target]), lift, pointing


def auroc(inside: Float[Tensor, "heads some"], outside: Float[Tensor, "heads others"]) -> Float[Tensor, " heads"]:
    """Return for each head the chance that a weight inside exceeds one outside; ties half, NaN where either is empty.

    Source:
        Hanley and McNeil (1982), Radiology 143(1), 29-36.
    """
    if not inside.shape[1] or not outside.shape[1]:
        return torch.full((len(inside),), torch.nan, device=inside.device)
    ordered, inside = outside.sort(1).values, inside.contiguous()
    below = torch.searchsorted(ordered, inside) + torch.searchsorted(ordered, inside, right=True)
    result: Float[Tensor, " heads"] = below.float().mean(1) / (2 * outside.shape[1])
    return result


Source = Literal["spans", "boxes", "occurrences", "none"]
"""Where a row's evidence comes from: its spans, its boxes, or the places where the truthful answer stands."""


class Located(NamedTuple):
    """Evidence and distractor of one question, as character spans in its context.

    Attributes:
        evidence: Spans of the evidence.
        distractor: Where the untruthful answer stands in the context, evidence left out.
        source: Where the evidence comes from.
    """

    evidence: tuple[tuple[int, int], ...]
    distractor: tuple[tuple[int, int], ...]
    source: Source


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """The tokens of one question with one answer.

    Attributes:
        text: Prompt and answer as they were tokenised, an image as one placeholder.
        spans: For each token its characters in ``text``; ``(0, 0)`` for tokens of an image.
        sink: The first token, special tokens, and tokens of white space and punctuation alone.
        context: Tokens of the context, and tokens that stand for places in the image.
        evidence: Tokens of the evidence that are no sinks.
        distractor: The same for the distractor.
        image: Tokens that stand for places in the image.
        boxes: For every token that the processor put in the image's place the pixels it covers, NaN where none; None
            where the question has no boxes.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    sink: Bool[Tensor, " seq"]
    context: Bool[Tensor, " seq"]
    evidence: Bool[Tensor, " seq"]
    distractor: Bool[Tensor, " seq"]
    image: Bool[Tensor, " seq"]
    boxes: Float[Tensor, "tokens 4"] | None


def find_evidence(model: Model, question: Question) -> Located:
    """Return a question's evidence; where its row names none, the places where the truthful answer stands.

    Raises:
        DataError: A span lies outside the context.
    """
    for start, end in question.evidence:
        if not 0 <= start < end <= len(question.context):
            raise DataError(
                f"row {question.id!r}: an evidence span lies outside the context",
                expected=f"[start, end) inside 0 to {len(question.context)}",
                got=f"[{start}, {end})",
                fix="correct the row: spans count characters of `context`",
            )
    boxes = bool(question.boxes) and shows_image(model, question)
    found = occurrences(question.context, question.truthful or "")
    evidence = question.evidence or (() if boxes else found)
    wrong = occurrences(question.context, question.untruthful or "")
    apart = tuple(span for span in wrong if not any(_overlap(span, other) for other in evidence))
    source: Source = "spans" if question.evidence else "boxes" if boxes else "occurrences" if found else "none"
    return Located(evidence, apart, source)


def fitted(model: Model, question: Question, located: Located, *, chat: bool) -> tuple[Question, Located]:
    """Return a question whose context has lost its start until it fits the model, and its spans in what is left."""
    limit, kept = model.layout.max_positions, question
    while limit is not None:
        prompt = framed(model, kept, chat=chat)
        texts = [prompt, *(answered(prompt, answer.text) for answer in kept.answers)]
        if shows_image(model, kept):
            shown = ImageTexts(kept.id, str(kept.image), tuple(texts))
            tokens = next(tokens_with_images(model, [shown], special=not chat))
        else:
            tokens = [_tokenised(model, text, special=not chat)[0] for text in texts]
        length = max(map(len, tokens))
        if length <= limit:
            break
        kept = shortened(model, kept, limit, length, chat=chat)
    lost = len(question.context) - len(kept.context)

    def moved(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        return tuple((start - lost, end - lost) for start, end in spans if start >= lost)

    evidence = moved(located.evidence)
    source = located.source if evidence or located.source == "boxes" else "none"
    return replace(kept, evidence=evidence), Located(evidence, moved(located.distractor), source)


def token_spans(
    model: Model, question: Question, located: Located, answer: str, ids: Sequence[int], *, chat: bool = False
) -> TokenSpans:
    """Return where everything stands among the tokens of a question with one answer.

    Args:
        model: Its tokenizer must give character offsets.
        question: The question, as it was encoded.
        located: Its evidence.
        answer: The answer at the end of the tokens.
        ids: The tokens, as encoded.
        chat: As in :func:`truthheads.models.prompts.encode`.

    Raises:
        ModelError: The tokenizer has no offsets, or a chat template changes the context.
        DataError: A box lies outside the image.
    """
    text = answered(framed(model, question, chat=chat), answer)
    raw, offsets = _tokenised(model, text, special=not chat)
    spans, pictured = _aligned(model, question, text, raw, offsets, ids)
    start = _context_start(model, question, text)
    end = start + len(question.context.strip())
    shift = start - (len(question.context) - len(question.context.lstrip()))
    visible = [_visible(text, span) for span in spans]
    special = set(model.tokenizer.all_special_ids)
    silent = [token in special or not _says(text[a:b]) for token, (a, b) in zip(ids, visible, strict=True)]
    image = torch.zeros(len(ids), dtype=torch.bool)
    image[pictured] = True
    boxes, seen = None, torch.zeros(len(pictured), dtype=torch.bool)
    if pictured and question.boxes:
        boxes, seen = _image_tokens(model, question, len(pictured))
        image[pictured] = ~boxes.isnan().any(1)

    def marked(places: Sequence[tuple[int, int]]) -> Tensor:
        return torch.tensor([any(_overlap(span, place) for place in places) for span in visible], dtype=torch.bool)

    sink = torch.tensor([True, *silent[1:]]) & ~image
    evidence = marked([(a + shift, b + shift) for a, b in located.evidence])
    evidence[pictured] = seen
    context = (marked([(start, end)]) if end > start else torch.zeros_like(image)) | image
    distractor = marked([(a + shift, b + shift) for a, b in located.distractor])
    return TokenSpans(text, tuple(spans), sink, context, evidence & ~sink, distractor & ~sink & ~evidence, image, boxes)


def _tokenised(model: Model, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
    tokenizer: Any = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer of {model.name} gives no character offsets",
            expected="a fast tokenizer (tokenizer.json), which knows which characters a token stands for",
            got=type(tokenizer).__name__,
            fix="convert it: AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder)",
        )
    made = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return list(made["input_ids"]), [(int(a), int(b)) for a, b in made["offset_mapping"]]


def _aligned(
    model: Model, question: Question, text: str, raw: list[int], offsets: list[tuple[int, int]], ids: Sequence[int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return each token's characters, and the tokens that stand for the image.

    Processors put image tokens, and marks around them, where the text has a placeholder; all else is the same on both
    sides. The tokenizer may also end a text by a marker, which was taken off.
    """
    config = model.network.config
    pad = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if not shows_image(model, question):
        pad = None
    if pad is None and raw[: len(ids)] == list(ids):
        return offsets[: len(ids)], []
    spans = [(0, 0)] * len(ids)
    own = [at for at, token in enumerate(raw) if token != pad]
    theirs = [at for at, token in enumerate(ids) if token != pad]
    matcher = SequenceMatcher(None, [raw[at] for at in own], [ids[at] for at in theirs], autojunk=False)
    lost = set(range(len(own)))
    for a, b, size in matcher.get_matching_blocks():
        for step in range(size):
            spans[theirs[b + step]] = offsets[own[a + step]]
        lost -= set(range(a, a + size))
    stand_in = placeholder(model) if pad is not None else ""
    missing = [text[slice(*offsets[own[at]])] for at in sorted(lost) if own[at] < len(raw) - 1 or pad is not None]
    if any(piece.strip() and piece.strip() not in stand_in for piece in missing):
        raise ModelError(
            f"row {question.id!r}: the tokens cannot be told apart",
            expected="a processor that changes nothing but the image's placeholder",
            got=f"{len(raw)} tokens of the text, {len(ids)} with the image; {missing[0][:20]!r} is gone",
            fix="trace another model, or rows without images",
        )
    return spans, [at for at, token in enumerate(ids) if token == pad] if pad is not None else []


def _context_start(model: Model, question: Question, text: str) -> int:
    """Return where the context begins in the text; 0 where there is none."""
    context = question.context.strip()
    if not context:
        return 0
    found = text.find(f"Context:\n{context}")
    if found < 0:
        raise ModelError(
            f"row {question.id!r}: the context does not stand in the prompt as it was given",
            expected="a chat template that leaves the user's text as it is",
            got="a text that was changed",
            fix="leave --chat out",
        )
    return found + len("Context:\n")


def _image_tokens(model: Model, question: Question, count: int) -> tuple[Tensor, Tensor]:
    """Return the pixels of each image token, and whether a box makes it evidence (see ``BOX_COVERAGE``)."""
    width, height = load_image(str(question.image)).size
    for x0, y0, x1, y1 in question.boxes:
        if x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
            raise DataError(
                f"row {question.id!r}: a box lies outside the image",
                expected=f"pixels inside {width} x {height}",
                got=f"[{x0:g}, {y0:g}, {x1:g}, {y1:g}]",
                fix="correct the row: boxes are [x0, y0, x1, y1] in pixels of the image file",
            )
    boxes = token_boxes(model, (width, height), count)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    covered = torch.zeros(len(boxes), dtype=torch.bool)
    for x0, y0, x1, y1 in question.boxes:
        across = (boxes[:, 2].clamp(max=x1) - boxes[:, 0].clamp(min=x0)).clamp(min=0)
        down = (boxes[:, 3].clamp(max=y1) - boxes[:, 1].clamp(min=y0)).clamp(min=0)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        holds = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
        covered |= holds | (across * down / area >= BOX_COVERAGE)
    return boxes, covered


def _visible(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Return a token's characters without the white space around them."""
    piece = text[slice(*span)]
    start = span[0] + len(piece) - len(piece.lstrip())
    return start, max(start, span[1] - (len(piece) - len(piece.rstrip())))


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


def _says(piece: str) -> bool:
    """Return whether a token has a character that is neither white space nor punctuation."""
    return any(not letter.isspace() and not unicodedata.category(letter).startswith("P") for letter in piece)
