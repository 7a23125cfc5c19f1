"""From a benchmark's items to token ids: prompts, what they share, and the tokens that say yes and no."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from truthheads.data import Question
from truthheads.errors import DataError, ModelError
from truthheads.forward import shares_prefix
from truthheads.generating import may_have_head
from truthheads.models import Model
from truthheads.predictions import Line
from truthheads.prompts import Encoded, encode

SPELLINGS = ("yes", "no")
WORTH = 16


@dataclass(frozen=True, slots=True)
class Asked:
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
    lines: list[Line] = field(default_factory=list)


def ask_questions(
    model: Model, questions: Sequence[Question], *, chat: bool = False, truncate: bool = False
) -> list[tuple[tuple[int, ...], str | None]]:
    """Return the prompt of each question as token ids, and its image; framed as everywhere in the package.

    Raises:
        DataError: A prompt is too long.
        ModelError: ``chat`` without a chat template.
    """
    # An answer has to stand there for the prompt to be framed; its own tokens are cut off again.
    probes = [Question(q.id, q.context, q.question, "Yes", None, (), q.image, (), q.group) for q in questions]
    encoded = encode(model, probes, chat=chat, truncate=truncate, share_prefix=False)
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
            raise DataError(
                f"prompt {number + 1} is too long for the model",
                expected=f"fewer than {limit} tokens",
                got=f"{end} tokens: {prompts[number][:60]!r}…",
                fix="remove the row, or use a shorter --instruction",
            )
        found.append(tuple(ids[:end]))
    return found


def together(model: Model, asked: Sequence[Asked], *, alone: bool = False) -> list[tuple[Encoded, list[Asked]]]:
    """Group prompts that begin alike, so that what they share is computed once.

    Args:
        model: Where a layer carries a state, every prompt goes alone and whole.
        asked: The prompts.
        alone: One prompt a group, with nothing but its last token as its tail: for generation.

    Returns:
        Token ids of each group, and the prompts in the order of its tails.
    """
    groups: dict[str, list[Asked]] = {}
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


def beheaded(model: Model, asked: Sequence[Asked]) -> tuple[tuple[int, ...], list[Asked]]:
    """Return the tokens that all prompts begin with, an instruction usually, and the prompts without them.

    Nothing is taken off where an image is shown, where it is fewer than 16 tokens, or where the model cannot go on
    after padding.
    """
    ids = [one.ids for one in asked]
    cut = min(_common(ids), min(map(len, ids)) - 2)
    if cut < WORTH or len(asked) < 2 or not may_have_head(model) or any(one.image is not None for one in asked):
        return (), list(asked)
    return ids[0][:cut], [Asked(one.ids[cut:], None, one.share, one.lines) for one in asked]


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
