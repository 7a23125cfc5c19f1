"""CHAIR: the objects that captions name and the image does not have."""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from truthheads.benchmarks.base import (
    Answer,
    AnswersElsewhere,
    AnswersRead,
    Benchmark,
    FileOptions,
    Item,
    Items,
    Prediction,
    QuestionOptions,
    begin_line,
    help_text,
)
from truthheads.benchmarks.coco_objects import (
    OWN,
    Lemmatizer,
    Mention,
    Vocabulary,
    matcher,
    own_vocabulary,
    read_vocabulary,
)
from truthheads.benchmarks.rows import benchmark_rows, digest, placed_image, read_value, text_of
from truthheads.data.questions import Question
from truthheads.data.tables import kind_of
from truthheads.errors import DataError, RowError
from truthheads.stats.resampling import Measured, Metric
from truthheads.storage.files import describe_file

PROMPT = "Please describe this image in detail."

CAPS = (64, 512)


class Caption(NamedTuple):
    """One caption: the key of its image, its text, and whether it came to its end before the cap (None: not known)."""

    image: str
    text: str
    finished: bool | None = None


def image_key(value: str | int) -> str:
    """Name an image as every file does: COCO's number, else the file's name.

    ``322791``, ``"322791"`` and ``COCO_val2014_000000322791.jpg`` are one image.
    """
    name = Path(str(value)).name
    found = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)(?:\.\w+)?", name)
    return found.group(1) if found else name


def read_truth(paths: Sequence[Path], mentions: Callable[[str], list[Mention]]) -> dict[str, list[str]]:
    """Return for each image the categories that it holds.

    Args:
        paths: ``coco_objects.json.gz`` (image id to names), COCO's instances and captions JSON (any number of files;
            an image holds what is segmented in it and what its captions name), or our scenes' ``captions.jsonl``.
        mentions: Finds objects in reference captions.

    Raises:
        DataError: A file is none of these, or there is no image.
    """
    truth: dict[str, set[str]] = {}
    for path in paths:
        if _is_scenes(path):
            for row in benchmark_rows(path):
                objects = (row.fields or {}).get("objects")
                if not isinstance(objects, list):
                    raise _unknown(path, f"{row.place}: no list under objects")
                truth.setdefault(image_key(text_of(path, row, "image", "image_id")), set()).update(map(str, objects))
            continue
        value = read_value(path)
        if isinstance(value, dict) and isinstance(value.get("annotations"), list):
            _coco(path, value, truth, mentions)
        elif isinstance(value, dict) and all(isinstance(names, list) for names in value.values()):
            for image, names in value.items():
                truth.setdefault(image_key(image), set()).update(map(str, names))
        else:
            raise _unknown(path, f"a JSON {type(value).__name__}")
    if not truth:
        raise _unknown(paths[0], "no image")
    return {image: sorted(names) for image, names in truth.items()}


def _is_scenes(path: Path) -> bool:
    """Return whether a file holds rows, one a line or in an array, and not one of COCO's objects."""
    if path.suffix == ".gz" or not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as opened:
        start = b"".join(opened.read(256).removeprefix(codecs.BOM_UTF8).split())
    return start.startswith(b"[{") or kind_of(path) in ("lines", "csv")


def _coco(
    path: Path, value: Mapping[str, Any], truth: dict[str, set[str]], mentions: Callable[[str], list[Mention]]
) -> None:
    try:
        names = {entry["id"]: str(entry["name"]) for entry in value.get("categories", [])}
        for image in value.get("images", []):
            truth.setdefault(image_key(image["id"]), set())
        for entry in value["annotations"]:
            held = truth.setdefault(image_key(entry["image_id"]), set())
            if "caption" in entry:
                held.update(mention.category for mention in mentions(entry["caption"]))
            else:
                held.add(names[entry["category_id"]])
    except (AttributeError, KeyError, TypeError) as error:
        raise _unknown(path, f"{type(error).__name__}: {error}") from error


def _unknown(path: Path, got: str) -> DataError:
    return DataError(
        f"{path} is no ground truth for captions",
        expected="coco_objects.json.gz, COCO's instances or captions JSON, or captions.jsonl of `data make scenes`",
        got=got,
        fix="give one of these as --data",
    )


NAMED = ("image_id", "image", "image_file", "file_name", "filename", "image_path", "question_id")
"""Columns that name a caption's image: COCO's results and chair.py's, LLaVA's; the first that a row has is read."""

SAID = ("caption", "text", "answer", "response", "output")
"""Columns that hold a caption: chair.py's, LLaVA's and VCD's."""


def read_captions(
    path: Path, truth: Mapping[str, list[str]], *, limit: int | None = None, encoding: str | None = None
) -> list[Caption]:
    """Return the captions of a file, one for each image.

    Args:
        path: Rows of ``image_id`` and ``caption`` (COCO's results), of ``image`` and ``text`` (LLaVA's answers), or
            what chair.py writes, whose ``sentences`` are such rows.
        truth: The objects of each image.
        limit: Captions, at most.
        encoding: Encoding of text files; None: UTF-8.

    Raises:
        DataError: A row lacks a field, an image has two captions, or no ground truth; no row at all.
    """
    captions: dict[str, Caption] = {}
    for row in benchmark_rows(path, encoding=encoding):
        if limit is not None and len(captions) >= limit:
            break
        key = image_key(text_of(path, row, *NAMED))
        if key in captions:
            raise DataError(
                f"{path}:{row.place}: image {key} has two captions",
                expected="one caption for each image",
                got="a second one",
                fix="remove one of them, or score the two sets in two runs",
            )
        finished = (row.fields or {}).get("finished")
        if not isinstance(finished, bool | None):
            raise RowError(
                f"{path}:{row.place}: field 'finished'",
                expected="true, false or null",
                got=repr(finished)[:80],
                fix="correct the row",
            )
        captions[key] = Caption(key, text_of(path, row, *SAID), finished)
    check_images(path, list(captions), truth)
    return list(captions.values())


def check_images(path: Path, images: Sequence[str], truth: Mapping[str, list[str]]) -> None:
    """Raise DataError where images have no ground truth, or where there is no image."""
    absent = [image for image in images if image not in truth]
    if absent or not images:
        raise DataError(
            f"{path}: {len(absent)} of {len(images)} images have no ground truth",
            expected="image ids that --data knows",
            got=", ".join(absent[:5]) or "no image",
            fix="give the ground truth of these images (COCO train2014 and val2014 are in coco_objects.json.gz)",
        )


def whole_sentences(text: str, finished: bool | None = None) -> str:
    """Return a caption without the sentence that the cap has cut off.

    A caption that came to its end, or ends with a full stop, is whole. Where it is not known, the last character
    decides. A caption of one sentence that was cut off has nothing left.
    """
    if finished or re.search(r"[.!?][\"'”’)\]]*\s*$", text) or not text.strip():
        return text
    ends = list(re.finditer(r"[.!?][\"'”’)\]]*(?=\s)", text))
    return text[: ends[-1].end()] if ends else ""


class WholeSentences(TypedDict):
    """A caption without the sentence that the cap has cut off: its words, and the objects that it names."""

    words: int
    objects: list[list[str]]


class CaptionAtCap(TypedDict):
    """A caption as it is at one cap.

    Attributes:
        text: The caption.
        cut_off: Whether its last sentence was cut off.
        objects: Category and words of each object that it names.
        whole: The same without the sentence that was cut off.
    """

    text: str
    cut_off: bool
    objects: list[list[str]]
    whole: WholeSentences


class CaptionPrediction(Prediction, total=False):
    """A line of CHAIR: the caption at each cap; one cap called ``given`` where it was made elsewhere."""

    captions: dict[str, CaptionAtCap]


def parse_caption(text: str, finished: bool | None, mentions: Callable[[str], list[Mention]]) -> CaptionAtCap:
    """Keep of a caption at one cap what a prediction needs: text and objects named, with and without the cut end."""
    kept = whole_sentences(text, finished)
    return {
        "text": text,
        "cut_off": kept != text,
        "objects": [list(mention) for mention in mentions(text)],
        "whole": {"words": len(kept.split()), "objects": [list(mention) for mention in mentions(kept)]},
    }


def measure_chair(lines: Sequence[CaptionPrediction], *, seed: int = 0) -> Measured:
    """Compute the figures of captions at each cap, the half sentence counted (as the official procedure) and not.

    Figures without a suffix are those of the lowest cap; ``_at_512`` of another one; ``_whole`` without the sentence
    that the cap has cut off. Repeated mentions count, as in the official procedure.
    """
    del seed
    caps = sorted(lines[0]["captions"], key=lambda cap: (len(cap), cap))  # numbers of tokens, or one "given"
    features: dict[str, Any] = {"n": np.ones(len(lines)), "held": np.array([float(len(e["gold"])) for e in lines])}
    metrics: dict[str, Metric] = {}
    for number, cap in enumerate(caps):
        for whole in (False, True):
            of = f"{cap}{':whole' if whole else ''}"
            suffix = (f"_at_{cap}" if number else "") + ("_whole" if whole else "")
            counts = np.array([_counts(line["captions"][cap], line["gold"], whole) for line in lines], dtype=float)
            names = ("named", "absent", "any", "recalled", "words")
            features |= {f"{of}:{name}": counts[:, at] for at, name in enumerate(names)}
            metrics |= {f"{name}{suffix}": metric for name, metric in _metrics(of).items()}
        features[f"{cap}:cut"] = np.array([float(line["captions"][cap]["cut_off"]) for line in lines])
        metrics[f"cut_off{f'_at_{cap}' if number else ''}"] = _per_caption(f"{cap}:cut")
    return Measured(features, [str(line["group"]) for line in lines], metrics, "chair_i", sign=-1)


def _counts(parsed: CaptionAtCap, gold: Sequence[str], whole: bool) -> tuple[int, int, bool, int, int]:
    objects = parsed["whole"]["objects"] if whole else parsed["objects"]
    words = parsed["whole"]["words"] if whole else len(parsed["text"].split())
    named = [category for category, _ in objects]
    absent = sum(category not in gold for category in named)
    return len(named), absent, absent > 0, len(set(named) & set(gold)), words


def _per_caption(feature: str) -> Metric:
    return lambda sums: sums[feature] / sums["n"]


def _metrics(of: str) -> dict[str, Metric]:
    return {
        "chair_i": lambda s: s[f"{of}:absent"] / s[f"{of}:named"],
        "chair_s": _per_caption(f"{of}:any"),
        "recall": lambda s: s[f"{of}:recalled"] / s["held"],
        "objects_per_caption": _per_caption(f"{of}:named"),
        "words_per_caption": _per_caption(f"{of}:words"),
    }


def check_vocabulary(truth: dict[str, list[str]], vocabulary: Vocabulary, path: Path) -> None:
    """Raise DataError where the ground truth holds categories that no word stands for."""
    strange = sorted({name for names in truth.values() for name in names} - vocabulary.categories)
    if strange:
        raise DataError(
            f"{path} holds categories that the words do not know: {', '.join(strange[:5])}",
            expected=f"the {len(vocabulary.categories)} categories of the {vocabulary.name} words",
            got=f"{len(strange)} others",
            fix="give --synonyms with a line for each of them",
        )


def own_words_note(vocabulary: Vocabulary) -> list[str]:
    """Return the caveat of a result that is counted with the package's own words; none with a list that was given."""
    if vocabulary.name != OWN:
        return []
    return [
        "objects are found by this package's own word list, which is not the published one of CHAIR: its CHAIRi was "
        ".1 to .75 points lower on the same captions; give the published list by --synonyms FILE to compare with papers"
    ]


class ChairSettings(TypedDict):
    """The rules of a CHAIR result."""

    synonyms: str
    lemmatizer: str
    cut_sentence: str
    table_note: str


def chair_settings(vocabulary: Vocabulary, lemmatizer: str) -> ChairSettings:
    """Describe the rules of a CHAIR result."""
    return {
        "synonyms": vocabulary.name,
        "lemmatizer": lemmatizer,
        "table_note": "own word list, not the published one"
        if vocabulary.name == OWN
        else f"words of {vocabulary.name}",
        "cut_sentence": "counted; figures ending in _whole leave the sentence out that the cap has cut off",
    }


@dataclass(frozen=True)
class ChairWords(FileOptions):
    """How objects are found in captions.

    Attributes:
        synonyms: Words in the official format; None: the package's own.
        lemmatizer: ``forms``: our table. ``nltk``: the official procedure, bug for bug.
    """

    synonyms: Path | None = field(
        default=None, metadata=help_text("Word list, such as the published one (default: own words).")
    )
    lemmatizer: Lemmatizer = field(default="forms", metadata=help_text("How words are found; as published: nltk."))


@dataclass(frozen=True)
class ChairOptions(ChairWords, QuestionOptions):
    """How captions are asked for.

    Attributes:
        instruction: The prompt; None: ``Please describe this image in detail.``
        caps: New tokens at which a caption is cut and scored; the lowest is the main one.
    """

    instruction: str | None = field(
        default=None,
        metadata=help_text("File with the prompt (default: describe the image).", text_file=True),
    )
    caps: tuple[int, ...] = field(default=CAPS, metadata=help_text("New tokens at which captions are cut."))

    @property
    def new_tokens(self) -> int:
        """Greedy tokens of each caption: the highest cap."""
        return max(self.caps)


class ChairTools(NamedTuple):
    """What captions are read with."""

    caps: tuple[int, ...]
    mentions: Callable[[str], list[Mention]]


def _ground_truth(
    data: Sequence[Path], how: ChairWords
) -> tuple[Vocabulary, Callable[[str], list[Mention]], dict[str, list[str]]]:
    vocabulary = read_vocabulary(how.synonyms) if how.synonyms is not None else own_vocabulary()
    mentions = matcher(vocabulary, how.lemmatizer)
    truth = read_truth(data, mentions)
    check_vocabulary(truth, vocabulary, data[0])
    return vocabulary, mentions, truth


def chair_images(path: Path, images: Path | None) -> list[Path]:
    """Return the images to be described: those that a file of scenes names, else all in the folder."""
    if _is_scenes(path):
        names = [text_of(path, row, "image", "image_id") for row in benchmark_rows(path)]
        return [Path(placed_image(name, path, images)) for name in names]
    suffixes = (".jpg", ".jpeg", ".png", ".webp")
    folder = images if images is not None else path.parent
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in suffixes) if folder.is_dir() else []


def read_items(data: Sequence[Path], how: ChairOptions) -> Items:
    """Return the images as prompts."""
    vocabulary, mentions, truth = _ground_truth(data, how)
    images = chair_images(data[0], how.images)[: how.limit]
    keys = [image_key(path.name) for path in images]
    check_images(how.images if how.images is not None else data[0].parent, keys, truth)
    prompt = (how.instruction or PROMPT).strip()
    items = [
        Item(
            Question(path.name, "", prompt, None, None, image=str(path), group=path.name),
            path.name,
            [begin_line(key, key, digest(prompt, key), truth[key])],
        )
        for path, key in zip(images, keys, strict=True)
    ]
    settings = {
        "data": [{"path": path.name} for path in data],
        "prompt": prompt,
        "caps": list(how.caps),
        "image_ids": keys,
        **chair_settings(vocabulary, how.lemmatizer),
    }
    return Items(items, settings, own_words_note(vocabulary), tools=ChairTools(how.caps, mentions))


def parse(line: Prediction, answer: Answer, tools: ChairTools) -> CaptionPrediction:
    """Return a line with the caption as it is at each cap."""
    captions = {
        str(cap): parse_caption(answer.text_at(cap).strip(), answer.finished_at(cap), tools.mentions)
        for cap in tools.caps
    }
    return {**line, "answer": answer.text.strip(), "finished": answer.finished, "captions": captions}


def read_captioned(answers: Sequence[Path], data: Sequence[Path], how: ChairWords) -> AnswersRead:
    """Return the lines of captions that were made elsewhere."""
    if len(answers) != 1:
        raise DataError(
            "captions come in one file",
            expected="one file with a caption for each image",
            got=f"{len(answers)} files",
            fix="put them into one file, or score them one at a time",
        )
    vocabulary, mentions, truth = _ground_truth(data, how)
    found = read_captions(answers[0], truth, limit=how.limit, encoding=how.encoding)
    lines: list[CaptionPrediction] = [
        {
            "id": caption.image,
            "group": caption.image,
            "prompt": None,
            "answer": caption.text,
            "captions": {"given": parse_caption(caption.text, caption.finished, mentions)},
            "gold": truth[caption.image],
        }
        for caption in found
    ]
    settings = {
        "data": [describe_file(path) for path in data],
        "captions": [describe_file(path) for path in answers],
        **chair_settings(vocabulary, how.lemmatizer),
        "prompt": None,
        "caps": ["given"],
        "image_ids": [caption.image for caption in found],
    }
    return AnswersRead(lines, settings, own_words_note(vocabulary))


CHAIR = Benchmark(
    name="chair",
    label="CHAIR",
    about="CHAIR: how many of the objects that captions name are not in the image?",
    asks="text",
    options=ChairOptions,
    read=read_items,
    parse=parse,
    measure=measure_chair,
    primary="chair_i",
    lower_is_better=True,
    shown_beside=("recall", "words_per_caption"),
    several_files=True,
    shows_images=True,
    scene_files=("captions.jsonl",),
    elsewhere=AnswersElsewhere(
        "Captions as chair.py, COCO's and LLaVA's scripts write them: `caption` or `text`.", ChairWords, read_captioned
    ),
)
