"""A GGUF model in one file or in several: all parts are found, checked against each other, and written anew as one."""

import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from truthheads.errors import ModelError
from truthheads.models.gguf_header import MAGIC, STRING, GgufHeader, GgufTensor, read_header, tensor_bytes

PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""How llama.cpp names the parts of a split model; the first is number 1."""

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"

MOST_NAMED = 3

CHUNK = 16 * 2**20


def read_parts(path: Path) -> tuple[GgufHeader, ...]:
    """Read the headers of a GGUF model, of all its parts where it is split.

    Args:
        path: The file, or any of the parts (``model-00001-of-00002.gguf``).

    Returns:
        One header for each file, in the order of the parts.

    Raises:
        ModelError: A file is missing or damaged, or the parts do not belong together.
    """
    files = part_files(path)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
        raise ModelError(
            f"{path} is one of the {len(files)} parts of a split model, and {len(missing)} of them "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            expected=f"all {len(files)} parts in one folder",
            got=f"no {', '.join(missing[:MOST_NAMED])}{more} in {path.parent}",
            fix=f"download {missing[0]} into {path.parent}",
        )
    headers = tuple(read_header(file) for file in files)
    if len(headers) == 1:
        _check_single(headers[0])
    else:
        _check_together(headers)
    return headers


def part_files(path: Path) -> tuple[Path, ...]:
    """Return the files that a GGUF model consists of by its name, whether they are there or not.

    A single file counts as one whatever its name: it is split when both its name and its metadata say so.
    """
    found = PART.fullmatch(path.name)
    if found is None or (count := int(found["count"])) < 2 or not path.is_file():
        return (path,)
    if read_header(path).number(COUNT, 0) < 2:
        return (path,)
    return tuple(path.with_name(f"{found['stem']}-{one:05}-of-{count:05}.gguf") for one in range(1, count + 1))


class Rewritten(NamedTuple):
    """What one tensor becomes in a file that is written anew; its shape stays.

    Attributes:
        kind: The number of its new type in ggml.
        blocks: Makes its new bytes, in order, some at a time.
    """

    kind: int
    blocks: Callable[[], Iterator[bytes]]


def join(
    parts: Sequence[GgufHeader],
    out: Path,
    *,
    data: bool = True,
    rewritten: Mapping[str, Rewritten] | None = None,
    added: Mapping[str, str] | None = None,
) -> None:
    """Write a model into one file; tensors keep their order, and all but the rewritten ones their bytes.

    The metadata is that of the first part without what it says about the split. Memory stays at 16 MiB.

    Args:
        parts: From :func:`read_parts`.
        out: The file to write.
        data: Copy the tensors. False: leave a hole of their size, for readers of the header alone.
        rewritten: The tensors that change, by name.
        added: Texts that are added to the metadata, by their keys.
    """
    first, changes, texts = parts[0], rewritten or {}, added or {}
    with first.path.open("rb") as opened:
        keys = [_bytes(opened, key.start, key.stop) for name, key in first.keys.items() if name not in _SPLIT]
    keys += [_string(key) + struct.pack("<I", STRING) + _string(text) for key, text in texts.items()]
    alignment = first.alignment
    tensors, at = [], 0
    for part in parts:
        for tensor in part.tensors:
            change = changes.get(tensor.name)
            new = tensor if change is None else tensor._replace(kind=change.kind)
            tensors.append((part, tensor, new._replace(offset=at)))
            size = tensor_bytes(new)
            at += size + -size % alignment
    with out.open("wb") as sink:
        sink.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(keys)))
        sink.writelines(keys)
        for _, _, new in tensors:
            sink.write(_entry(new))
        sink.write(b"\0" * (-sink.tell() % alignment))
        start = sink.tell()
        for part in parts if data else ():
            with part.path.open("rb") as source:
                for owner, tensor, new in tensors:
                    if owner is not part:
                        continue
                    sink.seek(start + new.offset)
                    if new.name in changes:
                        sink.writelines(changes[new.name].blocks())
                    else:
                        _copy(source, sink, part.start + tensor.offset, tensor_bytes(tensor))
        sink.truncate(start + at)


def read_rows(part: GgufHeader, tensor: GgufTensor) -> Iterator[bytes]:
    """Yield the bytes of a matrix, or of a vector as one row, by whole rows of 16 MiB or less.

    Raises:
        OSError: The file has become shorter.
    """
    rows = math.prod(tensor.shape[1:])
    size = tensor_bytes(tensor) // max(1, rows)
    step = max(1, CHUNK // max(1, size)) * size
    with part.path.open("rb") as opened:
        opened.seek(part.start + tensor.offset)
        for first in range(0, rows * size, step):
            data = opened.read(min(step, rows * size - first))
            if len(data) % size:
                raise OSError(f"{part.path} has become shorter")
            yield data


_SPLIT = (NUMBER, COUNT, TENSORS)


def _check_single(header: GgufHeader) -> None:
    count = header.number(COUNT, 0)
    if count > 1:
        raise ModelError(
            f"{header.path} is part {header.number(NUMBER, 0) + 1} of {count} of a split model, under another name",
            expected=f"the names that llama.cpp gives the parts: NAME-00001-of-{count:05}.gguf and so on",
            got=header.path.name,
            fix="give every part its own name back, or join them with llama-gguf-split --merge",
        )
    _check_known([header])


def _check_together(headers: Sequence[GgufHeader]) -> None:
    for number, header in enumerate(headers):
        said = header.number(NUMBER, -1), header.number(COUNT, -1)
        if said != (number, len(headers)):
            raise ModelError(
                f"{header.path} is not the part that its name says",
                expected=f"part {number + 1} of {len(headers)}",
                got=f"part {said[0] + 1} of {said[1]} by its own metadata",
                fix=f"download {header.path.name} again",
            )
    names: dict[str, Path] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in names:
                raise ModelError(
                    f"the tensor {tensor.name} lies in two parts of a split model",
                    expected="every tensor in one part",
                    got=f"{names[tensor.name].name} and {header.path.name}",
                    fix="download all parts again, from one place",
                )
            names[tensor.name] = header.path
    told = headers[0].number(TENSORS, len(names))
    if told != len(names):
        raise ModelError(
            f"the parts of {headers[0].path} do not hold all tensors of the model",
            expected=f"{told} tensors, as the first part says",
            got=f"{len(names)} in {len(headers)} parts",
            fix="download all parts again, from one place",
        )
    _check_known(headers)


def _check_known(headers: Sequence[GgufHeader]) -> None:
    """Raise ModelError where a tensor is of a type that cannot be copied or read."""
    for header in headers:
        for tensor in header.tensors:
            if tensor.shape and 0 not in tensor.shape and not tensor_bytes(tensor):
                raise ModelError(
                    f"the tensor {tensor.name} of {header.path} cannot be read",
                    expected="a type that the gguf package knows",
                    got=f"type number {tensor.kind}",
                    fix="pip install --upgrade gguf, or give the original transformers folder",
                )


def _entry(tensor: GgufTensor) -> bytes:
    axes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return _string(tensor.name) + axes + struct.pack("<IQ", tensor.kind, tensor.offset)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _bytes(opened: BinaryIO, start: int, stop: int) -> bytes:
    opened.seek(start)
    return opened.read(stop - start)


def _copy(old: BinaryIO, new: BinaryIO, start: int, count: int) -> None:
    old.seek(start)
    while count > 0:
        part = old.read(min(CHUNK, count))
        if not part:
            raise OSError(f"{old.name} has become shorter")
        new.write(part)
        count -= len(part)
