"""How far long work is: one count for work in several parts, and the layers of a batch that takes long."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from truthheads.models.load import Model

Progress = Callable[[int, int], None]
"""Called with (done, total), in tokens or another unit of work."""

SLOW_SECONDS = 2.0
"""A batch that takes longer tells its progress layer by layer."""


class WorkParts:
    """One progress for work in several parts that may take turns.

    Args:
        progress: Called with the sum of the work done and the total; None for no calls.
        sizes: Rough cost of each part, in one unit for all (tokens of a forward pass).
    """

    def __init__(self, progress: Progress | None, sizes: Mapping[str, float]) -> None:
        self.progress, self.sizes = progress, sizes
        self._done = dict.fromkeys(sizes, 0.0)
        self._told = 0

    def part(self, name: str, *, turn: int = 0, turns: int = 1) -> Progress | None:
        """Return the progress of one part, or of one turn of several that make up the part."""
        told = self.progress
        if told is None:
            return None

        def tell(done: int, total: int) -> None:
            share = (turn + done / max(1, total)) / max(1, turns)
            self._done[name] = max(self._done[name], min(1.0, share) * self.sizes[name])
            self._told = max(self._told, int(sum(self._done.values())))
            told(self._told, int(sum(self.sizes.values())))

        return tell

    def finish(self) -> None:
        """Tell that all is done, also where there was less to do than was thought."""
        if self.progress is not None:
            total = int(sum(self.sizes.values()))
            self.progress(total, total)


@contextmanager
def told_by_layer(model: "Model", tell: Callable[[float], None] | None, *, passes: int = 1) -> Iterator[None]:
    """Tell the share of a batch's layers that are through, once the batch has taken two seconds.

    Args:
        model: The model; each layer with heads counts.
        tell: Called with a share in [0, 1); None for no calls.
        passes: Number of forward passes that the batch takes.
    """
    if tell is None:
        yield
        return
    count, visits = passes * len(model.layout.layers), 0
    begun = last = time.monotonic()

    def visited(*_: object) -> None:
        nonlocal visits, last
        visits += 1
        now = time.monotonic()
        if now - begun > SLOW_SECONDS and now - last > SLOW_SECONDS / 4 and visits < count:
            last = now
            tell(visits / count)

    with ExitStack() as undo:
        for head in model.layout.layers:
            undo.callback(model.network.get_submodule(head.path).register_forward_hook(visited).remove)
        yield
