"""Weights against weights: the memory that ``weight_drift`` needs, and its time over reading both checkpoints."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.timing import Outcome, in_turns, over
from truthheads.lineage.weight_drift import weight_drift
from truthheads.models.weight_files import INDEX, Shards

NAME = "weights-vs-reading"
TURNS = 5
SHAPE = {"hidden_size": 2560, "intermediate_size": 6912, "num_hidden_layers": 18, "num_attention_heads": 20}
QUICK = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8}
VOCAB = 32000
SHARD_BYTES = 500 << 20

CHILD = """
import sys
from pathlib import Path
from truthheads.lineage.weight_drift import weight_drift

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = status("VmRSS")
weight_drift(sys.argv[1], sys.argv[2])
print(before, status("VmHWM"))
"""


def run(*, quick: bool) -> list[Outcome]:
    """Compare two checkpoints with random weights of a Llama-like shape, in bf16, several shards each.

    They are unrelated, the dearest case: heads are also matched in 4 layers. Reading both is what the safetensors
    library takes to bring every tensor into memory, one at a time. A line without a target sets the same against the
    fastest reading there is: 1 MiB at a time into one buffer, which stays in the processor's cache and keeps nothing.
    All find the files in the system's cache, where a first pass has put them.
    """
    shape = QUICK if quick else SHAPE
    with tempfile.TemporaryDirectory(prefix="truthheads-bench-") as scratch:
        pair = [random_checkpoint(Path(scratch) / str(seed), shape, seed) for seed in (0, 1)]
        files = [file for folder in pair for file in sorted(folder.glob("*.safetensors"))]
        size = sum(file.stat().st_size for file in files)
        shards = Shards.open(pair[0])
        largest = max(entry.stop - entry.start for entry in shards.entries.values())
        compare = lambda: weight_drift(str(pair[0]), str(pair[1]))  # noqa: E731
        read = lambda: read_all(files)  # noqa: E731
        skim = lambda: skim_all(files)  # noqa: E731
        verdict = compare().verdict()
        read()
        ours, plain, fastest = in_turns(compare, read, skim, turns=2 if quick else TURNS)
        ratios, cpu_ratios = over(ours, plain)
        harder, cpu_harder = over(ours, fastest)
        peaks = [peak(pair) for _ in range(1 if quick else 3)]
    n = f"2 × {size / 2 / 1e9:.2f} GB in {len(files) // 2} shards"
    detail = {
        "seconds": [took.wall for took in ours],
        "seconds_reading": [took.wall for took in plain],
        "seconds_of_the_fastest_reading": [took.wall for took in fastest],
        "attention_share_of_the_bytes": sum(
            entry.stop - entry.start for name, entry in shards.entries.items() if "self_attn" in name
        )
        / (size / 2),
        "verdict": verdict[0],
    }
    return [
        Outcome(f"{NAME}, time", ratios, "<= 2", n, cpu_ratios, detail),
        Outcome(f"{NAME}, time over the fastest reading", harder, "", n, cpu_harder),
        Outcome(
            f"{NAME}, memory over the largest tensor",
            [(high - before) / largest for before, high in peaks],
            "<= 3",
            f"{n}, largest {largest / 1e6:.0f} MB",
            detail={"megabytes": [(high - before) / 1e6 for before, high in peaks]},
        ),
    ]


def peak(pair: list[Path]) -> tuple[int, int]:
    """Return the bytes of a process that has imported everything, and its largest size during the comparison."""
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, pair)], check=True, capture_output=True, text=True)
    before, high = done.stdout.split()
    return int(before), int(high)


def read_all(files: list[Path]) -> None:
    """Bring every tensor into memory, one at a time."""
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                opened.get_tensor(name).clone()  # what the library returns is a view of the mapped file, not yet read


def skim_all(files: list[Path]) -> None:
    """Read files from end to end into one small buffer."""
    buffer = bytearray(1 << 20)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def random_checkpoint(folder: Path, shape: dict[str, int], seed: int) -> Path:
    """Write a Llama's configuration and random weights in bf16, in shards of 500 MB at most."""
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "dtype": "bfloat16"}
    (folder / "config.json").write_text(
        json.dumps({**config, **shape, "num_key_value_heads": shape["num_attention_heads"]})
    )
    generator = torch.Generator().manual_seed(seed)
    names: dict[str, str] = {}
    held: dict[str, Tensor] = {}

    def flush() -> None:
        file = f"model-{len(set(names.values())) + 1:05d}.safetensors"
        names.update(dict.fromkeys(held, file))
        save_file(held, folder / file)
        held.clear()

    for name, rows, columns in weights(shape):
        if sum(tensor.nbytes for tensor in held.values()) + 2 * rows * columns > SHARD_BYTES:
            flush()
        held[name] = torch.empty(rows, columns).normal_(0, 0.02, generator=generator).bfloat16()
    flush()
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    return folder


def weights(shape: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """Yield name and size of every matrix, embeddings tied."""
    wide, inner = shape["hidden_size"], shape["intermediate_size"]
    yield "model.embed_tokens.weight", VOCAB, wide
    for layer in range(shape["num_hidden_layers"]):
        for part in "qkvo":
            yield f"model.layers.{layer}.self_attn.{part}_proj.weight", wide, wide
        for part, rows, columns in (("gate", inner, wide), ("up", inner, wide), ("down", wide, inner)):
            yield f"model.layers.{layer}.mlp.{part}_proj.weight", rows, columns
