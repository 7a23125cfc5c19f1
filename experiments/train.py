"""Train the embedded family from nothing: ``python experiments/train.py --out build/family``.

A run that was killed goes on where it stopped when it is started again with the same folder. ``--install`` copies the
finished deltas into the package.
"""

import argparse
import shutil
import sys
import time
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from family.recipe import TrainingConfig, train_family
from truthheads.models import sources
from truthheads.models.devices import pick_dtype


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the deltas and the states of a killed run")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--install", action="store_true", help="copy the deltas into the package when done")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = sources.resolve("smollm2")
    network = AutoModelForCausalLM.from_pretrained(base, dtype=pick_dtype("auto", torch.device("cpu"))).eval()
    start, spent = time.time(), time.process_time()

    def report(stage: str, step: int, loss: float) -> None:
        if step % 25 == 24:
            wall, cpu = (time.time() - start) / 60, (time.process_time() - spent) / 60
            sys.stderr.write(f"{stage} step {step + 1} loss {loss:.3f}, {wall:.1f} min wall, {cpu:.1f} min CPU\n")

    recipe = TrainingConfig(seed=given.seed).scaled(given.scale)
    made = train_family(network, AutoTokenizer.from_pretrained(base), given.out, recipe=recipe, report=report)
    for name, path in made.items():
        sys.stderr.write(f"{name}: {path}, {path.stat().st_size / 1e6:.1f} MB\n")
        if given.install:
            shutil.copy(path, str(files("truthheads.embedded").joinpath(f"deltas/{name}.safetensors")))


if __name__ == "__main__":
    main()
