"""Many records, one JSON line each, in a temporary file that is gone with the process."""

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from truthheads.errors import ArtifactError

BUFFER = 1 << 20


class Spool:
    """Records on disk that are read back one at a time; in memory stay eight bytes for each.

    The file lies in the system's temporary folder (``TMPDIR``) without a name, so a process that is killed leaves
    nothing behind.

    Raises:
        ArtifactError: The temporary folder is full or cannot be written to.
    """

    def __init__(self) -> None:
        self._ends = array("q", [0])
        self._waiting: list[bytes] = []
        self._size = 0  # of what waits
        try:
            self._file, name = tempfile.mkstemp(prefix="truthheads-")
            os.unlink(name)
        except OSError as error:
            raise _no_room(error) from error
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, record: Sequence[Any]) -> None:
        """Add a record of JSON values."""
        line = json.dumps(record, separators=(",", ":")).encode()
        self._waiting.append(line)
        self._size += len(line)
        self._ends.append(self._ends[-1] + len(line))
        if self._size > BUFFER:
            self._flush()

    def read(self, start: int, stop: int) -> Iterator[list[Any]]:
        """Yield the records from ``start`` to before ``stop``, about a megabyte at a time."""
        self._flush()
        while start < stop:
            first, upto = self._ends[start], start + 1
            while upto < stop and self._ends[upto + 1] - first <= BUFFER:
                upto += 1
            block = os.pread(self._file, self._ends[upto] - first, first)
            for at in range(start, upto):
                yield json.loads(block[self._ends[at] - first : self._ends[at + 1] - first])
            start = upto

    def _flush(self) -> None:
        if not self._waiting:
            return
        view = memoryview(b"".join(self._waiting))
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise _no_room(error) from error
        self._waiting, self._size = [], 0


def _no_room(error: OSError) -> ArtifactError:
    folder = tempfile.gettempdir()
    return ArtifactError(
        f"the rows could not be kept in {folder}",
        expected="room for the question file's rows in the temporary folder",
        got=str(error),
        fix="free some space there, or set TMPDIR to a larger folder",
    )
