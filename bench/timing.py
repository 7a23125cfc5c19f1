"""Two ways of doing one thing, timed in turns, so that what else the machine does falls on both alike."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Took(NamedTuple):
    """What one call cost.

    Attributes:
        wall: Seconds on the clock.
        cpu: Seconds of all of the process's threads; hardly moves when other programs take cores away.
    """

    wall: float
    cpu: float


@dataclass(frozen=True)
class Outcome:
    """One line of the table.

    Attributes:
        name: The benchmark's, and what it was run on.
        ratios: One for each turn.
        target: ``<= 1.15`` or ``>= 50``; empty where there is none.
        n: What was counted, in words.
        cpu_ratios: The same ratios in CPU seconds; empty where they say nothing.
        detail: Anything else that was measured, for ``--json`` and the lines below the table.
        unit: Behind the number.
    """

    name: str
    ratios: Sequence[float]
    target: str
    n: str
    cpu_ratios: Sequence[float] = ()
    detail: dict[str, Any] = field(default_factory=dict)
    unit: str = "×"

    @property
    def value(self) -> float:
        """The median of the turns."""
        return float(np.median(self.ratios))

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if not self.target:
            return None
        relation, bound = self.target.split()
        return self.value <= float(bound) if relation == "<=" else self.value >= float(bound)

    def json(self) -> dict[str, Any]:
        """Return the line as JSON; the figure is the median and the range of the turns, not an interval."""
        result = {
            "name": self.name,
            "target": self.target or None,
            "met": self.met,
            "n": self.n,
            "turns": len(self.ratios),
        }
        for key, values in (("ratio", self.ratios), ("cpu_ratio", self.cpu_ratios)):
            if len(values):
                result[key] = {"value": float(np.median(values)), "low": float(min(values)), "high": float(max(values))}
        return {**result, "detail": self.detail}


def timed(work: Callable[[], Any]) -> Took:
    """Run once and return the cost; no garbage collection inside."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(*works: Callable[[], Any], turns: int) -> list[list[Took]]:
    """Run A B … A B … and return for each work its costs, one a turn."""
    costs: list[list[Took]] = [[] for _ in works]
    for _ in range(turns):
        for work, cost in zip(works, costs, strict=True):
            cost.append(timed(work))
    return costs


def over(above: Sequence[Took], below: Sequence[Took]) -> tuple[list[float], list[float]]:
    """Return the ratios of costs that were measured in one turn: in wall and in CPU seconds."""
    pairs = list(zip(above, below, strict=True))
    return [a.wall / b.wall for a, b in pairs], [a.cpu / max(b.cpu, 1e-9) for a, b in pairs]


class Parts:
    """Seconds spent in named functions while they are watched.

    A function that another watched function calls counts for itself alone, so the parts add up.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextlib.contextmanager
    def watch(self, *places: tuple[Any, str, str]) -> Iterator["Parts"]:
        """Replace ``owner.name`` by a timed version inside the block.

        Args:
            places: (part, owner, name); the owner is a module, a class or a dictionary.
        """
        with contextlib.ExitStack() as undo:
            for part, owner, name in places:
                if isinstance(owner, dict):
                    original = owner[name]
                    owner[name] = self._timed(part, original)
                    undo.callback(owner.__setitem__, name, original)
                else:
                    original = getattr(owner, name)
                    setattr(owner, name, self._timed(part, original))
                    undo.callback(setattr, owner, name, original)
            yield self

    def shares(self, total: float) -> dict[str, float]:
        """Return each part's share of a total, the rest as ``other``."""
        shares = {part: seconds / total for part, seconds in self.seconds.items()}
        return {**shares, "other": 1 - sum(shares.values())}

    def _timed(self, part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                inner = self._inner.pop()
                self._inner[-1] += spent
                self.seconds[part] = self.seconds.get(part, 0.0) + spent - inner

        return run
