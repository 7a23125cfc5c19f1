"""Keyword arguments of earlier releases: accepted for one release, with a note that says what they are called now."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

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

        return run

    return decorate
