"""How this process was launched: its place among those of one command; all of them, where only one was started."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import PurePath
from typing import NamedTuple

SHARED = ("score", "trace", "evaluate")
"""The commands whose work several processes share."""

PLACE = {
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "LOCAL_WORLD_SIZE": ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}
"""What torchrun calls it, and what mpirun does."""


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
    return Ranks(_number(os.environ, "RANK", 0), _number(os.environ, "WORLD_SIZE", 1))


def exported() -> None:
    """Give the place to torch and Accelerate by the names that they read, where a launcher has others."""
    for name in PLACE:
        found = _number(os.environ, name, -1)
        if found >= 0:
            os.environ[name] = str(found)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    values = (environment.get(each, "") for each in (name, *PLACE[name]))
    return next((int(value) for value in values if value.isdigit()), default)


def launch_all(argv: Sequence[str]) -> None:
    """Start all processes that ``accelerate launch --num_processes N`` was asked for, where it has started but one.

    On a machine without several GPUs it starts a single process, which knows nothing of the others, unless it is given
    ``--multi_gpu`` (which starts them on CPUs as well, with gloo). This process then becomes the launcher, with the
    same words and that flag. Nothing happens in a process that no such launcher has started.

    Args:
        argv: This process's own words, behind the name of the program.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or not argv or argv[0] not in SHARED or _placed():
        return
    launched, before, direct = _launcher()
    new_port = "MASTER_PORT" in os.environ and "MASTER_PORT" not in before  # set for several processes alone
    if not direct or launched[-len(argv) :] != list(argv):  # a script stands between
        if launched and new_port:
            _note("on CPUs, give it --multi_gpu")
        return
    asked = asked_for(launched[: -len(argv)])
    if asked.elsewhere or not (asked.processes > 1 or (not asked.processes and new_port)):
        return
    on_cpu = asked.cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    each = max(asked.processes // asked.machines, 1)
    if not on_cpu and not _room(each):
        _note("the accelerators of this machine are fewer than the processes; to share them, give it --multi_gpu")
        return
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if asked.processes and not asked.threads and "OMP_NUM_THREADS" not in before:
        os.environ["OMP_NUM_THREADS"] = str(max(_cores() // each, 1))
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    rest = [word for word in launched[: -len(argv)] if word != "--cpu"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *rest, *argv])


class Asked(NamedTuple):
    """What ``accelerate launch`` was asked for.

    Attributes:
        processes: How many; 0 where its words do not say.
        machines: How many.
        threads: Threads of each process; 0 where its words do not say.
        cpu: Whether on the CPU, accelerators or not.
        elsewhere: Whether another launcher starts the processes, or ``--multi_gpu`` was given already.
    """

    processes: int
    machines: int
    threads: int
    cpu: bool
    elsewhere: bool


def asked_for(words: Sequence[str]) -> Asked:
    """Return what the launcher's own words ask for; what is not looked for here is passed over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default in (("num_processes", 0), ("num_machines", 1), ("num_cpu_threads_per_process", 0)):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name, type=int, default=default)
    for name in ("cpu", "multi_gpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name, action="store_true")
    parser.add_argument("--mpirun_hostfile", "--mpirun-hostfile", dest="mpirun")
    found = parser.parse_known_args(list(words))[0]
    elsewhere = (found.multi_gpu, found.tpu, found.use_deepspeed, found.use_fsdp, found.use_megatron_lm, found.mpirun)
    threads = found.num_cpu_threads_per_process
    return Asked(found.num_processes, max(found.num_machines, 1), threads, found.cpu, any(elsewhere))


def launch_words(command: Sequence[str]) -> list[str] | None:
    """Return what stands behind ``accelerate launch`` in a command line, or None where it is another."""
    for at, word in enumerate(command[:4]):
        name = PurePath(word).name
        if name in ("accelerate-launch", "accelerate.commands.launch", "launch.py"):
            return list(command[at + 1 :])
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and command[at + 1 : at + 2] == ["launch"]:
            return list(command[at + 2 :])
    return None


def _placed() -> bool:
    return any(_number(os.environ, name, -1) >= 0 for name in PLACE)


def _launcher() -> tuple[list[str], Mapping[str, str], bool]:
    """Return the words and the environment of the launcher above this process, and whether nothing stands between."""
    import psutil  # type: ignore[import-untyped]

    try:
        for generation, parent in enumerate(psutil.Process().parents()):
            words = launch_words(parent.cmdline())
            if words is not None:
                return words, dict(parent.environ()), generation == 0
    except (psutil.Error, OSError):
        pass
    return [], {}, False


def _room(processes: int) -> bool:
    """Return whether each process of this machine has an accelerator of its own, or there is none at all."""
    if metadata.version("torch").endswith("+cpu"):  # importing it only to be told so takes two seconds
        return True
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    return count == 0 or processes <= count


def _cores() -> int:
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def _note(why: str) -> None:
    sys.stderr.write(f"note: accelerate launch has started one process, which does all the work: {why}\n")
