"""``detect`` against a bare forward pass of stock transformers over the same tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from bench.forward import bare_batches, run_bare
from bench.inputs import embedded, nqswap, smollm2
from bench.timing import Outcome, in_turns, over
from truthheads.data.questions import Question
from truthheads.detection.detect import detect
from truthheads.models.load import Model
from truthheads.results.detector import Detector, DetectorMeta

NAME = "detect-vs-forward"

HEADS = 20


def run(*, quick: bool) -> list[Outcome]:
    """Measure on generated rows and, where the file is there, on NQ-Swap's long ones; one answer a row."""
    rows, turns = (40, 2) if quick else (300, 5)
    outcomes = [_compare("embedded", embedded(rows), turns)]
    long = nqswap(10 if quick else 100)
    if long is not None:
        outcomes.append(_compare("nqswap", long, 2 if quick else 3))
    return outcomes


def _compare(data: str, questions: Sequence[Question], turns: int) -> Outcome:
    model = smollm2()
    singles = [replace(one, untruthful=None) for one in questions]
    batches = bare_batches(model, singles)
    run_bare(model, batches[-1:])
    detector = any_detector(model)
    found, bare = in_turns(
        lambda: detect(model, singles, detector=detector), lambda: run_bare(model, batches), turns=turns
    )
    wall, cpu = over(found, bare)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return Outcome(f"{NAME} ({data})", wall, "<= 1.10", f"{len(singles)} rows, {tokens:,} tokens", cpu_ratios=cpu)


def any_detector(model: Model) -> Detector:
    """Return a detector of random heads, one of them in the last layer: no pass may end before that."""
    rng = np.random.default_rng(0)
    layers = model.layout.layers
    width = max(layer.head_dim for layer in layers)
    heads = [[layers[-1].index, 0], *([layers[int(at)].index, 1] for at in rng.integers(len(layers), size=HEADS - 1))]
    settings = {"chat": False}
    return Detector(
        heads=torch.tensor(heads),
        weight=torch.from_numpy(rng.normal(size=(HEADS, width))).float(),
        bias=torch.zeros(HEADS),
        auroc=torch.full((HEADS,), 0.5),
        platt=torch.tensor([1.0, 0.0]),
        threshold=0.5,
        sample_score=torch.zeros(0),
        sample_label=torch.zeros(0, dtype=torch.int64),
        sample_group=torch.zeros(0, dtype=torch.int64),
        meta=cast(DetectorMeta, {"settings": settings, "model": model.describe()}),
    )
