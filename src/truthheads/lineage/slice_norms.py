"""Squared norms of the same slices in two checkpoints and of their difference, read block by block."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.errors import ModelError
from truthheads.models.head_weights import WeightSlice
from truthheads.models.weight_files import DTYPES, Shards

BLOCK_BYTES = 1 << 20
"""Of one tensor at a time: a block, its fp32 copies and their difference stay in a processor's second-level cache."""

MOST_WORKERS = 8

CHANCE_HEADS, CHANCE_ROWS = 4, 16
"""How much of each kind and layer is looked at for chance: a small part, but thousands of weights."""

Result = TypeVar("Result")


def over_layers(work: Callable[[int], Result], layers: int) -> Iterator[Result]:
    """Yield ``work(0)``, ``work(1)`` … in order, some of them at a time, as many as torch has threads.

    Each worker's operations stay on one thread: blocks are too small to be shared, and threads that wait for each other
    after every block took 80 times as long on a machine whose cores other programs used.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(min(threads, MOST_WORKERS)) as pool:
            yield from pool.map(work, range(layers))
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Squares:
    """Sums over the slices of one kind in one layer.

    Attributes:
        base: Squared Frobenius norm of each slice of the base.
        descendant: The same of the descendant.
        difference: The same of descendant − base.
        chance: Cosine of the base's rows with *other* rows of the descendant: what the two have in common without being
            the same weights. About 0, unless all weights share a sign or a pattern.
    """

    base: Float[Tensor, " slices"]
    descendant: Float[Tensor, " slices"]
    difference: Float[Tensor, " slices"]
    chance: float


@dataclass(slots=True)
class PairReader:
    """Reads the same slices of two checkpoints, in blocks, into two buffers that are used again.

    Attributes:
        base: The one.
        descendant: The other.
        alike: What holds of everything read so far: ``exact`` (equal values), ``rounded`` (equal after rounding to the
            narrower of the two types), or None.
    """

    base: Shards
    descendant: Shards
    alike: str | None = "exact"
    _buffers: tuple[Tensor, Tensor] = field(
        default_factory=lambda: (
            torch.empty(BLOCK_BYTES, dtype=torch.uint8),
            torch.empty(BLOCK_BYTES, dtype=torch.uint8),
        )
    )

    def squares(self, part: WeightSlice, other: WeightSlice) -> Squares:
        """Return the sums for one kind of slice in one layer.

        Args:
            part: Where the base has it.
            other: Where the descendant has it: as many heads of the same width, along the same axis.

        Raises:
            ModelError: A weight is NaN or infinite, or a file cannot be read.
        """
        sums = torch.zeros(3, len(part.starts), dtype=torch.float64)
        chance = torch.zeros(3, dtype=torch.float64)
        for heads, x, y, first in self._blocks(part, other):
            self._compare(x, y)
            a, b = x.float(), y.float()
            if first:
                chance += _mismatched(a[:CHANCE_ROWS].double(), b[:CHANCE_ROWS].double())
            # Norms of short runs in fp32, their squares and sums in fp64. The difference takes b's place: b is ours.
            norms = [torch.linalg.vector_norm(a, dim=-1), torch.linalg.vector_norm(b, dim=-1)]
            norms.append(torch.linalg.vector_norm(b.sub_(a), dim=-1))
            sums[:, heads] += torch.stack(norms).double().square().sum(1)
        if not torch.isfinite(sums).all():
            raise self._not_finite(part, other, sums)
        scale = float((chance[1] * chance[2]).sqrt())
        return Squares(sums[0], sums[1], sums[2], float(chance[0]) / scale if scale else 0.0)

    def _blocks(self, part: WeightSlice, other: WeightSlice) -> Iterator[tuple[slice, Tensor, Tensor, bool]]:
        """Yield slices as ``[rows, heads, width]``, in the types they are stored in, and whether to use for chance."""
        step = max(1, BLOCK_BYTES // max(row_bytes(self.base, part), row_bytes(self.descendant, other)))
        if part.axis == 0:
            for head, (start, theirs) in enumerate(zip(part.starts, other.starts, strict=True)):
                for low in range(0, part.width, step):
                    high = min(low + step, part.width)
                    x = self.base.read(part.tensor, rows=(start + low, start + high), buffer=self._buffers[0])
                    y = self.descendant.read(other.tensor, rows=(theirs + low, theirs + high), buffer=self._buffers[1])
                    yield slice(head, head + 1), x[:, None], y[:, None], head < CHANCE_HEADS and low == 0
            return
        rows = self.base.entries[part.tensor].shape[0]
        for low in range(0, rows, step):
            span = (low, min(low + step, rows))
            x = columns(self.base.read(part.tensor, rows=span, buffer=self._buffers[0]), part)
            y = columns(self.descendant.read(other.tensor, rows=span, buffer=self._buffers[1]), other)
            yield slice(0, len(part.starts)), x, y, low == 0

    def _compare(self, x: Tensor, y: Tensor) -> None:
        if self.alike is None:
            return
        kind = torch.promote_types(x.dtype, y.dtype)
        if self.alike == "exact" and torch.equal(x.to(kind), y.to(kind)):
            return
        narrow, wide = (x, y) if x.element_size() < y.element_size() else (y, x)
        self.alike = "rounded" if narrow.dtype != wide.dtype and torch.equal(wide.to(narrow.dtype), narrow) else None

    def _not_finite(self, part: WeightSlice, other: WeightSlice, sums: Tensor) -> ModelError:
        shards, name = (self.descendant, other.tensor) if torch.isfinite(sums[0]).all() else (self.base, part.tensor)
        return ModelError(
            f"{name} of {shards.folder} has weights that are not finite",
            expected="numbers whose squares fit into fp32",
            got="NaN, infinity, or numbers above 1e19",
            fix="download the checkpoint again; the model would not run with these weights",
        )


def row_bytes(shards: Shards, part: WeightSlice) -> int:
    """Return the size of one row of a part's tensor."""
    entry = shards.entries[part.tensor]
    return entry.shape[1] * DTYPES[entry.dtype].itemsize


def columns(block: Tensor, part: WeightSlice) -> Tensor:
    """Return the columns of every head as ``[rows, heads, width]``: a view where heads follow one another."""
    first, width, heads = part.starts[0], part.width, len(part.starts)
    if part.starts == tuple(range(first, first + heads * width, width)):
        return block[:, first : first + heads * width].view(-1, heads, width)
    return torch.stack([block[:, start : start + width] for start in part.starts], dim=1)


def _mismatched(a: Tensor, b: Tensor) -> Float[Tensor, " 3"]:
    """Return the inner product of two sets of rows in which rows of unequal number meet, and both squared norms.

    All pairs are averaged, which has far less noise than one pairing, and scaled up to the number of rows.
    """
    product = (a.sum(0) * b.sum(0)).sum() - (a * b).sum()
    return torch.stack([product / max(1, len(a) - 1), (a * a).sum(), (b * b).sum()])
