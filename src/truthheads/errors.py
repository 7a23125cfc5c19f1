"""Every error raised on purpose: what was expected, what came, what to do."""

import errno
from collections.abc import Sequence
from functools import partial
from typing import Any


class TruthHeadsError(Exception):
    """Base of every error raised on purpose.

    Args:
        problem: One line, what is wrong and where.
        expected: What a valid input looks like.
        got: What came instead.
        fix: What the reader can do about it.
    """

    def __init__(self, problem: str, *, expected: str, got: str, fix: str) -> None:
        super().__init__(f"{problem}\n  expected: {expected}\n  got: {got}\n  do: {fix}")
        self.problem = problem
        self.expected = expected
        self.got = got
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error come back whole from a worker process."""
        return partial(type(self), expected=self.expected, got=self.got, fix=self.fix), (self.problem,)


class SeveralErrors(TruthHeadsError):
    """Several things are wrong at once, each of which would have been an error alone.

    Args:
        found: They.
    """

    def __init__(self, found: Sequence[TruthHeadsError]) -> None:
        Exception.__init__(self, "\n".join(map(str, found)))
        self.found = tuple(found)
        self.problem = "; ".join(one.problem for one in found)
        self.expected = "; ".join(one.expected for one in found)
        self.got = "; ".join(one.got for one in found)
        self.fix = "; ".join(one.fix for one in found)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error come back whole from a worker process."""
        return type(self), (self.found,)


class DataError(TruthHeadsError):
    """A question file or one of its rows cannot be used."""


class RowError(DataError):
    """One row cannot be used; the others can, so that ``--skip-bad-rows`` may leave it out."""


class ModelError(TruthHeadsError):
    """A model, its configuration, weights or tokenizer cannot be used."""


class ArchitectureError(ModelError):
    """The heads of a model could not be located."""


class ArtifactError(TruthHeadsError):
    """An artefact file is missing, damaged, of another kind or of an unknown version."""


class ShapeError(TruthHeadsError):
    """Two things that must have the same shape do not."""


class ActivationError(TruthHeadsError):
    """A forward pass gave values that cannot be used (NaN or infinity), or no memory was left for it."""


class GateError(TruthHeadsError):
    """A gate cannot be used as it is, or not on this model."""


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error says that there was no memory left; also one that another error was made from.

    Libraries say so each in their own way. A thread that cannot be started lacks memory for its stack, as a rule.
    """
    while error is not None:
        if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
            return True
        if getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in NO_MEMORY):
            return True
        error = error.__cause__
    return False


NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc", "can't start new thread")


class NotFirstRank(BaseException):
    """No error: raised in every process but the first when its share is done. The first goes on with the whole."""
