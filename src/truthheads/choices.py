"""The values and names of settings, once for the command line and for Python. Importing this loads nothing."""

import functools
import warnings
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

ScoreMethod = Literal["probe", "attribution", "evidence"]
"""How heads are scored."""

Probe = Literal["newton", "paper"]
"""Which solver fits the linear probes."""

Folds = Literal["grouped", "paper"]
"""How rows are assigned to cross-validation folds."""

Position = Literal["answer", "question"]
"""Whose last token's attention is shown."""

Site = Literal["z", "output"]
"""What a factor scales. ``z``: a head's slice of the output projection's input. ``output``: a block of the projection's
output, as wide as its share of the heads; block i is not head i, since the projection has mixed all heads (this is the
gate of the released code)."""

Norm = Literal["centred", "minmax", "signed"]
"""How scores become distances from a factor of 1."""

Control = Literal["constant", "shuffled", "random"]
"""What a control gate keeps of the gate it stands beside."""

BaselineName = Literal["prompt", "cad"]
"""What a user could do without changing the model: an instruction to use the context alone, context-aware decoding."""

CAD_ALPHA = 0.5
"""Weight of what the context adds in context-aware decoding, as published for question answering."""

TuneMethod = Literal["grid", "learn", "adapt"]
"""How a gate (``grid``, ``learn``) or a head adapter (``adapt``) is found."""

HeadChoice = Literal["attribution", "truth", "random", "all"]
"""Which heads an adapter changes: the largest attributions (by magnitude), the largest Truth Scores, heads drawn at
random, or all."""

GateFormat = Literal["adapter", "checkpoint", "gguf"]
"""What an export of a gate writes."""

ExportFormat = Literal[GateFormat, "gguf-lora"]
"""What an export writes; ``gguf-lora`` is for adapters alone."""

Generated = Literal["text", "scenes"]
"""What can be generated."""

Split = Literal["train", "dev", "test"]
"""Which part of the generators' names, facts and seeds."""

PairStrategy = Literal["closed-book", "swap", "both"]
"""Where the untruthful answer of a pair comes from."""

P = ParamSpec("P")

R = TypeVar("R")


def renamed(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keyword arguments by their old names, too.

    Args:
        names: New names by old ones.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got both {old!r} and {new!r}, which are one argument")
                said = f"{function.__name__}: {old}= is now {new}=, as on the command line; {old}= will go after 0.2"
                warnings.warn(said, FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        run.__dict__["renamed"] = names
        return run

    return decorate
