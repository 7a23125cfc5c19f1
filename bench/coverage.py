"""Whether 95 % intervals hold the truth as often as they say, on simulated questions, scores, traces and gates."""

import sys
from pathlib import Path

import numpy as np

from bench.timing import Outcome
from truthheads.lineage.agreement import relate, score_verdict
from truthheads.stats.figures import bootstrap_means, interval, mean_figure
from truthheads.stats.intervals import mean_ends
from truthheads.tuning.tune import gain_elsewhere

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from covered import FIGURES, best, drawn, heads, means
from simulated import simulated

NAME = "interval-coverage"
CASES = ((0.0, True), (0.5, True), (0.9, True), (0.5, False), (0.9, False))
QUESTIONS = 300
SIZES = (20, 50, 150, 400)
GAPS = (0.0, 0.6, 1.2, 2.0, 3.0)
"""Standard deviations between truthful and untruthful answers: no signal, and best accuracies of .62, .73, .84, .93."""


def run(*, quick: bool) -> list[Outcome]:
    """Count how often intervals hold the truth: of scores, of two models' correlation, of traces and of gates."""
    runs = 50 if quick else 1000
    return [
        *(_heads(width, gap, size, quick) for width in (16, 64) for gap in GAPS for size in SIZES),
        *(_means(gap, size, 40 if quick else 400) for gap in (0.0, 1.2) for size in (20, 50, 150)),
        *_best(20 if quick else 200),
        *(_trace(kind, size, runs) for kind in ("area", "pointing") for size in (5, 20, 50)),
        *_tuned(runs),
        *(_case(rho, shared, runs) for rho, shared in CASES),
    ]


def _outcome(case: str, covered: float, runs: int, detail: dict[str, object]) -> Outcome:
    return Outcome(
        f"{NAME}, {case}",
        [covered],
        ">= 0.93" if covered < 0.95 else "<= 0.97",
        f"{runs} simulations",
        detail=detail,
        unit="",
    )


def _heads(width: int, gap: float, questions: int, quick: bool) -> Outcome:
    """A head of ``score --method probe``; AUROC and pair accuracy in the details."""
    runs = 100 if quick else {20: 3000, 50: 3000, 150: 2000, 400: 1000}[questions]
    part = max(1, min(runs, 20_000_000 // (questions * 2 * width)))
    found = [
        heads(drawn(seed, sets=part, questions=questions, width=width, gap=gap)) for seed in range(-(-runs // part))
    ]
    joined = {
        name: [np.concatenate([one[name][at] for one in found]) for at in range(3)] for name in FIGURES
    }  # value, low, high
    held = {}
    for name, (value, low, high) in joined.items():
        truth = 0.5 if gap == 0 else float(value.mean())
        held[name] = float(((low <= truth) & (truth <= high)).mean())
    truth = 0.5 if gap == 0 else float(joined["accuracy"][0].mean())
    before = float(np.mean([one["accuracy"].covered(truth) for one in found]))
    detail = {"before": before, "truth": float(joined["accuracy"][0].mean()), **held}
    case = f"a head of width {width}, gap {gap:g}, {questions} questions"
    return _outcome(case, held["accuracy"], part * len(found), detail)


def _means(gap: float, questions: int, runs: int) -> Outcome:
    """A layer of 8 heads, which share half of their variance."""
    found = means(1, sets=runs, questions=questions, width=16, gap=gap)
    truth = 0.5 if gap == 0 else None
    case = f"mean of 8 heads of width 16, gap {gap:g}, {questions} questions"
    return _outcome(case, found.covers(truth), runs, {"before": found.covered(truth)})


def _best(runs: int) -> list[Outcome]:
    """The best of 64 heads without signal: on the half that did not choose it, and by its own interval beside."""
    outcomes = []
    for questions in (20, 50, 150):
        own, other = best(1, sets=runs, questions=questions, width=16)
        detail = {"own": own.covers(0.5), "own value": float(own.value.mean()), "value": float(other.value.mean())}
        outcomes.append(_outcome(f"best of 64 heads, {questions} questions", other.covers(0.5), runs, dict(detail)))
    return outcomes


def _trace(kind: str, questions: int, runs: int) -> Outcome:
    """A head of ``trace``: a mean over questions of areas (skewed) or of hits, with nothing fitted."""
    random = np.random.default_rng(0)
    shape = (runs, questions)
    values = random.beta(4, 1.5, shape) if kind == "area" else (random.random(shape) < 0.7).astype(float)
    truth = 4 / 5.5 if kind == "area" else 0.7
    low, high = mean_ends(values.T, np.arange(questions), bounded=True)
    plain = interval(bootstrap_means(values.T, np.arange(questions), seed=0))
    before = float(((plain[0] <= truth) & (truth <= plain[1])).mean())
    covered = float(((low <= truth) & (truth <= high)).mean())
    return _outcome(f"{kind} of a trace, {questions} questions", covered, runs, {"before": before})


def _tuned(runs: int) -> list[Outcome]:
    """Gain of the best of 20 gates that gain nothing, whose gains correlate at .5; harm of a gate on 48 texts."""
    random, groups = np.random.default_rng(0), np.arange(50)
    chosen, elsewhere, harm = [], [], []
    for seed in range(runs):
        gains = 0.5**0.5 * (random.standard_normal((1, 50)) + random.standard_normal((20, 50)))
        figure = mean_figure(gains[gains.mean(1).argmax()], groups, seed=seed)
        chosen.append(figure.low <= 0 <= figure.high)
        other = gain_elsewhere(list(gains), [True] * 20, groups, seed=seed)
        assert other is not None
        elsewhere.append(other.low <= 0 <= other.high)
        kl = np.exp(0.7 * random.standard_normal(48))
        figure = mean_figure(kl, np.arange(48), seed=seed)
        harm.append((figure.low <= np.exp(0.245) <= figure.high, np.exp(0.245) > figure.high))
    held, above = np.mean(harm, axis=0)
    return [
        _outcome("gain of the best of 20 gates", float(np.mean(elsewhere)), runs, {"before": float(np.mean(chosen))}),
        _outcome("harm of a gate on 48 texts", float(held), runs, {"truth above the upper end": float(above)}),
    ]


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
        word = score_verdict(relation).word
        words[word] = words.get(word, 0) + 1
    return Outcome(
        f"{NAME}, correlation {rho}, {'shared' if shared else 'own'} questions",
        [inside / runs],
        ">= 0.93" if inside / runs < 0.95 else "<= 0.97",
        f"{runs} simulations, {QUESTIONS} questions x 90 heads",
        detail={"bias": sum(errors) / runs, "verdicts": words},
        unit="",
    )
