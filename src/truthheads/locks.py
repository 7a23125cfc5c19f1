"""Locks that vanish with the process that holds them, so that a kill blocks nobody."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from truthheads.errors import ArtifactError

UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
"""What a file system without locks says; some network shares are mounted so."""
_HANDLES: set[int] = set()


class Lock:
    """A file that this process has locked, until it lets go or ends.

    Attributes:
        path: The file.
        held: False where the file system has no locks: then nobody is kept out.
    """

    def __init__(self, path: Path, handle: int, held: bool) -> None:
        if not _HANDLES:
            _close_in_children()
        self.path, self.held, self._handle = path, held, handle
        _HANDLES.add(handle)

    def release(self, *, remove: bool = True) -> None:
        """Let go; a second time does nothing.

        Args:
            remove: Remove the file first, while nobody else can hold it.
        """
        if self._handle not in _HANDLES:
            return
        if remove:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        _HANDLES.discard(self._handle)
        os.close(self._handle)
        self._handle = -1


def take(path: Path) -> Lock | None:
    """Lock a file, made where it is missing; None where another process holds it.

    Raises:
        OSError: The file cannot be made or opened.
    """
    while True:
        handle = _opened(path)
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in UNKNOWN:
                os.close(handle)
                raise
            held = False
        if not held or _is_still(path, handle):
            return Lock(path, handle, held)
        os.close(handle)  # its last holder has removed it in the meantime: what we hold is nobody's any more


def in_use(name: Path) -> ArtifactError:
    """Return the error for a file or folder that another process is writing."""
    return ArtifactError(
        f"{name} is in use",
        expected="one command at a time on one --out",
        got="another process is writing there",
        fix="wait for it, or choose another --out",
    )


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # left there by another user: that locks as well


def _is_still(path: Path, handle: int) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle))


def _close_in_children() -> None:
    """See to it that workers which outlive a killed parent do not keep its locks."""
    global _told
    if not _told:
        os.register_at_fork(after_in_child=_forget)
        _told = True


_told = False


def _forget() -> None:
    for handle in _HANDLES:
        os.close(handle)
    _HANDLES.clear()
