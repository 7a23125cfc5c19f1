"""Whether the header of a GGUF file can be believed: libraries count to whatever number stands in it."""

import struct
from pathlib import Path
from typing import BinaryIO

from truthheads.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each type; of a string and an array, they stand in the file."""
DEEPEST = 2
LEAST_KEY, LEAST_TENSOR = 13, 24
"""Bytes that the shortest key with its value takes, and the shortest entry of a tensor."""
MOST_AXES = 8


def check_gguf(path: Path) -> None:
    """Raise ModelError where a header promises more than the file holds.

    Every count and length is compared with the bytes that are left, so the walk ends soon in any file. What tensors
    hold is not looked at.

    Source:
        The GGUF specification: github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            _walk(_Bytes(opened, size))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read as GGUF",
            expected="a whole GGUF file of version 2 or 3, little endian",
            got=str(error),
            fix="download or copy it again",
        ) from error


class _Bytes:
    """A file that is read forward, and how much of it is left."""

    def __init__(self, opened: BinaryIO, size: int) -> None:
        self.opened, self.left = opened, size

    def skip(self, count: int, what: str) -> None:
        self.take(count, what)
        self.opened.seek(count, 1)

    def take(self, count: int, what: str) -> None:
        if count > self.left:
            raise ValueError(f"{what} of {count} bytes where {self.left} are left")
        self.left -= count

    def number(self, form: str, what: str) -> int:
        count = struct.calcsize(form)
        self.take(count, what)
        return int(struct.unpack(form, self.opened.read(count))[0])

    def counted(self, what: str, least: int) -> int:
        count = self.number("<Q", what)
        if count * least > self.left:
            raise ValueError(f"{what}: {count} where {self.left} bytes are left")
        return count

    def text(self, what: str) -> None:
        self.skip(self.number("<Q", what), what)


def _walk(data: _Bytes) -> None:
    if data.left < 24 or data.opened.read(4) != MAGIC:
        raise ValueError("no GGUF header")
    data.left -= 4
    if (version := data.number("<I", "the version")) not in VERSIONS:
        raise ValueError(f"version {version}")
    tensors = data.counted("tensors", LEAST_TENSOR)
    keys = data.counted("keys", LEAST_KEY)
    for _ in range(keys):
        data.text("a key")
        _value(data, data.number("<I", "a type"), 0)
    for _ in range(tensors):
        data.text("a tensor's name")
        axes = data.number("<I", "a tensor's axes")
        if axes > MOST_AXES:
            raise ValueError(f"a tensor of {axes} axes")
        data.skip(8 * axes + 12, "a tensor's shape")


def _value(data: _Bytes, kind: int, depth: int) -> None:
    if kind in SIZES:
        data.skip(SIZES[kind], "a value")
    elif kind == STRING:
        data.text("a text")
    elif kind == ARRAY and depth < DEEPEST:
        inner = data.number("<I", "a type")
        count = data.counted("entries of an array", SIZES.get(inner, 8))
        if inner in SIZES:
            data.skip(count * SIZES[inner], "an array")
            return
        for _ in range(count):
            _value(data, inner, depth + 1)
    else:
        raise ValueError(f"a value of type {kind}" + (" too deep in arrays" if kind == ARRAY else ""))
