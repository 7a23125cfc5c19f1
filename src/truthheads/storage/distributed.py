"""Several processes of one command (``torchrun``, ``accelerate launch``): each does its share, the first the rest.

The launcher starts the processes, tells each its place by the environment, and ends all of them when one dies. What a
process has made lies in files that all can see, so that another start, with more processes or fewer, goes on from
there. Several machines need a folder that all of them see.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

from truthheads.errors import NotFirstRank, TruthHeadsError

PLACE = {
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "LOCAL_WORLD_SIZE": ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}
"""What torchrun calls it, and what mpirun does."""

ARRIVAL = timedelta(minutes=5)
"""How long the processes wait for the last of them to start."""

PATIENCE = timedelta(days=7)
"""How long a process that is done waits for others that work; one that dies breaks the wait off at once."""

_group: Any = None


class PeerLostError(TruthHeadsError):
    """Another process of the same command did not start, or is not there any more."""


class Ranks(NamedTuple):
    """This process among those of one command.

    Attributes:
        rank: Its number; 0 is the first.
        world: How many there are.
    """

    rank: int
    world: int

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.world > 1


def ranks() -> Ranks:
    """Return this process's place, as ``accelerate launch``, torchrun or mpirun tell it by the environment."""
    return Ranks(_number("RANK", 0), _number("WORLD_SIZE", 1))


def check_launched() -> None:
    """Raise TruthHeadsError where ``accelerate launch`` was asked for several processes and has started but one.

    So it does on a machine without several GPUs, unless it is given ``--multi_gpu``. It then sets the port at which
    several would meet, and no place.
    """
    several = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ
    if several and not any(_number(name, -1) >= 0 for name in PLACE):
        raise TruthHeadsError(
            "accelerate launch was asked for several processes and has started only one",
            expected="WORLD_SIZE and RANK in the environment of each process",
            got="MASTER_PORT without WORLD_SIZE: on CPUs, and where processes share a GPU, it starts a single process",
            fix="start the command with `torchrun --nproc-per-node N -m truthheads …`, or give accelerate launch "
            "--multi_gpu and not --cpu; for one process, unset MASTER_PORT and give --num_processes 1",
        )


def barrier() -> None:
    """Wait until every process has reached this point.

    Raises:
        PeerLostError: A process did not start, or has ended.
    """
    if not ranks().several:
        return
    import torch

    meet()
    try:
        torch.distributed.barrier(_group)
    except RuntimeError as error:
        raise PeerLostError(
            "another process of this command has ended before its part was done",
            expected=f"all {ranks().world} processes, up to the end of the command",
            got=str(error).splitlines()[0],
            fix="see what the other process has said; then start the same command again, it goes on from here",
        ) from error


def meet() -> None:
    """Meet the other processes, once.

    Accelerate makes the process group and gives each process its device. They wait for each other by gloo, whose
    connections close with their process: an end is noticed at once, without a time limit on the work.

    Raises:
        PeerLostError: Not all processes have started within five minutes, or one cannot be reached.
    """
    global _group
    if _group is not None:
        return
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    for name in PLACE:  # by the names that torch and Accelerate read, where a launcher has others
        if (found := _number(name, -1)) >= 0:
            os.environ[name] = str(found)
    place = ranks()
    os.environ.setdefault("LOCAL_RANK", str(place.rank % max(_accelerators(), 1)))
    try:
        PartialState(cpu=on_cpus(), timeout=ARRIVAL)
        _group = torch.distributed.new_group(timeout=PATIENCE, backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise PeerLostError(
            f"rank {place.rank} of {place.world} did not meet the others",
            expected=f"all {place.world} processes within {ARRIVAL.seconds // 60} minutes, with the same MASTER_ADDR "
            "(the machine of rank 0) and a free MASTER_PORT",
            got=str(error).splitlines()[0],
            fix="start all of them; for one process alone, unset WORLD_SIZE",
        ) from error


def leave() -> NoReturn:
    """End this process's part, as one that is not the first.

    Raises:
        NotFirstRank: Always.
    """
    raise NotFirstRank


def on_cpus() -> bool:
    """Return whether processes meet on CPUs: there is no accelerator, or not one for each, or the CPU was asked for."""
    local = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")) + 1)
    return _accelerators() < local or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def _accelerators() -> int:
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


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


def _number(name: str, default: int) -> int:
    values = (os.environ.get(each, "") for each in (name, *PLACE[name]))
    return next((int(value) for value in values if value.isdigit()), default)
