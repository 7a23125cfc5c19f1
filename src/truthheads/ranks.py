"""Several processes of one command (``accelerate launch``): each does its share of the batches, the first the rest.

What a process has made lies in files that all can see, so that another start, with more processes or fewer, goes on
from there. Several machines need a folder that all of them see.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from truthheads.artifacts import read_json, replaced
from truthheads.errors import ArtifactError, PartDone, TruthHeadsError
from truthheads.launching import exported
from truthheads.launching import ranks as ranks
from truthheads.store import PLAN, Field, RowStore, journalled, made_room
from truthheads.watching import GOES_ON, GoneError, Watch, meet

ARRIVAL = timedelta(minutes=5)
"""How long the first of the processes waits for the last to start."""
REPORT_SECONDS = 20
"""Within that time the watch has said who is gone, where a barrier broke off."""
PATIENCE = timedelta(days=7)
"""How long a process that is done waits for others that work; one that dies or fails ends all (:mod:`watching`)."""
_watch: Watch | None = None
_group: Any = None


def together() -> None:
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
        raise GoneError(
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
        raise GoneError(
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


def first_only(store: RowStore | None) -> RowStore:
    """Return the store in the first process; the others, which have none, end here.

    Raises:
        PartDone: In every process but the first.
    """
    return leave() if store is None else store


def leave() -> NoReturn:
    """End this process's part, as one that is not the first.

    Raises:
        PartDone: Always.
    """
    if _watch is not None:
        _watch.done()
    raise PartDone


def on_cpus() -> bool:
    """Return whether processes meet on CPUs: there is no accelerator, or not one for each, or the CPU was asked for."""
    local = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")) + 1)
    return _accelerators() < local or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def _accelerators() -> int:
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def _meeting_place(state: Any) -> torch.device:
    """Return where tensors that the process group carries must lie."""
    return torch.device("cpu") if state.backend == "gloo" else torch.device(state.device)


def share(costs: Sequence[int]) -> set[int]:
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


class Parts:
    """As :class:`RowStore`, for several processes: a file for each complete batch; the first puts them together.

    Args:
        folder: The store's folder; the files lie beside it, in ``FOLDER.parts``.
        fields: As for RowStore.
        rows: As for RowStore.
        identity: As for RowStore; parts of another identity are removed.

    Raises:
        ArtifactError: The folder cannot be written to, or is not the same for all processes.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Field], *, rows: int, identity: str) -> None:
        self.folder, self.fields, self.rows, self.identity = folder, fields, rows, identity
        self.parts = folder.with_name(f"{folder.name}.parts")
        self._batch: dict[str, list[tuple[Tensor, Tensor]]] = {}
        plan = self.parts / PLAN
        made_from = {"identity": identity, "rows": rows}
        if ranks().rank == 0:
            made_room(self.parts, made_from)
        together()
        if not plan.is_file():
            raise ArtifactError(
                f"{folder} is not the same folder for all processes",
                expected="a folder that every machine sees",
                got=f"nothing of what the first process wrote there, in process {ranks().rank}",
                fix="give an --out on a shared disk",
            )
        self.done = set(_batches_in(self.parts)) | _done_alone(folder, made_from)

    def write(self, name: str, rows: Int[Tensor, " batch"], values: Tensor) -> None:
        """Keep values ``[batch, *shape]`` until the batch is complete; one that was halved comes in pieces."""
        kept = values.detach().to("cpu", self.fields[name].dtype)
        self._batch.setdefault(name, []).append((rows.cpu().clone(), kept.clone()))

    def complete(self, batch: int) -> None:
        """Write the batch's file, whole or not at all."""
        tensors = {name: torch.cat([values for _, values in pieces]) for name, pieces in self._batch.items()}
        tensors |= {f"rows of {name}": torch.cat([rows for rows, _ in pieces]) for name, pieces in self._batch.items()}
        with replaced(self.parts / f"batch-{batch}.safetensors") as temporary:
            save_file(tensors, temporary)
        self._batch = {}
        self.done.add(batch)

    def close(self) -> None:
        """Nothing is open."""

    def whole(self, batches: int) -> RowStore | None:
        """Wait for all processes and return the rows of all of them, in the first; None in the others.

        Args:
            batches: How many there are.

        Raises:
            ArtifactError: A batch is missing.
        """
        together()
        if ranks().rank:
            return None
        store = RowStore(self.folder, self.fields, rows=self.rows, identity=self.identity)
        for number in sorted(set(range(batches)) - store.done):
            path = self.parts / f"batch-{number}.safetensors"
            if not path.is_file():
                store.close()
                raise ArtifactError(
                    f"batch {number} of {batches} is missing in {self.parts}",
                    expected="what every process wrote",
                    got="no such file",
                    fix="use a folder that every machine sees, and start again",
                )
            _put(store, path, number)
        shutil.rmtree(self.parts, ignore_errors=True)
        return store


def open_rows(
    folder: Path, fields: Mapping[str, Field], *, rows: int, identity: str, alone: bool = False
) -> RowStore | Parts:
    """Return where a stage keeps its rows: a store, or parts of one where several processes share its batches.

    Either goes on from what the other has left.

    Args:
        folder: As for RowStore.
        fields: As for RowStore.
        rows: As for RowStore.
        identity: As for RowStore.
        alone: This process does all of them.
    """
    if ranks().several and not alone:
        return Parts(folder, fields, rows=rows, identity=identity)
    store = RowStore(folder, fields, rows=rows, identity=identity)
    parts = folder.with_name(f"{folder.name}.parts")
    if _told(parts / PLAN) == {"identity": identity, "rows": rows}:
        for number, path in sorted(_batches_in(parts).items()):
            if number not in store.done:
                _put(store, path, number)
    shutil.rmtree(parts, ignore_errors=True)
    return store


def _batches_in(parts: Path) -> dict[int, Path]:
    return {int(path.stem.removeprefix("batch-")): path for path in parts.glob("batch-*.safetensors")}


def _put(store: RowStore, path: Path, number: int) -> None:
    """Put one batch's file into a store."""
    tensors = load_file(path)
    for name in {key.removeprefix("rows of ") for key in tensors}:
        store.write(name, tensors[f"rows of {name}"], tensors[name])
    store.complete(number)


def _told(plan: Path) -> dict[str, Any]:
    """Return what a plan says the rows beside it are; of a store's own, without their fields."""
    told = read_json(plan) if plan.is_file() else {}
    return {name: told[name] for name in ("identity", "rows") if name in told}


def _done_alone(folder: Path, made_from: Mapping[str, Any]) -> set[int]:
    """Return the batches that a single process has left in its store."""
    return journalled(folder)[0] if _told(folder / PLAN) == made_from else set()
