"""Questions that can be traced, and the attention of their chosen tokens, one batch at a time."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from truthheads.attending import attending
from truthheads.data import Question
from truthheads.errors import DataError
from truthheads.forward import backbone, prepare_tails, shares_prefix
from truthheads.models import Model
from truthheads.placing import Located, Places, fitted, locate, place
from truthheads.prompts import Encoded, encode

POSITIONS = ("answer", "question", "untruthful")
"""Last token of the truthful answer; of the prompt, from which the answer is predicted; of the untruthful answer."""

Keep = Callable[[int, int, Tensor], None]
"""Called with (number in the batch, number of the position, weights ``[num_layers, num_heads, seq]``)."""


class Traceable(NamedTuple):
    """A question that can be traced.

    Attributes:
        number: Its row in the list.
        question: As it was encoded.
        located: Its evidence.
        encoded: Its tokens.
        places: For each of its answers where everything stands among the tokens.
    """

    number: int
    question: Question
    located: Located
    encoded: Encoded
    places: tuple[Places, ...]


def traceable(
    model: Model, questions: Sequence[Question], *, untruthful: bool, chat: bool, truncate: bool
) -> tuple[list[Traceable], Counter[str]]:
    """Return the questions that can be traced, and how many cannot, by reason.

    Raises:
        DataError: None can.
    """
    left_out: Counter[str] = Counter()
    chosen: list[tuple[int, Question, Located]] = []
    for number, question in enumerate(questions):
        located = locate(model, question)
        if question.truthful is None:
            left_out["no truthful answer"] += 1
            continue
        one = question if untruthful else replace(question, untruthful=None)
        if truncate:
            one, located = fitted(model, one, located, chat=chat)
        if located.source == "none":
            left_out["no evidence"] += 1
            continue
        chosen.append((number, one, located))
    encoded = encode(model, [one for _, one, _ in chosen], chat=chat, share_prefix=shares_prefix(model))
    rows: list[Traceable] = []
    for (number, one, located), item in zip(chosen, encoded, strict=True):
        answers = zip(one.answers, item.tails, strict=True)
        places = tuple(
            place(model, one, located, answer.text, (*item.prefix, *tail), chat=chat) for answer, tail in answers
        )
        if bool(places[0].evidence.any()):
            rows.append(Traceable(number, one, located, replace(item, row=len(rows)), places))
        else:
            left_out["no evidence"] += 1
    if not rows:
        raise DataError(
            "no question has evidence that can be traced",
            expected="rows with `evidence` spans or `boxes`, or whose truthful answer stands in the context",
            got=", ".join(f"{count} rows with {reason}" for reason, count in left_out.items()) or "no questions",
            fix="add an `evidence` column (character spans in `context`); boxes need a model that takes images",
        )
    return rows, left_out


def look(model: Model, batch: Sequence[Encoded], positions: Sequence[str], keep: Keep) -> None:
    """Run one batch and hand over, for each of its questions and positions, the attention of all heads.

    Args:
        model: The model.
        batch: Questions whose first tail is the truthful answer and whose second, if any, the untruthful one.
        positions: Whose attention is wanted.
        keep: Gets each question's rows; NaN for heads that are not there.
    """
    with torch.inference_mode():
        tails = prepare_tails(model, batch)
        queries = torch.stack([tails.start - 1, tails.last], dim=1)
        width = tails.inputs["attention_mask"].shape[1]
        layers, heads = model.layout.shape
        rows = torch.full((layers, heads, len(queries), 2, width), torch.nan, device=model.device)

        def see(layer: int, weights: Tensor) -> None:
            by_head = weights.to(rows.device).permute(2, 0, 1, 3)
            rows[layer, : len(by_head), :, :, : width - by_head.shape[-1]] = 0  # what a window has dropped
            rows[layer, : len(by_head), :, :, width - by_head.shape[-1] :] = by_head

        with attending(model, queries, see):
            backbone(model)(**tails.inputs)
        real = tails.inputs["attention_mask"].bool()
        first = 0
        for i, item in enumerate(batch):
            for at, name in enumerate(positions):
                tail = first + (name == "untruthful")
                if tail < first + len(item.tails):
                    keep(i, at, rows[:, :, tail, int(name != "question"), real[tail]])
            first += len(item.tails)


def query_of(encoded: Encoded, tail: int, *, start: bool) -> int:
    """Return the position, among all tokens of a question, of a tail's last token or of the one before its answer."""
    return len(encoded.prefix) + (encoded.starts[tail] if start else len(encoded.tails[tail])) - 1
