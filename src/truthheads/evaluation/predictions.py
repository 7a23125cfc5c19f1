"""Predictions on disk: one JSON line per item and run, appended as they come, read back after a kill."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

from truthheads.benchmarks.base import Prediction
from truthheads.errors import DataError
from truthheads.storage.distributed import barrier, leave, ranks
from truthheads.storage.files import dumps, unwritable, write_text

Key = tuple[str, str, str, str]
"""Task, run, split, id."""

NAME = "predictions.jsonl"


class Read(NamedTuple):
    """The lines of a file, the bytes that they take, and what was dropped behind them."""

    lines: list[Prediction]
    size: int
    dropped: str


def read_predictions(path: Path) -> Read:
    """Return the predictions of a file; a last line that was cut off while it was written is dropped.

    Raises:
        DataError: The file is missing, or a line before the last is no prediction, or one stands there twice.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read",
            expected=f"a folder with {NAME}",
            got="no such file" if isinstance(error, FileNotFoundError) else str(error),
            fix="give the --out of an earlier `truthheads evaluate`",
        ) from error
    lines: list[Prediction] = []
    size, seen = 0, set()
    parts = whole.splitlines(keepends=True)
    for number, part in enumerate(parts, start=1):
        line = _parsed(part)
        last = number == len(parts)
        if line is None or (last and not part.endswith(b"\n")):
            if last:
                return Read(lines, size, f"line {number} of {path.name} is cut off ({len(part)} bytes); dropped")
            raise DataError(
                f"{path}:line {number}: no prediction",
                expected="one JSON object with task, run and id",
                got=part[:60].decode("utf-8", "replace").strip(),
                fix="remove the line, or evaluate again with another --out",
            )
        key = key_of(line)
        if key in seen:
            raise DataError(
                f"{path}:line {number}: item {line['id']!r} of run {line['run']!r} is there twice",
                expected="one line per item and run",
                got="a second one",
                fix="remove one of the two",
            )
        seen.add(key)
        lines.append(line)
        size += len(part)
    return Read(lines, size, "")


def _parsed(part: bytes) -> Prediction | None:
    try:
        line = json.loads(part)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, dict) and {"task", "run", "id"} <= line.keys()
    return cast(Prediction, line) if whole else None


class Journal:
    """Predictions that grow: what an earlier run has written counts as done.

    Of several processes, each writes a file of its own beside ``path``. What stands in any of them counts as done, also
    for a single process that comes after.

    Args:
        path: The file; made where it is missing. A half-written last line is cut off.
        whole: Write ``path`` itself, also where several processes work.

    Attributes:
        lines: What stands in this process's file.
        known: What stands in any.
        done: The keys of ``known``.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        apart = ranks().several and not whole
        self.path, self.dropped = _part(path, ranks().rank) if apart else path, ""
        self.lines: list[Prediction] = []
        if self.path.is_file():
            read = read_predictions(self.path)
            self.lines, self.dropped = read.lines, read.dropped
            if self.dropped:
                self._cut(read.size)
        self.done = {key_of(line) for line in self.lines}
        others = [other for other in files_of(path) if other != self.path] if not whole else []
        self.known = self.lines + [line for other in others for line in read_predictions(other).lines]
        self.done |= {key_of(line) for line in self.known}

    def add(self, lines: Iterable[Prediction]) -> None:
        """Write the lines that are not there yet, and see them to the disk.

        Raises:
            ArtifactError: The file cannot be written to.
        """
        new = [line for line in lines if key_of(line) not in self.done]
        if not new:
            return
        text = "".join(dumps(line) + "\n" for line in new).encode()
        size = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as opened:
                size = opened.tell()
                left = memoryview(text)
                while left:
                    left = left[opened.write(left) :]
                os.fsync(opened.fileno())
        except OSError as error:
            if size is not None:
                self._cut(size)  # the part of it that found room
            raise unwritable(self.path, error) from error
        # What is summarised is what a later `evaluate rescore` reads: floats through JSON and back are the same floats.
        read = [json.loads(line) for line in text.splitlines()]
        self.lines += read
        self.known += read
        self.done |= {key_of(line) for line in new}

    def _cut(self, size: int) -> None:
        try:
            os.truncate(self.path, size)
        except OSError as error:
            raise unwritable(self.path, error) from error


def key_of(line: Prediction) -> Key:
    """Give the key that tells a line from all others: task, run, split, id."""
    return str(line["task"]), str(line["run"]), str(line.get("split") or ""), str(line["id"])


def files_of(path: Path) -> list[Path]:
    """Return the predictions that are there: the file itself, and those of several processes beside it."""
    parts = sorted(path.parent.glob(f"{path.stem}.rank-*{path.suffix}"))
    return [one for one in (path, *parts) if one.is_file()]


def gathered(path: Path, keys: Iterable[Key]) -> Journal:
    """Wait for all processes and return the predictions of all of them, in the first; end the others.

    Args:
        path: The whole file.
        keys: Every line's key, in the order of a single process; a line that nobody wrote is left out, one that
            has no key here stays where it is.

    Raises:
        NotFirstRank: In every process but the first.
    """
    barrier()
    if ranks().rank:
        leave()
    files = files_of(path)
    known = {key_of(line): line for file in files for line in read_predictions(file).lines}
    order = {key: at for at, key in enumerate(keys)}
    ours = iter(sorted(known.keys() & order.keys(), key=order.__getitem__))
    there = [next(ours) if key in order else key for key in known]
    write_text(path, "".join(dumps(known[key]) + "\n" for key in there))
    for part in files:
        if part != path:
            part.unlink()
    return Journal(path, whole=True)


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}.rank-{rank}{path.suffix}")
