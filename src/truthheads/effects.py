"""What a gate did: differences to the ungated run, tests, controls, and the sentence that sums them up."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest, t

from truthheads.measures import Draws, Measured, Resampling, measure, resample
from truthheads.stats import LEVEL, Figure

ALPHA = 1 - LEVEL
BETTER, WORSE, NOTHING = "better", "worse", "no evidence"
LESS_OFTEN, MORE_OFTEN = "better by answering yes less often", "better by answering yes more often"
FEWER = "better by naming fewer objects"


class Compared(NamedTuple):
    """One run beside the ungated one.

    Attributes:
        metrics: Its figures.
        effect: Its figures less the ungated run's, on the same items.
        p: Two-sided, of the primary figure: ``paired`` (bootstrap over clusters), ``mcnemar`` (exact, items).
        primary: Name of the primary figure.
        sign: +1 where more of it is better.
    """

    metrics: dict[str, Figure]
    effect: dict[str, Figure]
    p: dict[str, float]
    primary: str
    sign: int

    @property
    def gain(self) -> float:
        """The primary effect, positive where better."""
        return self.sign * self.effect[self.primary].value


def figures(measured: Measured, *, seed: int, resampling: Resampling | None = None) -> dict[str, Figure]:
    """Return the figures of one run with clustered 95 % intervals."""
    drawn = measure(measured, resampling or resample(measured.clusters, seed=seed))
    return {name: draws.figure() for name, draws in drawn.items()}


def compare(plain: Measured, changed: Measured, *, seed: int, resampling: Resampling | None = None) -> Compared:
    """Return a run beside the ungated one; both hold the same items in the same order.

    Args:
        plain: The ungated run.
        changed: The gated run.
        seed: Of the resamples, which both share: differences are paired.
        resampling: The resamples, where they are at hand.
    """
    resampling = resampling or resample(plain.clusters, seed=seed)
    before, after = measure(plain, resampling), measure(changed, resampling)
    clusters = resampling.weights.shape[1]
    effect = {
        name: Draws(after[name].value - before[name].value, after[name].draws - before[name].draws, clusters)
        for name in after
        if name in before
    }
    p = {"paired": paired_p(effect[plain.primary])}
    if plain.right is not None and changed.right is not None:
        p["mcnemar"] = mcnemar(plain.right, changed.right)
    metrics = {name: draws.figure() for name, draws in after.items()}
    differences = {name: draws.figure() for name, draws in effect.items()}
    return Compared(metrics, differences, p, plain.primary, plain.sign)


def paired_p(effect: Draws) -> float:
    """Return the two-sided p of an effect by its bootstrap standard error and Student's t over the clusters.

    1 where nothing changed in any resample; NaN with fewer than two clusters or an effect that is not defined.
    """
    spread = float(np.nanstd(effect.draws)) if np.isfinite(effect.draws).any() else np.nan
    if effect.clusters < 2 or not np.isfinite(effect.value) or not np.isfinite(spread):
        return float("nan")
    if spread == 0:
        return 1.0 if effect.value == 0 else 0.0
    return float(2 * t.sf(abs(effect.value) / spread, effect.clusters - 1))


def mcnemar(before: Bool[np.ndarray, " items"], after: Bool[np.ndarray, " items"]) -> float:
    """Return the exact two-sided p of McNemar's test; items are taken as independent.

    Source:
        McNemar (1947), Psychometrika 12(2), 153-157, with the binomial distribution.
    """
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p adjusted for several tests; a p that is not defined stays so and counts as a test.

    Source:
        Holm (1979), Scandinavian Journal of Statistics 6(2), 65-70.
    """
    order = sorted(p, key=lambda name: p[name] if np.isfinite(p[name]) else 2.0)
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(order):
        if not np.isfinite(p[name]):
            adjusted[name] = float("nan")
            continue
        highest = max(highest, min(1.0, (len(order) - rank) * p[name]))
        adjusted[name] = highest
    return adjusted


def verdict(compared: Compared, p: float) -> str:
    """Return the sentence on a gate.

    ``better`` or ``worse`` where the interval of the primary effect lies on one side of 0 and the adjusted p is below
    0.05. A gain in accuracy that goes with a shift of the yes-rate is called ``better by answering yes less often``
    (or more) unless a figure that such a shift leaves alone gained too: AUROC, or d′ where there are no logits
    (TPR − FPR moves with the threshold, and on balanced items is the accuracy itself). A fall of CHAIR-i that goes
    with a fall of recall is ``better by naming fewer objects``.

    Args:
        compared: The gate beside the ungated run.
        p: Of the primary effect, adjusted for the number of gates.
    """
    effect, main = compared.effect, compared.effect[compared.primary]
    found = np.isfinite(p) and p < ALPHA and (main.low > 0 or main.high < 0)
    if not found:
        return NOTHING
    if compared.sign * main.value < 0:
        return WORSE
    if "yes_rate" in effect:
        free = effect["auroc"] if "auroc" in effect else effect["sensitivity"]
        shift = effect["yes_rate"]
        if not free.low > 0 and (shift.low > 0 or shift.high < 0):
            return LESS_OFTEN if shift.value < 0 else MORE_OFTEN
    if "chair_i" in effect and effect["recall"].high < 0:
        return FEWER
    return BETTER


def rank_among(gain: float, controls: Sequence[float]) -> dict[str, Any]:
    """Return how a gate stands among its controls: how many it beats, its rank from 1, and the permutation p."""
    as_good = sum(control >= gain for control in controls)
    return {
        "beaten": len(controls) - as_good,
        "of": len(controls),
        "rank": 1 + as_good,
        "p": (1 + as_good) / (1 + len(controls)),
    }
