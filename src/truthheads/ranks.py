"""Several processes of one command (``accelerate launch``): each does its share of the batches, the first the rest.

What a process has made lies in files that all can see, so that another start, with more processes or fewer, goes on
from there. Several machines need a folder that all of them see.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from truthheads.artifacts import read_json, replaced, write_json
from truthheads.errors import ArtifactError
from truthheads.store import Field, RowStore

PATIENCE = timedelta(days=7)
"""How long one process waits for another; one that died ends the others at once (the launcher sees to it)."""


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
    rank, world = (
        next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), default)
        for names, default in (
            (("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"), 0),
            (("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"), 1),
        )
    )
    return Ranks(rank, world)


def together() -> None:
    """Wait until every process is here."""
    if ranks().several:
        from accelerate import PartialState  # type: ignore[import-untyped]

        PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE).wait_for_everyone()


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
        self._batch: dict[str, tuple[Tensor, Tensor]] = {}
        plan = self.parts / "plan.json"
        made_from = {"identity": identity, "rows": rows}
        if ranks().rank == 0 and (not plan.is_file() or read_json(plan) != made_from):
            shutil.rmtree(self.parts, ignore_errors=True)
            write_json(plan, made_from)
        together()
        if not plan.is_file():
            raise ArtifactError(
                f"{folder} is not the same folder for all processes",
                expected="a folder that every machine sees",
                got=f"nothing of what the first process wrote there, in process {ranks().rank}",
                fix="give an --out on a shared disk",
            )
        self.done = {int(path.stem.removeprefix("batch-")) for path in self.parts.glob("batch-*.safetensors")}

    def write(self, name: str, rows: Int[Tensor, " batch"], values: Tensor) -> None:
        """Keep values ``[batch, *shape]`` until the batch is complete."""
        kept = values.detach().to("cpu", self.fields[name].dtype)
        self._batch[name] = rows.cpu().clone(), kept.clone(memory_format=torch.contiguous_format)

    def complete(self, batch: int) -> None:
        """Write the batch's file, whole or not at all."""
        tensors = {name: values for name, (_, values) in self._batch.items()}
        tensors |= {f"rows of {name}": rows for name, (rows, _) in self._batch.items()}
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
            tensors = load_file(path)
            for name in self.fields:
                if name in tensors:
                    store.write(name, tensors[f"rows of {name}"], tensors[name])
            store.complete(number)
        shutil.rmtree(self.parts, ignore_errors=True)
        return store


def open_rows(
    folder: Path, fields: Mapping[str, Field], *, rows: int, identity: str, alone: bool = False
) -> RowStore | Parts:
    """Return where a stage keeps its rows: a store, or parts of one where several processes share its batches.

    Args:
        folder: As for RowStore.
        fields: As for RowStore.
        rows: As for RowStore.
        identity: As for RowStore.
        alone: This process does all of them.
    """
    made = Parts if ranks().several and not alone else RowStore
    return made(folder, fields, rows=rows, identity=identity)
