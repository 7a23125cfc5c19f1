"""``score`` against a bare forward pass of stock transformers over the same unique tokens."""

from collections.abc import Sequence
from typing import Any

import torch

import truthheads.scoring.activations
import truthheads.scoring.fit
import truthheads.scoring.score
from bench.inputs import embedded, nqswap, smollm2
from bench.timing import Outcome, Parts, in_turns, over, timed
from truthheads.data.questions import Question
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import plan_batches
from truthheads.models.load import Model
from truthheads.models.prompts import encode
from truthheads.scoring.activations import without_prediction
from truthheads.scoring.probes import PROBES
from truthheads.scoring.score import score
from truthheads.storage.row_store import RowStore

NAME = "score-vs-forward"


def run(*, quick: bool) -> list[Outcome]:
    """Measure on generated rows and, where the file is there, on NQ-Swap's long ones."""
    rows, turns = (40, 2) if quick else (300, 5)
    outcomes = [_compare("embedded", embedded(rows), turns)]
    long = nqswap(10 if quick else 100)
    if long is not None:
        outcomes.append(_compare("nqswap", long, 2 if quick else 3))
    return outcomes


def _compare(data: str, questions: Sequence[Question], turns: int) -> Outcome:
    model = smollm2()
    batches = bare_batches(model, questions)
    run_bare(model, batches[-1:])  # both start warm
    scored, bare = in_turns(lambda: fresh_score(model, questions), lambda: run_bare(model, batches), turns=turns)
    wall, cpu = over(scored, bare)
    unique = sum(without_prediction(item).unique_tokens for item in encode(model, questions))
    detail = {
        "unique_tokens": unique,
        "padded_tokens_of_the_bare_pass": sum(batch["input_ids"].numel() for batch in batches),
        "tokens_per_second": unique / sorted(cost.wall for cost in scored)[turns // 2],
        "dtype": str(model.dtype).removeprefix("torch."),
        "share_of_time": shares(model, questions),
    }
    n = f"{len(questions)} rows, {unique:,} tokens"
    return Outcome(f"{NAME} ({data})", wall, "<= 1.15", n, cpu_ratios=cpu, detail=detail)


def fresh_score(model: Model, questions: Sequence[Question], **settings: Any) -> None:
    """Score in process, everything included: a fingerprint that an earlier call left behind is not used."""
    model.__dict__.pop("fingerprint", None)
    score(model, questions, **settings)


def bare_batches(model: Model, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Return the inputs of the bare pass: the batches of ``score``, each as one plain padded call.

    A question is one sequence: its prefix and then its answers, one behind the other. The network computes as many
    tokens as ``score`` does, in a single call without a cache, which is the least that stock transformers can do.
    """
    encoded = [without_prediction(item) for item in encode(model, questions)]
    inputs = []
    for batch in plan_batches(encoded, batch_tokens=pick_batch_tokens(model.device)):
        rows = [[*encoded[i].prefix, *(token for tail in encoded[i].tails for token in tail)] for i in batch]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        inputs.append({"input_ids": ids, "attention_mask": mask, "use_cache": False})
    return inputs


def run_bare(model: Model, batches: Sequence[dict[str, Any]]) -> None:
    """Run the network without its language-model head; no hooks, nothing kept."""
    with torch.inference_mode():
        for inputs in batches:
            model.network.base_model(**inputs)


def shares(model: Model, questions: Sequence[Question]) -> dict[str, float]:
    """Return where the time of one ``score`` goes.

    The prefix pass includes branching its cache, the tail pass planning, hooks and checks.
    """
    parts = Parts()
    places = [
        ("tokenise", truthheads.scoring.score, "encode"),
        ("prefix pass", truthheads.scoring.activations, "prepare_tails"),
        ("tail pass", truthheads.scoring.activations, "collect"),
        ("store", RowStore, "write"),
        ("store", RowStore, "__init__"),
        ("store", truthheads.scoring.activations.Activations, "heads"),
        ("probes", PROBES, "newton"),
        ("measures", truthheads.scoring.fit, "measure"),
        ("measures", truthheads.scoring.fit, "fold_accuracies"),
        ("form probe", truthheads.scoring.score, "probe_form"),
        ("intervals", truthheads.scoring.score, "mean_figure"),
        ("intervals", truthheads.scoring.score, "split_half"),
        ("describing data and weights", truthheads.scoring.score, "list_answers"),
        ("describing data and weights", truthheads.scoring.score, "describe_data"),
        ("describing data and weights", truthheads.scoring.score, "provenance"),
    ]
    with parts.watch(*places):
        whole = timed(lambda: fresh_score(model, questions))
    return parts.shares(whole.wall)
