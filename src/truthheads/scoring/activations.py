"""Read z of every head at each answer's last token, and keep it on disk, window by window.

Nothing here holds more than one window of questions or one block of heads in memory, whatever the number of rows.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from truthheads.data.questions import Question
from truthheads.errors import ActivationError, ArtifactError
from truthheads.models.architectures import HeadLayer
from truthheads.models.forward import Progress, backbone, filled, final_values, prepare_tails
from truthheads.models.hooks import intercepted
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, token_digest
from truthheads.storage.distributed import barrier, my_share, ranks
from truthheads.storage.files import Lock, check_space, dumps, read_into, unwritable
from truthheads.storage.row_store import Field, RowStore, locked, open_rows, sealed


def first_answers(encoded: Sequence[Encoded]) -> list[int]:
    """Return for each question the row of its first answer when all answers are counted through."""
    rows, at = [], 0
    for item in encoded:
        rows.append(at)
        at += len(item.tails)
    return rows


def without_prediction(item: Encoded) -> Encoded:
    """Return a question whose tails are its answers' own tokens.

    The last token of the prompt stands in every tail because it predicts the answer; where nothing is predicted it
    belongs into the prefix, and is computed once.
    """
    if not item.prefix:
        return item
    return replace(
        item,
        prefix=(*item.prefix, item.tails[0][0]),
        tails=tuple(tail[1:] for tail in item.tails),
        starts=tuple(start - 1 for start in item.starts),
    )


def collect(
    model: Model,
    encoded: Sequence[Encoded],
    questions: Sequence[Question],
    folder: Path,
    *,
    identity: str,
    batch_tokens: int,
    alone: bool = False,
    progress: Progress | None = None,
) -> RowStore | None:
    """Compute z at the final token of every answer and keep it, layer by layer, in a store on disk.

    No language-model head is run. A run that was killed goes on where it stopped.

    Args:
        model: The model.
        encoded: The questions' tokens.
        questions: The same questions, to name a row in an error.
        folder: Folder of the store.
        identity: What the values depend on beside the tokens' order: model, data and settings, as text.
        batch_tokens: Padded tokens in a batch, at most.
        alone: This process does all the work, even where there are several.
        progress: Called with the unique tokens done and the total.

    Returns:
        A store with one field for each layer with heads, ``layer-12``: ``[answers, num_heads, head_dim]`` in the
        model's own type; answers counted through in the order of the questions. On disk all answers of one head stand
        side by side. None in other processes than the first.

    Raises:
        ActivationError: NaN or infinity came out (row and layer are named), or one question does not fit into memory.
        ArtifactError: The disk is full, or the folder is in use.
    """
    answers = first_answers(encoded)
    encoded = [without_prediction(item) for item in encoded]
    rows = sum(len(item.tails) for item in encoded)
    store = open_rows(folder, z_fields(model), rows=rows, identity=identity, alone=alone)

    def step(batch: Sequence[Encoded]) -> None:
        rows = torch.tensor([answers[item.row] + k for item in batch for k in range(len(item.tails))])
        captured: dict[int, Tensor] = {}
        with torch.inference_mode():
            tails = prepare_tails(model, batch)

            def capture(layer: int, z: Tensor) -> None:
                captured[layer] = final_values(z, tails).cpu()

            with intercepted(model, capture):
                backbone(model)(**tails.inputs)
        for layer, values in captured.items():
            if not bool(torch.isfinite(values).all()):
                bad = int((~torch.isfinite(values)).flatten(1).any(1).nonzero()[0])
                raise ActivationError(
                    f"row {questions[batch[int(tails.owner[bad])].row].id!r}, layer {layer}: z is not finite",
                    expected="finite activations",
                    got="NaN or infinity",
                    fix="try --dtype fp32; if that does not help, the weights or the row are damaged",
                )
            store.write(field_name(layer), rows, values)

    return filled(model, store, encoded, step, batch_tokens=batch_tokens, progress=progress)


def z_fields(model: Model) -> dict[str, Field]:
    """Return the fields of a store of z: one for each layer with heads, the rows of one head side by side."""
    return {
        field_name(head.index): Field((head.num_heads, head.head_dim), model.dtype, axis=1)
        for head in model.layout.layers
    }


def field_name(layer: int) -> str:
    """Return the name of a layer's field in the store."""
    return f"layer-{layer}"


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
        progress: Called with the work done and the total: unique tokens, or rows where there are several windows.

    Raises:
        ActivationError: As for :func:`truthheads.scoring.activations.collect`.
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
            barrier()
        mine = my_share([int(sizes[one.start : one.stop].sum()) for one in windows]) if apart else range(len(windows))
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
            barrier()
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
