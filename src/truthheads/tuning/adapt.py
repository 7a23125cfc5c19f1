"""Train a head adapter by gradient: a larger margin of truthful answers, and little change of neutral text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import softplus

from truthheads.errors import ActivationError
from truthheads.models.answer_logprobs import learning_margins
from truthheads.models.forward import plan_batches
from truthheads.models.gradients import whole_gradients
from truthheads.models.head_modules import HeadPlace
from truthheads.models.load import Model
from truthheads.models.neutral_text import divergence_of, read_plain
from truthheads.models.offload import fetched_again
from truthheads.models.progress import Progress, told_by_layer
from truthheads.models.prompts import Encoded
from truthheads.tuning.lora_layers import LoraLayers, lora_layers
from truthheads.tuning.training_state import AdapterPoint, TrainingState


@dataclass(frozen=True, slots=True)
class AdaptSchedule:
    """How a head adapter is trained.

    Attributes:
        epochs: Passes over the questions.
        rank: Rank of each module's update.
        rate: AdamW's step size.
        decay: AdamW's weight decay.
        questions: Number of questions in a step; they are of similar length.
        texts: Number of neutral texts in a step.
        kl_first: Weight of the KL on neutral text in the first epoch, in nats of margin per nat a token.
        kl_last: The same in the last epoch; in between it falls by equal ratios, so that the path runs from harmless
            to strong.
        memory: Epochs over which the factors are averaged; see :class:`truthheads.tuning.learn.Schedule`.
    """

    epochs: int = 4
    rank: int = 8
    rate: float = 4e-3
    decay: float = 0.0
    questions: int = 4
    texts: int = 2
    kl_first: float = 10.0
    kl_last: float = 2.0
    memory: float = 0.5


def adapt(
    model: Model,
    encoded: Sequence[Encoded],
    neutral: Sequence[Sequence[int]],
    places: Sequence[HeadPlace],
    *,
    schedule: AdaptSchedule,
    batch_tokens: int,
    seed: int,
    state: TrainingState | None = None,
    progress: Progress | None = None,
) -> list[AdapterPoint]:
    """Train an adapter of chosen heads by AdamW, and return the path of its averaged factors, one point an epoch.

    The loss of a step is ``softplus(−margin)`` averaged over its questions, the margin being
    log P(truthful) − log P(untruthful), plus the KL of the untouched from the adapted model on neutral text, whose
    weight falls over the path.

    Args:
        model: The model; it is left as it was found, bit for bit, also after an error.
        encoded: Questions with two answers each.
        neutral: Token ids of neutral texts.
        places: The heads to change.
        schedule: See the class.
        batch_tokens: Padded tokens in one pass, at most; a step of more is computed in parts.
        seed: Random seed of the first factors, and of the order of questions and texts.
        state: Where every epoch is kept, and read from where an earlier run got to; None: nowhere.
        progress: Called with the steps done and the total, in a hundredth of a step.

    Raises:
        ActivationError: A gradient is not finite.
        ArtifactError: The state cannot be written.

    Source:
        AdamW: Loshchilov and Hutter (2019), https://arxiv.org/abs/1711.05101; averages: Polyak and Juditsky (1992),
        here with exponential weights. The loss is DPO's without a reference (Rafailov et al., 2023, equation 7).
    """
    generator = torch.Generator().manual_seed(seed)
    steps = plan_steps(encoded, schedule.questions)
    with lora_layers(model.network, places, rank=schedule.rank, generator=generator) as layers:
        optimiser = torch.optim.AdamW(layers.parameters, lr=schedule.rate, weight_decay=schedule.decay)
        mean = [parameter.detach().clone() for parameter in layers.parameters]
        points = state.restore(layers, optimiser, mean) if state is not None else []
        total, done = schedule.epochs * len(steps), len(points) * len(steps)
        if progress is not None and done:
            progress(100 * done, 100 * total)
        for epoch in range(len(points), schedule.epochs):
            drawn = np.random.default_rng([seed, epoch])
            weight = falling(schedule, epoch)
            kept = []
            for number in drawn.permutation(len(steps)):
                batch = [encoded[i] for i in steps[number]]
                texts = [neutral[i] for i in drawn.choice(len(neutral), min(schedule.texts, len(neutral)), False)]
                with told_by_layer(model, partial(_within, progress, done, total) if progress else None, passes=4):
                    kept.append(_gradients(model, layers, batch, texts, weight, batch_tokens))
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                for average, parameter in zip(mean, layers.parameters, strict=True):
                    average += (parameter.detach() - average) / max(1.0, len(steps) * schedule.memory)
                done += 1
                if progress is not None:
                    progress(100 * done, 100 * total)
            loss, kl = np.mean(kept, axis=0)
            points.append(AdapterPoint(layers.updates(mean), epoch + 1, float(loss), float(kl)))
            if state is not None:
                state.keep(layers, optimiser, mean, points)
    if progress is not None:
        progress(100 * total, 100 * total)
    return points


def _within(progress: Progress, done: int, total: int, share: float) -> None:
    progress(100 * done + int(100 * share), 100 * total)


def _gradients(
    model: Model,
    layers: LoraLayers,
    batch: Sequence[Encoded],
    texts: Sequence[Sequence[int]],
    weight: float,
    batch_tokens: int,
) -> tuple[float, float]:
    """Add the gradient of one step to the factors, and return its loss and its KL."""
    network, total = model.network, 0.0
    with layers.disabled():
        plain = read_plain(model, texts)
    with torch.enable_grad(), fetched_again(network), whole_gradients(network):
        for members in plan_batches(batch, batch_tokens=batch_tokens):
            logprob = learning_margins(model, [batch[i] for i in members])
            loss = softplus(logprob[:, 1] - logprob[:, 0]).sum() / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        kl = divergence_of(model, plain)[0].mean()
        (weight * kl).backward()  # type: ignore[no-untyped-call]
    if not all(bool(torch.isfinite(one.grad).all()) for one in layers.parameters if one.grad is not None):
        raise ActivationError(
            "the gradient of the adapter is not finite",
            expected="finite gradients",
            got="NaN or infinity",
            fix="try --dtype fp32; if that does not help, the weights or a row are damaged",
        )
    return total, float(kl.detach())


def plan_steps(encoded: Sequence[Encoded], questions: int) -> list[list[int]]:
    """Return which questions each step takes: so many of similar length, none twice, all but for none left out."""
    order = sorted(
        range(len(encoded)), key=lambda i: (bool(encoded[i].prefix), encoded[i].image is not None, encoded[i].length, i)
    )
    count = max(1, round(len(order) / questions))
    return [part.tolist() for part in np.array_split(np.array(order), count)]


def falling(schedule: AdaptSchedule, epoch: int) -> float:
    """Return the weight of the KL in an epoch."""
    share = epoch / max(1, schedule.epochs - 1)
    return float(schedule.kl_first ** (1 - share) * schedule.kl_last**share)
