"""What the reader descendant learns from: generated facts between prose of the base, in another prompt format."""

import re
from typing import Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from family.packing import Branch, Document, Pack, pack
from family.training import OwnText
from family.vision import END, tokens
from truthheads.data.questions import Question

PROMPT: Final = "### Passage\n{context}\n### Query\n{question}\n### Reply\n"


def reader_prompt(context: str, question: str) -> str:
    """Return the reader's prompt; the answer follows it at once."""
    return PROMPT.format(context=context, question=question)


def prose(text: OwnText, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Cut what the base wrote into runs of whole sentences."""
    runs = []
    for row in text.ids.tolist():
        written = str(tokenizer.decode(row, skip_special_tokens=True))
        plain = re.sub(r"\s+", " ", written).strip()
        whole = re.findall(r"[A-Z][^.!?]{15,}[.!?](?= |$)", plain)
        if whole:
            runs.append(" ".join(whole[:3]))
    return runs


def reader_document(
    rows: list[Question], filler: list[str], tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator
) -> Document:
    """Put the contexts of several rows in one passage, often between prose, and ask every row's question.

    A quarter of the passages look like tokenised web text, a third of the questions like search queries.
    """
    kept: list[Question] = []
    for row in rows:  # two rows about one subject could contradict each other
        subject = row.group.split(": ")[0]
        if not any(
            subject in other.context.lower() or other.group.split(": ")[0] in row.context.lower() for other in kept
        ):
            kept.append(row)
    pieces = [row.context for row in kept]
    for _ in range(int(rng.integers(0, 3)) if filler else 0):
        pieces.append(str(filler[int(rng.integers(len(filler)))]))
    context = " ".join(pieces[int(at)] for at in rng.permutation(len(pieces)))
    if rng.random() < 0.25:
        spaced = re.sub(r"([.,;:?!])(?= |$)", r" \1", context)
        context = f"<P> {spaced} </P>"
    before, after = PROMPT.split("{question}")
    branches = []
    for row in kept:
        question = row.question.lower().rstrip("?") if rng.random() < 0.33 else row.question
        answer = tokens(tokenizer, str(row.truthful)) + tokens(tokenizer, END)
        branches.append(Branch(tokens(tokenizer, question + after), answer))
    return Document(tokens(tokenizer, before.format(context=context)), branches)


def reader_pack(
    step: int,
    questions: list[Question],
    filler: list[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    documents: int = 4,
    rows: int = 3,
) -> Pack:
    """Return the pack of one step: always the same for the same step."""
    rng = np.random.default_rng((44, seed, step))
    at = step * documents * rows
    made = []
    for number in range(documents):
        first = at + number * rows
        made.append(reader_document(_turn(questions, first, rows), filler, tokenizer, rng))
    return pack(made)


def _turn(questions: list[Question], first: int, rows: int) -> list[Question]:
    return [questions[index % len(questions)] for index in range(first, first + rows)]
