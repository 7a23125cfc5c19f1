"""What a reader must be told of the data before the figures made from them: few rows, answers that are alike."""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

LUCKIEST = 2 / 3
"""Accuracy up to which the luckiest of the heads that carry nothing may be expected: heads are ranked from so many
questions on. On 270 simulated heads, 27 of them good, that is from 52 questions on, and there the ten heads on top of
the list are all good ones where a probe can reach .8 (docs/decisions/0014-few-rows.md)."""

WIDER = 1.2
"""A cross-validated accuracy varies by so many binomial standard errors: its folds share what they are trained on."""

RANKED_FROM = 20
"""Questions below which no heads are ranked, however few they are: a bootstrap of fewer clusters is too narrow."""

CHOSEN_FROM = 20
"""Dev questions from which on a gate is chosen by the lower end of an interval; docs/decisions/0014-few-rows.md.

Where none of twelve gates helps, the rule chooses one on 28 % of simulated sets of 5 questions, on 14 % of 20 and on
10 % of 100."""


def luckiest(questions: int, heads: int) -> float:
    """Return the accuracy that is expected of the best of some heads that carry nothing.

    Args:
        questions: How many independent questions, with two answers each, the heads were measured on.
        heads: How many heads.

    Source:
        Largest of n normal numbers: Blom (1958), Statistical Estimates and Transformed Beta-Variables, p. 69.
    """
    return min(1.0, 0.5 + _extreme(heads) * WIDER * 0.5 / math.sqrt(2 * questions))


def ranked_from(heads: int) -> int:
    """Return the number of questions from which on so many heads can be ranked."""
    return max(RANKED_FROM, math.ceil((_extreme(heads) * WIDER * 0.5 / (LUCKIEST - 0.5)) ** 2 / 2))


def _extreme(heads: int) -> float:
    """Return the expected largest of so many standard normal numbers."""
    return NormalDist().inv_cdf((heads - 0.375) / (heads + 0.25)) if heads > 1 else 0.0


def cannot_rank(questions: int | None, heads: int) -> str | None:
    """Return the sentence that says that heads cannot be ranked; None where they can, or where the number is unknown.

    Args:
        questions: How many independent questions the heads were measured on.
        heads: How many heads.
    """
    if questions is None or questions >= ranked_from(heads):
        return None
    return (
        f"Heads cannot be ranked: {_counted(questions)} too few to tell a good head from a lucky one. Of {heads} heads "
        f"that carry nothing, a probe on the luckiest would be right on about {luckiest(questions, heads):.0%} of the "
        f"answers; give {ranked_from(heads)} questions or more (rows of one group count once)."
    )


def cannot_choose(questions: int) -> str | None:
    """Return the sentence that says that a gate cannot be chosen safely; None where it can.

    Args:
        questions: How many independent dev questions the candidates were judged on.
    """
    if questions >= CHOSEN_FROM:
        return None
    return (
        f"Gates cannot be told apart safely: {_counted(questions, 'dev question')} too few, so the chosen one may only "
        f"be lucky; give {CHOSEN_FROM} or more to judge on (rows of one group count once)."
    )


def data_cautions(data: Mapping[str, Any] | None) -> list[str]:
    """List the caveats of a data set, from its description in an artefact.

    Args:
        data: As :func:`truthheads.data.answers.describe_data` returns it; None where nothing is known.
    """
    data = data or {}
    found = []
    alike = data.get("alike") or {}
    if count := alike.get("rows", 0):
        more = ", …" if count > len(alike["first"]) else ""
        found.append(
            f"In {count} of {data.get('rows')} rows the untruthful answer is the truthful one but for case, "
            f"punctuation or an article, or one of its other forms ({', '.join(alike['first'])}{more}): such rows tell "
            "no head from another; correct them or leave them out."
        )
    if note := data.get("note"):
        found.append(str(note))
    if skipped := data.get("skipped", 0):
        found.append(f"{skipped} bad rows were left out.")
    return found


def _counted(questions: int, what: str = "question") -> str:
    return f"{questions} {what} is" if questions == 1 else f"{questions} {what}s are"
