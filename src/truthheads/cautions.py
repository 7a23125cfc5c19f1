"""What a reader must be told of the data before the figures made from them: few rows, answers that are alike."""

from collections.abc import Mapping
from typing import Any

RANKED_FROM = 50
"""Questions (groups of rows that are not told apart) from which on heads are ranked; docs/decisions/0014-few-rows.md.

Of 243 simulated heads that carry nothing, the luckiest has accuracy .98 on 5 questions, .78 on 20 and .66 on 50; on 50 the
ten heads on top of the list all carry the label where a probe can reach .8."""
CHOSEN_FROM = 20
"""Dev questions from which on a gate is chosen by the lower end of an interval; docs/decisions/0014-few-rows.md.

Where none of twelve gates helps, the rule chooses one on 28 % of simulated sets of 5 questions, 14 % of 20, 10 % of 100."""


def cannot_rank(questions: int | None) -> str | None:
    """Return the sentence that says that heads cannot be ranked; None where they can, or where the number is unknown.

    Args:
        questions: How many independent questions the heads were measured on.
    """
    if questions is None or questions >= RANKED_FROM:
        return None
    return (
        f"Heads cannot be ranked: {_counted(questions)} too few to tell a good head from a lucky one; give "
        f"{RANKED_FROM} or more (rows of one group count once)."
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
    """Return what must be said of a data set, from its description in an artefact.

    Args:
        data: As :func:`truthheads.answers.describe_data` returns it; None where nothing is known.
    """
    data = data or {}
    found = []
    alike = data.get("alike") or {}
    if count := alike.get("rows", 0):
        more = ", …" if count > len(alike["first"]) else ""
        found.append(
            f"In {count} of {data.get('rows')} rows the untruthful answer is the truthful one but for case, "
            f"punctuation or an article, or one of its other forms ({', '.join(alike['first'])}{more}): such rows tell "
            "no head from another; mend them or leave them out."
        )
    if note := data.get("note"):
        found.append(str(note))
    if skipped := data.get("skipped", 0):
        found.append(f"{skipped} bad rows were left out.")
    return found


def _counted(questions: int, what: str = "question") -> str:
    return f"{questions} {what} is" if questions == 1 else f"{questions} {what}s are"
