"""Conflict: the context says one thing and memory another; whose answer does the model write?"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from truthheads.benchmarks.base import (
    Answer,
    Benchmark,
    Item,
    Items,
    Prediction,
    QuestionOptions,
    begin_line,
    help_text,
)
from truthheads.benchmarks.rows import digest
from truthheads.data.numerals import in_digits
from truthheads.data.questions import Question
from truthheads.data.readers import read_questions
from truthheads.errors import DataError
from truthheads.stats.resampling import Measured, ratio

NEW_TOKENS = 16

SIDES = ("context", "memory")


@dataclass(frozen=True, slots=True)
class Conflict:
    """A question with all answers that its context and memory allow."""

    question: Question
    context: tuple[str, ...]
    memory: tuple[str, ...]


def conflicts(questions: Iterable[Question], path: Path) -> list[Conflict]:
    """Return the conflicts of a question file, with every form of both answers that the file gives.

    Args:
        questions: The rows, as ``read_questions`` gives them.
        path: Their file, for errors.

    Raises:
        DataError: A row has no context, or not both answers; or both sides have the same answer.
    """
    for question in questions:
        if not question.context or question.truthful is None or question.untruthful is None:
            raise DataError(
                f"{path}: row {question.id!r} is no conflict",
                expected="a context, the answer that it gives (truthful) and the one from memory (untruthful)",
                got="no context" if not question.context else "one answer",
                fix="give NQ-Swap, or a question file with both answers in every row",
            )
    found = [
        Conflict(
            question,
            (str(question.truthful), *question.aliases),
            (str(question.untruthful), *question.untruthful_aliases),
        )
        for question in questions
    ]
    for one in found:
        for answer in one.context:
            if exact_match(answer, one.memory, plain_words):
                raise DataError(
                    f"row {one.question.id!r} is no conflict: {answer[:60]!r} counts for both sides",
                    expected="answers of the context that differ from those of memory",
                    got=f"context {', '.join(one.context)[:120]}; memory {', '.join(one.memory)[:120]}",
                    fix="correct or remove the row",
                )
    return found


def conflict_notes(found: Sequence[Conflict]) -> list[str]:
    """List the caveats: sides that give one number in two spellings, as NQ-Swap does ("eight", "8")."""
    same = [one.question.id for one in found if any(exact_match(answer, one.memory) for answer in one.context)]
    if not same:
        return []
    return [
        f"{len(same)} rows have the same number on both sides, in words and in digits (row {same[0]} first): there a "
        "right answer counts for both sides, and only the strict figures tell them apart"
    ]


def first_line(text: str) -> str:
    """Cut the answer out: the first line of what was generated, without blanks at its ends."""
    return text.strip().split("\n")[0].strip()


def plain_words(text: str) -> list[str]:
    """Return the words of an answer without case, punctuation and articles.

    Source:
        Answer normalisation of SQuAD: Rajpurkar et al. (2016), arXiv 1606.05250.
    """
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def words_by_value(text: str) -> list[str]:
    """Return the words of an answer as :func:`plain_words` does, but numbers by their value.

    "Three" is 3, "twenty-one" 21, "third" 3rd, "1,000" 1000 and "3.0" 3; a decimal point stays, so that 3.5 is not 35,
    and another mark between digits parts them, so that 3-5 is not 35 either; see ``data.numerals``.
    """
    apart = re.sub(r"(?<=\d)[^\w\s.](?=\d)", " ", in_digits(text.lower()))
    bare = re.sub(rf"(?!(?<=\d)\.\d)[{re.escape(string.punctuation)}]", "", apart)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(answer: str, golds: Sequence[str], words: Callable[[str], list[str]] = words_by_value) -> float:
    """Return 1 where an answer is one of the gold answers, both normalised, else 0.

    Args:
        answer: What was said.
        golds: What counts as right.
        words: The normalisation; :func:`plain_words` is the strict one, of SQuAD.
    """
    return float(any(words(answer) == words(gold) for gold in golds))


def best_f1(answer: str, golds: Sequence[str], words: Callable[[str], list[str]] = words_by_value) -> float:
    """Return the highest F1 of an answer's words with those of a gold answer; 1 where both have none."""
    return max(_f1(words(answer), words(gold)) for gold in golds)


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold))


def measure_conflict(lines: Sequence[Prediction], *, seed: int = 0) -> Measured:
    """Compute the figures of generated answers: exact match and F1 with each side's answer, and neither.

    Number words and digits are one answer (:func:`words_by_value`); ``_strict`` figures compare the words alone, as
    SQuAD's normalisation leaves them.

    Args:
        lines: Predictions of one run: ``answer``, ``gold`` with lists under ``context`` and ``memory``, ``group``.
        seed: Not used; every task has it.
    """
    del seed
    features = {"n": np.ones(len(lines))}
    answers = [first_line(cast(str, line["answer"])) for line in lines]  # a text model always writes one
    for suffix, words in (("", words_by_value), ("_strict", plain_words)):
        for side in SIDES:
            both = [(answer, line["gold"][side]) for answer, line in zip(answers, lines, strict=True)]
            features[f"em_{side}{suffix}"] = np.array([exact_match(*one, words) for one in both])
            features[f"f1_{side}{suffix}"] = np.array([best_f1(*one, words) for one in both])
        either = np.maximum(features[f"em_context{suffix}"], features[f"em_memory{suffix}"])
        features[f"neither{suffix}"] = 1.0 - either
    metrics = {name: ratio(name, "n") for name in features if name != "n"}
    right = features["em_context"] > 0
    return Measured(features, [str(line["group"]) for line in lines], metrics, "em_context", right=right)


@dataclass(frozen=True)
class ConflictOptions(QuestionOptions):
    """How conflicts are asked.

    Attributes:
        new_tokens: Greedy tokens of each answer.
    """

    new_tokens: int = field(default=NEW_TOKENS, metadata=help_text("Greedy tokens of each answer."))


def read_items(data: Sequence[Path], how: ConflictOptions) -> Items:
    """Return the conflicts of a file as prompts."""
    from truthheads.data.answers import describe_data  # it imports torch, which --help does not wait for

    questions = read_questions(
        data[0], limit=how.limit, images=how.images, encoding=how.encoding, skip_bad_rows=how.skip_bad_rows
    )
    items, found = [], conflicts(questions, data[0])
    for one in found:
        key = digest(one.question.context, one.question.question)
        gold = {"context": list(one.context), "memory": list(one.memory)}
        line = begin_line(one.question.id, one.question.group, key, gold)
        items.append(Item(one.question, one.question.id, [line]))
    settings = {"data": describe_data(questions), "new_tokens": how.new_tokens}
    return Items(items, settings, notes=[*questions.cautions, *conflict_notes(found)], contexts=questions)


def parse(line: Prediction, answer: Answer, _: Any) -> Prediction:
    """Return a line with what was written."""
    return {**line, "answer": answer.text, "finished": answer.finished}


CONFLICT = Benchmark(
    name="conflict",
    label="conflict",
    about="Conflicts: the context says one thing and memory another; whose answer does the model write?",
    asks="text",
    options=ConflictOptions,
    read=read_items,
    parse=parse,
    measure=measure_conflict,
    primary="em_context",
    shown_beside=("em_memory",),
)
