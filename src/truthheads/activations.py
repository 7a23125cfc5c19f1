"""z of each answer's final token, for every head, on disk."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from truthheads.data import Question
from truthheads.errors import ActivationError
from truthheads.forward import Progress, backbone, filled, final_values, prepare_tails
from truthheads.hooks import intercepted
from truthheads.models import Model
from truthheads.prompts import Encoded
from truthheads.ranks import open_rows
from truthheads.store import Field, RowStore


def first_answers(encoded: Sequence[Encoded]) -> list[int]:
    """Return for each question the row of its first answer when all answers are counted through."""
    rows, at = [], 0
    for item in encoded:
        rows.append(at)
        at += len(item.tails)
    return rows


def without_prediction(item: Encoded) -> Encoded:
    """Return a question whose tails are its answers' own tokens.

    The last token of the prompt stands in every tail because it predicts the answer; where nothing is predicted it
    belongs into the prefix, and is computed once.
    """
    if not item.prefix:
        return item
    return replace(
        item,
        prefix=(*item.prefix, item.tails[0][0]),
        tails=tuple(tail[1:] for tail in item.tails),
        starts=tuple(start - 1 for start in item.starts),
    )


def collect(
    model: Model,
    encoded: Sequence[Encoded],
    questions: Sequence[Question],
    folder: Path,
    *,
    identity: str,
    batch_tokens: int,
    alone: bool = False,
    progress: Progress | None = None,
) -> RowStore | None:
    """Compute z at the final token of every answer and keep it, layer by layer, in a store on disk.

    No language-model head is run. A run that was killed goes on where it stopped.

    Args:
        model: The model.
        encoded: The questions' tokens.
        questions: The same questions, to name a row in an error.
        folder: Folder of the store.
        identity: What the values depend on beside the tokens' order: model, data and settings, as text.
        batch_tokens: Padded tokens in a batch, at most.
        alone: Of several processes, this one does all of it.
        progress: Told the unique tokens done and in all.

    Returns:
        A store with one field for each layer with heads, ``layer-12``: ``[answers, num_heads, head_dim]`` in the
        model's own type; answers counted through in the order of the questions. On disk all answers of one head stand
        side by side. None in other processes than the first.

    Raises:
        ActivationError: NaN or infinity came out (row and layer are named), or one question does not fit into memory.
        ArtifactError: The disk is full, or the folder is in use.
    """
    answers = first_answers(encoded)
    encoded = [without_prediction(item) for item in encoded]
    rows = sum(len(item.tails) for item in encoded)
    store = open_rows(folder, z_fields(model), rows=rows, identity=identity, alone=alone)

    def step(batch: Sequence[Encoded]) -> None:
        rows = torch.tensor([answers[item.row] + k for item in batch for k in range(len(item.tails))])
        captured: dict[int, Tensor] = {}
        with torch.inference_mode():
            tails = prepare_tails(model, batch)

            def capture(layer: int, z: Tensor) -> None:
                captured[layer] = final_values(z, tails).cpu()

            with intercepted(model, capture):
                backbone(model)(**tails.inputs)
        for layer, values in captured.items():
            if not bool(torch.isfinite(values).all()):
                bad = int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])
                raise ActivationError(
                    f"row {questions[batch[int(tails.owner[bad])].row].id!r}, layer {layer}: z is not finite",
                    expected="finite activations",
                    got="NaN or infinity",
                    fix="try --dtype fp32; if that does not help, the weights or the row are damaged",
                )
            store.write(field_name(layer), rows, values)

    return filled(model, store, encoded, step, batch_tokens=batch_tokens, progress=progress)


def z_fields(model: Model) -> dict[str, Field]:
    """Return the fields of a store of z: one for each layer with heads, the rows of one head side by side."""
    return {
        field_name(head.index): Field((head.num_heads, head.head_dim), model.dtype, axis=1)
        for head in model.layout.layers
    }


def field_name(layer: int) -> str:
    """Return the name of a layer's field in the store."""
    return f"layer-{layer}"
