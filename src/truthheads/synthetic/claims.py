"""Answers of whole sentences: what a context says in other words, beside the same with one value changed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from truthheads.choices import Split
from truthheads.data.questions import Question
from truthheads.errors import DataError
from truthheads.synthetic.lexicon import SPLITS
from truthheads.synthetic.text import Fact, TextWriter, write_context

CLAIM_KINDS: Final = ("sentence", "summary")

REQUESTS: Final = (
    "Summarize the text.",
    "Write a summary of the passage.",
    "Summarize the text in a few sentences.",
    "What does the text say?",
)

MOST_SENTENCES: Final = 4

MOST_DRAWS: Final = 500


def make_claims(
    rows: int, *, seed: int, split: Split = "test", facts: tuple[int, int] = (3, 8), no_question: float = 0.25
) -> list[Question]:
    """Write rows whose answers are one sentence (``sentence``) or two to four (``summary``), by turns.

    The two answers of a row have the same sentences in the same order but for one value, which stands in the context
    about something else (in one half of the rows) or nowhere. Sentences repeat the context's facts, mostly in other
    words.

    Args:
        rows: How many, at least 1. Fewer rows are the first of more.
        seed: At least 0.
        split: No name of one split occurs in another.
        facts: Smallest and largest number of facts in a context, 2 to 8.
        no_question: Share of summaries, 0 to 1, that nobody asked for: their question is empty.

    Returns:
        Questions whose group is the attribute and the entity that the changed value belongs to.

    Raises:
        DataError: An argument is out of range.
    """
    if rows < 1 or seed < 0 or split not in SPLITS or not 2 <= facts[0] <= facts[1] <= 8 or not 0 <= no_question <= 1:
        raise DataError(
            "claims cannot be written with these arguments",
            expected=f"rows of at least 1, seed of at least 0, split one of {', '.join(SPLITS)}, facts within 2 to 8, "
            "a share from 0 to 1",
            got=f"rows {rows}, seed {seed}, split {split!r}, facts {facts}, no_question {no_question}",
            fix="pass values in that range",
        )
    writer = TextWriter(split, facts, np.random.default_rng([seed, SPLITS.index(split), 1]))
    made = []
    for index in range(rows):
        kind = CLAIM_KINDS[index % 2]
        row = _row(writer, f"{split}-{seed}-claim-{index:06d}", kind, told=index // 2 % 2 == 0)
        unasked = kind == "summary" and writer.rng.random() < no_question
        made.append(replace(row, question="") if unasked else row)
    return made


def _row(writer: TextWriter, name: str, kind: str, *, told: bool) -> Question:
    """Write one row; ``told``: the false value stands in the context, about something else."""
    rng = writer.rng
    for _ in range(MOST_DRAWS):
        fact, false, stated = writer.draft("distractor" if told else "absent", real=False)
        count = 1 if kind == "sentence" else int(rng.integers(2, min(MOST_SENTENCES, len(stated)) + 1))
        others = [one for one in stated if one is not fact]
        chosen = [fact, *(others[i] for i in rng.permutation(len(others))[: count - 1])]
        chosen = [chosen[i] for i in rng.permutation(len(chosen))]
        if fact.other or any(one.other for one in chosen):
            continue  # a deal has two parties, and an answer that names both would say too much
        stated = writer.ordered(stated)
        context, _ = write_context(stated, women=writer.words.women, rng=rng)
        if (false in context) != told or context in writer.written:
            continue
        writer.written.add(context)
        question = (
            fact.phrase.asks[int(rng.integers(len(fact.phrase.asks)))].replace("{e}", fact.subject)
            if kind == "sentence"
            else REQUESTS[int(rng.integers(len(REQUESTS)))]
        )
        seed = int(rng.integers(2**32))  # the same wording twice: only the value differs
        good, bad = (_sentences(facts, writer, seed) for facts in (chosen, _swapped(chosen, fact, false)))
        group = f"claim {fact.phrase.name}: {fact.subject}".lower()
        return Question(name, context, question, good, bad, group=group, kind=kind)
    raise AssertionError(f"no sound row of kind {kind} in {MOST_DRAWS} draws")


def _swapped(facts: Sequence[Fact], fact: Fact, value: str) -> list[Fact]:
    return [one._replace(value=value) if one is fact else one for one in facts]


def _sentences(facts: Sequence[Fact], writer: TextWriter, seed: int) -> str:
    return write_context(facts, women=writer.words.women, rng=np.random.default_rng(seed))[0]
