"""Render the sprite sheet once from Debian's Noto Color Emoji.

    apt-get update && apt-get download fonts-noto-color-emoji && dpkg-deb -x fonts-noto-color-emoji_*.deb font
    python experiments/render_sprites.py font/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

The font is under the SIL Open Font License 1.1; so is the sheet, see ``sprites.LICENSE.txt`` beside it.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from truthheads.synthetic import drawing

EMOJI = {
    "person": "\U0001f9cd",
    "bicycle": "\U0001f6b2",
    "car": "\U0001f697",
    "truck": "\U0001f69a",
    "boat": "\u26f5",
    "bird": "\U0001f426",
    "horse": "\U0001f40e",
    "sheep": "\U0001f411",
    "cup": "\u2615",
    "cake": "\U0001f382",
    "pizza": "\U0001f355",
    "bottle": "\U0001f37e",
    "laptop": "\U0001f4bb",
    "book": "\U0001f4d5",
    "bed": "\U0001f6cf",
    "clock": "\u23f0",
    "cat": "\U0001f408",
    "chair": "\U0001fa91",
    "airplane": "\u2708",
    "kite": "\U0001fa81",
    "elephant": "\U0001f418",
    "banana": "\U0001f34c",
    "bus": "\U0001f68c",
    "backpack": "\U0001f392",
    "train": "\U0001f682",
    "dog": "\U0001f415",
    "cow": "\U0001f404",
    "bear": "\U0001f43b",
    "umbrella": "\u2602",
    "apple": "\U0001f34e",
    "carrot": "\U0001f955",
    "donut": "\U0001f369",
}


def render(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Draw one emoji, cut to its ink, centred in a square cell of the sheet."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), character, font=font, embedded_color=True)
    ink = canvas.crop(canvas.getbbox())
    if np.asarray(ink)[..., 3].max() == 0:
        raise SystemExit(f"the font has no glyph for {character!r}")
    side = max(ink.size)
    square = Image.new("RGBA", (side, side))
    square.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return square.resize((drawing.SPRITE, drawing.SPRITE), Image.Resampling.LANCZOS)


def main(font_file: str) -> None:
    """Write the sheet beside ``drawing.py``, one row of cells per eight categories."""
    font = ImageFont.truetype(font_file, 109)  # the only size this bitmap font has
    columns = drawing.SHEET_COLUMNS
    rows = -(-len(drawing.CATEGORIES) // columns)
    sheet = Image.new("RGBA", (columns * drawing.SPRITE, rows * drawing.SPRITE))
    for index, name in enumerate(drawing.CATEGORIES):
        cell = (index % columns * drawing.SPRITE, index // columns * drawing.SPRITE)
        sheet.paste(render(font, EMOJI[name]), cell)
    sheet.save(Path(drawing.__file__).with_name("sprites.png"), optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
