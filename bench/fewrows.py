"""``python -m bench.fewrows``: from how many questions heads can be ranked and gates chosen, on simulated heads.

The figures of docs/decisions/0014-few-rows.md. A tenth of the heads carry the label, the others nothing.
"""

from typing import NamedTuple

import numpy as np
import torch

from truthheads.scoring.probes import newton_probe
from truthheads.stats.figures import bootstrap_means, interval

HEADS, CARRYING, WIDTH, FOLDS, TOP = 270, 27, 64, 5, 10
QUESTIONS = (5, 10, 20, 30, 50, 75, 100, 150, 300)
REACH = (0.7, 0.8, 0.9)
"""Accuracy that the best possible probe of a head that carries the label has."""


class Ranked(NamedTuple):
    """What a list of the best heads is worth.

    Attributes:
        luckiest: Accuracy of the best of the heads that carry nothing, mean over sets.
        first: Share of sets in which the head on top of the list carries the label.
        carrying: Share of the ten heads on top of the list that do.
    """

    luckiest: float
    first: float
    carrying: float


def ranked(questions: int, reach: float, *, sets: int, seed: int) -> Ranked:
    """Return how good a ranking of heads by cross-validated accuracy is, for pairs of answers."""
    generator = np.random.default_rng(seed)
    shift = _distance(reach) / 2
    label = np.tile([1.0, 0.0], questions)
    fold = np.repeat(np.arange(questions) % FOLDS, 2)
    found = []
    for _ in range(sets):
        z = generator.standard_normal((HEADS, 2 * questions, WIDTH))
        z[:CARRYING, :, 0] += shift * (2 * label - 1)
        logit = newton_probe(torch.tensor(z).float(), torch.tensor(label).float(), torch.tensor(fold)).logit
        accuracy = ((logit.numpy() > 0) == (label > 0)[:, None]).mean(0)
        order = np.lexsort((generator.random(HEADS), -accuracy))
        found.append((accuracy[CARRYING:].max(), order[0] < CARRYING, (order[:TOP] < CARRYING).mean()))
    return Ranked(*map(float, np.mean(found, axis=0)))


def _distance(accuracy: float) -> float:
    """Return how many standard deviations two classes are apart that the best probe tells at an accuracy."""
    from scipy.stats import norm

    return 2 * float(norm.ppf(accuracy))


def chosen_by_chance(questions: int, *, candidates: int = 12, sets: int = 400, seed: int) -> float:
    """Return how often one of several gates that change nothing on average is chosen by the rule of ``tune``."""
    generator = np.random.default_rng(seed)
    chosen = 0
    for at in range(sets):
        shared = generator.standard_normal((questions, 1))
        gains = np.sqrt(0.8) * shared + np.sqrt(0.2) * generator.standard_normal((questions, candidates))
        low, _ = interval(bootstrap_means(gains, np.arange(questions), seed=at))
        chosen += bool((low > 0).any())
    return chosen / sets


def main() -> None:
    """Print both tables."""
    print("| questions | " + " | ".join(f"reach {r}: luckiest, first, top ten" for r in REACH) + " |")
    for questions in QUESTIONS:
        rows = [ranked(questions, reach, sets=max(4, 1200 // questions // 2), seed=questions) for reach in REACH]
        print(
            f"| {questions} | " + " | ".join(" ".join(f"{value:.2f}" for value in row) for row in rows) + " |",
            flush=True,
        )
    print("| dev questions | a gate is chosen though none helps |")
    for questions in (3, 5, 8, 10, 15, 20, 30, 50, 100):
        print(f"| {questions} | {chosen_by_chance(questions, seed=questions):.3f} |", flush=True)


if __name__ == "__main__":
    main()
