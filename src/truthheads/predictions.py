"""Predictions on disk: one JSON line per item and run, appended as they come, read back after a kill."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from truthheads.artifacts import dumps, unwritable
from truthheads.errors import DataError

Line = dict[str, Any]
NAME = "predictions.jsonl"


class Read(NamedTuple):
    """The lines of a file, the bytes that they take, and what was dropped behind them."""

    lines: list[Line]
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
    lines: list[Line] = []
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


def _parsed(part: bytes) -> Line | None:
    try:
        line = json.loads(part)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"task", "run", "id"} <= line.keys() else None


class Journal:
    """Predictions that grow: what an earlier run has written counts as done.

    Args:
        path: The file; made where it is missing. A half-written last line is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.dropped = path, ""
        self.lines: list[Line] = []
        if path.is_file():
            read = read_predictions(path)
            self.lines, self.dropped = read.lines, read.dropped
            if self.dropped:
                os.truncate(path, read.size)
        self.done = {key_of(line) for line in self.lines}

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the lines that are not there yet, and see them to the disk.

        Raises:
            ArtifactError: The file cannot be written to.
        """
        new = [dict(line) for line in lines if key_of(line) not in self.done]
        if not new:
            return
        text = "".join(dumps(line) + "\n" for line in new).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as opened:
                opened.write(text)
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        # What is summarised is what a later --rescore reads: floats through JSON and back are the same floats.
        self.lines += [json.loads(line) for line in text.splitlines()]
        self.done |= {key_of(line) for line in new}


def key_of(line: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return what makes a line the only one of its kind: task, run, split, id."""
    return str(line["task"]), str(line["run"]), str(line.get("split") or ""), str(line["id"])
