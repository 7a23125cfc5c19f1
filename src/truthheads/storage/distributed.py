"""Several processes of one command (``accelerate launch``): each does its share of the batches, the first the rest.

What a process has made lies in files that all can see, so that another start, with more processes or fewer, goes on
from there. Several machines need a folder that all of them see.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch

from truthheads.errors import NotFirstRank, TruthHeadsError
from truthheads.storage.launching import exported, ranks
from truthheads.storage.watching import GOES_ON, PeerLostError, Watch, meet

ARRIVAL = timedelta(minutes=5)
"""How long the first of the processes waits for the last to start."""

REPORT_SECONDS = 20
"""Within that time the watch has said who is gone, where a barrier broke off."""

PATIENCE = timedelta(days=7)
"""How long a process that is done waits for others that work; one that dies or fails ends all (:mod:`watching`)."""

_watch: Watch | None = None

_group: Any = None


def barrier() -> None:
    """Wait until every process is here.

    Raises:
        GoneError: A process did not start, or has ended.
    """
    if not ranks().several:
        return
    watch = joined()
    watch.enter()
    try:
        torch.distributed.barrier(_group, device_ids=[int(os.environ.get("LOCAL_RANK", "0"))])
    except RuntimeError as error:
        time.sleep(REPORT_SECONDS)  # a peer that died breaks this off; the watch then ends the process, with its name
        raise PeerLostError(
            "waiting for the other processes broke off",
            expected="all processes of the command",
            got=str(error).splitlines()[0],
            fix=GOES_ON,
        ) from error


def joined() -> Watch:
    """Meet the other processes, once, and return the watch on them.

    Accelerate makes the process group: gloo where processes run on CPUs (or share an accelerator), nccl on GPUs.

    Raises:
        GoneError: Not all processes have started within five minutes, or one cannot be reached.
    """
    global _watch, _group
    if _watch is not None:
        return _watch
    from accelerate import PartialState  # type: ignore[import-untyped]

    exported()
    place = ranks()
    os.environ.setdefault("LOCAL_RANK", str(place.rank % max(_accelerators(), 1)))
    try:
        state = PartialState(cpu=on_cpus(), timeout=ARRIVAL)
        _group = torch.distributed.new_group(timeout=PATIENCE)
        meeting = meet() if place.rank == 0 else None
        said = torch.tensor([meeting.port, meeting.token] if meeting else [0, 0], device=_meeting_place(state))
        torch.distributed.broadcast(said, src=0)
    except (RuntimeError, ValueError) as error:
        raise PeerLostError(
            f"rank {place.rank} of {place.world} did not meet the others",
            expected=f"all {place.world} processes within {ARRIVAL.seconds // 60} minutes, with the same MASTER_ADDR "
            "(the machine of rank 0) and a free MASTER_PORT",
            got=str(error).splitlines()[0],
            fix="start all of them; for one process alone, unset WORLD_SIZE",
        ) from error
    port, token = said.tolist()
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    _watch = Watch.of_first(place, meeting) if meeting else Watch.of_other(place, address, port, token)
    return _watch


@contextmanager
def watched() -> Iterator[None]:
    """Watch the other processes, and be watched by them, inside the block; whatever ends it is told to them."""
    if not ranks().several:
        yield
        return
    watch = joined()
    try:
        yield
    except TruthHeadsError as error:
        watch.failed(f"{error.problem}: expected {error.expected}; got {error.got}; do: {error.fix}", 2)
        raise
    except KeyboardInterrupt:
        watch.failed(f"by hand; {GOES_ON}", 130)
        raise
    except Exception as error:
        if getattr(error, "exit_code", 1):
            watch.failed(f"{type(error).__name__}: {error}", 1)
        raise
    finally:
        watch.done()


def leave() -> NoReturn:
    """End this process's part, as one that is not the first.

    Raises:
        PartDone: Always.
    """
    if _watch is not None:
        _watch.done()
    raise NotFirstRank


def on_cpus() -> bool:
    """Return whether processes meet on CPUs: there is no accelerator, or not one for each, or the CPU was asked for."""
    local = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")) + 1)
    return _accelerators() < local or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def _accelerators() -> int:
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _meeting_place(state: Any) -> torch.device:
    """Return where tensors that the process group carries must lie."""
    return torch.device("cpu") if state.backend == "gloo" else torch.device(state.device)


def my_share(costs: Sequence[int]) -> set[int]:
    """Return the numbers of the batches that are this process's: dearest first, each to who has least so far."""
    place = ranks()
    loads = [0] * place.world
    mine = set()
    for number in sorted(range(len(costs)), key=lambda at: (-costs[at], at)):
        owner = min(range(place.world), key=lambda rank: (loads[rank], rank))
        loads[owner] += costs[number]
        if owner == place.rank:
            mine.add(number)
    return mine
