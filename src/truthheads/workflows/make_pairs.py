"""The untruthful side of a pair: the model's own answer without the context, or another answer of the same form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from truthheads.choices import PairStrategy
from truthheads.data.answers import describe_data, list_answers
from truthheads.data.cautions import data_cautions
from truthheads.data.held import QuestionsLike
from truthheads.data.numerals import in_digits, is_number
from truthheads.data.questions import Question, normalised_text, occurrences
from truthheads.data.readers import as_questions
from truthheads.data.same_answers import same_answer
from truthheads.errors import DataError
from truthheads.models.forward import Progress
from truthheads.models.held import ModelLike, as_model
from truthheads.models.load import Model
from truthheads.models.prompts import prompt_of
from truthheads.plots.views import Shown
from truthheads.scoring.form_probe import FormProbe, form_features, probe_form
from truthheads.scoring.probes import NUM_FOLDS, dealt_folds

NEW_TOKENS = 16

NEAREST = 5

MONTHS = frozenset(
    (
        "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
        "december",
    )
)  # fmt: skip

OPENERS = frozenset(
    (
        "the", "a", "an", "in", "on", "at", "it", "he", "she", "they", "this", "that", "these", "those", "his", "her",
        "its", "their", "there", "when", "after",
    )
)  # fmt: skip
"""Words that are capital only because a sentence begins with them."""

NAME = re.compile(r"[A-Z][\w'’-]*\.?(?:(?: (?:of|the|de|van|von))* [A-Z][\w'’-]*\.?)*")

NUMBER = re.compile(r"(?<![\w.])\$?\d[\d,.]*\d%?|(?<![\w.])\d%?")


@dataclass(frozen=True, slots=True, repr=False)
class Pairs(Shown):
    """Questions with both answers, and how the untruthful ones came to be.

    Attributes:
        questions: Those for which one was found; ``kind`` is ``closed-book``, ``swap-row`` or ``swap-context``.
        counts: How many of each kind, and ``left out``.
        form: What form alone tells of them; None with fewer groups than folds.
        cautions: What must be said of the rows, one sentence or two each.
    """

    questions: list[Question]
    counts: dict[str, int]
    form: FormProbe | None
    cautions: list[str] = field(default_factory=list)

    def in_short(self) -> str:
        """Return how many questions have both answers now, and how the untruthful ones were found."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)
        return f"{len(self.questions)} questions: {counts}"


def make_pairs(
    questions: QuestionsLike,
    model: ModelLike | None = None,
    *,
    strategy: PairStrategy = "both",
    seed: int = 0,
    batch: int = 16,
    progress: Progress | None = None,
) -> Pairs:
    """Give every question an untruthful answer that its context does not support.

    ``closed-book`` asks the model without the context (and without the image), greedily, and cuts at the answer's end.
    Its answer is taken where it disagrees with the truthful one (neither contains the other), does not stand in the
    context, and has the truthful answer's form: type (yes or no, number, date, name, phrase), as many words to within
    one, at most twice as long or half as long. ``swap`` takes one of the five answers nearest in form from other rows
    and from the same context.

    Args:
        questions: With truthful answers; untruthful ones are dropped and made anew. Questions, or what
            :func:`truthheads.read_questions` reads.
        model: For ``closed-book`` and ``both``: from :func:`truthheads.load`, or a name that it takes.
        strategy: ``both``: closed-book where it can be used, else swap.
        seed: Random seed of the choice among near answers and of the form probe's folds.
        batch: Questions that the model answers at once.
        progress: Called with the questions done and the total.

    Raises:
        DataError: No question has a truthful answer, a model is missing, or no untruthful answer was found at all.
    """
    questions = as_questions(questions, halves=True)
    usable = [question for question in questions if question.truthful is not None and question.truthful.strip()]
    if not usable:
        raise DataError(
            "there is nothing to pair",
            expected="rows with a truthful answer",
            got=f"{len(questions)} rows without one",
            fix="give the columns context, question and truthful (or answer)",
        )
    if strategy != "swap" and model is None:
        raise DataError(
            f"{strategy} asks a model", expected="--model MODEL", got="none", fix="name one, or pass --strategy swap"
        )
    generator = np.random.default_rng(seed)
    remembered: list[str | None] = [None] * len(usable)
    if strategy != "swap" and model is not None:
        remembered = [
            answer if fits(answer, question) else None
            for answer, question in zip(closed_book(as_model(model), usable, batch, progress), usable, strict=True)
        ]
    pool = sorted({str(question.truthful).strip() for question in usable})
    made: list[Question] = []
    counts = {"closed-book": 0, "swap-row": 0, "swap-context": 0, "left out": len(questions) - len(usable)}
    for question, answer in zip(usable, remembered, strict=True):
        kind = "closed-book"
        if answer is None and strategy != "closed-book":
            kind, answer = _swapped(question, pool, generator)
        if answer is None:
            counts["left out"] += 1
            continue
        counts[kind] += 1
        made.append(replace(question, untruthful=answer, untruthful_aliases=(), kind=kind))
    if not made:
        raise DataError(
            "no untruthful answer was found",
            expected="at least one other answer of the same form",
            got=f"{len(usable)} rows, none with one",
            fix="give more rows, or pass --strategy both",
        )
    return Pairs(made, counts, _form(made, seed), data_cautions(describe_data(questions)))


def closed_book(model: Model, questions: Sequence[Question], batch: int, progress: Progress | None) -> list[str]:
    """Return the model's greedy answers to the questions alone, cut at the end of the answer."""
    prompts = [prompt_of(replace(question, context="", evidence=())) for question in questions]
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    said = [""] * len(prompts)
    tokenizer: Any = model.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        rows = [list(tokenizer(prompts[at])["input_ids"]) for at in part]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        with torch.inference_mode():
            made = model.network.generate(
                input_ids=ids, attention_mask=seen, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=pad
            )
        for at, row in zip(part, made[:, width:].tolist(), strict=True):
            said[at] = cut(str(tokenizer.decode(row, skip_special_tokens=True)))
        if progress is not None:
            progress(min(first + batch, len(order)), len(order))
    return said


def cut(text: str) -> str:
    """Return an answer up to its end: the first line, the first sentence, without marks around it."""
    line = text.strip().split("\n")[0]
    sentence = re.split(r"(?<=[a-z\d]{2}[.!?;])\s|\s\(", line)[0]
    return sentence.strip().strip("\"'“”‘’").rstrip(".,;:!? ").strip()


def fits(answer: str, question: Question) -> bool:
    """Return whether an answer may be the untruthful one: it disagrees, is not in the context, and has the form."""
    truthful = str(question.truthful).strip()
    if not _differs_from_all(answer, question) or occurrences(question.context, answer):
        return False
    words = len(answer.split()), len(truthful.split())
    return (
        answer_type(answer) == answer_type(truthful)
        and abs(words[0] - words[1]) <= 1
        and 0.5 <= len(answer) / len(truthful) <= 2
    )


def differs(answer: str, truthful: str) -> bool:
    """Return whether neither answer contains the other, in one case, without punctuation and with numbers in digits."""
    a, b = (f" {normalised_text(in_digits(text))} " for text in (answer, truthful))
    return bool(a.strip()) and a not in b and b not in a


def _differs_from_all(answer: str, question: Question) -> bool:
    """Return whether an answer differs from the truthful one in each of its forms."""
    forms = (str(question.truthful), *question.aliases)
    return all(differs(answer, form) and not same_answer(answer, form) for form in forms if form.strip())


def answer_type(text: str) -> str:
    """Return ``yes-no``, ``number``, ``date``, ``name`` or ``phrase``."""
    words = text.strip().split()
    if normalised_text(text) in ("yes", "no"):
        return "yes-no"
    plain = [re.sub(r"\W", "", word).casefold() for word in words]
    if any(word in MONTHS for word in plain) or re.fullmatch(r"1\d{3}|20\d{2}", text.strip(" .")):
        return "date"
    if any(char.isdigit() for char in text) or is_number(text):
        return "number"
    return "name" if words and all(word[:1].isupper() or word in ("of", "the", "de") for word in words) else "phrase"


def spans_of(context: str) -> list[str]:
    """List the names and numbers of a context, which could be answers."""
    # A name ends with its sentence: a period after a word of three letters or more is the sentence's, not an initial's.
    apart = re.sub(r"(?<=[a-z\d]{2})\.(?=\s)", " |", context)
    found = [match.group().strip(" .,'’-") for pattern in (NAME, NUMBER) for match in pattern.finditer(apart)]
    kept = []
    for text in found:
        words = text.split()
        while words and words[0].casefold() in OPENERS:
            words = words[1:]
        if words:
            kept.append(" ".join(words))
    return sorted(set(kept))


def _swapped(question: Question, pool: Sequence[str], generator: np.random.Generator) -> tuple[str, str | None]:
    """Return (kind, answer): one of the nearest in form, of other rows and the same context; None without any."""
    truthful = str(question.truthful).strip()
    if answer_type(truthful) == "yes-no":
        other = "no" if normalised_text(truthful) == "yes" else "yes"
        return "swap-row", other.capitalize() if truthful[:1].isupper() else other
    kind = answer_type(truthful)
    sources = [("swap-row", text) for text in pool] + [("swap-context", text) for text in spans_of(question.context)]
    near = sorted(
        (_distance(text, truthful), text, source)
        for source, text in sources
        if answer_type(text) == kind and _differs_from_all(text, question)
    )[:NEAREST]
    if not near:
        return "swap-row", None
    _, text, source = near[int(generator.integers(len(near)))]
    return source, text


def _distance(text: str, truthful: str) -> float:
    """Return how far apart two answers are in form: words count most, then characters, capitals and digits."""

    def form(one: str) -> np.ndarray:
        return np.array(
            [4 * len(one.split()), len(one), 2 * sum(map(str.isupper, one)), 2 * sum(map(str.isdigit, one))], float
        )

    return float(np.abs(form(text) - form(truthful)).sum()) + 4 * (text[:1].isupper() != truthful[:1].isupper())


def _form(questions: Sequence[Question], seed: int) -> FormProbe | None:
    answers = list_answers(questions, seed=seed, features=form_features)
    if len(answers.order) < NUM_FOLDS:
        return None
    folds = dealt_folds(answers.group, answers.order, num_folds=NUM_FOLDS)
    return probe_form(answers.features, answers.label, folds, answers.group, answers.question)
