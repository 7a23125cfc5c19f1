"""Attribution scores: how much turning a head up would raise the margin of the truthful answer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from truthheads.data.questions import Question
from truthheads.errors import ActivationError
from truthheads.models.forward import Progress, answer_logprobs, filled, prepare_tails
from truthheads.models.gradients import whole_gradients
from truthheads.models.hooks import intercepted
from truthheads.models.load import Model
from truthheads.models.offload import fetched_again
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

    The margin is log P(truthful) − log P(untruthful) in nats. A gate scales a head's z at every position, prompt and
    answer alike; each question has gates of its own, so that one backward pass serves a whole batch.

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
        gates = torch.ones(len(batch), *model.layout.shape, device=model.device, requires_grad=True)
        owner = torch.tensor([i for i, item in enumerate(batch) for _ in item.tails], device=model.device)

        def scale(layer: int, z: Tensor) -> Tensor:
            own = gates[:, layer, : z.shape[2]].to(z.device)
            own = own if len(z) == len(batch) else own[owner.to(z.device)]
            # The product is taken in fp32, so that the gate's gradient is summed in fp32; at 1 no bit of z changes.
            return (z.float() * own[:, None, :, None]).to(z.dtype)

        network = model.network
        with torch.enable_grad(), fetched_again(network), whole_gradients(network), intercepted(model, scale):
            logprob = answer_logprobs(model, prepare_tails(model, batch)).view(len(batch), 2)
            margin = logprob[:, 0] - logprob[:, 1]
            (gradient,) = torch.autograd.grad(margin.sum(), gates)
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
