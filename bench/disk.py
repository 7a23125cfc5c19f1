"""Activations to disk and back against the disk itself: plain writes and reads of as many bytes."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.timing import Outcome, in_turns, over
from truthheads.models.architectures import HeadLayer
from truthheads.scoring.activations import Activations, Window, field_name
from truthheads.storage.row_store import Field, RowStore

NAME = "activations-vs-disk"
LAYERS, HEADS, WIDTH = 8, 32, 128
BATCH = 32
BLOCK = 8 << 20


def run(*, quick: bool) -> list[Outcome]:
    """Write z of one window of 8 layers of a 7B model (32 heads of 128, bf16) batch by batch, read it head by head."""
    answers, turns = (512, 2) if quick else (8_192, 5)
    fields = {field_name(layer): Field((HEADS, WIDTH), torch.bfloat16, axis=1) for layer in range(LAYERS)}
    size = answers * sum(field.row_bytes for field in fields.values())
    z = torch.randn(BATCH, HEADS, WIDTH, dtype=torch.bfloat16)
    order = torch.from_numpy(np.random.default_rng(0).permutation(answers))
    with tempfile.TemporaryDirectory(prefix="truthheads-bench-", dir=os.environ.get("TRUTHHEADS_BENCH_DIR")) as scratch:
        folder = Path(scratch)
        window = Window(folder / "window-000000", 0, answers // 2, answers)

        def write() -> None:
            store = RowStore(window.folder, fields, rows=answers, identity=os.urandom(8).hex())
            for number, rows in enumerate(order.split(BATCH)):
                for name in fields:
                    store.write(name, rows, z)
                store.complete(number)
            store.seal()
            store.close()
            for name in fields:
                _sync(window.folder / f"{name}.bin")

        def plain_write() -> None:
            with (folder / "plain.bin").open("wb", buffering=0) as out:
                block = bytes(BLOCK)
                for _ in range(size // BLOCK):
                    out.write(block)
                os.fsync(out.fileno())

        def read() -> None:
            activations = Activations(folder, [window], torch.bfloat16)
            for layer in range(LAYERS):
                for head in range(HEADS):
                    activations.heads(HeadLayer(layer, "", HEADS, WIDTH, HEADS, False), head, head + 1)

        def plain_read() -> None:
            buffer = bytearray(BLOCK)
            with (folder / "plain.bin").open("rb", buffering=0) as opened:
                while opened.readinto(buffer):
                    pass

        written, read_back = in_turns(write, plain_write, turns=turns), in_turns(read, plain_read, turns=turns)
    n = f"{size / 1e6:,.0f} MB, {answers:,} answers"
    outcomes = []
    for name, (ours, plain) in (("write", written), ("read back by head", read_back)):
        wall, cpu = over(ours, plain)
        speeds = {
            "MB_per_second": {
                way: size / 1e6 / float(np.median([cost.wall for cost in costs]))
                for way, costs in (("ours", ours), ("plain", plain))
            }
        }
        outcomes.append(Outcome(f"{NAME} ({name})", wall, "", n, cpu_ratios=cpu, detail=speeds))
    return outcomes


def _sync(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())
