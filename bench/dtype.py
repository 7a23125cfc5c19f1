"""Whether ``--dtype auto`` may choose bf16: its scores against fp32's, and how far noise lets scores agree at all."""

import math

from bench.inputs import embedded, smollm2
from bench.timing import Outcome
from truthheads.scoring.score import score
from truthheads.stats.figures import pearson, spearman

NAME = "auto-dtype"


def run(*, quick: bool) -> list[Outcome]:
    """Score the same rows in both types.

    The ceiling is the reliability of the scores of all rows, from their split halves (Spearman-Brown), as the
    geometric mean of both types. Both types see the same rows, so their correlation may exceed it.
    """
    questions = embedded(60 if quick else 200)
    scores = {dtype: score(smollm2(dtype), questions) for dtype in ("bf16", "fp32")}
    a, b = (found.values.numpy().ravel() for found in scores.values())
    halves = {dtype: found.meta["summary"]["split_half"]["pearson"]["value"] for dtype, found in scores.items()}
    ceiling = math.sqrt(math.prod(max(2 * r / (1 + r), 1e-9) for r in halves.values()))
    r = pearson(a, b)
    detail = {
        "pearson": r,
        "spearman": spearman(a, b),
        "split_half_pearson": halves,
        "ceiling": ceiling,
        "largest_gap": float(abs(a - b).max()),
        "mean_gap": float(abs(a - b).mean()),
    }
    n = f"{len(questions)} rows, {len(a)} heads"
    return [
        Outcome(f"{NAME} bf16 vs fp32, Pearson", [r], ">= 0.98", n, detail=detail, unit=""),
        Outcome(f"{NAME} the same over its ceiling {ceiling:.3f}", [r / ceiling], ">= 0.98", n, unit=""),
    ]
