"""``trace`` against a bare forward pass of stock transformers over the same unique tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import truthheads.tracing.attention
import truthheads.tracing.trace
from bench.forward import bare_batches, run_bare
from bench.inputs import NQSWAP, embedded, smollm2
from bench.timing import Outcome, Parts, in_turns, over, timed
from truthheads.data.questions import Question
from truthheads.data.readers import read_questions
from truthheads.models.load import Model
from truthheads.models.prompts import encode
from truthheads.tracing.trace import trace

NAME = "trace-vs-forward"


def run(*, quick: bool) -> list[Outcome]:
    """Measure on generated rows and, where the file is there, on NQ-Swap's long ones."""
    outcomes = [_compare("embedded", traceable(embedded(40 if quick else 300)), 2 if quick else 5)]
    if NQSWAP.is_file():
        long = traceable(read_questions(NQSWAP, limit=20 if quick else 300))
        outcomes.append(_compare("nqswap", long, 2 if quick else 3))
    return outcomes


def traceable(questions: Sequence[Question]) -> list[Question]:
    """Return the rows with evidence, each with its truthful answer alone: what ``trace`` computes."""
    return [replace(question, untruthful=None) for question in questions if question.evidence]


def _compare(data: str, questions: Sequence[Question], turns: int) -> Outcome:
    model = smollm2()
    batches = bare_batches(model, questions)
    run_bare(model, batches[-1:])  # both start warm
    traced, bare = in_turns(lambda: fresh_trace(model, questions), lambda: run_bare(model, batches), turns=turns)
    wall, cpu = over(traced, bare)
    unique = sum(item.unique_tokens for item in encode(model, questions))
    detail: dict[str, Any] = {
        "unique_tokens": unique,
        "padded_tokens_of_the_bare_pass": sum(batch["input_ids"].numel() for batch in batches),
        "tokens_per_second": unique / sorted(cost.wall for cost in traced)[turns // 2],
        "dtype": str(model.dtype).removeprefix("torch."),
        "share_of_time": shares(model, questions),
    }
    n = f"{len(questions)} rows, {unique:,} tokens"
    return Outcome(f"{NAME} ({data})", wall, "<= 1.3", n, cpu_ratios=cpu, detail=detail)


def fresh_trace(model: Model, questions: Sequence[Question]) -> None:
    """Trace in process, everything included: a fingerprint that an earlier call left behind is not used."""
    model.__dict__.pop("fingerprint", None)
    trace(model, questions)


def shares(model: Model, questions: Sequence[Question]) -> dict[str, float]:
    """Return where the time of one ``trace`` goes."""
    parts = Parts()
    places = [
        ("tokenise", truthheads.tracing.attention, "encode"),
        ("place evidence", truthheads.tracing.attention, "locate"),
        ("place evidence", truthheads.tracing.attention, "place"),
        ("pass", truthheads.tracing.trace, "look"),
        ("rows of attention", truthheads.tracing.attention, "attention_rows"),
        ("measures", truthheads.tracing.trace, "measure"),
        ("intervals", truthheads.tracing.trace, "_summary"),
        ("describing data and weights", truthheads.tracing.trace, "describe_data"),
        ("describing data and weights", truthheads.tracing.trace, "provenance"),
    ]
    with parts.watch(*places):
        whole = timed(lambda: fresh_trace(model, questions))
    return parts.shares(whole.wall)
