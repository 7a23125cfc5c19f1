"""Yes or no from an answer's text: a strict parser beside those of the released evaluators, bug for bug."""

import re
from collections.abc import Callable
from typing import Literal

Verdict = Literal["yes", "no"]
Parser = Callable[[str], Verdict | None]
"""From an answer's text to yes, no, or None where it is neither."""


def strict(text: str) -> Verdict | None:
    """Return the first word where it is yes or no and the other of the two does not occur in the first sentence.

    Case, and quotes, stars or blanks before the first word, do not matter: ``**Yes**, there is`` is yes;
    ``Yes and no`` and ``There is no dog`` are neither.
    """
    words = re.findall(r"\w+", re.split(r"[.!?\n]", text.strip().lstrip("*_\"'“‘`([").casefold(), maxsplit=1)[0])
    if not words or words[0] not in ("yes", "no"):
        return None
    if words[0] == "yes":
        return None if "no" in words else "yes"
    return None if "yes" in words else "no"


def released(text: str) -> Verdict | None:
    """Return what the method's released POPE tasks read: yes or no where the text begins with it as a word.

    Case is ignored. ``Yes and no`` is yes. The A-OKVQA task first cuts the text at its first comma, which never
    changes the result, since nothing but the beginning is looked at.

    Source:
        ``pope_process_results`` of the released evaluation tasks.
    """
    found = re.match(r"(yes|no)\b", text.lower().strip())
    return None if found is None else "yes" if found.group(1) == "yes" else "no"


def released_halueval(text: str) -> Verdict:
    """Return what the method's released HaluEval task reads: as :func:`released`, and no for everything else.

    The text is first cut at its first blank line.

    Source:
        ``halueval_process_results`` of the released evaluation tasks, where ``unknown`` contains ``no``.
    """
    return released(text.split("\n\n")[0]) or "no"


def original_pope(text: str) -> Verdict:
    """Return what POPE's own evaluator reads: no where its first sentence has ``No``, ``no`` or ``not``, else yes.

    Words are what stands between single blanks once commas are gone; whatever is not no is yes, an empty answer too.

    Source:
        ``evaluate.py`` of POPE.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def original_halueval(text: str) -> Verdict | None:
    """Return what HaluEval's own evaluator reads: whichever of ``Yes`` and ``No`` stands anywhere in the text.

    Capitals matter, parts of words count (``Not`` is no), both or neither is a failure.

    Source:
        ``evaluate.py`` of HaluEval.
    """
    text = text.replace(".", "")
    yes, no = "Yes" in text, "No" in text
    return None if yes == no else "yes" if yes else "no"


POPE: dict[str, Parser] = {"strict": strict, "released": released, "original": original_pope}
HALUEVAL: dict[str, Parser] = {"strict": strict, "released": released_halueval, "original": original_halueval}
