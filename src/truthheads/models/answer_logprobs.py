"""Log-probabilities of both answers of every question, with or without a gate."""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from truthheads.data.questions import Question
from truthheads.errors import ActivationError, DataError
from truthheads.models.forward import answer_logprobs, plan_batches, prepare_tails, run_batches
from truthheads.models.hooks import Intervention
from truthheads.models.load import Model
from truthheads.models.progress import Progress
from truthheads.models.prompts import Encoded
from truthheads.stats.figures import Figure, mean_figure
from truthheads.stats.intervals import share_figure
from truthheads.storage.kept_results import KeptResults


def check_pairs(questions: Sequence[Question], *, purpose: str) -> None:
    """Raise DataError where a question lacks one of its answers, or where there is no question."""
    singles = sum(len(question.answers) != 2 for question in questions)
    if not questions or singles:
        raise DataError(
            f"{purpose} needs pairs",
            expected="a truthful and an untruthful answer in every row",
            got=f"{singles} of {len(questions)} rows with one answer" if questions else "no row",
            fix="make the untruthful answers with `truthheads data pairs`, or give another file",
        )


def pair_logprobs(
    model: Model,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int,
    gate: Intervention | None = None,
    progress: Progress | None = None,
    kept: KeptResults | None = None,
    name: str = "answers",
) -> Float[np.ndarray, "questions 2"]:
    """Return log P(truthful | prompt) and log P(untruthful | prompt) in nats, in the order of ``encoded``.

    Args:
        model: The model.
        encoded: Questions with two answers each.
        batch_tokens: Padded tokens in a batch, at most.
        gate: At work during the passes; None leaves the model as it is.
        progress: Called with the unique tokens done and the total.
        kept: Where each batch is kept as it comes, and found again; None: nowhere.
        name: What the batches are called there.

    Raises:
        ActivationError: A value is not finite, or one question does not fit into memory.
    """
    found = np.full((len(encoded), 2), np.nan)
    place = {id(item): at for at, item in enumerate(encoded)}

    def step(batch: Sequence[Encoded]) -> None:
        with torch.inference_mode():
            values = answer_logprobs(model, prepare_tails(model, batch)).view(len(batch), 2)
        for item, row in zip(batch, values.tolist(), strict=True):
            found[place[id(item)]] = row

    batches = plan_batches(encoded, batch_tokens=batch_tokens)
    kept = kept or KeptResults(None, {})

    def complete(number: int) -> None:
        kept.result(f"{name}/{number}", lambda: found[batches[number]].tolist())

    done = {number for number in range(len(batches)) if f"{name}/{number}" in kept}
    for number in done:
        found[batches[number]] = kept.result(f"{name}/{number}", list)
    with gate.apply(model) if gate is not None else nullcontext():
        run_batches(model, encoded, batches, step, done=done, complete=complete, progress=progress)
    if not np.isfinite(found).all():
        raise ActivationError(
            f"row {encoded[int(np.flatnonzero(~np.isfinite(found).all(1))[0])].row}: log-probability is not finite",
            expected="finite logits",
            got="NaN or infinity",
            fix="try --dtype fp32; if that does not help, the gate is too strong or the weights are damaged",
        )
    return found


def pair_figures(
    logprob: Float[np.ndarray, "questions 2"], groups: Int[np.ndarray, " questions"], *, seed: int
) -> dict[str, Figure]:
    """Return pair accuracy, margin and log P(truthful) in nats, with intervals by bootstrap over groups.

    A pair is right where the truthful answer is the more likely one; ties count one half.
    """
    margin = logprob[:, 0] - logprob[:, 1]
    return {
        "pair_accuracy": share_figure(right_pairs(margin), groups),
        "margin": mean_figure(margin, groups, seed=seed),
        "logp_truthful": mean_figure(logprob[:, 0], groups, seed=seed),
    }


def pair_effects(
    before: Float[np.ndarray, "questions 2"],
    after: Float[np.ndarray, "questions 2"],
    groups: Int[np.ndarray, " questions"],
    *,
    seed: int,
) -> dict[str, Figure]:
    """Return the changes of :func:`pair_figures` from ``before`` to ``after``, paired by question."""
    margins = [logprob[:, 0] - logprob[:, 1] for logprob in (before, after)]
    return {
        "pair_accuracy": mean_figure(right_pairs(margins[1]) - right_pairs(margins[0]), groups, seed=seed),
        "margin": mean_figure(margins[1] - margins[0], groups, seed=seed),
        "logp_truthful": mean_figure(after[:, 0] - before[:, 0], groups, seed=seed),
    }


def right_pairs(margin: Float[np.ndarray, " questions"]) -> Float[np.ndarray, " questions"]:
    """Return 1 where the truthful answer is the more likely one, one half for a tie, else 0."""
    right: Float[np.ndarray, " questions"] = (margin > 0) + 0.5 * (margin == 0)
    return right


def group_numbers(questions: Sequence[Question]) -> Int[np.ndarray, " questions"]:
    """Return the number of each question's group."""
    return np.unique([question.group for question in questions], return_inverse=True)[1].astype(int)


def learning_margins(model: Model, batch: Sequence[Encoded]) -> Float[Tensor, "questions 2"]:
    """Return both log-probabilities of one batch; gradient mode and interception are the caller's."""
    return answer_logprobs(model, prepare_tails(model, batch)).view(len(batch), 2)
