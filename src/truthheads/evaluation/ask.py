"""From a benchmark's items to token ids, and from what the model returns to predictions."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from truthheads.benchmarks.base import (
    Answer,
    AskFileOptions,
    AskOptions,
    Benchmark,
    Item,
    Items,
    Prediction,
    QuestionOptions,
)
from truthheads.data.questions import Question
from truthheads.errors import DataError, ModelError, RowError
from truthheads.models.answer_logprobs import check_pairs
from truthheads.models.forward import shares_prefix
from truthheads.models.generate import Written, can_share_prefix
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, encode, shows_image
from truthheads.models.row_lengths import refused

SPELLINGS = ("yes", "no")

MIN_PREFIX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class TokenizedItem:
    """One prompt and what is already known of the lines that it fills.

    Attributes:
        ids: Token ids of the prompt.
        image: Path of the image that its tokens stand for, or None.
        share: Prompts with one name may begin alike: one image, one question.
        lines: What is to be written of it; more than one where an item stands in several splits.
    """

    ids: tuple[int, ...]
    image: str | None
    share: str
    lines: list[Prediction] = field(default_factory=list)


def ask_questions(
    model: Model, questions: Sequence[Question], *, chat: bool = False, truncate: bool = False, instruction: str = ""
) -> list[tuple[tuple[int, ...], str | None]]:
    """Return the prompt of each question as token ids, and its image; framed as everywhere in the package.

    Raises:
        DataError: A prompt is too long.
        ModelError: ``chat`` without a chat template.
    """
    # An answer has to stand there for the prompt to be framed; its own tokens are cut off again.
    probes = [Question(q.id, q.context, q.question, "Yes", None, (), q.image, (), q.group) for q in questions]
    encoded = encode(model, probes, chat=chat, truncate=truncate, share_prefix=False, instruction=instruction)
    return [(one.tails[0][: one.starts[0]], one.image) for one in encoded]


def ask_texts(model: Model, prompts: Sequence[str], *, chat: bool = False) -> list[tuple[int, ...]]:
    """Return whole prompts as token ids, as they are or as the user's turn of the chat template.

    Raises:
        DataError: A prompt is too long for the model.
        ModelError: ``chat`` without a chat template.
    """
    tokenizer: Any = model.tokenizer
    texts = list(prompts)
    if chat:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"{model.name} has no chat template",
                expected="a tokenizer with a chat template for --chat",
                got="none",
                fix="leave --chat out, or use the instruct model's tokenizer",
            )
        turns = [[{"role": "user", "content": text}] for text in texts]
        texts = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    rows = tokenizer(texts, add_special_tokens=not chat)["input_ids"]
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    found = []
    for number, ids in enumerate(rows):
        end = len(ids)
        while not chat and end > 1 and ids[end - 1] in ends:  # some tokenizers close every text
            end -= 1
        limit = model.layout.max_positions
        if limit is not None and end >= limit:
            raise RowError(
                f"prompt {number + 1} is too long for the model",
                expected=f"fewer than {limit} tokens",
                got=f"{end} tokens: {prompts[number][:60]!r}…",
                fix="pass --skip-bad-rows to leave such rows out, or use a shorter --instruction",
            )
        found.append(tuple(ids[:end]))
    return found


def group_by_prefix(
    model: Model, asked: Sequence[TokenizedItem], *, alone: bool = False
) -> list[tuple[Encoded, list[TokenizedItem]]]:
    """Group prompts that begin alike, so that what they share is computed once.

    Args:
        model: Where a layer carries a state, every prompt goes alone and whole.
        asked: The prompts.
        alone: One prompt a group, with nothing but its last token as its tail: for generation.

    Returns:
        Token ids of each group, and the prompts in the order of its tails.
    """
    groups: dict[str, list[TokenizedItem]] = {}
    for number, one in enumerate(asked):
        single = alone or not shares_prefix(model)
        groups.setdefault(f"{number}" if single else f"{one.share}\x1f{one.image}", []).append(one)
    found = []
    for row, members in enumerate(groups.values()):
        ids = [one.ids for one in members]
        cut = min(_common(ids), min(map(len, ids)) - 1) if shares_prefix(model) else 0
        tails = tuple(each[cut:] for each in ids)
        found.append((Encoded(row, ids[0][:cut], tails, (1,) * len(tails), members[0].image), members))
    return found


def split_shared_prefix(model: Model, asked: Sequence[TokenizedItem]) -> tuple[tuple[int, ...], list[TokenizedItem]]:
    """Return the tokens that all prompts begin with, an instruction usually, and the prompts without them.

    Nothing is taken off where an image is shown, where it is fewer than 16 tokens, or where the model cannot go on
    after padding.
    """
    ids = [one.ids for one in asked]
    cut = min(_common(ids), min(map(len, ids)) - 2)
    if (
        cut < MIN_PREFIX_TOKENS
        or len(asked) < 2
        or not can_share_prefix(model)
        or any(one.image is not None for one in asked)
    ):
        return (), list(asked)
    return ids[0][:cut], [TokenizedItem(one.ids[cut:], None, one.share, one.lines) for one in asked]


def _common(rows: Sequence[Sequence[int]]) -> int:
    count = 0
    for tokens in zip(*rows, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def yes_no_tokens(model: Model) -> dict[str, list[int]]:
    """Return the tokens that say yes and those that say no: every case, with and without a blank before.

    Where a vocabulary has no such token, the first tokens of the spellings count, as far as they tell the two apart.

    Raises:
        ModelError: They do not.
    """
    tokenizer: Any = model.tokenizer
    found: dict[str, list[int]] = {word: [] for word in SPELLINGS}
    for token, number in tokenizer.get_vocab().items():
        if any(word in token.casefold() for word in SPELLINGS) and len(token) <= 8:
            text = tokenizer.convert_tokens_to_string([token]).strip(" ▁Ġ\u200b").casefold()
            if text in found:
                found[text].append(int(number))
    if not all(found.values()):
        firsts = {
            word: {tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in _cases(word)}
            for word in SPELLINGS
        }
        shared = firsts["yes"] & firsts["no"]
        found = {word: sorted(numbers - shared) for word, numbers in firsts.items()}
    if not all(found.values()):
        raise ModelError(
            f"{model.name} cannot be asked for yes or no by its first token",
            expected="tokens that begin yes and others that begin no",
            got="the same first token",
            fix="use another tokenizer",
        )
    return {word: sorted(numbers) for word, numbers in found.items()}


def _cases(word: str) -> tuple[str, ...]:
    return word, word.capitalize(), word.upper()


Finish = Callable[[Prediction, Any, int], Prediction]
"""From a begun line, what the model gave for its batch, and the row in it, to the whole line."""


@dataclass(frozen=True, slots=True)
class PreparedBenchmark:
    """One benchmark, ready to be run as often as there are gates.

    Attributes:
        task: Its name.
        encoded: What is run, in the order of ``lines``.
        lines: For each of them, for each tail, the begun lines of its items.
        finish: Completes a line.
        new_tokens: Greedy tokens; 0: log-probabilities of both answers instead.
        words: Tokens that say yes and no, or None.
        settings: What the result says about it.
        notes: Sentences for the reader.
        contexts: Questions whose contexts serve as neutral text.
        head: Tokens that stand before each of ``encoded``.
        without: Each of ``encoded`` without its context, for context-aware decoding; empty: decoded as usual.
        alpha: Weight of what the context adds in context-aware decoding.
    """

    task: str
    encoded: list[Encoded]
    lines: list[list[list[Prediction]]]
    finish: Finish
    new_tokens: int
    words: dict[str, list[int]] | None
    settings: Mapping[str, object]
    notes: list[str] = field(default_factory=list)
    contexts: Sequence[Question] = ()
    head: tuple[int, ...] = ()
    without: Sequence[Encoded] = ()
    alpha: float = 0.0

    @property
    def prompt_tokens(self) -> float:
        """Mean number of tokens before an answer."""
        lengths = [
            len(self.head) + len(one.prefix) + (len(tail) if self.new_tokens else start)
            for one in self.encoded
            for tail, start in zip(one.tails, one.starts, strict=True)
        ]
        return sum(lengths) / len(lengths)


def read_benchmark(record: Benchmark, data: Sequence[Path], how: AskOptions) -> Items:
    """Read the files of a benchmark; no model is needed.

    Raises:
        DataError: A file cannot be used, or there are too few or too many.
    """
    if len(data) != 1 and not (record.several_files and data):
        raise DataError(
            f"{record.name} takes {'one --data or more' if record.several_files else 'one --data'}",
            expected="one file or more" if record.several_files else "one file",
            got=str(len(data)),
            fix="give one at a time" if data else "give --data",
        )
    assert record.read is not None
    return record.read(list(data), how)


def prepare_benchmark(
    model: Model, record: Benchmark, found: Items, how: AskOptions, *, instruction: str = ""
) -> PreparedBenchmark:
    """Put a benchmark's items into token ids.

    Args:
        model: The model.
        record: The benchmark.
        found: Its items.
        how: Its options.
        instruction: What every prompt begins with.

    Raises:
        DataError: An item cannot be put before the model.
        ModelError: The model cannot be asked this.
    """
    if record.asks == "pair_logprobs":
        return _pairs(model, record, found, how, instruction)
    return _written(model, record, found, how, instruction)


def without_unusable(model: Model, record: Benchmark, found: Items, how: AskOptions, *, instruction: str = "") -> Items:
    """Leave out the items that the model cannot be asked, with a note that counts them, where the options say so.

    Args:
        model: The model.
        record: The benchmark.
        found: Its items.
        how: Its options.
        instruction: The longest that any run puts before the prompts: all runs are asked the same items.

    Raises:
        DataError: None is left.
    """
    if not (isinstance(how, AskFileOptions) and how.skip_bad_rows):
        return found

    def put(items: Sequence[Item]) -> None:
        if record.asks == "pair_logprobs":
            truncate = isinstance(how, QuestionOptions) and how.truncate
            encode(
                model,
                [one.prompt for one in items if isinstance(one.prompt, Question)],
                chat=how.chat,
                truncate=truncate,
                instruction=instruction,
            )
        else:
            _prompts(model, record, items, how, instruction)

    gone = dict(refused(found.items, put))
    if len(gone) == len(found.items):
        raise next(iter(gone.values()))
    kept = [item for at, item in enumerate(found.items) if at not in gone]
    left_out = sum(len(found.items[at].lines) for at in gone)
    notes = (
        [f"{left_out} rows were left out: {next(iter(gone.values())).problem}{' …' if len(gone) > 1 else ''}"]
        if gone
        else []
    )
    bad = [f"{found.skipped} bad rows were left out"] if found.skipped else []
    settings = {**found.settings, "skipped": found.skipped + left_out}
    return replace(found, items=kept, settings=settings, notes=[*found.notes, *bad, *notes])


def _written(model: Model, record: Benchmark, found: Items, how: AskOptions, instruction: str) -> PreparedBenchmark:
    """Prepare prompts whose answers begin with yes or no, or are read as text."""
    parse, tools, words, settings = record.parse, found.tools, None, found.settings
    head: tuple[int, ...] = ()
    assert parse is not None
    prompts = _prompts(model, record, found.items, how, instruction)
    asked = [
        TokenizedItem(ids, image, item.share, _begun(record, item))
        for (ids, image), item in zip(prompts, found.items, strict=True)
    ]
    alone = record.asks == "text" or how.new_tokens > 1
    if record.asks == "yes_no":
        head, asked = split_shared_prefix(model, asked)
    groups = group_by_prefix(model, asked, alone=alone)
    if record.asks == "yes_no":
        words = yes_no_tokens(model)
        vocabulary = model.tokenizer.convert_ids_to_tokens
        tokens = {word: list(map(str, vocabulary(numbers))) for word, numbers in words.items()}
        settings = {**settings, "yes_no_tokens": tokens}

    def decode(tokens: Sequence[int]) -> str:
        return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def finish(line: Prediction, written: Written, row: int) -> Prediction:
        yes = None if written.yes is None else written.yes[row]
        no = None if written.no is None else written.no[row]
        return parse(line, Answer(written.tokens[row], decode, written.finished[row], yes, no), tools)

    return PreparedBenchmark(
        record.name,
        [encoded for encoded, _ in groups],
        [[one.lines for one in members] for _, members in groups],
        finish,
        how.new_tokens,
        words,
        settings,
        list(found.notes),
        found.contexts,
        head,
    )


def _begun(record: Benchmark, item: Item) -> list[Prediction]:
    return [{"task": record.name, **line} for line in item.lines]


def _prompts(
    model: Model, record: Benchmark, items: Sequence[Item], how: AskOptions, instruction: str
) -> list[tuple[tuple[int, ...], str | None]]:
    """Return each item's prompt as token ids, and its image."""
    questions = [item.prompt for item in items if isinstance(item.prompt, Question)]
    if record.shows_images:
        _needs_images(model, questions)
    if len(questions) == len(items):
        truncate = isinstance(how, QuestionOptions) and how.truncate
        return ask_questions(model, questions, chat=how.chat, truncate=truncate, instruction=instruction)
    opening = f"{instruction.strip()}\n\n" if instruction.strip() else ""
    texts = [f"{opening}{item.prompt}" for item in items]
    return [(ids, None) for ids in ask_texts(model, texts, chat=how.chat)]


def _needs_images(model: Model, questions: Sequence[Question]) -> None:
    """Raise DataError where the model sees no images, or one of them is not there."""
    for question in questions:
        shows_image(model, question)
    absent = [str(question.image) for question in questions if not os.path.isfile(str(question.image))]
    if model.processor is None or absent:
        raise DataError(
            f"{model.name} takes no images" if model.processor is None else f"{len(absent)} images are not there",
            expected="a model that takes images, and every image below --images",
            got="a text model" if model.processor is None else absent[0],
            fix="give a vision model" if model.processor is None else "give the folder of the images as --images",
        )


def _pairs(model: Model, record: Benchmark, found: Items, how: AskOptions, instruction: str) -> PreparedBenchmark:
    """Prepare questions with two answers each, whose log-probabilities are asked."""
    parse, tools = record.parse, found.tools
    assert parse is not None
    questions = [item.prompt for item in found.items if isinstance(item.prompt, Question)]
    check_pairs(questions, purpose=record.name)
    truncate = isinstance(how, QuestionOptions) and how.truncate
    shared = shares_prefix(model)
    encoded = encode(model, questions, chat=how.chat, truncate=truncate, share_prefix=shared, instruction=instruction)

    def finish(line: Prediction, logp: list[list[float]], row: int) -> Prediction:
        return parse(line, Answer(logp=logp[row]), tools)

    lines = [[_begun(record, item)] for item in found.items]
    return PreparedBenchmark(
        record.name, encoded, lines, finish, 0, None, found.settings, list(found.notes), found.contexts
    )
