"""Pairs: is the truthful answer the more likely one?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from truthheads.benchmarks.base import Answer, Benchmark, Item, Items, Prediction, QuestionOptions, begin_line
from truthheads.benchmarks.rows import digest
from truthheads.data.readers import read_questions
from truthheads.stats.resampling import Measured, ratio


def measure_pairs(lines: Sequence[Prediction], *, seed: int = 0) -> Measured:
    """Compute the figures of pairs: pair accuracy (ties one half), margin and log P(truthful) in nats.

    Args:
        lines: Predictions of one run: ``logp`` of both answers, the truthful one first, and ``group``.
        seed: Not used; every task has it.
    """
    del seed
    logp = np.array([line["logp"] for line in lines], dtype=float)
    margin = logp[:, 0] - logp[:, 1]
    features = {
        "n": np.ones(len(lines)),
        "right": (margin > 0) + 0.5 * (margin == 0),
        "margin": margin,
        "truthful": logp[:, 0],
    }
    metrics = {
        "pair_accuracy": ratio("right", "n"),
        "margin": ratio("margin", "n"),
        "logp_truthful": ratio("truthful", "n"),
    }
    groups = [str(line["group"]) for line in lines]
    return Measured(features, groups, metrics, "pair_accuracy", right=margin > 0)


def read_items(data: Sequence[Path], how: QuestionOptions) -> Items:
    """Return the questions of a file, each with its two answers."""
    from truthheads.data.answers import describe_data  # it imports torch, which --help does not wait for

    questions = read_questions(
        data[0], limit=how.limit, images=how.images, encoding=how.encoding, skip_bad_rows=how.skip_bad_rows
    )
    items = [
        Item(q, q.id, [begin_line(q.id, q.group, digest(q.context, q.question, Path(q.image or "").name), q.truthful)])
        for q in questions
    ]
    return Items(items, {"data": describe_data(questions)}, notes=questions.cautions, contexts=questions)


def parse(line: Prediction, answer: Answer, _: Any) -> Prediction:
    """Return a line with the log-probabilities of both answers."""
    return {**line, "logp": list(answer.logp)}


PAIRS = Benchmark(
    name="pairs",
    label="answer pairs",
    about="Answer pairs: is the truthful answer the more likely one?",
    asks="pair_logprobs",
    options=QuestionOptions,
    read=read_items,
    parse=parse,
    measure=measure_pairs,
    primary="pair_accuracy",
    shown_beside=("margin",),
)
