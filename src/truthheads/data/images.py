"""Images of question files: found, decoded once, upright and in RGB."""

import os
import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps

from truthheads.data.colours import in_rgb, stored, warn_once
from truthheads.errors import DataError, RowError

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP", "AVIF")
"""What is opened; the library knows more, among them PostScript, for which it runs another program."""


def image_path(name: str, *, beside: Path, images: Path | None = None) -> str:
    """Find the path of an image that a file names, inside the folders that images may be read from.

    Args:
        name: As in the file: relative or absolute.
        beside: Folder of the file.
        images: Folder that paths start from; None: the file's own. One that begins with ``..`` starts from the file's
            own all the same, as :func:`truthheads.data.questions.write_questions` writes it.

    Returns:
        The path, as joined.

    Raises:
        ValueError: Links and ``..`` followed, it lies neither in the folder that paths start from, nor in the current
            one: a file from elsewhere must not make us open what it likes.
    """
    root = beside if images is None else images
    start = beside if Path(name).parts[:1] == ("..",) else root
    path, here = str(start / name), os.getcwd()
    # Joined and not normalised: what ``link/..`` means, only the disk knows.
    folder, last = os.path.split(os.path.join(here, path))
    plain = last not in ("", ".", "..") and not os.path.islink(path)
    real = os.path.join(_real(folder), last) if plain else os.path.realpath(path)
    roots = (_real(os.path.join(here, root)), _real(here))
    if not any(real.startswith(os.path.join(one, "")) for one in roots):
        raise ValueError(real)
    return path


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def load_image(path: str | Path) -> Image.Image:
    """Return an image in RGB, turned as its EXIF orientation says; transparency is laid on white.

    Deep pictures are scaled to 8 bits by the rule of :func:`truthheads.data.colours.in_rgb`.

    Args:
        path: The file. Of several frames or pages the first is shown, and a warning is logged.

    Raises:
        DataError: The file is missing, damaged, not an image, or too large to be opened safely; or its samples do not
            say what is black and what is white.
    """
    try:
        if not os.path.isfile(path):  # a pipe would be waited for, a device read without end
            raise FileNotFoundError(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged notes beside a picture that is whole
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()
            with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as opened:
                how = stored(opened)
                if getattr(opened, "is_animated", False) and opened.format != "MPO":  # a photograph and its previews
                    warn_once(f"image {path} has several frames or pages: only the first one is shown")
                return in_rgb(ImageOps.exif_transpose(opened), how, name=str(path))
    except DataError:
        raise
    except Exception as error:  # a damaged file makes the library's readers raise nearly anything
        missing = isinstance(error, FileNotFoundError)
        raise RowError(
            f"image {path} cannot be read",
            expected="a whole image file of at most 89 million pixels",
            got="no such file" if missing else f"{type(error).__name__}: {error}"[:200],
            fix="check the path (images are looked for beside the question file, or in --images)"
            if missing
            else "replace the file, or pass --skip-bad-rows to leave its row out",
        ) from error
