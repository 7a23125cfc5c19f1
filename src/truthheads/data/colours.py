"""Pictures of every kind in 8-bit RGB: what a file calls black stays black, and what it calls white stays white."""

import logging
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image

from truthheads.errors import DataError

DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Modes that Pillow cuts off at 255 instead of scaling them."""

SEE_THROUGH = ("LA", "La", "PA", "RGBA", "RGBa")

SPREAD = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies grey samples of 2 and 4 bits by; it leaves the transparent one as it is."""

DIM = 16
"""A deep picture that uses less than this part of its range is nearly black: 12 bits stored in 16 do."""

SIGNED = 2
"""TIFF's SampleFormat of signed whole numbers."""

log = logging.getLogger(__name__)


@lru_cache(maxsize=4096)
def warn_once(text: str) -> None:
    """Log a warning about a picture, which is loaded several times in a run."""
    log.warning("%s", text)


class Stored(NamedTuple):
    """How a file stores its samples. Pillow forgets it once the picture is decoded or turned.

    Attributes:
        white: The sample that is white, where black is 0; None where the file does not say.
        kind: What samples are, in words.
        negative: Whether 0 is white instead: some X-rays are stored so.
        clear: The grey sample, or the 8-bit colour, that is transparent; None: by the picture's own rule.
    """

    white: float | None
    kind: str
    negative: bool
    clear: int | tuple[int, ...] | None


def stored(image: Image.Image) -> Stored:
    """Return how an image that was opened, and not yet decoded, stores its samples."""
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits = tags.get(258, (16 if image.mode.startswith("I;16") else 32,))[0]
    signed = SIGNED in tags.get(339, ())
    negative = image.mode in DEEP and tags.get(262) == 0  # Pillow inverts those of 8 bits
    clear = _clear(image)
    if image.mode.startswith("I;16"):
        return Stored(2**bits - 1, f"{bits}-bit whole numbers", negative, clear)
    if image.mode == "I":
        if image.format == "PPM":  # Pillow has scaled them to 16 bits
            return Stored(2**16 - 1, "16-bit whole numbers", False, None)
        return Stored(None, f"{'signed ' if signed else ''}{bits}-bit whole numbers", negative, None)
    if image.mode == "F":
        return Stored(1.0, "floating point", negative, None)
    return Stored(None if signed else 255, f"{'signed ' if signed else ''}8-bit whole numbers", False, clear)


def _clear(image: Image.Image) -> int | tuple[int, ...] | None:
    """Return the transparent sample of a PNG as Pillow's decoded samples have it; None where Pillow gets it right."""
    given, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or given is None or not tiles:
        return None
    raw = tiles[0][3]
    if isinstance(given, int):
        if image.mode == "1":
            return 255 if given else 0
        return given * SPREAD.get(raw, 1) if image.mode in ("L", "I;16") else None
    if isinstance(given, tuple) and raw == "RGB;16B":
        return tuple(sample >> 8 for sample in given)
    return None


def in_rgb(image: Image.Image, how: Stored, *, name: str) -> Image.Image:
    """Return an image in RGB with 8 bits a sample; what is transparent is laid on white.

    Whole numbers of up to 16 bits are scaled by their type's whole range (0..65535 becomes 0..255), floating point from
    0..1. Colours of 16 bits come as their upper 8 bits. Nothing is stretched to what a picture happens to hold: a dark
    picture stays dark. Colour profiles are not applied, but for CIELAB, which has no other meaning.

    Args:
        image: The image, decoded, in any mode.
        how: From :func:`stored`, before it was decoded.
        name: What messages call it.

    Raises:
        DataError: Its samples do not say what is black and white: signed or 32-bit whole numbers, floating point
            outside 0..1, NaN or infinity.
    """
    if how.clear is not None:
        image = image.copy()
        image.info["transparency"] = how.clear
    if how.white is None:
        raise _refused(name, how, got=f"{how.kind}{_range(np.asarray(image))}")
    if image.mode in DEEP:
        image = _scaled(image, how, name)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in SEE_THROUGH or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _scaled(image: Image.Image, how: Stored, name: str) -> Image.Image:
    """Return a deep picture as grey of 8 bits, with an alpha channel where one sample is transparent."""
    samples = np.asarray(image)
    white = how.white
    assert white is not None
    slack = 0 if white > 1 else 1 / 510  # half a level: what resizing in single precision leaves beyond 0 and 1
    if not np.isfinite(samples).all() or samples.min() < -slack or samples.max() > white + slack:
        raise _refused(name, how, got=f"{how.kind}{_range(samples)}")
    if not how.negative and 0 < samples.max() < white / DIM:
        warn_once(
            f"image {name} is nearly black to the model: its brightest sample is {samples.max():.6g}, and {white:g} "
            "would be white. If that sample is meant to be white, scale the picture's samples first."
        )
    grey = np.clip(np.rint(samples * (255.0 / white)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(255 - grey if how.negative else grey)
    if isinstance(how.clear, int):
        picture.putalpha(Image.fromarray(_where(samples != how.clear)))
    return picture


def _where(seen: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    return np.where(seen, 255, 0).astype(np.uint8)


def _range(samples: Num[np.ndarray, "height width"]) -> str:
    """Return from where to where samples go, in words."""
    if not np.isfinite(samples).all():
        return " with NaN or infinity"
    return f" from {samples.min():.6g} to {samples.max():.6g}"


def _refused(name: str, how: Stored, *, got: str) -> DataError:
    return DataError(
        f"image {name}: its samples do not say what is black and what is white",
        expected="whole numbers of 8 to 16 bits without a sign (0 is black, the largest is white), "
        "or floating point from 0 (black) to 1 (white)",
        got=got,
        fix="choose what is black and white, scale the samples to 0..255 or 0..65535, and save them as unsigned "
        "8- or 16-bit grey",
    )
