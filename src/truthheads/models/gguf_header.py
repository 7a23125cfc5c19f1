"""The header of a GGUF file, checked against the file: libraries count to whatever number stands in it."""

import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

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

ALIGNMENT = 32
"""Multiple of bytes at which tensors begin where the file names no other."""

INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}

LONGEST_TEXT = 4096
"""Bytes of a text that is kept; chat templates are longer, and nobody asks for them here."""


class Key(NamedTuple):
    """Where one key of the metadata lies, and what it holds.

    Attributes:
        start: First byte of the key.
        stop: Byte behind its value.
        value: A whole number or a short text; None of every other kind.
    """

    start: int
    stop: int
    value: int | str | None


class GgufTensor(NamedTuple):
    """One tensor as the header names it.

    Attributes:
        name: Its name.
        shape: Its axes, the fastest first, as the file has them.
        kind: The number of its type in ggml.
        offset: Its first byte, counted from the start of the file's tensors.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that stands before the tensors of a GGUF file.

    Attributes:
        path: The file.
        size: Its bytes.
        keys: Its metadata by name.
        tensors: Its tensors in the order of the header.
        start: First byte of the tensors.
    """

    path: Path
    size: int
    keys: dict[str, Key]
    tensors: tuple[GgufTensor, ...]
    start: int

    @property
    def alignment(self) -> int:
        """Multiple of bytes at which tensors begin."""
        return self.number("general.alignment", ALIGNMENT)

    def number(self, key: str, default: int) -> int:
        """Return a whole number of the metadata, or the default where the file has none under that name."""
        value = self.keys[key].value if key in self.keys else None
        return value if isinstance(value, int) else default


def check_gguf(path: Path) -> None:
    """Raise ModelError where a GGUF file is not what its header says; see :func:`read_header`."""
    read_header(path)


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Every count and length is compared with the bytes that are left, so the walk ends soon in any file. What tensors
    hold is not looked at, but every one of them lies inside the file.

    Raises:
        ModelError: The header promises more than the file holds, or names a tensor twice.

    Source:
        The GGUF specification: github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as opened:
            return _walk(_Bytes(opened, size), path)
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

    def text(self, what: str) -> str | None:
        """Read past a text, and return it where it is short."""
        length = self.number("<Q", what)
        if length > LONGEST_TEXT:
            self.skip(length, what)
            return None
        self.take(length, what)
        return self.opened.read(length).decode("utf-8", errors="replace")


def _walk(data: _Bytes, path: Path) -> GgufHeader:
    size = data.left
    if data.left < 24 or data.opened.read(4) != MAGIC:
        raise ValueError("no GGUF header")
    data.left -= 4
    if (version := data.number("<I", "the version")) not in VERSIONS:
        raise ValueError(f"version {version}")
    count = data.counted("tensors", LEAST_TENSOR)
    keys: dict[str, Key] = {}
    for number in range(data.counted("keys", LEAST_KEY)):
        start = size - data.left
        name = data.text("a key") or f"key {number}"
        value = _value(data, data.number("<I", "a type"), 0)
        keys[name] = Key(start, size - data.left, value)
    tensors = tuple(_tensor(data) for _ in range(count))
    header = GgufHeader(path, size, keys, tensors, size - data.left)
    if header.alignment < 1:
        raise ValueError(f"an alignment of {header.alignment}")
    start = header.start + -header.start % header.alignment
    _check_tensors(tensors, size - start)
    return GgufHeader(path, size, keys, tensors, start)


def _tensor(data: _Bytes) -> GgufTensor:
    name = data.text("a tensor's name")
    axes = data.number("<I", "a tensor's axes")
    if name is None or "\ufffd" in name:
        raise ValueError("a tensor's name that is too long, or no UTF-8")
    if axes > MOST_AXES:
        raise ValueError(f"a tensor of {axes} axes")
    shape = tuple(data.number("<Q", "a tensor's shape") for _ in range(axes))
    return GgufTensor(name, shape, data.number("<I", "a tensor's type"), data.number("<Q", "a tensor's place"))


def _check_tensors(tensors: tuple[GgufTensor, ...], room: int) -> None:
    """Raise ValueError where a tensor does not lie in the ``room`` bytes behind the header, or two have one name."""
    twice = [name for name, times in Counter(tensor.name for tensor in tensors).items() if times > 1]
    if twice:
        raise ValueError(f"the tensor {twice[0]} twice")
    for tensor in tensors:
        stop = tensor.offset + tensor_bytes(tensor)
        if stop > room:
            raise ValueError(f"{tensor.name} ends at byte {stop:,} of {max(0, room):,} behind the header")


def tensor_bytes(tensor: GgufTensor) -> int:
    """Return the bytes of a tensor; 0 of a type that the gguf library does not know."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    except (ValueError, KeyError):
        return 0
    return math.prod(tensor.shape) // int(block) * int(size)


def _value(data: _Bytes, kind: int, depth: int) -> int | str | None:
    if kind in INTEGERS:
        return data.number(INTEGERS[kind], "a value")
    if kind in SIZES:
        data.skip(SIZES[kind], "a value")
    elif kind == STRING:
        return data.text("a text")
    elif kind == ARRAY and depth < DEEPEST:
        inner = data.number("<I", "a type")
        count = data.counted("entries of an array", SIZES.get(inner, 8))
        if inner in SIZES:
            data.skip(count * SIZES[inner], "an array")
            return None
        for _ in range(count):
            _value(data, inner, depth + 1)
    else:
        raise ValueError(f"a value of type {kind}" + (" too deep in arrays" if kind == ARRAY else ""))
    return None
