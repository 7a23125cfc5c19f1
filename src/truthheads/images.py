"""Images of question files: found, decoded once, upright and in RGB."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps

from truthheads.errors import DataError


def load_image(path: str | Path) -> Image.Image:
    """Return an image in RGB, turned as its EXIF orientation says; transparency is laid on white.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing, damaged, not an image, or too large to be opened safely.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                upright = ImageOps.exif_transpose(opened)
                if "A" in upright.getbands() or "transparency" in upright.info:
                    layer = upright.convert("RGBA")
                    white = Image.new("RGBA", layer.size, "white")
                    return Image.alpha_composite(white, layer).convert("RGB")
                return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        missing = isinstance(error, FileNotFoundError)
        raise DataError(
            f"image {path} cannot be read",
            expected="a whole image file of at most 89 million pixels",
            got="no such file" if missing else f"{type(error).__name__}: {error}",
            fix="check the path (images are looked for beside the question file, or in --images)"
            if missing
            else "replace the file, or remove its row",
        ) from error
