"""z of any number of answers: window by window of questions to disk, block by block of heads back.

Nothing here grows with the number of rows but the files. A window's rows are read, made into tokens, run and
forgotten before the next one's; inside a file all answers of one head stand side by side, so that a block of heads is
read back without reading the others.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from truthheads.activations import collect, field_name, z_fields
from truthheads.architectures import HeadLayer
from truthheads.artifacts import check_space, dumps, read_into, unwritable
from truthheads.data import Question
from truthheads.errors import ArtifactError
from truthheads.forward import Progress
from truthheads.locks import Lock
from truthheads.models import Model
from truthheads.prompts import Encoded, token_digest
from truthheads.ranks import ranks, share, together
from truthheads.store import locked, sealed

WINDOW = 4096
WINDOW_BYTES = 1 << 30
WINDOWS_EACH = 4
"""Windows for each process from which whole windows are dealt instead of batches: nothing is then put together, and
nobody reads the rows of others."""


class Window(NamedTuple):
    """Questions that are run together and lie in one folder.

    Attributes:
        folder: Where their z lies.
        start: First question.
        stop: The one behind the last.
        answers: How many answers they have.
    """

    folder: Path
    start: int
    stop: int
    answers: int


class Activations:
    """z of all answers, on disk.

    Args:
        folder: Where the windows lie.
        windows: All of them, complete.
        dtype: The model's type.
        lock: Holds the folder for this process, or None.
    """

    def __init__(self, folder: Path, windows: Sequence[Window], dtype: torch.dtype, lock: Lock | None = None) -> None:
        self.folder, self.windows, self.dtype, self._lock = folder, windows, dtype, lock

    def heads(self, layer: HeadLayer, first: int, last: int) -> Float[Tensor, "heads answers head_dim"]:
        """Read z of the heads ``first`` to before ``last`` of a layer, all answers, in the model's own type.

        Raises:
            ArtifactError: A file is shorter than it was.
        """
        answers = sum(window.answers for window in self.windows)
        found = torch.empty(last - first, answers, layer.head_dim, dtype=self.dtype)
        at = 0
        for window in self.windows:
            each = window.answers * layer.head_dim * self.dtype.itemsize
            places = [found[number, at : at + window.answers] for number in range(last - first)]
            _read(window.folder / f"{field_name(layer.index)}.bin", first * each, places)
            at += window.answers
        return found

    def close(self) -> None:
        """Let go of the folder; the files stay."""
        if self._lock is not None:
            self._lock.release(remove=False)


def gather(
    model: Model,
    questions: Sequence[Question],
    counts: Int[ndarray, " questions"],
    sizes: Int[ndarray, " questions"],
    encode: Callable[[Sequence[Question]], list[Encoded]],
    folder: Path,
    *,
    made_from: Mapping[str, Any],
    batch_tokens: int,
    window: int | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Compute z at the final token of every answer, window by window.

    A run that was killed goes on where it stopped. Several processes share the windows where there are many, else the
    batches of each window; the result is the same.

    Args:
        model: The model.
        questions: Read a window at a time.
        counts: How many answers each question has.
        sizes: What each question costs, in any unit; many processes share windows by it.
        encode: Makes tokens of one window's questions.
        folder: Folder of the windows.
        made_from: What the values depend on beside the tokens: model, data and settings.
        batch_tokens: Padded tokens in a batch, at most.
        window: Questions in a window; None: 4,096, fewer where their z would take more than 1 GiB.
        progress: Told what is done and in all: unique tokens, or rows where there are several windows.

    Raises:
        ActivationError: As for :func:`truthheads.activations.collect`.
        ArtifactError: The disk is full or too small, or the folder is in use.
    """
    place = ranks()
    bytes_each = sum(field.row_bytes for field in z_fields(model).values())
    length = window or min(WINDOW, max(64, WINDOW_BYTES // (2 * bytes_each)))
    starts = range(0, len(questions), length)
    stops = [min(start + length, len(questions)) for start in starts]
    windows = [
        Window(folder / f"window-{at:06d}", start, stop, int(counts[start:stop].sum()))
        for at, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]
    apart = place.several and len(windows) >= WINDOWS_EACH * place.world
    first = encode(questions[: stops[0]])  # before anything is written: rows that cannot be used are found here
    lock = locked(folder) if place.rank == 0 else None
    try:
        identity = dumps({**made_from, "tokens": token_digest(first), "window": length})
        if place.rank == 0:
            _check_space(folder, windows, identity, bytes_each)
        if place.several:
            together()
        mine = share([int(sizes[one.start : one.stop].sum()) for one in windows]) if apart else range(len(windows))
        for at in sorted(mine):
            one = windows[at]
            told = _part(progress, one, len(questions)) if len(windows) > 1 else progress
            if not sealed(one.folder, identity):
                rows = questions[one.start : one.stop]
                encoded = first if at == 0 else encode(rows)
                run = partial(collect, model, encoded, rows, one.folder, identity=identity, alone=apart)
                store = run(batch_tokens=batch_tokens, progress=told)
                if store is not None:
                    store.seal()
                    store.close()
            elif told is not None:
                told(1, 1)
            first = []
        if place.several:
            together()
    except BaseException:
        if lock is not None:
            lock.release(remove=False)
        raise
    return Activations(folder, windows, model.dtype, lock)


def _check_space(folder: Path, windows: Sequence[Window], identity: str, bytes_each: int) -> None:
    """Raise where the disk cannot take what is still to come; windows of something else are removed first."""
    left = [one for one in windows if not sealed(one.folder, identity)]
    known = {one.folder.name for one in windows}
    for entry in folder.glob("window-*"):
        if entry.name.partition(".")[0] not in known:
            shutil.rmtree(entry, ignore_errors=True)
    there = sum(file.stat().st_size for one in left for file in one.folder.glob("*.bin"))
    needed = sum(one.answers for one in left) * bytes_each - there
    check_space(folder, needed, what=f"{folder}: the activations", note=f" ({bytes_each / 1e3:,.1f} kB an answer)")


def _part(progress: Progress | None, window: Window, rows: int) -> Progress | None:
    if progress is None:
        return None
    told = progress
    return lambda done, total: told(window.start + (window.stop - window.start) * done // max(1, total), rows)


def _read(path: Path, start: int, places: Sequence[Tensor]) -> None:
    """Fill tensors, one after the other, with a file's bytes from ``start`` on.

    By plain reads: what a mapped file has shown would count as this process's memory.
    """
    views = [memoryview(cast(Any, place.view(torch.uint8).flatten().numpy())) for place in places]
    wanted = start + sum(map(len, views))
    try:
        got = start + read_into(path, start, views)
    except OSError as error:
        raise unwritable(path, error) from error
    if got < wanted:
        raise ArtifactError(
            f"{path} is shorter than it was",
            expected=f"{wanted} bytes",
            got=f"{got}",
            fix="let no other program write there, and run the same command again",
        )
