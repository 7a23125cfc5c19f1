"""Work on files done ahead of the model, in worker processes: decoding and preparing images."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from truthheads.errors import ActivationError, TruthHeadsError

Item = TypeVar("Item")
Made = TypeVar("Made")
WORTH = 32
"""Fewer items than this are done in this process: starting others would take longer."""
MOST = 8


class _Mapped(Dataset[Any], Generic[Item, Made]):
    def __init__(self, function: Callable[[Item], Made], items: Sequence[Item]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> "Made | TruthHeadsError":
        try:
            return self.function(self.items[index])
        except TruthHeadsError as error:
            return error  # the loader would raise it anew from its text alone


def spare_processes() -> int:
    """Return how many worker processes images are worth: all processors but one, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, usable - 1)


def mapped(function: Callable[[Item], Made], items: Sequence[Item], *, workers: int | None = None) -> Iterator[Made]:
    """Yield ``function(item)`` in order, computed in worker processes, two items ahead for each of them.

    Args:
        function: Called in the workers; it and its results can be pickled. Arrays, not tensors: these would go through
            shared memory, of which containers have little.
        items: What it is called with.
        workers: So many processes; by default none for fewer than 32 items, else :func:`spare_processes`.

    Raises:
        TruthHeadsError: Whatever ``function`` raised, as it was.
        ActivationError: A worker was killed.
    """
    count = (spare_processes() if len(items) >= WORTH else 0) if workers is None else workers
    with _quiet_tokenizers():
        loader = DataLoader(_Mapped(function, items), batch_size=None, num_workers=count, collate_fn=_as_is)
        try:
            for made in loader:
                if isinstance(made, TruthHeadsError):
                    raise made
                yield made
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ActivationError(
                "a process that prepares images was killed",
                expected=f"memory for {count} images at a time beside the model",
                got=str(error).splitlines()[0],
                fix="free memory, or make the largest images smaller",
            ) from error


def _as_is(item: Any) -> Any:
    return item


@contextmanager
def _quiet_tokenizers() -> Iterator[None]:
    """Keep tokenizers from using threads, and from warning of them, while processes are forked."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
