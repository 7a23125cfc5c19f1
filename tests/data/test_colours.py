"""Pictures of every Pillow mode: the values that a file holds are the values that a model is shown."""

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from truthheads.data.colours import in_rgb, stored
from truthheads.data.images import load_image
from truthheads.errors import DataError

Grey = list[int]
RAMP = [0, 257, 25_700, 65_535]  # 257 · (0, 1, 100, 255)
GREY = [0, 1, 100, 255]


def seen(path: Path) -> list[tuple[int, ...]]:
    """Return what a model is shown, pixel by pixel."""
    image = load_image(path)
    assert image.mode == "RGB"
    return [tuple(map(int, pixel)) for pixel in np.asarray(image).reshape(-1, 3)]


def greys(path: Path) -> Grey:
    pixels = seen(path)
    assert all(len(set(pixel)) == 1 for pixel in pixels)
    return [pixel[0] for pixel in pixels]


def png(path: Path, *, width: int, depth: int, colour: int, samples: bytes, clear: bytes = b"") -> Path:
    """Write a PNG of one row by hand: colour 0 is grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", clear) if clear else b""]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + samples)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def tiff(
    path: Path, samples: bytes, *, width: int, bits: int, order: str = "<", form: int = 1, meaning: int = 1
) -> Path:
    """Write a grey TIFF of one row by hand; form 1 is unsigned, 2 signed, 3 floating; meaning 0 is "0 is white"."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: meaning, 273: 8, 277: 1, 278: 1, 279: len(samples), 339: form}
    data = samples + b"\0" * (len(samples) % 2)
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0))
    return path


def in_memory(image: Image.Image) -> list[tuple[int, ...]]:
    shown = in_rgb(image, stored(image), name="picture")
    return [tuple(map(int, pixel)) for pixel in np.asarray(shown).reshape(-1, 3)]


# Grey of 16 bits


def test_a_png_of_16_bits_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    path = png(tmp_path / "x.png", width=4, depth=16, colour=0, samples=struct.pack(">4H", *RAMP))
    assert greys(path) == GREY
    Image.fromarray(np.array([RAMP], dtype=np.uint16)).save(tmp_path / "y.png")
    assert greys(tmp_path / "y.png") == GREY


def test_samples_between_two_levels_go_to_the_nearer(tmp_path: Path) -> None:
    # 128 / 257 = .498, 129 / 257 = .502, 1000 / 257 = 3.89, 65,400 / 257 = 254.47
    path = png(tmp_path / "x.png", width=4, depth=16, colour=0, samples=struct.pack(">4H", 128, 129, 1_000, 65_400))
    assert greys(path) == [0, 1, 4, 254]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits_in_either_byte_order(tmp_path: Path, order: str) -> None:
    path = tiff(tmp_path / "x.tif", struct.pack(f"{order}4H", *RAMP), width=4, bits=16, order=order)
    assert greys(path) == GREY


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("packing", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_packed_tiff_of_16_bits(tmp_path: Path, mode: str, packing: str) -> None:
    image = Image.frombytes(mode, (4, 1), struct.pack("<4H" if mode == "I;16" else ">4H", *RAMP))
    image.save(tmp_path / "x.tif", compression=packing)
    assert greys(tmp_path / "x.tif") == GREY


def test_an_x_ray_whose_0_is_white(tmp_path: Path) -> None:
    path = tiff(tmp_path / "x.tif", struct.pack("<4H", *RAMP), width=4, bits=16, meaning=0)
    assert greys(path) == [255, 254, 155, 0]
    path = tiff(tmp_path / "y.tif", bytes(GREY), width=4, bits=8, meaning=0)
    assert greys(path) == [255, 254, 155, 0]
    path = tiff(tmp_path / "z.tif", struct.pack("<3f", 0, 0.2, 1), width=3, bits=32, form=3, meaning=0)
    assert greys(path) == [255, 204, 0]


def test_samples_of_12_bits_are_scaled_by_4095(tmp_path: Path) -> None:
    # 0, 4095, 819, 2048 in 12 bits each: 000 fff 333 800; 819 / 4095 · 255 = 51, 2048 / 4095 · 255 = 127.5
    path = tiff(tmp_path / "x.tif", bytes.fromhex("000fff333800"), width=4, bits=12)
    assert greys(path) in ([0, 255, 51, 127], [0, 255, 51, 128])


def test_a_pgm_of_16_bits_and_of_a_range_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x.pgm").write_bytes(b"P5\n4 1\n65535\n" + struct.pack(">4H", *RAMP))
    assert greys(tmp_path / "x.pgm") == GREY
    (tmp_path / "y.pgm").write_bytes(b"P5\n3 1\n1000\n" + struct.pack(">3H", 0, 200, 1_000))
    assert greys(tmp_path / "y.pgm") == [0, 51, 255]


def test_jpeg_2000_of_16_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 25_700, dtype=np.uint16)).save(tmp_path / "x.jp2")
    assert set(greys(tmp_path / "x.jp2")) == {100}


def test_a_turned_picture_of_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.array([RAMP], dtype=np.uint16)).save(tmp_path / "x.png", exif=exif)
    assert greys(tmp_path / "x.png") == GREY[::-1]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_modes_of_16_bits_in_memory(mode: str) -> None:
    image = Image.frombytes(mode, (4, 1), struct.pack(">4H" if mode == "I;16B" else "<4H", *RAMP))
    assert in_memory(image) == [(grey,) * 3 for grey in GREY]


def test_the_transparent_sample_of_a_png_of_16_bits(tmp_path: Path) -> None:
    samples = struct.pack(">4H", 1_000, 1_001, 0, 65_535)
    path = png(tmp_path / "x.png", width=4, depth=16, colour=0, samples=samples, clear=struct.pack(">H", 1_000))
    assert greys(path) == [255, 4, 0, 255]  # the first is laid on white


def test_what_leaves_most_of_its_range_unused_is_shown_as_it_is_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = png(tmp_path / "x.png", width=2, depth=16, colour=0, samples=struct.pack(">2H", 0, 4_095))
    with caplog.at_level(logging.WARNING, "truthheads"):
        assert greys(path) == [0, 16]  # 4095 / 257 = 15.9
        load_image(path)
    assert [record.message for record in caplog.records] == [
        f"image {path} is nearly black to the model: its brightest sample is 4095, and 65535 would be white. "
        "If that sample is meant to be white, scale the picture's samples first."
    ]


# Colours of 16 bits, of which Pillow keeps the upper 8


@pytest.mark.parametrize(("colour", "samples", "pixels"), [
    (2, (257, 25_700, 65_535, 1_000, 0, 32_768), [(1, 100, 255), (3, 0, 128)]),
    (4, (25_700, 65_535, 25_700, 0), [(100, 100, 100), (255, 255, 255)]),
    (6, (257, 25_700, 65_535, 65_535, 0, 0, 0, 0), [(1, 100, 255), (255, 255, 255)]),
])  # fmt: skip
def test_a_coloured_png_of_16_bits(
    tmp_path: Path, colour: int, samples: tuple[int, ...], pixels: list[tuple[int, ...]]
) -> None:
    packed = struct.pack(f">{len(samples)}H", *samples)
    assert seen(png(tmp_path / "x.png", width=2, depth=16, colour=colour, samples=packed)) == pixels


def test_the_transparent_colour_of_a_png_of_16_bits(tmp_path: Path) -> None:
    samples, clear = struct.pack(">6H", 1_000, 2_000, 3_000, 65_535, 0, 257), struct.pack(">3H", 1_000, 2_000, 3_000)
    path = png(tmp_path / "x.png", width=2, depth=16, colour=2, samples=samples, clear=clear)
    assert seen(path) == [(255, 255, 255), (255, 0, 1)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_coloured_tiff_of_16_bits(tmp_path: Path, order: str) -> None:
    data = struct.pack(f"{order}6H", 257, 25_700, 65_535, 1_000, 0, 32_768)
    bits = struct.pack(f"{order}4H", 16, 16, 16, 0)  # behind the samples, where its tag points
    tags = {256: (4, 1, 2), 257: (4, 1, 1), 258: (3, 3, 8 + len(data)), 259: (4, 1, 1), 262: (4, 1, 2), 273: (4, 1, 8),
            277: (4, 1, 3), 278: (4, 1, 1), 279: (4, 1, len(data))}  # fmt: skip
    entries = b"".join(struct.pack(f"{order}HHII", tag, *entry) for tag, entry in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data) + len(bits))
    end = struct.pack(f"{order}I", 0)
    (tmp_path / "x.tif").write_bytes(head + data + bits + struct.pack(f"{order}H", len(tags)) + entries + end)
    assert seen(tmp_path / "x.tif") == [(1, 100, 255), (3, 0, 128)]


# Floating point


@pytest.mark.parametrize("order", ["<", ">"])
def test_floating_point_goes_from_0_to_1(tmp_path: Path, order: str) -> None:
    # .2 · 255 = 51, .5 · 255 = 127.5, to the even level
    samples = struct.pack(f"{order}4f", 0, 0.2, 0.5, 1)
    assert greys(tiff(tmp_path / "x.tif", samples, width=4, bits=32, form=3, order=order)) == [0, 51, 128, 255]


def test_a_trace_beyond_the_range_is_rounding(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1e-6, 1 + 1e-6]], dtype=np.float32)).save(tmp_path / "x.tif")
    assert greys(tmp_path / "x.tif") == [0, 255]


@pytest.mark.parametrize(("samples", "got"), [
    ([0, 0.5, 255], "floating point from 0 to 255"),
    ([-0.5, 0.5, 1], "floating point from -0.5 to 1"),
    ([0, 0.5, float("nan")], "floating point with NaN or infinity"),
    ([0, 0.5, float("inf")], "floating point with NaN or infinity"),
])  # fmt: skip
def test_floating_point_of_another_range_is_refused(tmp_path: Path, samples: list[float], got: str) -> None:
    Image.fromarray(np.array([samples], dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError) as told:
        load_image(tmp_path / "x.tif")
    assert told.value.problem == f"image {tmp_path / 'x.tif'}: its samples do not say what is black and what is white"
    assert told.value.got == got
    assert told.value.expected == (
        "whole numbers of 8 to 16 bits without a sign (0 is black, the largest is white), "
        "or floating point from 0 (black) to 1 (white)"
    )
    assert told.value.fix.startswith("choose what is black and white, scale the samples to 0..255 or 0..65535")


# Whole numbers that have no black and white of their own


@pytest.mark.parametrize(("form", "bits", "code", "got"), [
    (2, 8, "b", "signed 8-bit whole numbers from 0 to 255"),  # as Pillow has them
    (2, 16, "h", "signed 16-bit whole numbers from -1 to 100"),
    (2, 32, "i", "signed 32-bit whole numbers from -1 to 100"),
    (1, 32, "i", "32-bit whole numbers from -1 to 100"),
])  # fmt: skip
def test_signed_and_32_bit_whole_numbers_are_refused(tmp_path: Path, form: int, bits: int, code: str, got: str) -> None:
    path = tiff(tmp_path / "x.tif", struct.pack(f"<3{code}", -1, 0, 100), width=3, bits=bits, form=form)
    with pytest.raises(DataError, match=r"x\.tif: its samples do not say") as told:
        load_image(path)
    assert told.value.got == got


def test_mode_i_in_memory_is_refused() -> None:
    with pytest.raises(DataError, match="picture: its samples do not say"):
        in_memory(Image.new("I", (2, 1), 70_000))


# Modes of 8 bits and fewer


@pytest.mark.parametrize(("mode", "colour", "shown"), [
    ("1", 255, (255, 255, 255)),
    ("L", 100, (100, 100, 100)),
    ("RGB", (1, 100, 255), (1, 100, 255)),
    ("RGBX", (1, 100, 255, 0), (1, 100, 255)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
    ("YCbCr", (76, 85, 255), (254, 0, 0)),  # JFIF's red, rounded: 76 + 1.402 · 127 = 254
    ("HSV", (0, 255, 255), (255, 0, 0)),
    # Laid on white: 100 · a + 255 · (1 - a) with a = 51 / 255 is 224, and 0 · a + 255 · (1 - a) is 204.
    ("LA", (100, 51), (224, 224, 224)),
    ("La", (20, 51), (224, 224, 224)),  # 20 = 100 · 51 / 255: multiplied before
    ("RGBA", (0, 100, 255, 51), (204, 224, 255)),
    ("RGBa", (0, 20, 51, 51), (204, 224, 255)),
])  # fmt: skip
def test_modes_of_8_bits(mode: str, colour: Any, shown: tuple[int, ...]) -> None:
    assert in_memory(Image.new(mode, (2, 1), colour)) == [shown] * 2


def test_every_mode_of_pillow_is_in_this_file() -> None:
    ours = {"1", "L", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBA", "P", "I", "F"}
    assert set(Image.MODES) - {"LA", "La", "PA", "RGBa", "RGBX", "I;16", "I;16L", "I;16B", "I;16N"} == ours


def test_lab_is_the_colour_that_it_names(tmp_path: Path) -> None:
    # CIELAB (D50) of sRGB red is L 54.3, a 80.8, b 69.9; of its middle grey (119) L 50, a 0, b 0. L is stored · 2.55,
    # a and b as signed bytes.
    image = Image.frombytes("LAB", (2, 1), bytes([138, 81, 70, 128, 0, 0]))
    image.save(tmp_path / "x.tif")
    for pixels in (in_memory(image), seen(tmp_path / "x.tif")):
        assert np.abs(np.array(pixels[0]) - [255, 0, 0]).max() <= 6  # whole bytes of L, a and b are that far apart
        assert pixels[1] == (119, 119, 119)


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([10, 20, 30, 40, 50, 60, 0, 100, 255])
    image.save(tmp_path / "x.png")
    assert seen(tmp_path / "x.png") == [(10, 20, 30), (40, 50, 60), (0, 100, 255)]
    image.save(tmp_path / "x.gif", transparency=1)
    assert seen(tmp_path / "x.gif") == [(10, 20, 30), (255, 255, 255), (0, 100, 255)]
    image.save(tmp_path / "y.png", transparency=bytes([255, 0, 51]))
    assert seen(tmp_path / "y.png") == [(10, 20, 30), (255, 255, 255), (204, 224, 255)]
    half = Image.frombytes("PA", (3, 1), bytes([0, 255, 1, 0, 2, 51]))
    half.putpalette([10, 20, 30, 40, 50, 60, 0, 100, 255])
    assert in_memory(half) == [(10, 20, 30), (255, 255, 255), (204, 224, 255)]


@pytest.mark.parametrize(("depth", "samples", "clear", "shown"), [
    (1, 0b01000000, 1, [0, 255]),
    (1, 0b01000000, 0, [255, 255]),
    (2, 0b00011011, 1, [0, 255, 170, 255]),  # samples 0..3 are 0, 85, 170, 255
    (2, 0b00011011, 2, [0, 85, 255, 255]),
    (4, 0b00010010, 2, [17, 255]),  # samples 1 and 2 of 15
    (8, 7, 7, [255]),
])  # fmt: skip
def test_the_transparent_sample_of_a_grey_png(
    tmp_path: Path, depth: int, samples: int, clear: int, shown: Grey
) -> None:
    tone = struct.pack(">H", clear)
    path = png(tmp_path / "x.png", width=len(shown), depth=depth, colour=0, samples=bytes([samples]), clear=tone)
    assert greys(path) == shown


def test_a_cmyk_jpeg_of_adobe_is_not_turned_into_its_negative(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(np.array(seen(tmp_path / "x.jpg")) - [255, 0, 0]).max() <= 4


# Several frames


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.png", "x.webp"])
def test_of_several_frames_the_first_is_shown_and_that_is_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Image.new("RGB", (4, 4), (grey, grey, grey)) for grey in (255, 0))
    options = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    with caplog.at_level(logging.WARNING, "truthheads"):
        assert set(greys(tmp_path / name)) == {255}
    assert [record.message for record in caplog.records] == [
        f"image {tmp_path / name} has several frames or pages: only the first one is shown"
    ]


def test_a_photograph_with_its_preview_is_one_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, preview = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (4, 4), "black")
    first.save(tmp_path / "x.mpo", save_all=True, append_images=[preview])
    with caplog.at_level(logging.WARNING, "truthheads"):
        assert load_image(tmp_path / "x.mpo").getpixel((0, 0)) == (255, 255, 255)
    assert not caplog.records
