"""The ``newton`` probe against the paper's AdamW protocol, on the same activations and the same folds."""

import numpy as np
import torch
from torch import Tensor

from bench.inputs import activations, embedded, smollm2, synthetic
from bench.timing import Outcome, in_turns, over
from truthheads.fitting import heads_at_once
from truthheads.probes import HeadFits, newton_probe, paper_folds, paper_probe
from truthheads.stats import pearson

NAME = "probes-vs-paper"
SYNTHETIC_HEADS = 1024
TIMED_HEADS = 32
ANSWERS = (600, 6_000, 60_000)
"""Two to a row: 300, 3,000 and 30,000 rows."""


def run(*, quick: bool) -> list[Outcome]:
    """Measure on real activations (all heads) and on made-up ones (one layer's heads: the cost is per head)."""
    model = smollm2()
    z, label = activations(model, embedded(40 if quick else 300))
    outcomes = _compare("smollm2", z[:4] if quick else z, label, turns=1 if quick else 2)
    for n in (200,) if quick else ANSWERS:
        z, label = synthetic(TIMED_HEADS, n, 128)
        outcomes += _compare(
            "synthetic", z[None], label, turns=2 if n < 10_000 and not quick else 1, of=SYNTHETIC_HEADS
        )
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

    newton_probe(z[0, :at_once], label, fold)  # starts warm; the paper's 200 epochs need no warm-up
    fast, slow = in_turns(newton, paper, turns=turns)
    wall, cpu = over(slow, fast)
    accuracy = {name: np.concatenate([_accuracy(part, label, fold) for part in parts]) for name, parts in found.items()}
    r = pearson(accuracy["newton"], accuracy["paper"])
    gap = np.abs(accuracy["newton"] - accuracy["paper"])
    counted = f"{heads} heads" + (f" of {of}" if of else "") + f" × {width} dims, {n} answers"
    detail = {
        "newton_seconds": [cost.wall for cost in fast],
        "paper_seconds": [cost.wall for cost in slow],
        "mean_accuracy": {name: float(values.mean()) for name, values in accuracy.items()},
        "mean_gap": float(gap.mean()),
        "largest_gap": float(gap.max()),
    }
    return [
        Outcome(f"{NAME} ({data}, n={n})", wall, ">= 50", counted, cpu_ratios=cpu, detail=detail),
        Outcome(f"{NAME} Pearson ({data}, n={n})", [r], ">= 0.99", counted, unit=""),
    ]


def _accuracy(fits: HeadFits, label: Tensor, fold: Tensor) -> np.ndarray:
    right = ((fits.logit > 0) == (label > 0)[:, None]).double()
    return torch.stack([right[fold == k].mean(0) for k in fold.unique()]).mean(0).numpy()
