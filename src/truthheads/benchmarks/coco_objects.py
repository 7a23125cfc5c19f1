"""COCO objects that a caption names: words of a closed vocabulary in all their forms, the longest first."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from truthheads.errors import DataError, TruthHeadsError

Lemmatizer = Literal["forms", "nltk"]

OWN = "own"
"""Name of the package's own words for objects."""

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")

DOUBLE_WORDS = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light",
    "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove",
    "tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier",
    "potted plant", "bow tie", "laptop computer", "stove top oven", "home plate", "train track",
)  # fmt: skip
"""Word pairs that the official procedure reads as one word, before it looks a word up."""

DOUBLES = (
    {double: double for double in DOUBLE_WORDS}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS}
    | {"passenger jet": "jet", "passenger train": "train"}
    | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
)
"""What the official procedure reads each word pair as."""


class Mention(NamedTuple):
    """One naming of an object: its category and the words in the caption."""

    category: str
    words: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words for categories.

    Attributes:
        name: ``own``, or the file they come from.
        categories: The category names.
        words: From a word to its category.
        forms: From a surface form, as its words, to its category; to an empty text where it is no object.
        verbatim: From a word as the official reader splits the file, stray blanks and capitals included.
    """

    name: str
    categories: frozenset[str]
    words: Mapping[str, str]
    forms: Mapping[tuple[str, ...], str]
    verbatim: Mapping[str, str]


@cache
def own_vocabulary() -> Vocabulary:
    """Return the package's own words for COCO's 80 categories."""
    table = _own_table()
    forms = {tuple(tokens(form)): name for name, words in table.items() for each in words.values() for form in each}
    words = {word: name for name, entries in table.items() for word in entries if name}
    return Vocabulary(OWN, frozenset(table) - {""}, words, forms, words)


@cache
def _own_table() -> dict[str, dict[str, list[str]]]:
    text = files("truthheads.benchmarks").joinpath("coco_synonyms.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[str]]] = json.loads(text)
    return table


def read_vocabulary(path: Path) -> Vocabulary:
    """Read words in the official format: one category a line, its name first, words separated by commas.

    Their plurals come from the package's own table where it has the word, else by rule.

    Raises:
        DataError: The file is missing, not UTF-8, or has no category, or one word stands for two categories.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as synonyms",
            expected="a text file, one category a line, words separated by commas",
            got=f"{type(error).__name__}: {error}",
            fix="check the path",
        ) from error
    known = {word: forms for entries in _own_table().values() for word, forms in entries.items()}
    words: dict[str, str] = {}
    forms: dict[tuple[str, ...], str] = {}
    categories = []
    for line in lines:
        entries = [entry.strip() for entry in line.split(",") if entry.strip()]
        if not entries:
            continue
        categories.append(entries[0])
        for word in (entry.casefold() for entry in entries):
            if words.setdefault(word, entries[0]) != entries[0]:
                raise DataError(
                    f"{path}: {word!r} stands for two categories",
                    expected="each word in one line",
                    got=f"{words[word]} and {entries[0]}",
                    fix="remove it from one of the two",
                )
            for form in known.get(word) or [word, plural(word)]:
                forms.setdefault(tuple(tokens(form)), entries[0])
    if not categories:
        raise DataError(f"{path} has no category", expected="one category a line", got="none", fix="check the file")
    for double, word in DOUBLES.items():
        for form in (double, plural(double)):
            forms.setdefault(tuple(tokens(form)), words.get(word, ""))
    parts = [line.strip().split(", ") for line in lines]
    verbatim = {part: row[0] for row in parts for part in row}
    return Vocabulary(path.name, frozenset(categories), words, forms, verbatim)


def plural(word: str) -> str:
    """Return a regular English plural."""
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-3] + "men" if word.endswith("man") else word + "s"


def tokens(text: str) -> list[str]:
    """Return words and punctuation marks in lower case; hyphens part words, what follows an apostrophe is cut off."""
    plain = re.sub(r"(?<=\w)'(?:s|re|ll|ve|d|m|t)\b", "", text.casefold().replace("’", "'"))
    return re.findall(r"[^\W_]+|[^\w\s]", re.sub(r"(?<=\w)-(?=\w)", " ", plain))


def matcher(vocabulary: Vocabulary, lemmatizer: Lemmatizer = "forms") -> Callable[[str], list[Mention]]:
    """Return a function from a caption to the objects that it names, repeats included, in order.

    Args:
        vocabulary: The words.
        lemmatizer: ``forms`` looks surface forms up, longest first. ``nltk`` is the official procedure, bug for bug:
            NLTK's tokens, their WordNet lemmas by part of speech, its word pairs, then single words.

    Raises:
        TruthHeadsError: ``nltk`` without NLTK or its data.
    """
    if lemmatizer == "nltk":
        lemmas = _nltk()
        return lambda caption: _official(lemmas(caption), vocabulary)
    openings: dict[str, list[tuple[str, ...]]] = {}
    for form in sorted(vocabulary.forms, key=len, reverse=True):
        openings.setdefault(form[0], []).append(form)
    return lambda caption: _longest(tokens(caption), vocabulary, openings)


def _longest(words: list[str], vocabulary: Vocabulary, openings: Mapping[str, list[tuple[str, ...]]]) -> list[Mention]:
    found, at = [], 0
    while at < len(words):
        form = next((f for f in openings.get(words[at], ()) if tuple(words[at : at + len(f)]) == f), None)
        if form is not None and vocabulary.forms[form]:
            found.append(Mention(vocabulary.forms[form], " ".join(form)))
        at += len(form) if form is not None else 1
    return _seats(found, any(mention.words.startswith("toilet") for mention in found))


def _seats(found: list[Mention], toilet: bool) -> list[Mention]:
    """Return mentions without seats where there is a toilet: "the seat of the toilet" is no chair."""
    return [mention for mention in found if not (toilet and mention.words in ("seat", "seats"))]


def _official(lemmas: list[str], vocabulary: Vocabulary) -> list[Mention]:
    """Return the mentions among lemmas by the official rules.

    Source:
        ``caption_to_words`` of the CHAIR evaluator.
    """
    merged, at = [], 0
    while at < len(lemmas):
        double = DOUBLES.get(" ".join(lemmas[at : at + 2]))
        merged.append(double or lemmas[at])
        at += 2 if double else 1
    found = [Mention(vocabulary.verbatim[word], word) for word in merged if word in vocabulary.verbatim]
    return _seats(found, "toilet" in merged)


def _nltk() -> Callable[[str], list[str]]:
    """Return NLTK's lemmatisation of a caption in lower case: nouns, verbs, adjectives and adverbs by their tags."""
    try:
        import nltk

        lemmatize: Any = nltk.stem.WordNetLemmatizer().lemmatize

        def lemmas(caption: str) -> list[str]:
            tagged = nltk.pos_tag(nltk.word_tokenize(caption.lower()))
            kinds = {"J": "a", "V": "v", "N": "n", "R": "r"}
            return [str(lemmatize(word, pos=kinds.get(tag[:1], "n"))) for word, tag in tagged]

        lemmas("Two dogs are running.")
    except (ImportError, LookupError) as error:
        raise TruthHeadsError(
            "--lemmatizer nltk cannot be used",
            expected="NLTK with punkt, its tagger and WordNet",
            got=" ".join(str(error).split())[:160],
            fix="pip install nltk, then python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet; "
            "or leave --lemmatizer out",
        ) from error
    return lemmas
