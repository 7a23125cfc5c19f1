"""``score`` by two processes with one thread each against one process with two threads: whole commands."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.inputs import embedded
from bench.timing import Outcome, Took
from truthheads.data.questions import write_questions

NAME = "two-processes"
FEW = 12
"""Rows of a run that is start-up, loading and ending, with next to nothing between."""


class Way(NamedTuple):
    """One way of running the command.

    Attributes:
        name: For the detail below the table.
        words: What starts it.
        threads: Of each process.
    """

    name: str
    words: tuple[str, ...]
    threads: int


ONE = Way("one process", (sys.executable, "-m", "truthheads"), 2)
TWO = Way(
    "two processes",
    (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "truthheads"),
    1,
)


def run(*, quick: bool) -> list[Outcome]:
    """Time the commands in turns, with many rows and with few: what is left when these are taken off is the work."""
    rows, turns = (24, 1) if quick else (240, 3)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_questions(folder / "rows.jsonl", embedded(rows))
        costs: dict[tuple[str, int], list[Took]] = {}
        for _ in range(turns):
            for limit in (FEW, rows):
                for way in (ONE, TWO):
                    costs.setdefault((way.name, limit), []).append(cost(lambda w=way, n=limit: score(w, folder, n)))
        same = len({(folder / f"{way.threads}.safetensors").read_bytes() for way in (ONE, TWO)}) == 1
    whole = ratios(costs[ONE.name, rows], costs[TWO.name, rows])
    work = ratios(*(less(costs[way.name, rows], costs[way.name, FEW]) for way in (ONE, TWO)))
    detail: dict[str, object] = {"artefacts": "the same bytes" if same else "differ"}
    for kind in ("wall", "cpu"):
        detail[f"{kind}_seconds"] = {
            f"{name}, {limit} rows": sorted(getattr(took, kind) for took in found)[len(found) // 2]
            for (name, limit), found in costs.items()
        }
    counted = f"{rows} generated rows"
    return [
        Outcome(f"{NAME} (whole command)", whole, ">= 1.0", counted, detail=detail),
        Outcome(f"{NAME} (loading taken off)", work, ">= 1.0", f"{counted}, less {FEW}"),
    ]


def cost(command: Callable[[], None]) -> Took:
    """Return the seconds of a command: on the clock, and of all its processes."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command()
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def score(way: Way, folder: Path, limit: int) -> None:
    """Run the command in a folder, from nothing to the artefact, which is called after its threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(way.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    words = ["score", "smollm2", "--data", "rows.jsonl", "--limit", str(limit), "--dtype", "fp32"]
    command = [*way.words, *words, "--device", "cpu", "--out", f"{way.threads}.safetensors"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def ratios(above: Sequence[Took], below: Sequence[Took]) -> list[float]:
    """Return the ratios of seconds on the clock, turn by turn."""
    return [a.wall / max(b.wall, 1e-9) for a, b in zip(above, below, strict=True)]


def less(many: Sequence[Took], few: Sequence[Took]) -> list[Took]:
    """Return what the many rows took longer than the few, turn by turn."""
    return [Took(a.wall - b.wall, a.cpu - b.cpu) for a, b in zip(many, few, strict=True)]
