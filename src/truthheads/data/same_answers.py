"""Two answers that are one: equal but for case, punctuation, articles and blanks."""

import re
import unicodedata
from collections.abc import Iterable

ARTICLES = re.compile(r"\b(?:a|an|the)\b")

THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")

MARKS = re.compile(r"(?!(?<=\d)[.,:/](?=\d)|(?<!\w)[-−+](?=\d)|(?<=\w)[-−+#%]+(?!\w))[^\w\s]")
"""Punctuation that says nothing: all but the marks that tell ``1.5`` from ``15``, ``-5`` from ``5``, ``C++`` from C."""


def same_answer(one: str, other: str) -> bool:
    """Return whether two answers are equal but for case, punctuation, articles and blanks.

    ``Paris`` is ``paris``, ``Paris.`` and ``the Paris``; ``well-known`` is ``well known``; ``1,000`` is ``1000``. An
    answer of nothing but punctuation or articles is compared as it stands.

    Source:
        Answer normalisation of SQuAD: Rajpurkar et al. (2016), arXiv 1606.05250, which deletes all punctuation.
    """
    if one.strip() == other.strip():
        return True
    return any(_bare(one, between) == _bare(other, between) for between in ("", " "))


def any_same(some: Iterable[str], others: Iterable[str]) -> bool:
    """Return whether one of some answers is one of the others."""
    others = list(others)
    return any(same_answer(one, other) for one in some for other in others)


def _bare(text: str, between: str) -> str:
    """Return an answer's words; ``between`` takes the place of each mark."""
    plain = THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(MARKS.sub(between, plain).split())
    return " ".join(ARTICLES.sub(" ", words).split()) or words or text.strip()
