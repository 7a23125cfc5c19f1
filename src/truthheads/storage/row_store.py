"""Rows on disk that survive a kill: memory-mapped fields and a journal of the batches that are complete."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from truthheads.errors import ArtifactError
from truthheads.storage.distributed import barrier, leave, ranks
from truthheads.storage.files import Lock, read_json, replaced, take, unwritable, write_json, write_text
from truthheads.storage.output_lock import in_use

JOURNAL = "journal"

PLAN = "plan.json"

SEAL = "sealed"


class Field(NamedTuple):
    """Shape of one row of a field, its type, and which axis of the file counts rows.

    With ``axis`` 1 a field of shape ``(num_heads, head_dim)`` lies on disk as ``[num_heads, rows, head_dim]``: all rows
    of one head side by side.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    axis: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class RowStore:
    """Named fields of ``rows`` rows each, in one folder, filled batch by batch.

    A batch counts as done once its line stands in the journal, which is written after its values. A process that is
    killed loses the batch it was in; the next one with the same ``identity`` goes on after the last complete batch.
    A folder with another identity is cleared.

    Args:
        folder: Where the files lie; made where missing.
        fields: Name to shape and type of one row.
        rows: Number of rows.
        identity: Everything that the values depend on, as text.

    Raises:
        ArtifactError: The folder cannot be written to, the disk is full, or another process is using it.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Field], *, rows: int, identity: str) -> None:
        self.folder, self._identity = folder, identity
        self._lock: Lock | None = None
        try:
            self._lock = locked(folder)
            plan = json.dumps({"identity": identity, "rows": rows, "fields": {k: str(v) for k, v in fields.items()}})
            whole = all((folder / f"{name}.bin").is_file() for name in fields) and (folder / PLAN).is_file()
            if not whole or (folder / PLAN).read_text(encoding="utf-8") != plan:
                self._clear()
            self._tensors = {name: self._map(name, field, rows) for name, field in fields.items()}
            (folder / PLAN).write_text(plan, encoding="utf-8")
            self.done, cut_off = journalled(folder)
            if cut_off:  # a line that was cut off goes, or the next number would be glued to it
                write_text(folder / JOURNAL, "".join(f"{batch}\n" for batch in sorted(self.done)))
            self._journal = (folder / JOURNAL).open("a", encoding="ascii")
        except OSError as error:
            if self._lock is not None:  # let go, or the next attempt of this process would find the folder in use
                self._lock.release(remove=False)
            raise unwritable(folder, error) from error

    def write(self, name: str, rows: Int[Tensor, " batch"], values: Tensor) -> None:
        """Put values ``[batch, *shape]`` at the given rows of a field."""
        self._tensors[name][rows.cpu()] = values.detach().to("cpu", self._tensors[name].dtype)

    def complete(self, batch: int) -> None:
        """Write down that every value of a batch is in its place."""
        self._journal.write(f"{batch}\n")
        self._journal.flush()
        self.done.add(batch)

    def read(self, name: str) -> Tensor:
        """Return a field ``[rows, *shape]``; nothing is read before it is used."""
        return self._tensors[name]

    def seal(self) -> None:
        """Write down that every batch is complete; see :func:`sealed`."""
        write_text(self.folder / SEAL, self._identity)

    def close(self) -> None:
        """Close the files, so that another process can use them."""
        self._tensors = {}
        self._journal.close()
        if self._lock is not None:
            self._lock.release(remove=False)

    def delete(self) -> None:
        """Remove the folder and all that is in it."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _clear(self) -> None:
        (self.folder / PLAN).unlink(missing_ok=True)  # first: a plan beside half of its files would be believed
        for entry in self.folder.iterdir():
            if entry.is_dir():  # what a killed process was writing aside
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()

    def _map(self, name: str, field: Field, rows: int) -> Tensor:
        path = self.folder / f"{name}.bin"
        size = rows * field.row_bytes
        with path.open("ab") as opened:
            if opened.tell() != size:
                opened.truncate(0)
                # Reserved now: a page of a sparse file that finds no room later kills the process with SIGBUS.
                try:
                    os.posix_fallocate(opened.fileno(), 0, max(size, 1))
                except OSError as error:
                    if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                        raise
                    opened.truncate(size)
        # Not torch.from_file, which refuses names that are no UTF-8: under an ASCII locale all with other letters.
        flat = torch.from_numpy(np.memmap(path, np.uint8, mode="r+", shape=(max(size, 1),)))[:size].view(field.dtype)
        return flat.view(*field.shape[: field.axis], rows, *field.shape[field.axis :]).movedim(field.axis, 0)


@contextmanager
def work_folder(given: str | Path | None) -> Iterator[Path]:
    """Yield the folder that a stage works in: the given one, which stays, else a temporary one."""
    if given is not None:
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="truthheads-") as scratch:
        yield Path(scratch) / "work"


def locked(folder: Path) -> Lock:
    """Make a folder and take it for this process alone.

    Raises:
        ArtifactError: Another process has it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take(folder / "lock")
    except OSError as error:
        raise unwritable(folder, error) from error
    if lock is None:
        raise in_use(folder)
    return lock


def sealed(folder: Path, identity: str) -> bool:
    """Return whether a store of this identity is complete; it need not be opened for that."""
    try:
        return (folder / SEAL).read_text(encoding="utf-8") == identity
    except (OSError, UnicodeDecodeError):
        return False


def journalled(folder: Path) -> tuple[set[int], bool]:
    """Return the batches that a store's journal says are complete, and whether its last line was cut off."""
    journal = folder / JOURNAL
    *lines, rest = journal.read_text(encoding="ascii").split("\n") if journal.is_file() else [""]
    return {int(line) for line in lines if line.isdigit()}, bool(rest)


def made_room(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Remove a folder that was made from other inputs, and record the inputs that it is made from now.

    Raises:
        ArtifactError: The folder cannot be written to.
    """
    plan = folder / PLAN
    if not plan.is_file() or read_json(plan) != made_from:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(plan, made_from)


def first_only(store: RowStore | None) -> RowStore:
    """Return the store in the first process; the others, which have none, end here.

    Raises:
        NotFirstRank: In every process but the first.
    """
    return leave() if store is None else store


class RowShards:
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
        barrier()
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
        barrier()
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
) -> RowStore | RowShards:
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
        return RowShards(folder, fields, rows=rows, identity=identity)
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


def _told(plan: Path) -> dict[str, object]:
    """Read from a plan what the stored rows are, without the fields of a store."""
    told = read_json(plan) if plan.is_file() else {}
    return {name: told[name] for name in ("identity", "rows") if name in told}


def _done_alone(folder: Path, made_from: Mapping[str, Any]) -> set[int]:
    """Return the batches that a single process has left in its store."""
    return journalled(folder)[0] if _told(folder / PLAN) == made_from else set()
