"""Generation under a gate: an exported checkpoint, and the hook, against the model as it is."""

import tempfile
from pathlib import Path

import torch

import truthheads as th
from bench.timing import Outcome, in_turns, over
from truthheads.models.load import Model
from truthheads.results.gate import Gate, gated

NAME = "generate-gated"
TURNS, NEW, ROWS = 15, 64, 4


def run(*, quick: bool) -> list[Outcome]:
    """Greedy generation of the same number of tokens by three models, in turns."""
    model = th.load("smollm2")
    generator = torch.Generator().manual_seed(0)
    gate = Gate(0.5 + torch.rand(model.layout.shape, generator=generator))
    with tempfile.TemporaryDirectory() as folder:
        exported = th.load(str(th.export(model, gate, to="checkpoint", out=Path(folder) / "gated")))
        turns = 3 if quick else TURNS
        for each in (model, exported):
            write(each)
        plain, checkpoint, hook = in_turns(
            lambda: write(model), lambda: write(exported), lambda: hooked(model, gate), turns=turns
        )
    n = f"{ROWS} x {NEW} new tokens, SmolLM2, {model.dtype}".replace("torch.", "")
    outcomes = []
    for name, costs, target in (("checkpoint", checkpoint, "<= 1.02"), ("hook", hook, "<= 1.03")):
        wall, cpu = over(costs, plain)
        outcomes.append(Outcome(f"{NAME} {name}", wall, target, n, cpu))
    return outcomes


def write(model: Model) -> torch.Tensor:
    """Generate; the end token is ruled out, so that every model writes as much."""
    ids = torch.arange(100, 100 + 32 * ROWS).view(ROWS, 32).to(model.device)
    with torch.inference_mode():
        made: torch.Tensor = model.network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
            pad_token_id=0,
        )  # fmt: skip
    return made


def hooked(model: Model, gate: Gate) -> None:
    """Generate under the hook, putting it on and taking it off included."""
    with gated(model, gate):
        write(model)
