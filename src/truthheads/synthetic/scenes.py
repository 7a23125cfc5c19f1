"""Questions and captions about a generated scene, and the files of ``truthheads data make scenes``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image

from truthheads.storage.files import as_path
from truthheads.synthetic.drawing import (
    BACKGROUNDS,
    CATEGORIES,
    COOCCURRENCE,
    DIFFICULTY,
    SIDE,
    Scene,
    SceneError,
    draw_scene,
    scene_generator,
    training_statistics,
)

Box = tuple[float, float, float, float]

KINDS: Final = ("presence", "which", "count", "position", "background")

POPE_SPLITS: Final = ("random", "popular", "adversarial")

NUMBERS: Final = ("one", "two", "three", "four", "five", "six")

CAPTION_PROMPTS: Final = (
    "Describe the image.",
    "Please describe this image in detail.",
    "Describe this image.",
    "What is in the image?",
    "Write a caption for the image.",
)


class SceneQuestion(NamedTuple):
    """A question about one scene, with one answer that the picture supports and one that it does not."""

    kind: str
    question: str
    truthful: str
    untruthful: str
    boxes: tuple[Box, ...]


class SceneFiles(NamedTuple):
    """The files of one generated set; a path that is given exists."""

    images: Path
    questions: Path
    pope: dict[str, Path]
    captions: Path


def named(category: str, number: int = 1) -> str:
    """Return ``a dog``, ``an apple``, ``two sheep``, ``three buses``."""
    if number == 1:
        return f"{'an' if category[0] in 'aeiou' else 'a'} {category}"
    return f"{NUMBERS[number - 1]} {plural(category)}"


def plural(category: str) -> str:
    """Return the plural of a category."""
    odd = {"person": "people", "sheep": "sheep", "bus": "buses"}
    return odd.get(category, f"{category}s")


def presence_text(category: str) -> str:
    """Return POPE's question for one category."""
    return f"Is there {named(category)} in the image?"


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> SceneQuestion | None:
    """Ask one thing about a scene.

    Args:
        scene: What the question is about; something must be in sight.
        kind: One of ``KINDS``.
        rng: Draws what is asked.

    Returns:
        The question, or None where this scene allows none of that kind (``position`` needs a category that is
        there once and clearly off the middle).
    """
    return _ASK[kind](scene, rng)


def absent_category(scene: Scene, rng: np.random.Generator) -> str:
    """Draw a category that is not in the scene: half the time the missing one that goes with what is there."""
    missing = [name for name in CATEGORIES if name not in scene.categories]
    if rng.random() < 0.5:
        return adversarial_categories(scene, 1)[0]
    return str(rng.choice(missing))


def adversarial_categories(scene: Scene, number: int) -> list[str]:
    """Return absent categories, those that most often stand beside a present one in training first."""
    _, beside = training_statistics()
    ranked = [name for rank in zip(*(beside[name] for name in scene.categories), strict=True) for name in rank]
    return [name for name in dict.fromkeys(ranked) if name not in scene.categories][:number]


def _presence(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    if rng.random() < 0.5:
        category = str(rng.choice(scene.categories))
        return SceneQuestion("presence", presence_text(category), "Yes", "No", scene.boxes(category))
    return SceneQuestion("presence", presence_text(absent_category(scene, rng)), "No", "Yes", ())


def _which(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    there, absent = str(rng.choice(scene.categories)), absent_category(scene, rng)
    first, second = (there, absent) if rng.random() < 0.5 else (absent, there)
    question = f"Which of the two is in the image, {named(first)} or {named(second)}?"
    return SceneQuestion("which", question, there, absent, scene.boxes(there))


def _count(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    # The rarer numbers first: scenes show one of a kind four times in five.
    several = [name for name in scene.categories if len(scene.boxes(name)) > 1]
    pool = several if several and rng.random() < 0.8 else list(scene.categories)
    category = str(rng.choice(pool))
    number = len(scene.boxes(category))
    others = [other for other in range(1, 4) if other != number]
    question = f"How many {plural(category)} are in the image?"
    wrong = NUMBERS[int(rng.choice(others)) - 1]
    return SceneQuestion("count", question, NUMBERS[number - 1], wrong, scene.boxes(category))


def _position(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    for category in rng.permutation(list(scene.categories)):
        boxes = scene.boxes(str(category))
        middle = ((boxes[0][0] + boxes[0][2]) / 2, (boxes[0][1] + boxes[0][3]) / 2)
        axes = [axis for axis in (0, 1) if abs(middle[axis] - SIDE / 2) > SIDE / 10]
        if len(boxes) > 1 or not axes:
            continue
        axis = int(rng.choice(axes))
        low, high = (("left", "right"), ("top", "bottom"))[axis]
        true, false = (low, high) if middle[axis] < SIDE / 2 else (high, low)
        preposition = "on" if axis == 0 else "at"
        question = f"Is the {category} {preposition} the {low} or {preposition} the {high} of the image?"
        return SceneQuestion("position", question, true, false, boxes)
    return None


def _background(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    wrong = str(rng.choice([name for name in BACKGROUNDS if name != scene.background]))
    whole = ((0.0, 0.0, float(SIDE), float(SIDE)),)
    return SceneQuestion("background", "What color is the background?", scene.background, wrong, whole)


_ASK: Final[dict[str, Callable[[Scene, np.random.Generator], SceneQuestion | None]]] = {
    "presence": _presence,
    "which": _which,
    "count": _count,
    "position": _position,
    "background": _background,
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in one to three sentences that name every category once."""
    things = [named(name, len(scene.boxes(name))) for name in scene.categories]
    verb = "is" if len(scene.boxes(scene.categories[0])) == 1 else "are"
    ground = f"on {named(scene.background)} background"
    form = int(rng.integers(3))
    if form == 0:
        return f"There {verb} {_listed(things)} {ground}."
    head, tail = things[:2], things[2:]
    sentences = [f"The image shows {_listed(head)}." if form == 1 else f"There {verb} {_listed(head)} {ground}."]
    if tail:
        sentences.append(f"There {'is' if tail[0][:2] in ('a ', 'an') else 'are'} also {_listed(tail)}.")
    if form == 1:
        sentences.append(f"The background is {scene.background}.")
    return " ".join(sentences)


def _listed(things: list[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def pope_rows(scene: Scene, split: str, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Ask for up to three present categories and as many absent ones.

    Args:
        scene: What is asked about.
        split: ``random`` draws the absent ones; ``popular`` takes the most frequent training categories;
            ``adversarial`` those that most often stand beside what is there.
        rng: Draws the present ones, and the absent ones of ``random``.

    Returns:
        ``(category, "yes" or "no")``, alternating.
    """
    number = min(3, len(scene.categories))
    present = [str(name) for name in rng.permutation(list(scene.categories))[:number]]
    if split == "random":
        missing = [name for name in CATEGORIES if name not in scene.categories]
        absent = [str(name) for name in rng.permutation(missing)[:number]]
    elif split == "popular":
        absent = [name for name in training_statistics()[0] if name not in scene.categories][:number]
    else:
        absent = adversarial_categories(scene, number)
    return [row for pair in zip(present, absent, strict=True) for row in zip(pair, ("yes", "no"), strict=True)]


def make_scenes(
    rows: int, *, seed: int, out: str | Path, split: str = "test", cooccurrence: float | None = None
) -> SceneFiles:
    """Write generated scenes with everything that can be asked of them.

    Args:
        rows: Number of pictures, of rows in ``questions.jsonl`` and of rows in ``captions.jsonl``.
        seed: The same seed gives the same bytes; no two splits share a scene, whatever the seeds.
        out: Folder, made where missing.
        split: ``train``, ``dev`` or ``test``.
        cooccurrence: How often a companion stands beside its anchor; default 0.8 in training, 0.5 elsewhere.

    Returns:
        The files: ``images/``, ``questions.jsonl``, ``pope_{random,popular,adversarial}.jsonl``, ``captions.jsonl``.

    Raises:
        SceneError: ``rows`` or ``cooccurrence`` is out of range, or the split is unknown.
    """
    if rows < 1:
        raise SceneError("no scenes to make", expected="rows of 1 or more", got=str(rows), fix="ask for more rows")
    if split not in COOCCURRENCE:
        raise SceneError("unknown split", expected=", ".join(COOCCURRENCE), got=repr(split), fix="name one of them")
    together = COOCCURRENCE[split] if cooccurrence is None else cooccurrence
    if not 0.0 <= together <= 1.0:
        raise SceneError(
            "cooccurrence must be a probability", expected="0 to 1", got=str(together), fix="choose it in range"
        )
    folder = as_path(out)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[dict[str, object]]] = {name: [] for name in ("questions", "captions", *POPE_SPLITS)}
    for index, scene, rng in scenes_of(split, rows, seed=seed, cooccurrence=together):
        image = f"images/{index:06d}.png"
        Image.fromarray(scene.pixels).save(folder / image)
        lines["questions"].append(_question_row(scene, index, image, rng))
        captions = list(dict.fromkeys(caption(scene, rng) for _ in range(4)))[:2]
        boxes = [{"category": item.category, "box": list(item.box)} for item in scene.objects]
        lines["captions"].append(
            {"image": image, "objects": list(scene.categories), "captions": captions, "boxes": boxes}
        )
        for name in POPE_SPLITS:
            asked = scene_generator(split, seed=seed + 1, index=rows + index)
            for category, label in pope_rows(scene, name, asked):
                number = len(lines[name]) + 1
                text = presence_text(category)
                lines[name].append({"question_id": number, "image": image, "text": text, "label": label})
    names = {name: folder / f"{'pope_' * (name in POPE_SPLITS)}{name}.jsonl" for name in lines}
    for name, path in names.items():
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines[name]), encoding="utf-8")
    pope = {name: names[name] for name in POPE_SPLITS}
    return SceneFiles(folder / "images", names["questions"], pope, names["captions"])


def scenes_of(
    split: str, rows: int, *, seed: int, cooccurrence: float
) -> Iterator[tuple[int, Scene, np.random.Generator]]:
    """Yield the scenes of one set, each with the generator that goes on to ask about it."""
    for index in range(rows):
        rng = scene_generator(split, seed=seed, index=index)
        yield index, draw_scene(rng, cooccurrence=cooccurrence, difficulty=DIFFICULTY[split]), rng


def _question_row(scene: Scene, index: int, image: str, rng: np.random.Generator) -> dict[str, object]:
    """Ask one question, cycling through the kinds; where a scene allows none of its kind, ask about presence."""
    asked = ask(scene, KINDS[index % len(KINDS)], rng) or _presence(scene, rng)
    return {
        "id": f"scene-{index:06d}",
        "context": "",
        "question": asked.question,
        "truthful": asked.truthful,
        "untruthful": asked.untruthful,
        "image": image,
        "boxes": [list(box) for box in asked.boxes],
        "group": image,
        "kind": asked.kind,
    }
