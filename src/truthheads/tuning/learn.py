"""Learn one factor per head by gradient: a larger margin, and little change of neutral text."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.choices import Site
from truthheads.errors import ActivationError
from truthheads.models.answer_logprobs import learning_margins
from truthheads.models.forward import plan_batches
from truthheads.models.gradients import whole_gradients
from truthheads.models.hooks import intercepted
from truthheads.models.load import Model
from truthheads.models.neutral_text import divergence
from truthheads.models.offload import fetched_again
from truthheads.models.progress import Progress, told_by_layer
from truthheads.models.prompts import Encoded
from truthheads.storage.kept_results import KeptResults, LoopState

STATE = "learned"

SAVED_EVERY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How factors are learned.

    Attributes:
        epochs: Passes over the questions.
        rate: Adam's step size, in units of a factor.
        kl_first: Weight of the KL on neutral text in the first epoch, in nats of margin per nat a token.
        kl_last: The same in the last epoch; in between it falls by equal ratios, so that the path runs from harmless
            to strong.
        pull: Nats of margin that a factor at distance 1 from the target costs; grows with the square. Adam moves heads
            that do not matter as far as those that do, unless something holds them.
        low: Smallest factor.
        high: Largest factor.
        texts: Neutral texts in a step.
        memory: Epochs over which factors are averaged. Steps on few questions leave noise in the factors, and noise
            costs: random factors with a standard deviation of 0.03 changed neutral text by 0.02 nats a token.
        stops: Points of the path in each epoch.
    """

    epochs: int = 5
    rate: float = 0.05
    kl_first: float = 60.0
    kl_last: float = 2.0
    pull: float = 0.01
    low: float = 0.0
    high: float = 2.0
    texts: int = 4
    memory: float = 0.5
    stops: int = 1


class Steps(TypedDict, total=False):
    """The parts of a schedule that the command line knows by name."""

    epochs: int
    rate: float
    pull: float
    low: float
    high: float


class Point(NamedTuple):
    """One point of the path.

    Attributes:
        factors: The factors here, averaged over the last steps.
        epoch: Passes over the questions so far.
        loss: Mean loss of the margins since the point before, in nats.
        kl: Mean KL on the neutral texts since then, in nats a token.
    """

    factors: Float[Tensor, "num_layers num_heads"]
    epoch: float
    loss: float
    kl: float


def learn(
    model: Model,
    encoded: Sequence[Encoded],
    neutral: Sequence[Sequence[int]],
    target: Float[Tensor, "num_layers num_heads"],
    *,
    site: Site,
    temperature: float,
    schedule: Schedule,
    batch_tokens: int,
    seed: int,
    progress: Progress | None = None,
    kept: KeptResults | None = None,
) -> Iterator[Point]:
    """Yield the path of a gate that is learned by projected Adam.

    The loss of a batch is ``t · softplus(−margin / t)`` averaged over its questions, the margin being
    log P(truthful) − log P(untruthful), plus the KL of the ungated from the gated model on neutral text, plus the pull.

    Args:
        model: The model; its own parameters stay as they are.
        encoded: Questions with two answers each.
        neutral: Token ids of neutral texts.
        target: Where the path starts, and what the factors are pulled towards.
        site: What a factor scales.
        temperature: t, in nats: margins well above it no longer count.
        schedule: See the class.
        batch_tokens: Padded tokens in a batch, at most.
        seed: Random seed of the order of questions and texts.
        progress: Called with the steps done and the total, in a hundredth of a step.
        kept: Where the state is kept every few seconds; a run that was killed goes on from it, through the same steps.
            None: nowhere.

    Raises:
        ActivationError: A loss is not finite.

    Source:
        Adam: Kingma and Ba (2015), https://arxiv.org/abs/1412.6980, with torch's defaults; averaged iterates:
        Polyak and Juditsky (1992), here with exponential weights. The loss is DPO's without a
        reference (Rafailov et al., 2023, equation 7).
    """
    generator = np.random.default_rng(seed)
    gate = target.to(model.device).clone().requires_grad_(True)
    goal = gate.detach().clone()
    mean = goal.clone()
    optimiser = torch.optim.Adam([gate], lr=schedule.rate)

    def scaled(layer: int, z: Tensor) -> Tensor:
        # The product is taken in fp32, so that the gate's gradient is summed in fp32.
        return (z.float() * gate[layer, : z.shape[2], None].to(z.device)).to(z.dtype)

    def under() -> AbstractContextManager[None]:
        return intercepted(model, scaled, site=site)

    batches = plan_batches(encoded, batch_tokens=batch_tokens)
    total = schedule.epochs * len(batches)
    marks = {len(batches) * (stop + 1) // schedule.stops for stop in range(schedule.stops)}
    losses: list[tuple[float, float]] = []
    kept = kept or KeptResults(None, {})
    through = step = 0
    if (saved := kept.load_state(STATE)) is not None:
        tensors, through, losses = dict(saved.tensors), saved.steps, list(saved.losses)
        with torch.no_grad():
            gate.copy_(tensors.pop("gate"))
            mean.copy_(tensors.pop("mean"))
        optimiser.load_state_dict({"state": {0: tensors}, "param_groups": optimiser.state_dict()["param_groups"]})
    last_saved = time.monotonic()
    for epoch in range(schedule.epochs):
        weight = _falling(schedule, epoch / max(1, schedule.epochs - 1))
        for turn, number in enumerate(generator.permutation(len(batches)), start=1):
            batch = [encoded[i] for i in batches[number]]
            texts = [neutral[i] for i in generator.choice(len(neutral), min(schedule.texts, len(neutral)), False)]
            step += 1
            if step > through:
                with told_by_layer(model, partial(_within, progress, step, total) if progress else None, passes=4):
                    losses.append(_gradient(model, batch, texts, gate, goal, under, temperature, schedule.pull, weight))
                optimiser.step()
                with torch.no_grad():
                    gate.clamp_(schedule.low, schedule.high)
                    mean += (gate - mean) / max(1.0, len(batches) * schedule.memory)
            if progress is not None:
                progress(100 * step, 100 * total)
            name, marked = f"point {step}", turn in marks
            if marked and step > through:
                means = np.mean(losses, axis=0)
                losses = []
                kept.result(name, partial(_told, mean, float(means[0]), float(means[1])))
            if step > through and (marked or time.monotonic() - last_saved > SAVED_EVERY_SECONDS):
                state = optimiser.state_dict()["state"][0]
                kept.save_state(STATE, LoopState({**state, "gate": gate, "mean": mean}, step, losses))
                last_saved = time.monotonic()
            if marked:
                factors, loss, kl = kept.result(name, partial(_told, mean, float("nan"), float("nan")))
                yield Point(torch.tensor(factors), epoch + turn / len(batches), loss, kl)


def _gradient(
    model: Model,
    batch: Sequence[Encoded],
    texts: Sequence[Sequence[int]],
    gate: Tensor,
    goal: Tensor,
    under: Callable[[], AbstractContextManager[None]],
    temperature: float,
    pull: float,
    weight: float,
) -> tuple[float, float]:
    """Set the gate's gradient on one batch; return the loss of its margins and the KL on neutral texts."""
    with torch.enable_grad(), fetched_again(model.network), whole_gradients(model.network):
        with under():
            logprob = learning_margins(model, batch)
        margin = (logprob[:, 0] - logprob[:, 1]) / temperature
        loss = temperature * torch.nn.functional.softplus(-margin).mean()
        kl = divergence(model, texts, under)[0].mean()
        distance = pull * (gate - goal).square().sum()
        (gate.grad,) = torch.autograd.grad(loss + weight * kl + distance, gate)
    if not bool(torch.isfinite(gate.grad).all()):
        raise ActivationError(
            "the gradient of the gate is not finite",
            expected="finite gradients",
            got="NaN or infinity",
            fix="try --dtype fp32; if that does not help, the weights or a row are damaged",
        )
    return float(loss.detach()), float(kl.detach())


def _told(mean: Tensor, loss: float, kl: float) -> list[Any]:
    """Return a point of the path as JSON; its numbers come back as the same numbers."""
    return [mean.tolist(), loss, kl]


def _within(progress: Progress, step: int, total: int, share: float) -> None:
    progress(100 * (step - 1) + int(100 * share), 100 * total)


def _falling(schedule: Schedule, share: float) -> float:
    return float(schedule.kl_first ** (1 - share) * schedule.kl_last**share)
