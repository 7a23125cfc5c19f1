"""The gradient of each question's margin with respect to every head: how much turning a head up would help."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.models.forward import answer_logprobs, prepare_tails
from truthheads.models.gradients import whole_gradients
from truthheads.models.hooks import intercepted
from truthheads.models.load import Model
from truthheads.models.offload import fetched_again
from truthheads.models.prompts import Encoded


class HeadGradients(NamedTuple):
    """Gradients of one batch.

    Attributes:
        gradient: How each question's margin changes with each head's gate at 1, in nats.
        margin: log P(truthful) − log P(untruthful), in nats.
    """

    gradient: Float[Tensor, "questions num_layers num_heads"]
    margin: Float[Tensor, " questions"]


def head_gradients(model: Model, batch: Sequence[Encoded]) -> HeadGradients:
    """Compute, for every question, the gradient of its margin with respect to every head's gate at 1.

    A gate scales a head's z at every position, prompt and answer alike; each question has gates of its own, so that
    one backward pass serves a whole batch.

    Args:
        model: The model.
        batch: Questions with two answers each.
    """
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
    return HeadGradients(gradient, margin.detach())
