"""A benchmark of one file, for tests: how often does an answer hold a word that the row names?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from truthheads.benchmarks.base import (
    Answer,
    AnswerOptions,
    AnswersElsewhere,
    AnswersRead,
    AskOptions,
    Benchmark,
    Item,
    Items,
    Prediction,
    begin_line,
    help_text,
)
from truthheads.benchmarks.rows import benchmark_rows, digest, text_of
from truthheads.stats.resampling import Measured, ratio


@dataclass(frozen=True)
class ToyOptions(AskOptions):
    """How the toy is asked."""

    before: str = field(default="", metadata=help_text("Text put before every prompt."))
    note: str | None = field(default=None, metadata=help_text("File with a note for the reader.", text_file=True))
    marks: tuple[int, ...] = field(default=(1, 2), metadata=help_text("Numbers that the result repeats."))
    new_tokens: int = field(default=2, metadata=help_text("Greedy tokens of each answer."))


def read(data: Sequence[Path], how: ToyOptions) -> Items:
    rows = list(benchmark_rows(data[0]))[: how.limit]
    items = []
    for row in rows:
        prompt, word = how.before + text_of(data[0], row, "prompt"), text_of(data[0], row, "word")
        items.append(Item(prompt, "all", [begin_line(row.place, row.place, digest(prompt), word)]))
    return Items(items, {"before": how.before, "marks": list(how.marks)}, [how.note] if how.note else [])


def parse(line: Prediction, answer: Answer, _: Any) -> Prediction:
    return {**line, "answer": answer.text}


def measure(lines: Sequence[Prediction], *, seed: int = 0) -> Measured:
    lacks = np.array([float(line["gold"] not in line["answer"]) for line in lines])
    length = np.array([float(len(line["answer"])) for line in lines])
    features = {"n": np.ones(len(lines)), "lacks": lacks, "length": length}
    metrics = {"lacking": ratio("lacks", "n"), "length": ratio("length", "n")}
    return Measured(features, [str(line["group"]) for line in lines], metrics, "lacking")


def read_answered(answers: Sequence[Path], data: Sequence[Path], how: AnswerOptions) -> AnswersRead:
    told = [text_of(answers[0], row, "answer") for row in benchmark_rows(answers[0])]
    lines: list[Prediction] = [
        {**begin_line(row.place, row.place, "", text_of(data[0], row, "word")), "answer": text}
        for row, text in zip(benchmark_rows(data[0]), told, strict=True)
    ]
    return AnswersRead(lines[: how.limit], {"answers": [str(path) for path in answers]})


TOY = Benchmark(
    name="toy",
    label="The Toy",
    about="The toy: does the answer hold the word?",
    asks="text",
    options=ToyOptions,
    read=read,
    parse=parse,
    measure=measure,
    primary="lacking",
    lower_is_better=True,
    shown_beside=("length",),
    elsewhere=AnswersElsewhere("Answers to the toy: rows of answer, in order.", AnswerOptions, read_answered),
)
