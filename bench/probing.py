"""The ``newton`` probe against the paper's AdamW protocol, on the same activations and the same folds."""

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from bench.inputs import activations, embedded, smollm2, synthetic
from bench.timing import Outcome, Took, in_turns, over
from truthheads.scoring import probes
from truthheads.scoring.fit import heads_at_once
from truthheads.scoring.probes import HeadFits, newton_probe, paper_folds, paper_probe
from truthheads.stats.figures import pearson

NAME = "probes-vs-paper"
SYNTHETIC_HEADS = 1024
TIMED_HEADS = 32
ANSWERS = (600, 6_000, 60_000)
"""Two to a row: 300, 3,000 and 30,000 rows."""
LONG = 10_000
"""Answers from which few of the paper's 200 epochs are timed, 2 and 12: 200 cost what the line through both says."""


def run(*, quick: bool) -> list[Outcome]:
    """Measure on real activations (all heads) and on made-up ones (one layer's heads: the cost is per head)."""
    model = smollm2()
    z, label = activations(model, embedded(40 if quick else 300))
    outcomes = _compare("smollm2", z[:4] if quick else z, label, turns=1 if quick else 2)
    for n in (200,) if quick else ANSWERS:
        z, label = synthetic(TIMED_HEADS, n, 128)
        outcomes += _compare("synthetic", z[None], label, turns=2 if n < 5_000 and not quick else 1, of=SYNTHETIC_HEADS)
    return outcomes


def _compare(data: str, z: Tensor, label: Tensor, *, turns: int, of: int | None = None) -> list[Outcome]:
    num_layers, num_heads, n, width = z.shape
    heads = num_layers * num_heads
    joined = z.flatten(0, 1)
    fold = torch.from_numpy(paper_folds(n))
    found: dict[str, list[HeadFits]] = {}

    at_once = heads_at_once(n, width, torch.bfloat16, z.device)

    def newton() -> None:  # layer by layer and in blocks of heads, as `score` calls it
        found["newton"] = [newton_probe(part, label, fold) for layer in z for part in layer.split(at_once)]

    def paper() -> None:  # all heads at once, as released; on CPUs that is its faster way too
        found["paper"] = [paper_probe(joined, label, fold)]

    def begun(epochs: int) -> Callable[[], None]:
        def some() -> None:
            with patch.object(probes, "EPOCHS", epochs):
                paper()

        return some

    newton_probe(z[0, :at_once], label, fold)  # starts warm; the paper's 200 epochs need no warm-up
    counted = f"{heads} heads" + (f" of {of}" if of else "") + f" × {width} dims, {n} answers"
    if n > LONG:
        fast, few, more = in_turns(newton, begun(2), begun(12), turns=turns)
        slow = [_on_the_line(a, b) for a, b in zip(few, more, strict=True)]
    else:
        fast, slow = in_turns(newton, paper, turns=turns)
    wall, cpu = over(slow, fast)
    seconds = {"newton_seconds": [one.wall for one in fast], "paper_seconds": [one.wall for one in slow]}
    if n > LONG:  # so few epochs are no probe whose accuracies could be compared
        name = f"{NAME} ({data}, n={n}, 12 of 200 epochs)"
        return [Outcome(name, wall, ">= 50", counted, cpu_ratios=cpu, detail=seconds)]
    accuracy = {name: np.concatenate([_accuracy(part, label, fold) for part in parts]) for name, parts in found.items()}
    r = pearson(accuracy["newton"], accuracy["paper"])
    gap = np.abs(accuracy["newton"] - accuracy["paper"])
    detail = {
        **seconds,
        "mean_accuracy": {name: float(values.mean()) for name, values in accuracy.items()},
        "mean_gap": float(gap.mean()),
        "largest_gap": float(gap.max()),
    }
    return [
        Outcome(f"{NAME} ({data}, n={n})", wall, ">= 50", counted, cpu_ratios=cpu, detail=detail),
        Outcome(f"{NAME} Pearson ({data}, n={n})", [r], ">= 0.99", counted, unit=""),
    ]


def _on_the_line(few: Took, more: Took) -> Took:
    """Return what 200 epochs cost, from what 2 and 12 did: each epoch costs the same."""
    each = (probes.EPOCHS - 2) / 10
    return Took(few.wall + each * (more.wall - few.wall), few.cpu + each * (more.cpu - few.cpu))


def _accuracy(fits: HeadFits, label: Tensor, fold: Tensor) -> np.ndarray:
    right = ((fits.logit > 0) == (label > 0)[:, None]).double()
    return torch.stack([right[fold == k].mean(0) for k in fold.unique()]).mean(0).numpy()
