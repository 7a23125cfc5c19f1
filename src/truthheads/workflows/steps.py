"""A chain of steps in one folder: a step whose results exist, made from the same inputs, is not repeated."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from truthheads.errors import ArtifactError
from truthheads.storage.files import dumps, file_sha256, write_json

NAME = "steps.json"

Tell = Callable[[str, bool], None]
"""Called with a step's name, and whether its results are there already."""


class StepDone(TypedDict, total=False):
    """What ``steps.json`` says of a step: what it was made from, and the SHA-256 of each result; None: unfinished."""

    given: str
    results: dict[str, str | None] | None


class Steps:
    """What has been done in a folder, kept in its ``steps.json``.

    A step that was killed finds what it had begun; a step whose inputs changed starts from nothing.

    Args:
        folder: Where the results lie.
        tell: Called with each step as it begins.

    Raises:
        ArtifactError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, tell: Tell | None = None) -> None:
        self.folder, self.tell = folder, tell
        self._done = self._read()

    def run(self, name: str, given: Mapping[str, Any], results: Sequence[Path], work: Callable[[], Any]) -> bool:
        """Run a step unless its results exist, unchanged, and were made from the same inputs.

        Args:
            name: The step's, unique in the folder.
            given: Everything that its results depend on; a Path counts as what it holds.
            results: Files and folders that it writes.
            work: Writes them.

        Returns:
            Whether the work was done now.

        Raises:
            ArtifactError: A result is there that no step made.
        """
        told = {key: content_sha256(value) if isinstance(value, Path) else value for key, value in given.items()}
        made_from = hashlib.sha256(dumps(told).encode()).hexdigest()
        before: StepDone = self._done.get(name, {})
        there = before.get("given") == made_from and before.get("results") == self._found(results)
        if self.tell is not None:
            self.tell(name, there)
        if there:
            return False
        self._make_room(results, known=bool(before), unfinished=before.get("given") == made_from)
        self._keep(name, made_from, None)
        work()
        self._keep(name, made_from, self._found(results))
        return True

    def _make_room(self, results: Sequence[Path], *, known: bool, unfinished: bool) -> None:
        """Remove what this step made from other inputs; unfinished work stays, so that it can be continued."""
        foreign = [path for path in results if path.exists() and not known]
        if foreign:
            raise ArtifactError(
                f"{foreign[0]} is there, and no step of this folder made it",
                expected=f"a new folder, or one with its {NAME}",
                got=f"{foreign[0].name} without an entry there",
                fix="choose another --out, or move the file away",
            )
        if not unfinished:
            for path in results:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _keep(self, name: str, given: str, results: dict[str, str | None] | None) -> None:
        self._done[name] = {"given": given, "results": results}
        write_json(self.folder / NAME, self._done)

    def _found(self, results: Sequence[Path]) -> dict[str, str | None]:
        return {str(path.relative_to(self.folder)): content_sha256(path) for path in results}

    def _read(self) -> "dict[str, StepDone]":
        try:
            found = json.loads((self.folder / NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}  # nothing is known to be done: doing it again loses nothing
        return (
            {name: cast(StepDone, one) for name, one in found.items() if isinstance(one, dict)}
            if isinstance(found, dict)
            else {}
        )


def content_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, or of a folder's names and files; None where there is neither."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in sorted(one for one in path.rglob("*") if one.is_file()):
            whole.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
        return whole.hexdigest()
    return file_sha256(path) if path.is_file() else None
