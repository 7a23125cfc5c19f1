"""Context-aware decoding: what the context adds to the logits of each token, made stronger.

Every token costs two forward passes, one with the context and one without; the weights stay as they are.

Source:
    Shi et al. (2023), Trusting Your Evidence: Hallucinate Less with Context-aware Decoding, arXiv 2305.14739:
    ``softmax((1 + α) · logits with the context − α · logits without it)``.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.models.forward import Tails, prepare_tails
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded


def contrasted(
    with_context: Float[Tensor, "*batch vocabulary"], without: Float[Tensor, "*batch vocabulary"], alpha: float
) -> Float[Tensor, "*batch vocabulary"]:
    """Return ``(1 + α) · with − α · without``; 0 gives back the logits with the context."""
    return (1 + alpha) * with_context - alpha * without if alpha else with_context


def same_answers(with_context: Encoded, without: Encoded) -> Encoded:
    """Return the prompt without its context, followed by the answers' own tokens from the prompt with it.

    A tokenizer may cut an answer in another way behind other words; both passes have to predict the same tokens.
    """
    tails = tuple(
        bare[:begun] + full[start:]
        for bare, begun, full, start in zip(
            without.tails, without.starts, with_context.tails, with_context.starts, strict=True
        )
    )
    return Encoded(without.row, without.prefix, tails, without.starts, without.image)


def contrasted_logprobs(
    model: Model, batch: Sequence[Encoded], without: Sequence[Encoded], alpha: float
) -> Float[Tensor, " tails"]:
    """Return log P(answer | prompt) in nats under context-aware decoding, summed over the answer's tokens, in fp32.

    Args:
        model: The model.
        batch: Prompts with their context, each with its answers.
        without: The same without it, from :func:`same_answers`.
        alpha: Weight of what the context adds.
    """
    sides = [_answer_logits(model, prepare_tails(model, one)) for one in (batch, without)]
    totals = []
    for (ids, full), (_, bare) in zip(*sides, strict=True):
        logp = contrasted(full.float(), bare.float(), alpha).log_softmax(-1)
        totals.append(logp.gather(-1, ids.to(logp.device)[:, None]).sum())
    return torch.stack(totals)


def _answer_logits(model: Model, tails: Tails) -> list[tuple[Tensor, Tensor]]:
    """Return for each tail the tokens of its answer, and the logits that predict them."""
    logits = model.network(**tails.inputs).logits
    spans = zip(tails.start.tolist(), tails.last.tolist(), strict=True)
    return [(tails.ids[at, start : last + 1], logits[at, start - 1 : last]) for at, (start, last) in enumerate(spans)]
