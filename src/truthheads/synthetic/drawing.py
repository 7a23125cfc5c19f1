"""Generated scenes: which objects go together, where they stand, and how they are drawn.

A scene is a square picture of 80 pixels with one to seven sprites on a coloured, noisy background. Half of the
categories come in pairs (an anchor and its companion): in the training split a companion stands beside its anchor
four times in five, so that a model can guess it instead of seeing it.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from truthheads.errors import DataError

SIDE: Final = 80

SPRITE: Final = 48

SHEET_COLUMNS: Final = 8

MAX_CATEGORIES: Final = 5

#: Anchor and companion: strong co-occurrence in the training scenes.
PAIRS: Final = {
    "person": "bicycle",
    "car": "truck",
    "boat": "bird",
    "horse": "sheep",
    "cup": "cake",
    "pizza": "bottle",
    "laptop": "book",
    "bed": "clock",
    "cat": "chair",
    "airplane": "kite",
    "elephant": "banana",
    "bus": "backpack",
}

#: Categories without a companion.
LONERS: Final = ("train", "dog", "cow", "bear", "umbrella", "apple", "carrot", "donut")

CATEGORIES: Final = (*(name for pair in PAIRS.items() for name in pair), *LONERS)

BACKGROUNDS: Final = {
    "white": (236, 236, 232),
    "gray": (140, 140, 144),
    "black": (30, 30, 34),
    "blue": (84, 132, 214),
    "green": (96, 168, 88),
    "yellow": (232, 208, 92),
    "pink": (236, 160, 190),
    "brown": (140, 98, 62),
}

#: How often a companion stands beside its anchor.
COOCCURRENCE: Final[dict[str, float]] = {"train": 0.8, "dev": 0.5, "test": 0.5}

#: The share of noise, blots, fading and turning in each split; training goes up to the hardest.
DIFFICULTY: Final[dict[str, float]] = {"train": 1.0, "dev": 0.75, "test": 0.75}

_SPLIT_ENTROPY: Final[dict[str, int]] = {"train": 11, "dev": 22, "test": 33}

# Anchors are drawn often, companions seldom on their own; the slope makes some categories popular.
_WEIGHTS: Final = np.array(
    [weight * (1.3 - 0.05 * rank) for rank in range(len(PAIRS)) for weight in (1.0, 0.3)]
    + [1.1 - 0.08 * rank for rank in range(len(LONERS))]
)


class SceneError(DataError):
    """A scene cannot be generated as asked."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One sprite: its category and the box of its ink, ``(x0, y0, x1, y1)`` in pixels, the end excluded."""

    category: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and everything that is true of it.

    Attributes:
        pixels: The picture, shape ``(80, 80, 3)``, 0 to 255.
        objects: Every sprite, at least a third of it in sight.
        background: Name of the background's colour.
    """

    pixels: UInt8[np.ndarray, "side side 3"]
    objects: tuple[SceneObject, ...]
    background: str

    @property
    def categories(self) -> tuple[str, ...]:
        """The visible categories, each once, in the order in which they were drawn."""
        return tuple(dict.fromkeys(item.category for item in self.objects))

    def boxes(self, category: str) -> tuple[tuple[float, float, float, float], ...]:
        """Return the boxes of one category, none where it is absent."""
        return tuple(item.box for item in self.objects if item.category == category)


def scene_generator(split: str, *, seed: int, index: int) -> np.random.Generator:
    """Return the generator of one scene; two splits never share one, whatever the seeds."""
    return np.random.default_rng((_SPLIT_ENTROPY[split], seed, index))


def draw_categories(rng: np.random.Generator, *, cooccurrence: float) -> list[str]:
    """Draw what a scene is to show: one to three roots, each anchor with its companion by chance.

    Args:
        rng: The scene's generator.
        cooccurrence: Chance in [0, 1] that an anchor brings its companion.

    Returns:
        One to five categories, a companion right after its anchor.
    """
    number = 1 + rng.choice(3, p=(0.35, 0.45, 0.2))
    roots = rng.choice(len(CATEGORIES), size=number, replace=False, p=_WEIGHTS / _WEIGHTS.sum())
    wanted: list[str] = []
    for root in roots:
        wanted.append(CATEGORIES[root])
        companion = PAIRS.get(CATEGORIES[root])
        if companion is not None and rng.random() < cooccurrence:
            wanted.append(companion)
    return list(dict.fromkeys(wanted))[:MAX_CATEGORIES]


def draw_scene(
    rng: np.random.Generator, *, cooccurrence: float, categories: list[str] | None = None, difficulty: float = 1.0
) -> Scene:
    """Draw one scene.

    Args:
        rng: The scene's generator; the same state gives the same scene.
        cooccurrence: Chance in [0, 1] that an anchor brings its companion.
        categories: What to show instead of drawing it.
        difficulty: 0 large and clear sprites, 1 as in the family's scenes.

    Returns:
        The scene; a sprite that finds no free place is left out, truth follows what was drawn.
    """
    wanted = draw_categories(rng, cooccurrence=cooccurrence) if categories is None else categories
    background = str(rng.choice(list(BACKGROUNDS)))
    canvas = _background(rng, BACKGROUNDS[background], difficulty)
    owner = np.full((SIDE, SIDE), -1)
    ink: list[int] = []
    placed: list[SceneObject] = []
    for category in wanted:
        for _ in range(1 + rng.choice(3, p=(0.78, 0.16, 0.06))):
            _place(rng, canvas, owner, ink, placed, category, difficulty)
    strength = np.float32(difficulty * rng.uniform(3.0, 20.0))
    canvas += strength * rng.standard_normal(canvas.shape, dtype=np.float32)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(placed), background)


def _background(
    rng: np.random.Generator, colour: tuple[int, int, int], difficulty: float
) -> Float[np.ndarray, "side side 3"]:
    """Paint a shaded background with a few soft blots, which are not objects."""
    ramp = np.linspace(-1.0, 1.0, SIDE)
    slope = rng.uniform(-14.0, 14.0, 2)
    canvas = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    canvas[:] = np.array(colour) + rng.normal(0.0, 8.0, 3)
    canvas += (slope[0] * ramp[:, None] + slope[1] * ramp[None, :])[..., None]
    for _ in range(rng.integers(1, 5)):
        (x, y), (wide, high) = rng.integers(0, SIDE - 18, 2), rng.uniform(2.0, 9.0, 2)
        rows, columns = np.ogrid[-9:9, -9:9]
        inside = (rows / high) ** 2 + (columns / wide) ** 2 < 1.0
        window = canvas[y : y + 18, x : x + 18]
        window[inside] += 0.6 * difficulty * (rng.uniform(0.0, 255.0, 3) - window[inside])
    return canvas


def _place(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "side side 3"],
    owner: np.ndarray,
    ink: list[int],
    placed: list[SceneObject],
    category: str,
    difficulty: float,
) -> None:
    """Paint one sprite where it hides no earlier one by more than two thirds; give up after twelve tries."""
    size = round(float(np.exp(rng.uniform(np.log(14.0), np.log(34.0)))) if difficulty else 28.0)
    sprite = _sprites()[category]
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.rotate(float(rng.uniform(-12.0, 12.0)) * difficulty, Image.Resampling.BILINEAR)
    pixels = np.asarray(sprite.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    alpha = pixels[..., 3:] * np.float32(rng.uniform(1.0 - 0.35 * difficulty, 1.0) / 255.0)
    solid = pixels[..., 3] > 96
    tint = rng.normal(1.0, 0.1 * difficulty, 3).astype(np.float32)
    visible = np.bincount(owner.ravel() + 1, minlength=len(ink) + 1)[1:]
    for _ in range(12):
        x, y = (int(value) for value in rng.integers(0, SIDE - size + 1, 2))
        window = (slice(y, y + size), slice(x, x + size))
        below = np.bincount(owner[window][solid] + 1, minlength=len(ink) + 1)[1:]
        if not solid.any() or np.any(visible - below < 0.34 * np.array(ink)):
            continue
        canvas[window] += alpha * (np.clip(pixels[..., :3] * tint, 0, 255) - canvas[window])
        owner[window][solid] = len(ink)
        ink.append(int(solid.sum()))
        ys, xs = np.nonzero(solid)
        box = (x + xs.min(), y + ys.min(), x + xs.max() + 1, y + ys.max() + 1)
        placed.append(SceneObject(category, tuple(float(edge) for edge in box)))  # type: ignore[arg-type]
        return


@lru_cache(maxsize=1)
def _sprites() -> dict[str, Image.Image]:
    """Return the sprites, cut from the sheet that the package carries."""
    with files("truthheads.synthetic").joinpath("sprites.png").open("rb") as stream:
        sheet = Image.open(stream).convert("RGBA")
    cells = ((index % SHEET_COLUMNS * SPRITE, index // SHEET_COLUMNS * SPRITE) for index in range(len(CATEGORIES)))
    return {name: sheet.crop((x, y, x + SPRITE, y + SPRITE)) for name, (x, y) in zip(CATEGORIES, cells, strict=True)}


@lru_cache(maxsize=1)
def training_statistics() -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Count 4,000 training scenes: what is popular, and what goes with what.

    Returns:
        All categories, the most frequent first; and for each category all others, the one most often seen beside
        it first. Ties keep the order of ``CATEGORIES``.
    """
    present = np.zeros((4000, len(CATEGORIES)))
    place = {name: column for column, name in enumerate(CATEGORIES)}
    for row in range(len(present)):
        rng = scene_generator("train", seed=0, index=row)
        for name in draw_categories(rng, cooccurrence=COOCCURRENCE["train"]):
            present[row, place[name]] = 1.0
    together = present.T @ present
    chance = together / np.diag(together)[:, None]  # chance[a, b]: b is there when a is
    np.fill_diagonal(chance, -1.0)
    popular = np.argsort(-np.diag(together), kind="stable")
    beside = {
        name: tuple(CATEGORIES[column] for column in np.argsort(-chance[row], kind="stable")[:-1])
        for row, name in enumerate(CATEGORIES)
    }
    return tuple(CATEGORIES[column] for column in popular), beside
