"""Attribution scores: how much turning a head up would raise the margin of the truthful answer."""

from collections.abc import Sequence
from pathlib import Path

import torch

from truthheads.data.questions import Question
from truthheads.errors import ActivationError
from truthheads.models.forward import Progress, filled
from truthheads.models.head_gradients import head_gradients
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded
from truthheads.storage.row_store import Field, RowStore, first_only, open_rows


def attribute(
    model: Model,
    encoded: Sequence[Encoded],
    questions: Sequence[Question],
    folder: Path,
    *,
    identity: str,
    batch_tokens: int,
    progress: Progress | None = None,
) -> RowStore:
    """Compute, for every question, the gradient of its margin with respect to every head's gate at 1.

    See :func:`truthheads.models.head_gradients.head_gradients`.

    Args:
        model: The model.
        encoded: The questions' tokens, two answers each.
        questions: The same questions, to name a row in an error.
        folder: Folder of the store.
        identity: What the values depend on, as text.
        batch_tokens: Padded tokens in a batch, at most; the graph of a batch is held in memory.
        progress: Called with the unique tokens done and the total.

    Returns:
        A store with ``gradient`` ``[questions, num_layers, num_heads]`` and ``margin`` ``[questions]``, fp32.

    Raises:
        ActivationError: A gradient is not finite, or one question does not fit into memory.
    """
    fields = {"gradient": Field(model.layout.shape, torch.float32), "margin": Field((), torch.float32)}
    store = open_rows(folder, fields, rows=len(encoded), identity=identity)

    def step(batch: Sequence[Encoded]) -> None:
        gradient, margin = head_gradients(model, batch)
        rows = torch.tensor([item.row for item in batch])
        finite = torch.isfinite(gradient).flatten(1).all(1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            raise ActivationError(
                f"row {questions[batch[bad].row].id!r}: the gradient of its margin is not finite",
                expected="finite gradients",
                got="NaN or infinity",
                fix="try --dtype fp32; if that does not help, the weights or the row are damaged",
            )
        store.write("gradient", rows, gradient)
        store.write("margin", rows, margin)

    return first_only(filled(model, store, encoded, step, batch_tokens=batch_tokens, progress=progress))
