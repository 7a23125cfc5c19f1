"""Number words and digits are one answer: "twenty-one" and "21", "third" and "3rd", "1,000" and "one thousand"."""

import re
from collections.abc import Iterable
from decimal import Decimal
from itertools import count
from typing import NamedTuple

UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip

TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}

CARDINALS = {**{word: at for at, word in enumerate(UNITS)}, **{word: 10 * at for at, word in enumerate(TENS, start=2)}}

ODD = {"first": "one", "second": "two", "third": "three", "fifth": "five", "eighth": "eight", "ninth": "nine",
       "twelfth": "twelve"}  # fmt: skip

WORDS = (*CARDINALS, "hundred", *SCALES)

ORDINALS = {**{re.sub("y$", "ie", word) + "th": word for word in WORDS if word not in ODD.values()}, **ODD}
"""The cardinal word of each ordinal one."""

PRONOUN = re.compile(r"\b(?:no|any|every|some)[\s-]+$", re.IGNORECASE)
"""Before "one" it makes a pronoun: "no one" is not "No. 1"."""

_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|0|[1-9]\d*)(?:\.\d+|st|nd|rd|th)?|\.\d+"

_WORD = "|".join(sorted((*WORDS, *ORDINALS), key=len, reverse=True))

_RUN = re.compile(
    rf"(?<!\w)(?<!\d[.,:/-])(?:an?\s+)?(?:{_DIGITS}|{_WORD})(?!\w|[.,:/-]\d)"
    rf"(?:(?:,?\s+|-)(?:and[\s-]+)?(?:{_WORD})(?!\w))*",
    re.IGNORECASE,
)

_PART = re.compile(rf"{_DIGITS}|[a-z]+|,", re.IGNORECASE)


class Number(NamedTuple):
    """One number that was read from words.

    Attributes:
        value: What it is.
        after: Index of the word after it.
        ordinal: Whether it is a place in an order.
    """

    value: Decimal
    after: int
    ordinal: bool = False


class Numeral(NamedTuple):
    """One number in a text: where it stands and how it reads in digits."""

    start: int
    end: int
    digits: str


def numerals(text: str) -> list[Numeral]:
    """Return all numbers in a text with their digits, from left to right.

    Args:
        text: English. Other languages' words are left alone.

    Returns:
        Cardinals without separators or needless zeros (``3.0`` is 3, ``1,000`` is 1000), ordinals as 1st, 2nd, 3rd.
        Words that do not make one number together are several ("one two", "twenty, one"). Not numbers: "one" inside
        another word or after no, any, every and some; digits with letters, a leading 0, colons, slashes, hyphens or
        several points (codes, times, dates, versions); Roman numerals; fractions. A year as it is spoken ("nineteen
        ninety") is two numbers.
    """
    found = []
    for run in _RUN.finditer(text):
        parts = list(_PART.finditer(text, run.start(), run.end()))
        words = [part.group().lower() for part in parts]
        if words == ["one"] and PRONOUN.search(text[max(0, run.start() - 20) : run.start()]):
            continue
        at = 0
        while at < len(words):
            number = _number(words, at)
            if number is not None:
                found.append(Numeral(parts[at].start(), parts[number.after - 1].end(), _digits(number)))
            at = at + 1 if number is None else number.after
    return found


def in_digits(text: str) -> str:
    """Return a text with all its numbers in digits; see :func:`numerals`."""
    return _replaced(text, numerals(text))[0]


def is_number(text: str) -> bool:
    """Return whether a text is one number, in words or in digits, and nothing else."""
    text = text.strip(" .,!?")
    return [(one.start, one.end) for one in numerals(text)] == [(0, len(text))]


def inside_number(text: str, found: Iterable[tuple[int, int]]) -> list[bool]:
    """Return for each character span whether it begins or ends inside a longer number: "one" in "twenty-one"."""
    numbers = numerals(text)
    return [any(one.start < place < one.end for one in numbers for place in span) for span in found]


def spans_of_equal(context: str, answer: str) -> tuple[tuple[int, int], ...]:
    """Return the character spans where an answer with a number in it stands in a context, its numbers in any spelling.

    Args:
        context: Where to look.
        answer: What to look for, as whole words in any case; without a number in it nothing is found.
    """
    if not numerals(answer):
        return ()
    plain, places = _replaced(context, numerals(context))
    wanted = rf"(?<!\w)(?<!\d[.,]){re.escape(in_digits(answer.strip()))}(?!\w|[.,]\d)"
    spans = (match.span() for match in re.finditer(wanted, plain, re.IGNORECASE))
    return tuple((places[start], places[end - 1] + 1) for start, end in spans)


def _replaced(text: str, found: list[Numeral]) -> tuple[str, list[int]]:
    """Return a text with numbers in digits and, for each of its characters, the one of the text that it stands for."""
    parts: list[str] = []
    places: list[int] = []
    before = 0
    for start, end, digits in found:
        parts += [text[before:start], digits]
        places += [*range(before, start), *(min(start + at, end - 1) for at in range(len(digits) - 1)), end - 1]
        before = end
    parts.append(text[before:])
    places += range(before, len(text))
    return "".join(parts), places


def _digits(number: Number) -> str:
    digits = f"{number.value:f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    if not number.ordinal:
        return digits
    teens = digits[-2:] in ("11", "12", "13")
    return digits + ("th" if teens else {"1": "st", "2": "nd", "3": "rd"}.get(digits[-1], "th"))


def _at(words: list[str], at: int) -> tuple[str, bool]:
    """Return the cardinal word at a place and whether it is an ordinal; an empty text behind the end."""
    word = words[at] if at < len(words) else ""
    return ORDINALS.get(word, word), word in ORDINALS


def _number(words: list[str], at: int) -> Number | None:
    """Return the longest number that begins at a word: groups below 1000 with falling scales."""
    found: Number | None = None
    scale = max(SCALES.values()) + 1
    for first in count():
        start = at
        if first:
            start += words[start : start + 1] == [","]
            start += words[start : start + 1] == ["and"]
        group = _below_1000(words, start)
        if group is None:
            return found
        word, ordinal = _at(words, group.after)
        if group.ordinal or word not in SCALES:
            return group if found is None else group._replace(value=found.value + group.value)
        if SCALES[word] >= scale:
            return found
        scale = SCALES[word]
        above = found.value if found is not None else Decimal(0)
        found = Number(above + group.value.scaleb(scale), group.after + 1, ordinal)
        at = found.after
        if ordinal:
            return found
    raise AssertionError("unreachable")


def _below_1000(words: list[str], at: int) -> Number | None:
    """Return digits, or a number below 1000; "a hundred" is one, and "a" before a scale counts 1."""
    word, ordinal = _at(words, at)
    following = _at(words, at + 1)[0]
    if word[:1].isdigit() or word[:1] == ".":
        bare = word.replace(",", "")
        plain = bare.rstrip("sthndr")
        some: Number | None = Number(Decimal(plain), at + 1, plain != bare)
    elif word in ("a", "an"):
        some = Number(Decimal(1), at + 1) if following == "hundred" or following in SCALES else None
    elif word == "hundred" or word in SCALES:
        some = Number(Decimal(1), at)
    else:
        some = _below_100(words, at)
    if some is None or some.ordinal:
        return some
    word, ordinal = _at(words, some.after)
    if word != "hundred":
        return some
    hundreds = Number(some.value * 100, some.after + 1, ordinal)
    start = hundreds.after + (words[hundreds.after : hundreds.after + 1] == ["and"])
    rest = None if ordinal else _below_100(words, start)
    if rest is None or not rest.value or _at(words, rest.after)[0] == "hundred":
        return hundreds
    return rest._replace(value=hundreds.value + rest.value)


def _below_100(words: list[str], at: int) -> Number | None:
    word, ordinal = _at(words, at)
    if word not in CARDINALS:
        return None
    tens, unit = CARDINALS[word], _at(words, at + 1)
    if word in TENS and not ordinal and 0 < CARDINALS.get(unit[0], 0) < 10:
        return Number(Decimal(tens + CARDINALS[unit[0]]), at + 2, unit[1])
    return Number(Decimal(tens), at + 1, ordinal)
