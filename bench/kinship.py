"""Whether weights and scores fall in order as a model moves away from its base, down to models unrelated by birth."""

import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.inputs import embedded, smollm2
from bench.timing import Outcome
from truthheads.lineage.agreement import relate, score_verdict
from truthheads.lineage.weight_drift import weight_drift
from truthheads.models.load import load
from truthheads.results.scores import Scores
from truthheads.scoring.score import score
from truthheads.synthetic.text import make_text

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from strangers import stranger

NAME = "kinship-in-order"
NOISES = (0.01, 0.1, 0.5)
STEPS = 30


def run(*, quick: bool) -> list[Outcome]:
    """Score SmolLM2, noisy copies, a short fine-tune, and a model of its shape with random weights."""
    rows = embedded(60 if quick else 200)
    base = smollm2()
    own = score(base, rows)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "base"
        _write(load("smollm2", dtype="fp32"), home)
        for name in [*(f"noise {noise:.0%}" for noise in NOISES), f"{STEPS} steps of fine-tuning", "random weights"]:
            place = Path(folder) / name.replace(" ", "-")
            _write(_made(name), place)
            found.append({"name": name, **_related(home, place, own, score(load(str(place)), rows))})
        found.append(_strangers(Path(folder), rows))
    noisy = [one for one in found if one["name"].startswith("noise")]
    steps = sum(
        later["drift"] > earlier["drift"] and later["within_layer"] < earlier["within_layer"]
        for earlier, later in pairwise(noisy)
    )
    strangers = [one for one in found if one["name"] in ("random weights", "two strangers")]
    apart = [one["verdict"] == one["weights_verdict"] == "not related" for one in strangers]
    return [
        Outcome(
            f"{NAME}, steps down",
            [steps],
            f">= {len(noisy) - 1}",
            f"{len(rows)} rows",
            detail={one["name"]: _in_words(one) for one in found},
            unit="",
        ),
        Outcome(f"{NAME}, strangers told apart", [sum(apart)], f">= {len(apart)}", f"{len(rows)} rows", unit=""),
    ]


def _related(home: Path, place: Path, own: Scores, other: Scores) -> dict[str, Any]:
    drift = weight_drift(str(home), str(place))
    relation = relate(own, other)
    judged = relation.corrected_within
    return {
        "drift": sum(figure.value for figure in drift.figures().values()) / 4,
        "weights_verdict": drift.verdict()[0],
        "within_layer": relation.within.value,
        "corrected": None if judged is None else judged.json(),
        "verdict": score_verdict(relation).word,
    }


def _in_words(one: dict[str, Any]) -> str:
    judged = one["corrected"]
    clean = f"{judged['value']:.3f} [{judged['low']:.3f}, {judged['high']:.3f}]" if judged else "–"
    return (
        f"drift {one['drift']:.4f}, weights {one['weights_verdict']}; scores within layers {one['within_layer']:.3f}, "
        f"without noise {clean}, {one['verdict']}"
    )


def _made(name: str) -> Any:
    """Return the model of that name, in fp32."""
    model = load("smollm2", dtype="fp32")
    generator = torch.Generator().manual_seed(0)
    if name.startswith("noise"):
        share = float(name.split()[1].rstrip("%")) / 100
        with torch.no_grad():
            for weight in model.network.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight += share * noise * weight.norm() / noise.norm()
    elif name == "random weights":
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(0)
            _restart(model.network)
    else:
        _tune(model)
    return model


def _restart(network: torch.nn.Module) -> None:
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.02)


def _tune(model: Any) -> None:
    """Take a few steps of language modelling on generated contexts with their answers."""
    rows = make_text(8 * STEPS, seed=5, split="train")
    model.network.requires_grad_(True)
    optimiser = torch.optim.AdamW(model.network.parameters(), lr=5e-5)
    for step in range(STEPS):
        texts = [f"{row.context} {row.question} {row.truthful}" for row in rows[8 * step : 8 * step + 8]]
        batch = [torch.tensor(model.tokenizer(text).input_ids[:96]) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in batch], batch_first=True)
        with torch.enable_grad():
            labels = ids.masked_fill(mask == 0, -100)
            loss: Tensor = model.network(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def _write(model: Any, place: Path) -> None:
    model.network.save_pretrained(place)
    model.tokenizer.save_pretrained(place)


def _strangers(folder: Path, rows: Any) -> dict[str, Any]:
    """Return what scores and weights say of two small models trained from different seeds."""
    places, scores = [], []
    for seed in (0, 1):
        made = stranger(seed, steps=150, layers=6, heads=8)
        place = folder / f"stranger-{seed}"
        made.network.save_pretrained(place)
        made.tokenizer.save_pretrained(place)
        places.append(place)
        scores.append(score(load(str(place), dtype="fp32"), rows, truncate=True))
    return {"name": "two strangers", **_related(places[0], places[1], scores[0], scores[1])}
