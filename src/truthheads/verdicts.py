"""What the agreement of two models' scores says about their kinship, in words. Thresholds: docs/decisions/0006."""

from typing import NamedTuple

import numpy as np

from truthheads.lineage import Relation
from truthheads.stats import Figure

INHERITED = 0.5
"""Within-layer correlation, noise taken off, from which on scores count as inherited: a quarter of their variance."""
RELATED = 0.15
"""Below this, agreement is of no use to anyone: a fiftieth of the variance."""
SURE = 0.01
"""Permutation p from which on agreement is not chance."""
MEASURED = 0.5
"""Noise ceiling below which scores are mostly chance, and a correlation divided by it means nothing."""


class Verdict(NamedTuple):
    """A word and what it rests on."""

    word: str
    evidence: str


def judge(relation: Relation) -> Verdict:
    """Return ``inherited``, ``partly``, ``not related`` or ``can't tell``, from the ends of intervals alone.

    The figure judged is the within-layer correlation with the questions' noise taken off; where a file's ceiling is
    below ``MEASURED``, the correlation across disjoint halves; without samples, the plain within-layer correlation.
    """
    name, judged = _judged(relation)
    p = relation.p_permutation
    words = f"within-layer correlation {name} {judged}, permutation p {p:.4f}"
    if relation.ceiling_within is not None:
        words += f", noise ceiling {relation.ceiling_within:.2f}"
    words += f"; raw {relation.pearson.value:.3f}, of which depth alone gives {relation.depth_only:.3f}"
    if not np.isfinite([judged.low, judged.high]).all():
        return Verdict("can't tell", f"{words}: no interval")
    if p <= SURE and judged.low >= INHERITED:
        return Verdict("inherited", words)
    if p <= SURE and judged.low > RELATED:
        return Verdict("partly", words)
    if judged.high < INHERITED and (p > SURE or judged.high <= RELATED):
        return Verdict("not related", words)
    return Verdict("can't tell", f"{words}: the interval reaches from below {RELATED} upwards, or p is above {SURE}")


def _judged(relation: Relation) -> tuple[str, Figure]:
    if relation.corrected_within is None or relation.disjoint_within is None or relation.ceiling_within is None:
        return "(no samples: noise still in it)", relation.within
    ends = [relation.corrected_within.low, relation.corrected_within.high]
    if relation.ceiling_within < MEASURED or not np.isfinite(ends).all():
        return "across disjoint halves", relation.disjoint_within
    return "without noise", relation.corrected_within
