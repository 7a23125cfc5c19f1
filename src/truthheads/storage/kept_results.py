"""Results of long work, kept on disk part by part, so that a run that was stopped goes on from its last part."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from truthheads.storage.files import dumps, replaced, unwritable, write_json

T = TypeVar("T")

JOURNAL, MADE_FROM = "results.jsonl", "made_from.json"


class LoopState(NamedTuple):
    """How far a learning loop is.

    Attributes:
        tensors: The values that the next step starts from, by name.
        steps: Number of steps done.
        losses: Pairs of losses, one for each step since the last point of the path.
    """

    tensors: Mapping[str, Tensor]
    steps: int
    losses: Sequence[tuple[float, float]]


class KeptResults:
    """Results by name in one folder: small ones as JSON lines, the state of a long loop as one file.

    A line is written, and seen to the disk, when its part is done; one that was cut off by a kill is dropped. Numbers
    come back as the same numbers. A folder that was made from something else is cleared.

    Args:
        folder: Where the files lie; None keeps nothing on disk.
        made_from: All that the results depend on, as JSON.

    Raises:
        ArtifactError: The folder cannot be written to.
    """

    def __init__(self, folder: Path | None, made_from: Mapping[str, Any]) -> None:
        self.folder = folder
        self._found: dict[str, Any] = {}
        if folder is None:
            return
        digest = hashlib.sha256(dumps(made_from).encode()).hexdigest()
        if not self._same(digest):
            try:
                for path in (folder / JOURNAL, *folder.glob("*.safetensors")):
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(folder, error) from error
            write_json(folder / MADE_FROM, {"sha256": digest})
        self._read(folder / JOURNAL)

    def result(self, name: str, make: Callable[[], T]) -> T:
        """Return a result that is there already, else make it and keep it; it must be plain JSON.

        Raises:
            ArtifactError: It could not be written.
        """
        if name not in self._found:
            made = make()
            self._found[name] = made
            if self.folder is not None:
                _append(self.folder / JOURNAL, json.dumps([name, made]) + "\n")
        found: T = self._found[name]
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def save_state(self, name: str, state: LoopState) -> None:
        """Keep how far a loop is, instead of what was kept of it before.

        Raises:
            ArtifactError: It could not be written.
        """
        if self.folder is None:
            return
        whole = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
        notes = json.dumps([state.steps, state.losses])
        with replaced(self.folder / f"{name}.safetensors") as temporary:
            save_file(whole, temporary, metadata={"notes": notes})

    def load_state(self, name: str) -> LoopState | None:
        """Read back what :meth:`save_state` kept; None where there is nothing."""
        if self.folder is None:
            return None
        try:
            with safe_open(self.folder / f"{name}.safetensors", framework="pt") as kept:
                tensors = {key: torch.clone(kept.get_tensor(key)) for key in kept.keys()}  # noqa: SIM118
                steps, losses = json.loads(kept.metadata()["notes"])
                return LoopState(tensors, steps, [(loss, kl) for loss, kl in losses])
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def _same(self, digest: str) -> bool:
        assert self.folder is not None
        try:
            return bool(json.loads((self.folder / MADE_FROM).read_text(encoding="utf-8"))["sha256"] == digest)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _read(self, path: Path) -> None:
        """Read the lines that are whole, and cut off what a kill has left behind them."""
        if not path.is_file():
            return
        size = 0
        for line in path.read_bytes().splitlines(keepends=True):
            try:
                name, value = json.loads(line) if line.endswith(b"\n") else (None, None)
            except (ValueError, TypeError):
                name = None
            if not isinstance(name, str):
                break
            self._found[name] = value
            size += len(line)
        try:
            os.truncate(path, size)
        except OSError as error:
            raise unwritable(path, error) from error


def _append(path: Path, line: str) -> None:
    """Write one line behind the others, whole or not at all."""
    size = None
    try:
        with path.open("ab", buffering=0) as opened:
            size = opened.tell()
            left = memoryview(line.encode())
            while left:
                left = left[opened.write(left) :]
            os.fsync(opened.fileno())
    except OSError as error:
        if size is not None:
            with suppress(OSError):
                os.truncate(path, size)
        raise unwritable(path, error) from error
