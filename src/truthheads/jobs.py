"""What each task asks of a model, and how what comes back becomes a prediction."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthheads.answers import describe_data
from truthheads.asking import Asked, ask_questions, ask_texts, beheaded, together, yes_no_tokens
from truthheads.benchmarks import TASKS
from truthheads.benchmarks.chair import CAPS, PROMPT, check_images, image_key, parse_caption, read_truth
from truthheads.benchmarks.conflict import NEW_TOKENS, conflict_notes, conflicts
from truthheads.benchmarks.halueval import Shown, describe_judged, read_halueval
from truthheads.benchmarks.objects import Lemmatizer, matcher, own_vocabulary, read_vocabulary
from truthheads.benchmarks.parsers import HALUEVAL, POPE, Parser
from truthheads.benchmarks.pope import describe_pope, pope_notes, read_pope
from truthheads.benchmarks.rows import benchmark_rows, digest, text_of
from truthheads.data import Question
from truthheads.elsewhere import chair_settings, check_vocabulary
from truthheads.errors import DataError
from truthheads.forward import shares_prefix
from truthheads.generating import Written
from truthheads.images import image_path
from truthheads.margins import check_pairs
from truthheads.models import Model
from truthheads.predictions import Line
from truthheads.prompts import Encoded, encode
from truthheads.readers import ELSEWHERE, read_questions

Finish = Callable[[Line, Any, int], Line]
"""From a begun line, what the model gave for its batch, and the row in it, to the whole line."""


@dataclass(frozen=True, slots=True)
class Asking:
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
    shown: Shown = "both"
    new_tokens: int | None = None
    caps: tuple[int, ...] = CAPS
    synonyms: Path | None = None
    lemmatizer: Lemmatizer = "forms"
    chat: bool = False
    truncate: bool = False
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Job:
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
    lines: list[list[list[Line]]]
    finish: Finish
    new_tokens: int
    words: dict[str, list[int]] | None
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    contexts: Sequence[Question] = ()
    head: tuple[int, ...] = ()


def make_job(model: Model, task: str, data: Sequence[Path], how: Asking) -> Job:
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
    model: Model, task: str, asked: list[Asked], parsers: Mapping[str, Parser], how: Asking, said: dict[str, Any]
) -> Job:
    new_tokens = how.new_tokens or 1
    head, asked = beheaded(model, asked)
    groups = together(model, asked, alone=new_tokens > 1)
    words = yes_no_tokens(model)

    def finish(line: Line, written: Written, row: int) -> Line:
        assert written.yes is not None and written.no is not None
        text, yes, no = _text(model, written.tokens[row]), written.yes[row], written.no[row]
        parsed = {"logits": "yes" if yes > no else "no", **{name: parse(text) for name, parse in parsers.items()}}
        return {**line, "answer": text, "yes": yes, "no": no, "parsed": parsed}

    vocabulary = model.tokenizer.convert_ids_to_tokens
    tokens = {word: list(map(str, vocabulary(numbers))) for word, numbers in words.items()}
    settings = {**said, "new_tokens": new_tokens, "yes_no_tokens": tokens, "parsers": list(parsers)}
    lines = [[one.lines for one in members] for _, members in groups]
    return Job(task, [encoded for encoded, _ in groups], lines, finish, new_tokens, words, settings, head=head)


def _text(model: Model, tokens: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(tokens), skip_special_tokens=True))


def _halueval(model: Model, data: list[Path], how: Asking) -> Job:
    part, judged = read_halueval(
        data[0], instruction=how.instruction, knowledge=how.knowledge, shown=how.shown, limit=how.limit, seed=how.seed
    )
    rows = ask_texts(model, [item.prompt for item in judged], chat=how.chat)
    asked = [
        Asked(ids, None, item.opening, [_begun("halueval", item.id, item.group, item.key, item.gold)])
        for ids, item in zip(rows, judged, strict=True)
    ]
    said: dict[str, Any] = {"data": {"path": str(data[0]), **describe_judged(part, judged)}, "shown": how.shown}
    said |= {"knowledge": how.knowledge, "instruction": how.instruction or "our own wording"}
    return _yes_no(model, "halueval", asked, HALUEVAL, how, said)


def _begun(task: str, name: str, group: str, key: str, gold: Any, split: str = "") -> Line:
    return {"task": task, "id": name, "split": split, "group": group, "prompt": key, "gold": gold}


def _pope(model: Model, data: list[Path], how: Asking) -> Job:
    items = read_pope(data, limit=how.limit)
    ending = f"\n{how.instruction.strip()}" if how.instruction else ""
    first = list({item.key: item for item in items}.values())
    questions = [
        Question(item.id, "", item.text + ending, None, None, image=_placed(item.image, data, how), group=item.image)
        for item in first
    ]
    _needs_images(model, questions)
    rows = ask_questions(model, questions, chat=how.chat, truncate=how.truncate)
    lines: dict[str, list[Line]] = {}
    for item in items:
        name = Path(item.image).name
        line = _begun("pope", item.id, name, digest(item.key, ending), item.gold, item.split)
        lines.setdefault(item.key, []).append(line)
    asked = [Asked(ids, image, item.image, lines[item.key]) for (ids, image), item in zip(rows, first, strict=True)]
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


def _chair(model: Model, data: list[Path], how: Asking) -> Job:
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
        Asked(ids, image, q.id, [_begun("chair", key, key, digest(prompt, key), truth[key])])
        for (ids, image), q in zip(rows, questions, strict=True)
        for key in [image_key(q.id)]
    ]
    groups = together(model, asked, alone=True)

    def finish(line: Line, written: Written, row: int) -> Line:
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
    return Job("chair", [encoded for encoded, _ in groups], lines, finish, max(how.caps), None, settings)


def _placed(name: str, data: list[Path], how: Asking) -> str:
    """Return where an image lies that a file names; DataError where no file may send us there."""
    try:
        return image_path(name, beside=data[0].parent, images=how.images)
    except ValueError as error:
        raise DataError(
            f"{data[0]}: the image {name!r} lies elsewhere",
            expected=ELSEWHERE,
            got=str(error),
            fix="give the folder of the images as --images, or mend the row",
        ) from error


def _chair_images(data: list[Path], folder: Path, how: Asking) -> list[Path]:
    """Return the images to be described: those that a file of scenes names, else all in the folder."""
    if (path := data[0]).suffix == ".jsonl":
        names = [text_of(path, row, "image", "image_id") for row in benchmark_rows(path)]
        return [Path(_placed(name, data, how)) for name in names]
    suffixes = (".jpg", ".jpeg", ".png", ".webp")
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in suffixes) if folder.is_dir() else []


def _pairs(model: Model, data: list[Path], how: Asking) -> Job:
    questions = read_questions(data[0], limit=how.limit, images=how.images)
    check_pairs(questions, purpose="--task pairs")
    encoded = encode(model, questions, chat=how.chat, truncate=how.truncate, share_prefix=shares_prefix(model))

    def finish(line: Line, logp: list[list[float]], row: int) -> Line:
        return {**line, "logp": logp[row]}

    lines = [
        [[_begun("pairs", q.id, q.group, digest(q.context, q.question, Path(q.image or "").name), q.truthful)]]
        for q in questions
    ]
    return Job(
        "pairs", encoded, lines, finish, 0, None, {"data": describe_data(questions)}, questions.cautions, questions
    )


def _conflict(model: Model, data: list[Path], how: Asking) -> Job:
    questions = read_questions(data[0], limit=how.limit, images=how.images)
    found = conflicts(questions, data[0])
    asked = [
        Asked(ids, image, one.question.id, [_conflict_line(one.question, one.context, one.memory)])
        for (ids, image), one in zip(
            ask_questions(model, questions, chat=how.chat, truncate=how.truncate), found, strict=True
        )
    ]
    groups = together(model, asked, alone=True)

    def finish(line: Line, written: Written, row: int) -> Line:
        return {**line, "answer": _text(model, written.tokens[row]), "finished": written.finished[row]}

    new_tokens = how.new_tokens or NEW_TOKENS
    settings = {"data": describe_data(questions), "new_tokens": new_tokens}
    lines = [[one.lines for one in members] for _, members in groups]
    job = Job(
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


def _conflict_line(question: Question, context: Sequence[str], memory: Sequence[str]) -> Line:
    key = digest(question.context, question.question)
    gold = {"context": list(context), "memory": list(memory)}
    return _begun("conflict", question.id, question.group, key, gold)
