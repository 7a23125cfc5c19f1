"""Command lines of earlier releases, rewritten to what they are called now. They are accepted for one release."""

from collections.abc import Sequence
from typing import NamedTuple

TUNE = ("adapt", "learn", "grid")
"""Sub-commands of ``tune``."""

TUNE_ONLY = {
    "learn": ("--base-gate", "--site", "--epochs", "--rate", "--pull", "--low", "--high", "--dev-share"),
    "grid": ("--scores", "--strengths", "--norms", "--sites", "--standardise"),
}
"""Options that one method uses; the other accepted and ignored them."""

TUNE_FLAGS = (
    "--standardise", "--chat", "--truncate", "--skip-bad-rows", "--skip-missing", "--trust-remote-code", "--json",
    "--help", "-h",
)  # fmt: skip
"""Options of ``tune`` that take no value."""


class Rewritten(NamedTuple):
    """A command line, and what to tell the person who typed it.

    Attributes:
        argv: The words after the program's name.
        note: What was rewritten; None where nothing was.
    """

    argv: list[str]
    note: str | None


def old_form(argv: Sequence[str]) -> Rewritten:
    """Rewrite a command line of an earlier release, if it is one.

    Args:
        argv: The words after the program's name.
    """
    words = list(argv)
    if words[:1] == ["tune"]:
        return _old_tune(words)
    return Rewritten(words, None)


def _old_tune(words: list[str]) -> Rewritten:
    """Rewrite ``tune MODEL --method METHOD``; options that METHOD ignored are left out and named in the note."""
    pieces = _pieces(words[1:])
    method = next((_value(piece) for piece in pieces if _name(piece) == "--method"), None)
    first = next((piece[0] for piece in pieces if not _name(piece)), None)
    if first is None or (method is None and first in TUNE):
        return Rewritten(words, None)
    way = method or "learn"
    ignored = {option for other, options in TUNE_ONLY.items() if other != way for option in options}
    kept = [piece for piece in pieces if _name(piece) not in {"--method", *ignored}]
    dropped = [_name(piece) for piece in pieces if _name(piece) in ignored]
    note = f"`tune MODEL{f' --method {method}' if method else ''}` is now `tune {way} MODEL`"
    if dropped:
        note += f"; {', '.join(dropped)} left out: no effect on {way}"
    return Rewritten(["tune", way, *(word for piece in kept for word in piece)], note)


def _pieces(words: Sequence[str]) -> list[list[str]]:
    """Split the words into arguments and options, each option with its value."""
    pieces: list[list[str]] = []
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return [*pieces, *([each] for each in words[at:])]
        alone = not word.startswith("--") or "=" in word or word in TUNE_FLAGS
        pieces.append(list(words[at : at + (1 if alone else 2)]))
        at += len(pieces[-1])
    return pieces


def _name(piece: Sequence[str]) -> str:
    """Name the option of a piece; an argument has none."""
    return piece[0].partition("=")[0] if piece[0].startswith("-") and piece[0] not in ("-", "--") else ""


def _value(piece: Sequence[str]) -> str | None:
    return piece[0].partition("=")[2] or (piece[1] if len(piece) > 1 else None)
