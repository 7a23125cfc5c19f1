"""From a benchmark's items to token ids, and from what the model returns to predictions."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthheads.benchmarks.base import PredictionLine
from truthheads.benchmarks.chair import (
    CAPS,
    PROMPT,
    chair_settings,
    check_images,
    check_vocabulary,
    image_key,
    parse_caption,
    read_truth,
)
from truthheads.benchmarks.coco_objects import Lemmatizer, matcher, own_vocabulary, read_vocabulary
from truthheads.benchmarks.conflict import NEW_TOKENS, conflict_notes, conflicts
from truthheads.benchmarks.halueval import HaluEvalOptions, describe_judged, read_halueval
from truthheads.benchmarks.pope import describe_pope, pope_notes, read_pope
from truthheads.benchmarks.registry import TASKS
from truthheads.benchmarks.rows import benchmark_rows, digest, text_of
from truthheads.benchmarks.yes_no import HALUEVAL, POPE, Parser
from truthheads.data.answers import describe_data
from truthheads.data.images import image_path
from truthheads.data.questions import Question
from truthheads.data.readers import IMAGE_PATH_RULE, read_questions
from truthheads.errors import DataError, ModelError
from truthheads.models.answer_logprobs import check_pairs
from truthheads.models.forward import shares_prefix
from truthheads.models.generate import Written, can_share_prefix
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, encode

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
    lines: list[PredictionLine] = field(default_factory=list)


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


Finish = Callable[[PredictionLine, Any, int], PredictionLine]
"""From a begun line, what the model gave for its batch, and the row in it, to the whole line."""


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How a benchmark is put before a model.

    Attributes:
        images: Folder that image paths start from; None: the data file's own.
        instruction: Text that a benchmark's own instruction replaces ours with; see each task.
        knowledge: halueval: show the knowledge.
        shown: halueval: ``both`` answers of a row, or ``one``.
        new_tokens: Greedy tokens of each answer; None: 1 for yes/no (one forward pass), 16 for conflict.
        caps: chair: new tokens at which a caption is cut and scored; the first is the main one.
        synonyms: chair: words in the official format.
        lemmatizer: chair: how words are found.
        chat: Use the tokenizer's chat template.
        truncate: Drop the start of contexts that are too long.
        limit: Rows of each file, at most.
        seed: Of what is shown.
    """

    images: Path | None = None
    instruction: str | None = None
    knowledge: bool = True
    shown: HaluEvalOptions = "both"
    new_tokens: int | None = None
    caps: tuple[int, ...] = CAPS
    synonyms: Path | None = None
    lemmatizer: Lemmatizer = "forms"
    chat: bool = False
    truncate: bool = False
    limit: int | None = None
    seed: int = 0


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
    """

    task: str
    encoded: list[Encoded]
    lines: list[list[list[PredictionLine]]]
    finish: Finish
    new_tokens: int
    words: dict[str, list[int]] | None
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    contexts: Sequence[Question] = ()
    head: tuple[int, ...] = ()


def make_job(model: Model, task: str, data: Sequence[Path], how: AskOptions) -> PreparedBenchmark:
    """Read a benchmark and put it into token ids.

    Raises:
        DataError: The task is not known, or a file cannot be used.
        ModelError: The model cannot be asked this.
    """
    makers = {"halueval": _halueval, "pope": _pope, "chair": _chair, "pairs": _pairs, "conflict": _conflict}
    if task not in makers:
        raise DataError(
            f"task {task!r} is not known", expected=", ".join(TASKS), got=repr(task), fix="choose one of them"
        )
    if len(data) != 1 and task not in ("pope", "chair"):
        raise DataError(f"{task} takes one --data", expected="one file", got=str(len(data)), fix="give one at a time")
    return makers[task](model, list(data), how)


def _yes_no(
    model: Model,
    task: str,
    asked: list[TokenizedItem],
    parsers: Mapping[str, Parser],
    how: AskOptions,
    said: dict[str, Any],
) -> PreparedBenchmark:
    new_tokens = how.new_tokens or 1
    head, asked = split_shared_prefix(model, asked)
    groups = group_by_prefix(model, asked, alone=new_tokens > 1)
    words = yes_no_tokens(model)

    def finish(line: PredictionLine, written: Written, row: int) -> PredictionLine:
        assert written.yes is not None and written.no is not None
        text, yes, no = _text(model, written.tokens[row]), written.yes[row], written.no[row]
        parsed = {"logits": "yes" if yes > no else "no", **{name: parse(text) for name, parse in parsers.items()}}
        return {**line, "answer": text, "yes": yes, "no": no, "parsed": parsed}

    vocabulary = model.tokenizer.convert_ids_to_tokens
    tokens = {word: list(map(str, vocabulary(numbers))) for word, numbers in words.items()}
    settings = {**said, "new_tokens": new_tokens, "yes_no_tokens": tokens, "parsers": list(parsers)}
    lines = [[one.lines for one in members] for _, members in groups]
    return PreparedBenchmark(
        task, [encoded for encoded, _ in groups], lines, finish, new_tokens, words, settings, head=head
    )


def _text(model: Model, tokens: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _halueval(model: Model, data: list[Path], how: AskOptions) -> PreparedBenchmark:
    part, judged = read_halueval(
        data[0], instruction=how.instruction, knowledge=how.knowledge, shown=how.shown, limit=how.limit, seed=how.seed
    )
    rows = ask_texts(model, [item.prompt for item in judged], chat=how.chat)
    asked = [
        TokenizedItem(ids, None, item.opening, [_begun("halueval", item.id, item.group, item.key, item.gold)])
        for ids, item in zip(rows, judged, strict=True)
    ]
    said: dict[str, Any] = {"data": {"path": str(data[0]), **describe_judged(part, judged)}, "shown": how.shown}
    said |= {"knowledge": how.knowledge, "instruction": how.instruction or "our own wording"}
    return _yes_no(model, "halueval", asked, HALUEVAL, how, said)


def _begun(task: str, name: str, group: str, key: str, gold: Any, split: str = "") -> PredictionLine:
    return {"task": task, "id": name, "split": split, "group": group, "prompt": key, "gold": gold}


def _pope(model: Model, data: list[Path], how: AskOptions) -> PreparedBenchmark:
    items = read_pope(data, limit=how.limit)
    ending = f"\n{how.instruction.strip()}" if how.instruction else ""
    first = list({item.key: item for item in items}.values())
    questions = [
        Question(item.id, "", item.text + ending, None, None, image=_placed(item.image, data, how), group=item.image)
        for item in first
    ]
    _needs_images(model, questions)
    rows = ask_questions(model, questions, chat=how.chat, truncate=how.truncate)
    lines: dict[str, list[PredictionLine]] = {}
    for item in items:
        name = Path(item.image).name
        line = _begun("pope", item.id, name, digest(item.key, ending), item.gold, item.split)
        lines.setdefault(item.key, []).append(line)
    asked = [
        TokenizedItem(ids, image, item.image, lines[item.key]) for (ids, image), item in zip(rows, first, strict=True)
    ]
    described = describe_pope(data, items)
    job = _yes_no(model, "pope", asked, POPE, how, {"data": described, "instruction": how.instruction})
    job.notes.extend(pope_notes(described))
    return job


def _needs_images(model: Model, questions: Sequence[Question]) -> None:
    """Raise DataError where the model sees no images, or one of them is not there."""
    absent = [str(question.image) for question in questions if not os.path.isfile(str(question.image))]
    if model.processor is None or absent:
        raise DataError(
            f"{model.name} takes no images" if model.processor is None else f"{len(absent)} images are not there",
            expected="a model that takes images, and every image below --images",
            got="a text model" if model.processor is None else absent[0],
            fix="give a vision model" if model.processor is None else "give the folder of the images as --images",
        )


def _chair(model: Model, data: list[Path], how: AskOptions) -> PreparedBenchmark:
    vocabulary = read_vocabulary(how.synonyms) if how.synonyms is not None else own_vocabulary()
    mentions = matcher(vocabulary, how.lemmatizer)
    truth = read_truth(data, mentions)
    check_vocabulary(truth, vocabulary, data[0])
    folder = how.images if how.images is not None else data[0].parent
    images = _chair_images(data, folder, how)[: how.limit]
    check_images(folder, [image_key(path.name) for path in images], truth)
    prompt = (how.instruction or PROMPT).strip()
    questions = [Question(path.name, "", prompt, None, None, image=str(path), group=path.name) for path in images]
    _needs_images(model, questions)
    rows = ask_questions(model, questions, chat=how.chat, truncate=how.truncate)
    asked = [
        TokenizedItem(ids, image, q.id, [_begun("chair", key, key, digest(prompt, key), truth[key])])
        for (ids, image), q in zip(rows, questions, strict=True)
        for key in [image_key(q.id)]
    ]
    groups = group_by_prefix(model, asked, alone=True)

    def finish(line: PredictionLine, written: Written, row: int) -> PredictionLine:
        tokens, ended = written.tokens[row], written.finished[row]
        captions = {
            str(cap): parse_caption(_text(model, tokens[:cap]).strip(), ended and len(tokens) < cap, mentions)
            for cap in how.caps
        }
        return {**line, "answer": _text(model, tokens).strip(), "finished": ended, "captions": captions}

    settings = {
        "data": [{"path": str(path)} for path in data],
        "prompt": prompt,
        "caps": list(how.caps),
        "image_ids": [image_key(path.name) for path in images],
        **chair_settings(vocabulary, how.lemmatizer),
    }
    lines = [[one.lines for one in members] for _, members in groups]
    return PreparedBenchmark("chair", [encoded for encoded, _ in groups], lines, finish, max(how.caps), None, settings)


def _placed(name: str, data: list[Path], how: AskOptions) -> str:
    """Return where an image lies that a file names; DataError where no file may send us there."""
    try:
        return image_path(name, beside=data[0].parent, images=how.images)
    except ValueError as error:
        raise DataError(
            f"{data[0]}: the image {name!r} lies elsewhere",
            expected=IMAGE_PATH_RULE,
            got=str(error),
            fix="give the folder of the images as --images, or mend the row",
        ) from error


def _chair_images(data: list[Path], folder: Path, how: AskOptions) -> list[Path]:
    """Return the images to be described: those that a file of scenes names, else all in the folder."""
    if (path := data[0]).suffix == ".jsonl":
        names = [text_of(path, row, "image", "image_id") for row in benchmark_rows(path)]
        return [Path(_placed(name, data, how)) for name in names]
    suffixes = (".jpg", ".jpeg", ".png", ".webp")
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in suffixes) if folder.is_dir() else []


def _pairs(model: Model, data: list[Path], how: AskOptions) -> PreparedBenchmark:
    questions = read_questions(data[0], limit=how.limit, images=how.images)
    check_pairs(questions, purpose="--task pairs")
    encoded = encode(model, questions, chat=how.chat, truncate=how.truncate, share_prefix=shares_prefix(model))

    def finish(line: PredictionLine, logp: list[list[float]], row: int) -> PredictionLine:
        return {**line, "logp": logp[row]}

    lines = [
        [[_begun("pairs", q.id, q.group, digest(q.context, q.question, Path(q.image or "").name), q.truthful)]]
        for q in questions
    ]
    return PreparedBenchmark(
        "pairs", encoded, lines, finish, 0, None, {"data": describe_data(questions)}, questions.cautions, questions
    )


def _conflict(model: Model, data: list[Path], how: AskOptions) -> PreparedBenchmark:
    questions = read_questions(data[0], limit=how.limit, images=how.images)
    found = conflicts(questions, data[0])
    asked = [
        TokenizedItem(ids, image, one.question.id, [_conflict_line(one.question, one.context, one.memory)])
        for (ids, image), one in zip(
            ask_questions(model, questions, chat=how.chat, truncate=how.truncate), found, strict=True
        )
    ]
    groups = group_by_prefix(model, asked, alone=True)

    def finish(line: PredictionLine, written: Written, row: int) -> PredictionLine:
        return {**line, "answer": _text(model, written.tokens[row]), "finished": written.finished[row]}

    new_tokens = how.new_tokens or NEW_TOKENS
    settings = {"data": describe_data(questions), "new_tokens": new_tokens}
    lines = [[one.lines for one in members] for _, members in groups]
    job = PreparedBenchmark(
        "conflict",
        [encoded for encoded, _ in groups],
        lines,
        finish,
        new_tokens,
        None,
        settings,
        questions.cautions,
        questions,
    )
    job.notes.extend(conflict_notes(found))
    return job


def _conflict_line(question: Question, context: Sequence[str], memory: Sequence[str]) -> PredictionLine:
    key = digest(question.context, question.question)
    gold = {"context": list(context), "memory": list(memory)}
    return _begun("conflict", question.id, question.group, key, gold)
