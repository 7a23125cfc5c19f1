"""Sentences of an answer: where they stand in its text, and which token ends each."""

import re
from collections.abc import Sequence

from truthheads.models.load import Model

ENDS = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s+[\"'“‘(\[*•–-]*\w)|\n+")
"""Where a sentence may end: a stop before a blank and a new word, or a new line."""

SHORT = frozenset(
    "mr mrs ms dr prof st sr jr vs etc no fig inc ltd co corp gen col sgt lt capt rev hon gov sen rep approx dept est "  # noqa: SIM905
    "e.g i.e cf al ca p pp jan feb mar apr jun jul aug sep sept oct nov dec u.s u.k".split()
)
"""Words that end with a stop inside a sentence."""

LEAST_LETTERS = 2


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Return the character spans ``[start, end)`` of the sentences of a text, without the blanks between them.

    A stop ends no sentence after an abbreviation, an initial or a list's number, or before a small letter. A text
    without letters is one sentence.
    """
    spans, start = [], 0
    for match in ENDS.finditer(text):
        end = match.end() if text[match.start()] != "\n" else match.start()
        if text[match.start()] != "\n" and not _closes(text, start, match):
            continue
        spans.append((start, end))
        start = match.end()
    spans.append((start, len(text)))
    spans = [_trimmed(text, *span) for span in spans]
    found: list[tuple[int, int]] = []
    for first, last in spans:
        if sum(char.isalnum() for char in text[first:last]) >= LEAST_LETTERS:
            found.append((first, last))
        elif found and first < last:
            found[-1] = (found[-1][0], last)  # a lone sign or number belongs to the sentence before it
    return found or [_trimmed(text, 0, len(text))]


def _closes(text: str, start: int, match: re.Match[str]) -> bool:
    if text[match.start()] != ".":
        return True
    rest = text[match.end() :].lstrip()
    if rest[:1].islower():
        return False
    word = re.search(r"[\w.]*$", text[start : match.start()])
    last = (word.group() if word else "").lower().strip(".")
    initial = len(last) == 1 and last.isalpha()
    numbered = last.isdigit() and not text[start : match.start()].strip().removesuffix(last).strip()
    return last not in SHORT and not initial and not numbered


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    return start + left, max(start + left, start + len(piece.rstrip()))


def closing_tokens(model: Model, ids: Sequence[int], text: str, ends: Sequence[int]) -> list[int]:
    """Return for each character end of an answer the index of the token that ends it.

    Tokens are decoded, not counted again, so any tokenizer will do; one that loses characters is matched by shares.

    Args:
        model: Its tokenizer is used.
        ids: The answer's own tokens.
        text: The answer, stripped.
        ends: Character ends in ``text``, ascending; the last one is the answer's end.
    """
    whole = _decoded(model, ids)
    lead = len(whole) - len(whole.lstrip())
    scale = 1.0 if whole.strip() == text else len(whole.strip()) / max(1, len(text))
    found, low = [], 0
    for end in ends[:-1]:
        wanted, high = lead + round(end * scale), len(ids) - 1
        while low < high:
            middle = (low + high) // 2
            if len(_decoded(model, ids[: middle + 1]).rstrip("\ufffd")) >= wanted:
                high = middle
            else:
                low = middle + 1
        found.append(low)
    return [*found, len(ids) - 1]


def _decoded(model: Model, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
