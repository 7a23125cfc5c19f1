"""The header of a safetensors file: what is in it, and the same with a note of ours."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from truthheads.artifacts import KEY, dumps

LARGEST = 100_000_000
"""Bytes; the format's own limit."""


class Header(NamedTuple):
    """The header of one file.

    Attributes:
        begin: Where the tensors' bytes begin.
        items: Each tensor's type, shape and offsets, and ``__metadata__``, in the file's order.
    """

    begin: int
    items: dict[str, Any]

    @property
    def meta(self) -> dict[str, str]:
        """The file's metadata."""
        return self.items.get("__metadata__") or {}

    def noted(self, note: dict[str, Any]) -> bytes:
        """Return the first bytes of a file with these tensors and our note beside the metadata that was there.

        Written by hand, since the library writes several metadata keys in another order each time.
        """
        # Where there is metadata, transformers insists on the format.
        meta = {"format": "pt", **self.meta, KEY: dumps(note)}
        items = {name: item for name, item in self.items.items() if name != "__metadata__"}
        text = json.dumps({"__metadata__": meta, **items}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes, as the library writes them
        return len(text).to_bytes(8, "little") + text


def read_header(file: Path) -> Header:
    """Read a file's header.

    Raises:
        ValueError: It is damaged.
        OSError: The file cannot be read.
    """
    if not file.is_file():  # a pipe would be waited for
        raise ValueError("no regular file")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(file.stat().st_size, LARGEST):
            raise ValueError("the header is longer than the file, or than any is")
        items = json.loads(opened.read(length))
    if not isinstance(items, dict):
        raise ValueError("the header is no object")
    meta = items.get("__metadata__") or {}
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise ValueError("metadata that is no text")
    return Header(8 + length, items)
