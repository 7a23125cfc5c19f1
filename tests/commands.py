"""A small model, its rows, and every command that writes something, for tests of what a command survives."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from gguf import GGMLQuantizationType

from leaning import save_leaning, write_rows
from planted import NUM_HEADS, NUM_LAYERS, planted_model, planted_questions, save_planted
from small_gguf import write as write_gguf
from truthheads.data.questions import write_questions
from truthheads.detection.fit import fit_detector
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores

ROWS = 16


class Command(NamedTuple):
    """A command without its ``--out``, and the name that is given there."""

    words: tuple[object, ...]
    out: str


LIGHT = ("--dtype", "fp32", "--batch-tokens", 200)
RUN = ("model", "--data", "rows.jsonl", *LIGHT)
GRID = ("--scores", "scores.safetensors", "--strengths", "1", "--norms", "centred")
JUDGE = ("--gate", "gate.safetensors", "--controls", 1, "--guard-texts", 2, "--seed", 1)
LEAN = ("--gate", "leaning.safetensors", "--controls", 1, "--guard-texts", 2)
COMMANDS = {
    "score": Command(("score", *RUN), "s.safetensors"),
    "grid": Command(("tune", "grid", *RUN, *GRID, "--sites", "z"), "g/gate.safetensors"),
    "learn": Command(("tune", "learn", *RUN, "--epochs", 1), "g/gate.safetensors"),
    "adapt": Command(("tune", "adapt", *RUN, "--epochs", 2, "--guard", 9, "--controls", 1), "adapted"),
    "adapter": Command(("export", "model", "--gate", "gate.safetensors", "--to", "adapter"), "adapter"),
    "checkpoint": Command(("export", "model", "--gate", "gate.safetensors", "--to", "checkpoint"), "checkpoint"),
    "sharded": Command(("export", "sharded", "--gate", "gate.safetensors", "--to", "checkpoint"), "checkpoint"),
    "gguf": Command(("export", "model.gguf", "--gate", "gate.safetensors", "--to", "gguf"), "gated.gguf"),
    "pairs": Command(("evaluate", "pairs", *RUN, *JUDGE), "pairs"),
    "halueval": Command(
        ("evaluate", "halueval", "leaning", "--data", "qa.jsonl", "--instruction", "say.txt", *LIGHT, *LEAN),
        "halueval",
    ),
    "closed-book": Command(("data", "pairs", "halves.jsonl", "--model", "model", "--dtype", "fp32"), "p/pairs.jsonl"),
    "trace": Command(("trace", *RUN), "t.safetensors"),
    "fit": Command(("detect", "model", "--fit", "rows.jsonl", "--heads", 2, *LIGHT), "f.safetensors"),
    "detect": Command(("detect", *RUN, "--detector", "detector.safetensors"), "d.jsonl"),
    "evaluate detect": Command(("evaluate", "detect", *RUN, "--detector", "detector.safetensors"), "detected"),
    "report": Command(("report", "shown"), "report.html"),
}
"""Every command by a short name, as run in :func:`workplace`."""


def workplace(folder: Path) -> Path:
    """Fill a folder with what the commands read, and return it; everybody may read it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    save_planted(folder / "model")
    planted = planted_model()
    planted.network.save_pretrained(folder / "sharded", max_shard_size="150KB")
    planted.tokenizer.save_pretrained(folder / "sharded")
    write_questions(folder / "rows.jsonl", planted_questions(ROWS))
    halves = [replace(row, untruthful=None) for row in planted_questions(ROWS)]
    write_questions(folder / "halves.jsonl", halves)
    save_leaning(folder / "leaning")
    write_rows(folder / "qa.jsonl", rows=10)
    (folder / "say.txt").write_text("Yes or No ?", encoding="utf-8")
    write_gguf(folder / "model.gguf", GGMLQuantizationType.F16)
    factors = 1 + 0.3 * torch.randn(NUM_LAYERS, NUM_HEADS, generator=torch.Generator().manual_seed(0))
    Gate(factors).save(folder / "gate.safetensors")
    Gate(torch.tensor([[1.0, 0.5]])).save(folder / "leaning.safetensors")
    values = torch.rand(NUM_LAYERS, NUM_HEADS, generator=torch.Generator().manual_seed(1))
    scores = Scores.of("probe", values.double(), accuracy=values, meta={"model": {"name": "planted"}})
    scores.save(folder / "scores.safetensors")
    fit_detector(folder / "model", folder / "rows.jsonl", heads=2).save(folder / "detector.safetensors")
    (folder / "shown").mkdir(exist_ok=True)
    scores.save(folder / "shown" / "scores.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones included, with its bytes."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def digests(found: dict[str, bytes], names: Sequence[str] = ()) -> dict[str, str]:
    """Return the beginning of each file's SHA-256, to be compared at a glance."""
    return {name: hashlib.sha256(found[name]).hexdigest()[:12] for name in names or found}
