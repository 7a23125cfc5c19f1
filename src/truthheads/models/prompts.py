"""From a question to token ids: the prompt, its answers, and the prefix that the answers share."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from truthheads.data.questions import Question, Questions
from truthheads.errors import DataError, ModelError, RowError
from truthheads.models.image_inputs import ImageTexts, placeholder, shares_with_image, tokens_with_images
from truthheads.models.load import Model
from truthheads.models.pretrained import PROCESSOR_FILES, takes_images

TEXTS_AT_ONCE = 512
"""Texts in one call of the tokenizer, which keeps offsets and words of each until the call ends."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one question.

    Attributes:
        row: Position of the question in its list.
        prefix: Tokens that all its answers share, less the last one; computed once. Empty where nothing is shared.
        tails: For each answer the rest of its tokens; starts with the last shared token, ends with the answer's last.
        starts: For each tail the index of the answer's first token; at least 1, since its predecessor predicts it.
        image: Path of the image that its tokens stand for, or None.
    """

    row: int
    prefix: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    image: str | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prefix) + max(map(len, self.tails))

    @property
    def unique_tokens(self) -> int:
        """Tokens to compute: the prefix once and every tail."""
        return len(self.prefix) + sum(map(len, self.tails))


def token_digest(encoded: Sequence[Encoded]) -> str:
    """Return the SHA-256 of questions' tokens: what was computed from others is not taken up again."""
    return hashlib.sha256(repr([(item.prefix, item.tails) for item in encoded]).encode()).hexdigest()


def prompt_of(question: Question) -> str:
    r"""Return the paper's prompt up to and without the blank before the answer.

    Source:
        ``Context:\n{context}\n\nQuestion: {question}\nAnswer: {answer}``, fields stripped (paper, probing runs); the
        context part is left out where a row has none. With an image and no context the paper's LLaVA form is used:
        ``<image>\n{question}\nASSISTANT: {answer}``.
    """
    context, asked = question.context.strip(), question.question.strip()
    return (f"Context:\n{context}\n\n" if context else "") + f"Question: {asked}\nAnswer:"


def encode(
    model: Model,
    questions: Sequence[Question],
    *,
    chat: bool = False,
    truncate: bool = False,
    share_prefix: bool = True,
    instruction: str = "",
) -> list[Encoded]:
    """Return the token ids of questions and all their answers.

    Prompt and answer are tokenised as one text, as the paper does; what the token sequences of the answers have in
    common is the shared prefix, so sharing changes no token.

    Args:
        model: Its tokenizer is used.
        questions: The questions; one with an image shows it where the model takes images.
        chat: Put context and question into the user's turn of the tokenizer's chat template and the answer into the
            assistant's turn. The last token is the answer's own, never the template's.
        truncate: Drop the start of a context that is too long for the model instead of raising.
        share_prefix: False computes every answer from the beginning.
        instruction: What every prompt begins with, and an empty line after it; in a chat,
            the user's turn.

    Raises:
        DataError: A row is too long for the model's positions, or an answer has no token.
        ModelError: ``chat`` with a tokenizer that has no chat template.
    """
    _check_images(missing_images(model, questions), len(questions))
    prompts = [framed(model, question, chat=chat, instruction=instruction) for question in questions]
    texts = [
        [prompt, *(answered(prompt, answer.text) for answer in question.answers)]
        for prompt, question in zip(prompts, questions, strict=True)
    ]
    plain = [row for row, question in enumerate(questions) if not shows_image(model, question)]
    ids = iter(_tokens(model, [text for row in plain for text in texts[row]], special=not chat))
    tokens = {row: [next(ids) for _ in texts[row]] for row in plain}
    seeing = [row for row in range(len(questions)) if row not in tokens]
    shown = [ImageTexts(questions[row].id, str(questions[row].image), tuple(texts[row])) for row in seeing]
    tokens |= dict(zip(seeing, tokens_with_images(model, shown, special=not chat), strict=True))
    encoded = []
    for row, question in enumerate(questions):
        prompt, *answers = tokens[row]
        shares = share_prefix and shares_with_image(model)
        one = _encode_one(row, question, prompt, answers, share_prefix=shares)
        if shows_image(model, question):
            one = replace(one, image=question.image)
        limit = model.layout.max_positions
        if limit is not None and one.length > limit:
            if not truncate:
                raise _too_long(model, question, one.length, limit)
            shorter = shortened(model, question, limit, one.length, chat=chat)
            how: Any = {"chat": chat, "share_prefix": share_prefix, "instruction": instruction}
            again = encode(model, [shorter], truncate=True, **how)[0]
            one = replace(again, row=row)
        encoded.append(one)
    return encoded


def _encode_one(
    row: int, question: Question, prompt: list[int], answers: list[list[int]], *, share_prefix: bool
) -> Encoded:
    for ids, answer in zip(answers, question.answers, strict=True):
        if len(ids) <= _common([prompt, ids]):
            raise RowError(
                f"row {question.id!r}: the answer has no token of its own",
                expected="an answer that the tokenizer turns into at least one token",
                got=repr(answer.text)[:80],
                fix="correct the row, or pass --skip-bad-rows to leave it out",
            )
    # Never past the prompt: a token that all answers begin with still belongs to each answer's log-probability.
    shared = _common([prompt, *answers]) if len(answers) > 1 and share_prefix else 0
    cut = max(0, shared - 1)
    starts = tuple(max(1, _common([prompt, ids]) - cut) for ids in answers)
    return Encoded(row, tuple(answers[0][:cut]), tuple(tuple(ids[cut:]) for ids in answers), starts)


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many first tokens all sequences share."""
    count = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def shows_image(model: Model, question: Question) -> bool:
    """Return whether a question's image is put before the model: it has one, and the model takes images.

    Raises:
        ModelError: It takes images, and was saved without the processor that prepares them.
    """
    if question.image is None:
        return False
    if model.processor is None and takes_images(model.network.config):
        raise ModelError(
            f"row {question.id!r} has an image, and {model.name} was saved without its processor",
            expected=f"{' or '.join(PROCESSOR_FILES)} beside config.json; rows without images need neither",
            got="no such file",
            fix="give truthheads.load(network, tokenizer, processor=AutoProcessor.from_pretrained(BASE))"
            if model.in_memory
            else "pass --processor BASE (in Python: load(…, processor=BASE)), the model that this one was made from",
        )
    return model.processor is not None


def missing_images(model: Model, questions: Sequence[Question]) -> list[Question]:
    """Return the questions whose image would be shown and is not there."""
    return [one for one in questions if shows_image(model, one) and not os.path.isfile(str(one.image))]


def with_images(model: Model, questions: Sequence[Question]) -> Questions:
    """Leave out the questions whose image would be shown and is not there; they count as skipped."""
    gone = missing_images(model, questions)
    held = questions if isinstance(questions, Questions) else Questions(questions)
    return held.without(gone) if gone else held


def _check_images(missing: Sequence[Question], count: int) -> None:
    if missing:
        raise DataError(
            f"images of {len(missing)} of {count} rows are missing",
            expected="every image where its row says, below --images or else beside the question file",
            got=f"no {missing[0].image} (row {missing[0].id!r}) and {len(missing) - 1} more",
            fix="give their folder by --images, or pass --skip-missing where the command has it",
        )


def answered(prompt: str, answer: str) -> str:
    """Return prompt and answer as one text; a blank between them unless the prompt ends with a line of its own."""
    return prompt + ("" if prompt[-1:].isspace() else " ") + answer.strip()


def framed(model: Model, question: Question, *, chat: bool, instruction: str = "") -> str:
    """Return the prompt's text, with a placeholder where an image is shown.

    Args:
        model: Its chat template and its placeholder are used.
        question: The question.
        chat: Use the chat template.
        instruction: What stands before the prompt's own text, and an empty line between.

    Raises:
        ModelError: ``chat`` with a tokenizer that has no chat template.
    """
    opening = f"{instruction.strip()}\n\n" if instruction.strip() else ""
    prompt = opening + prompt_of(question)
    image = shows_image(model, question)
    if image and not question.context.strip() and not chat:
        prompt = f"{opening}{question.question.strip()}\nASSISTANT:"
    if not chat:
        return f"{placeholder(model)}\n{prompt}" if image else prompt
    asked: Any = prompt.removesuffix("\nAnswer:")
    if not image:
        return _turned(model, asked)
    asked = opening + question.question.strip() if not question.context.strip() else asked
    text = _turned(model, [{"type": "image"}, {"type": "text", "text": asked}])
    if not any(mark in text for mark in (placeholder(model), str(getattr(model.processor, "image_token", "\0")))):
        raise ModelError(
            f"{model.name}'s chat template does not show the image",
            expected=f"{placeholder(model)} in what it makes of a turn with an image",
            got=repr(text)[:200],
            fix="leave --chat out, or give the processor the template of the multimodal model",
        )
    return text


def has_chat_template(model: Model) -> bool:
    """Return whether prompts can be put into a chat template: the tokenizer's, or the processor's."""
    return any(getattr(one, "chat_template", None) for one in (model.tokenizer, model.processor))


def _turned(model: Model, content: Any) -> str:
    """Return a user's turn in the chat template: the tokenizer's, or the processor's where content is in parts."""
    own = getattr(model.tokenizer, "chat_template", None)
    seeing = getattr(model.processor, "chat_template", None) or own
    if not (own or seeing):
        raise ModelError(
            f"{model.name} has no chat template",
            expected="a tokenizer with a chat template for --chat",
            got="none",
            fix="leave --chat out, or use the instruct model's tokenizer",
        )
    made: Any
    turns: list[dict[str, Any]]
    try:
        if isinstance(content, str) and own:
            turns = [{"role": "user", "content": content}]
            made = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        else:
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            turns = [{"role": "user", "content": parts}]
            made = model.processor.apply_chat_template(
                turns, chat_template=seeing, tokenize=False, add_generation_prompt=True
            )
    except Exception as error:  # a template is a small program of the model's, run in jinja's sandbox
        raise ModelError(
            f"the chat template of {model.name} fails",
            expected="a template that makes a user's turn",
            got=f"{type(error).__name__}: {' '.join(str(error).split())}"[:200],
            fix="leave --chat out, or correct the template",
        ) from error
    return str(made)


def _tokens(model: Model, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Return token ids without the end marker that some tokenizers append."""
    tokenizer: Any = model.tokenizer
    rows: list[list[int]] = []
    for first in range(0, len(texts), TEXTS_AT_ONCE):
        rows += tokenizer(list(texts[first : first + TEXTS_AT_ONCE]), add_special_tokens=special)["input_ids"]
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    trimmed = []
    for ids, text in zip(rows, texts, strict=True):
        end = len(ids)
        while special and end > 1 and ids[end - 1] in ends and not text.endswith(str(tokenizer.eos_token)):
            end -= 1
        trimmed.append(list(ids[:end]))
    return trimmed


def shortened(model: Model, question: Question, limit: int, length: int, *, chat: bool) -> Question:
    """Return the question with the first tokens of its context dropped, as many as are too many."""
    pieces = _tokens(model, [question.context], special=False)[0]
    over = length - limit
    if over >= len(pieces):
        raise _too_long(model, question, length, limit)
    if getattr(model.tokenizer, "is_fast", False):
        offsets = model.tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True)
        kept = question.context[offsets["offset_mapping"][over - 1][1] :]
    else:
        kept = str(model.tokenizer.decode(pieces[over:], skip_special_tokens=False)).lstrip("\ufffd")
    # Two tokenisations of one text may differ by a token at the cut; a context that did not shrink would never end.
    kept = kept if len(kept) < len(question.context) else question.context[1:]
    return replace(question, context=kept, evidence=())


def _too_long(model: Model, question: Question, length: int, limit: int) -> RowError:
    """Return the error for a row that is too long; ``--truncate`` is named where dropping context would help."""
    context = len(_tokens(model, [question.context], special=False)[0]) if question.context.strip() else 0
    helps = length - context < limit
    left = "pass --skip-bad-rows to leave such rows out"
    rest = f", {length - context} of them without the context" if context and not helps else ""
    return RowError(
        f"row {question.id!r} is too long for the model",
        expected=f"at most {limit} tokens",
        got=f"{length} tokens{rest}",
        fix=f"pass --truncate to drop the start of long contexts, or {left}"
        if helps
        else f"shorten the question or the answers, or {left}; --truncate only shortens contexts",
    )
