"""A gate put into a checkpoint: how much memory ``export`` needs, and how long it takes over copying the folder."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.drift import VOCAB, weights
from bench.timing import Outcome, over, timed
from truthheads.exporting.export import export
from truthheads.models.inspection import inspect
from truthheads.models.weight_files import INDEX, Shards
from truthheads.results.gate import Gate

NAME = "export-vs-copy"
TURNS = 5
SHAPE = {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 18, "num_attention_heads": 20}
QUICK = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8}
SHARDS = 10

CHILD = """
import sys
from pathlib import Path
from truthheads.exporting.export import export
from truthheads.results.gate import Gate

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

gate = Gate.load(sys.argv[2])
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = status("VmRSS")
export(sys.argv[1], gate, to="checkpoint", out=sys.argv[3])
print(before, status("VmHWM"))
"""


def run(*, quick: bool) -> list[Outcome]:
    """Export a checkpoint with random weights of a Llama-like shape, in bf16, every head of every layer scaled.

    Both sides find the source in the system's cache, and both begin without a folder of that name. The copy is
    ``shutil.copytree``, which leaves the bytes to the kernel and does not wait for the disk. ``export`` waits until its
    files are on the disk before they get their name, so it is also timed against a copy that waits.
    """
    shape = QUICK if quick else SHAPE
    with tempfile.TemporaryDirectory(prefix="truthheads-bench-") as scratch:
        root = Path(scratch)
        source = random_checkpoint(root / "model", shape)
        layout = inspect(str(source)).layout
        gate = Gate(0.3 + 1.4 * torch.rand(layout.shape, generator=torch.Generator().manual_seed(0)))
        gate.save(root / "gate.safetensors")
        files = sorted(source.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        largest = max(entry.stop - entry.start for entry in Shards.open(source).entries.values())

        def ours() -> None:
            export(str(source), gate, to="checkpoint", out=root / "gated")

        def copy() -> None:
            shutil.copytree(source, root / "copy")

        def copy_and_wait() -> None:
            shutil.copytree(source, root / "synced")
            for file in (root / "synced").iterdir():
                with file.open("rb") as written:
                    os.fsync(written.fileno())

        took, plain, synced = [], [], []
        for turn in range(1 + (2 if quick else TURNS)):
            for work, costs in ((ours, took), (copy, plain), (copy_and_wait, synced)):
                os.sync()  # what one has left to be written is not to be waited for by the next
                cost = timed(work)
                if turn:  # the first turn fills the system's cache
                    costs.append(cost)
                for name in ("gated", "copy", "synced"):
                    shutil.rmtree(root / name, ignore_errors=True)
        peaks = [peak(source, root / "gate.safetensors", root / "gated") for _ in range(1 if quick else 3)]
    n = f"{size / 1e9:.2f} GB in {len(files)} shards"
    seconds = {
        "seconds": [one.wall for one in took],
        "seconds_copying": [one.wall for one in plain],
        "seconds_copying_to_the_disk": [one.wall for one in synced],
    }
    return [
        Outcome(f"{NAME}, time", over(took, plain)[0], "<= 2", n, over(took, plain)[1], seconds),
        Outcome(f"{NAME}, time over a copy that waits", over(took, synced)[0], "", n, over(took, synced)[1]),
        Outcome(
            f"{NAME}, memory over the largest tensor",
            [(high - before) / largest for before, high in peaks],
            "<= 2",
            f"{n}, largest {largest / 1e6:.0f} MB",
            detail={"megabytes": [(high - before) / 1e6 for before, high in peaks]},
        ),
    ]


def peak(source: Path, gate: Path, out: Path) -> tuple[int, int]:
    """Return the bytes of a process that has imported everything, and its largest size during the export."""
    words = [sys.executable, "-c", CHILD, str(source), str(gate), str(out)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    shutil.rmtree(out)
    before, high = done.stdout.split()
    return int(before), int(high)


def random_checkpoint(folder: Path, shape: dict[str, int]) -> Path:
    """Write a Llama's configuration and random weights in bf16, in ten shards."""
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "dtype": "bfloat16"}
    config |= {**shape, "num_key_value_heads": shape["num_attention_heads"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    every = list(weights(shape))
    total, done = sum(rows * columns for _, rows, columns in every), 0
    names: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    for name, rows, columns in every:
        held[name] = torch.empty(rows, columns).normal_(0, 0.02, generator=generator).bfloat16()
        done += rows * columns
        if done * SHARDS >= total * (len(set(names.values())) + 1):
            file = f"model-{len(set(names.values())) + 1:05d}-of-{SHARDS:05d}.safetensors"
            names.update(dict.fromkeys(held, file))
            save_file(held, folder / file, {"format": "pt"})
            held.clear()
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": names}))
    return folder
