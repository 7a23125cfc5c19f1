"""Whether intervals of correlations hold the truth as often as they say, on simulated scores of known correlation."""

import sys
from pathlib import Path

from bench.timing import Outcome
from truthheads.lineage import relate
from truthheads.verdicts import judge

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from simulated import simulated

NAME = "interval-coverage"
CASES = ((0.0, True), (0.5, True), (0.9, True), (0.5, False), (0.9, False))
QUESTIONS = 300


def run(*, quick: bool) -> list[Outcome]:
    """Simulate pairs of score files and count how often the noise-corrected within-layer interval holds the truth."""
    runs = 50 if quick else 1000
    return [_case(rho, shared, runs) for rho, shared in CASES]


def _case(rho: float, shared: bool, runs: int) -> Outcome:
    inside, words = 0, {}
    errors = []
    for seed in range(runs):
        a, b, true = simulated(seed, rho=rho, questions=QUESTIONS, shared=shared)
        relation = relate(a, b, seed=seed, resamples=20)  # the interval in question needs none
        figure = relation.corrected_within
        assert figure is not None
        inside += figure.low <= true <= figure.high
        errors.append(figure.value - true)
        word = judge(relation).word
        words[word] = words.get(word, 0) + 1
    return Outcome(
        f"{NAME}, correlation {rho}, {'shared' if shared else 'own'} questions",
        [inside / runs],
        ">= 0.93" if inside / runs < 0.95 else "<= 0.97",
        f"{runs} simulations, {QUESTIONS} questions x 90 heads",
        detail={"bias": sum(errors) / runs, "verdicts": words},
        unit="",
    )
