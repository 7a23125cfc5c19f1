"""The untruthful side of a pair: the model's own answer without the context, or another answer of the same form."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from truthheads.choices import PairStrategy
from truthheads.data.answers import describe_data, list_answers
from truthheads.data.cautions import data_cautions
from truthheads.data.held import QuestionsLike
from truthheads.data.numerals import in_digits, is_number
from truthheads.data.questions import Question, normalised_text, occurrences
from truthheads.data.readers import as_questions
from truthheads.data.same_answers import same_answer
from truthheads.errors import DataError
from truthheads.models.forward import shares_prefix
from truthheads.models.held import ModelLike, as_model
from truthheads.models.load import Model
from truthheads.models.progress import Progress
from truthheads.models.prompts import framed, token_digest
from truthheads.plots.views import Shown
from truthheads.scoring.form_probe import FormProbe, form_features, probe_form
from truthheads.scoring.probes import NUM_FOLDS, dealt_folds
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import as_path
from truthheads.storage.kept_results import KeptResults
from truthheads.workflows.greedy import Asked, greedy_answers, prompts_of

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

DAY = r"\d{1,2}(?:st|nd|rd|th)?"

_MONTH = "|".join(sorted(month.capitalize() for month in MONTHS))

DATE = re.compile(rf"(?:{DAY} )?\b(?:{_MONTH})\b(?: {DAY})?(?:,? \d{{4}})?")

SAYS = re.compile(r"\b(?:is|are|was|were|called|named|by|in|on|at|of|to|from|for|as|has|have|had)\b", re.IGNORECASE)
"""Words behind which a sentence that repeats its question gives the answer."""


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
    chat: bool = False,
    progress: Progress | None = None,
    work_dir: str | Path | None = None,
) -> Pairs:
    """Give every question an untruthful answer that its context does not support.

    ``closed-book`` asks the model without the context (and without the image), greedily, and cuts at the answer's end.
    Of its answer, often a sentence, the first span is taken that disagrees with the truthful answer (neither contains
    the other), stands neither in the context nor in the question, and has the truthful answer's form: type (yes or no,
    number, date, name, phrase), as many words to within one, at most twice as long or half as long. ``swap`` takes one
    of the five answers nearest in form from other rows and from the same context.

    Args:
        questions: With truthful answers; untruthful ones are dropped and made anew. Questions, or what
            :func:`truthheads.read_questions` reads.
        model: For ``closed-book`` and ``both``: from :func:`truthheads.load`, or a name that it takes.
        strategy: ``both``: closed-book where it can be used, else swap.
        seed: Random seed of the choice among near answers and of the form probe's folds.
        batch: Questions that the model answers at once.
        chat: Ask in the user's turn of the tokenizer's chat template.
        progress: Called with the tokens of the questions done and the total.
        work_dir: Folder of the model's answers as they come; a run that was killed goes on from it. None: keeps none.

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
        folder = None if work_dir is None else as_path(work_dir)
        answers = closed_book(as_model(model), usable, batch, progress, folder, chat=chat)
        remembered = [short_span(said, question) for said, question in zip(answers, usable, strict=True)]
    pool = sorted({str(question.truthful).strip() for question in usable})
    made: list[Question] = []
    counts = {"closed-book": 0, "swap-row": 0, "swap-context": 0, "left out": len(questions) - len(usable)}
    for question, span in zip(usable, remembered, strict=True):
        kind = "closed-book"
        if span is None and strategy != "closed-book":
            kind, span = _swapped(question, pool, generator)
        if span is None:
            counts["left out"] += 1
            continue
        counts[kind] += 1
        made.append(replace(question, untruthful=span, untruthful_aliases=(), kind=kind))
    if not made:
        raise DataError(
            "no untruthful answer was found",
            expected="at least one other answer of the same form",
            got=f"{len(usable)} rows, none with one",
            fix="give more rows, or pass --strategy both",
        )
    return Pairs(made, counts, _form(made, seed), data_cautions(describe_data(questions)))


def closed_book(
    model: Model,
    questions: Sequence[Question],
    batch: int,
    progress: Progress | None = None,
    work_dir: Path | None = None,
    *,
    chat: bool = False,
) -> list[str]:
    """Return the model's greedy answers to the questions alone, cut at the end of the answer.

    A question that is asked of several contexts is put to the model once. Each batch is on disk before the next begins.

    Args:
        model: The model.
        questions: The questions.
        batch: Questions that the model answers at once.
        progress: Called with the prompts' tokens done and the total.
        work_dir: Folder of the answers that are there; a run that was killed goes on from it. None: keeps none.
        chat: Ask in the user's turn of the tokenizer's chat template.
    """
    bare = [replace(question, context="", evidence=(), image=None) for question in questions]
    prompts = [framed(model, question, chat=chat) for question in bare]
    rows = [model.tokenizer(prompt, add_special_tokens=not chat)["input_ids"] for prompt in dict.fromkeys(prompts)]
    encoded = prompts_of(model, [(ids, None) for ids in rows])
    order = sorted(encoded, key=lambda one: (one.length, one.row), reverse=True)
    size = batch if shares_prefix(model) else 1
    batches = [[one.row for one in order[first : first + size]] for first in range(0, len(order), size)]
    kept = KeptResults(
        work_dir,
        {
            "model": model.describe(),
            "dtype": str(model.dtype),
            "tokens": token_digest(encoded),
            "batch": size,
            "new tokens": NEW_TOKENS,
            "packages": provenance()["packages"],
        },
    )

    def finish(text: str, over: bool) -> str:
        return cut(text) if over or is_whole(text) else cut(without_last_word(text))

    said = greedy_answers(model, encoded, batches, Asked(NEW_TOKENS, is_whole, finish), kept, progress=progress)
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    return [said[place[prompt]] for prompt in prompts]


def is_whole(text: str) -> bool:
    """Return whether an answer has come to its end, so that :func:`cut` will not change with what follows."""
    return len(_parts(text)) > 1


def cut(text: str) -> str:
    """Return an answer up to its end: the first line, the first sentence, without marks around it."""
    return _parts(text)[0].strip().strip("\"'“”‘’").rstrip(".,;:!? ").strip()


def without_last_word(text: str) -> str:
    """Drop the last word of an answer that reached the limit: what ends "in 200" may have been "in 2008"."""
    words = text.rsplit(maxsplit=1)
    return words[0] if len(words) > 1 else text


def _parts(text: str) -> list[str]:
    """Return the first answer of a text, and what follows it."""
    return re.split(r"\n|(?<=[a-z\d]{2}[.!?;])\s|\s\(", text.lstrip(), maxsplit=1)


def short_span(said: str, question: Question) -> str | None:
    """Return the part of a closed-book answer that may be the untruthful one; None where there is none.

    The whole answer comes first, then its spans from left to right. What the question says itself is no answer.
    """
    spans = [one for one in _spans_in_order(said) if not occurrences(question.question.casefold(), one.casefold())]
    return next((one for one in (said, *spans) if fits(one, question)), None)


def _spans_in_order(said: str) -> list[str]:
    """List the names, numbers and dates of a sentence, and what it says behind each of its verbs and prepositions."""
    said = _ends_apart(said)
    found = [(match.start(), match.group()) for pattern in (DATE, NAME, NUMBER) for match in pattern.finditer(said)]
    found += [
        (match.start(), match.group()) for match in re.finditer(r"\w+(?:-\w+)*", said) if is_number(match.group())
    ]
    found += [(match.end(), said[match.end() :]) for match in SAYS.finditer(said)]
    # At one place the longer one counts: a date before its month, a name before its first word.
    ordered = sorted(found, key=lambda one: (one[0], -len(one[1])))
    return [span for _, text in ordered if (span := _without_openers(text))]


def _without_openers(text: str) -> str:
    """Return a span without marks around it, and without words that are capital only at the start of a sentence."""
    words = text.strip(" .,'’-").split()
    while words and words[0].casefold() in OPENERS:
        words = words[1:]
    return " ".join(words)


def fits(answer: str, question: Question) -> bool:
    """Return whether an answer may be the untruthful one: it disagrees, is not in the context, and has the form."""
    truthful = str(question.truthful).strip()
    if not _differs_from_all(answer, question) or occurrences(question.context, answer):
        return False
    words = len(answer.split()), len(truthful.split())
    return (
        answer_type(answer) == answer_type(truthful)
        and any(map(str.isdigit, answer)) == any(map(str.isdigit, truthful))
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


def _ends_apart(text: str) -> str:
    """Mark where sentences end, so that no name goes on behind: a period after two letters is no initial's."""
    return re.sub(r"(?<=[a-z\d]{2})\.(?=\s)", " |", text)


def spans_of(context: str) -> list[str]:
    """List the names and numbers of a context, which could be answers."""
    apart = _ends_apart(context)
    found = (_without_openers(match.group()) for pattern in (NAME, NUMBER) for match in pattern.finditer(apart))
    return sorted({text for text in found if text})


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
