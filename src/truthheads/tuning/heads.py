"""Which heads an adapter changes: by attribution, by Truth Score, at random, or all."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.choices import HeadChoice
from truthheads.errors import ActivationError, GateError
from truthheads.models.forward import plan_batches, run_batches
from truthheads.models.head_gradients import head_gradients
from truthheads.models.head_modules import HeadPlace
from truthheads.models.hooks import check_factors
from truthheads.models.load import Model
from truthheads.models.progress import Progress
from truthheads.models.prompts import Encoded
from truthheads.results.scores import Scores
from truthheads.storage.kept_results import KeptResults

MADE_BY = {"attribution": "attribution", "truth": "probe"}
"""By which method the scores are made that a choice goes by."""


def check_choice(model: Model, choose: HeadChoice, share: float, scores: Scores | None) -> None:
    """Raise where heads cannot be chosen in this way.

    Raises:
        GateError: An unknown choice, a share that is not above 0 and up to 1, or scores that are missing or of another
            method.
        ShapeError: Scores of another shape than the model.
    """
    if choose not in get_args(HeadChoice):
        raise GateError(
            f"heads cannot be chosen by {choose!r}",
            expected=", ".join(get_args(HeadChoice)),
            got=str(choose),
            fix="choose one of them",
        )
    if not 0 < share <= 1:
        raise GateError(
            f"--heads must be above 0 and at most 1 (got {share:g})",
            expected="the share of the heads to change",
            got=f"{share:g}",
            fix="try 0.1",
        )
    method = MADE_BY.get(choose)
    if scores is None and choose == "truth":
        raise GateError(
            "--choose truth needs Truth Scores",
            expected="--scores FILE",
            got="none",
            fix="run `truthheads score` first, or leave --choose out",
        )
    if scores is not None and method is not None and scores.method != method:
        other = next((choice for choice, made in MADE_BY.items() if made == scores.method), None)
        raise GateError(
            f"heads cannot be chosen by {choose} from scores by {scores.method}",
            expected=f"scores from `truthheads score --method {method}`",
            got=f"--method {scores.method}",
            fix=f"give --choose {other}" if other else f"run `truthheads score --method {method}`",
        )
    if scores is not None:
        check_factors(torch.ones(scores.values.shape), model.layout)


def count_of(places: Sequence[HeadPlace], share: float) -> int:
    """Return how many heads a share is; at least one."""
    return max(1, round(share * len(places)))


def largest(
    places: Sequence[HeadPlace], values: Float[Tensor, "num_layers num_heads"], share: float
) -> list[HeadPlace]:
    """Return the heads with the largest values, in the order of layers; a head without a value is never chosen first.

    Args:
        places: All heads.
        values: One for each head.
        share: How many of the heads.
    """
    known = torch.nan_to_num(values.double(), nan=-torch.inf)
    order = sorted(places, key=lambda place: (-float(known[place.layer, place.head]), place.layer, place.head))
    return sorted(order[: count_of(places, share)])


def drawn(places: Sequence[HeadPlace], share: float, *, seed: int, turn: int) -> list[HeadPlace]:
    """Return heads drawn at random, in the order of layers.

    Args:
        places: All heads.
        share: How many of them.
        seed: Random seed.
        turn: Which draw: 0 for ``--choose random``, 1 and so on for the controls.
    """
    order = np.random.default_rng([seed, turn]).permutation(len(places))
    return sorted(places[at] for at in order[: count_of(places, share)])


def mean_gradients(
    model: Model,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int,
    kept: KeptResults | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "num_layers num_heads"]:
    """Return the attribution of every head: the mean gradient of the margin with respect to its gate at 1, in nats.

    Args:
        model: The model.
        encoded: Questions with two answers each.
        batch_tokens: Padded tokens in a batch, at most.
        kept: Where the sum over each batch is kept as it comes, and found again; None: nowhere.
        progress: Called with the unique tokens done and the total.

    Raises:
        ActivationError: A gradient is not finite, or one question does not fit into memory.
    """
    kept = kept or KeptResults(None, {})
    batches = plan_batches(encoded, batch_tokens=batch_tokens)
    total = torch.zeros(model.layout.shape, dtype=torch.float64)

    def step(batch: Sequence[Encoded]) -> None:
        total.add_(head_gradients(model, batch).gradient.sum(0).cpu())

    def complete(number: int) -> None:
        kept.result(f"attribution/{number}", total.tolist)
        total.zero_()

    done = {number for number in range(len(batches)) if f"attribution/{number}" in kept}
    run_batches(model, encoded, batches, step, done=done, complete=complete, progress=progress, passes=3)
    sums = [kept.result(f"attribution/{number}", total.tolist) for number in range(len(batches))]
    found = (torch.tensor(sums, dtype=torch.float64).sum(0) / len(encoded)).float()
    if not bool(torch.isfinite(found).all()):
        raise ActivationError(
            "the attribution of a head is not finite",
            expected="finite gradients",
            got="NaN or infinity",
            fix="try --dtype fp32; if that does not help, the weights or a row are damaged",
        )
    return found
