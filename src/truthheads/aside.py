"""Files and folders written beside their final name; what a killed process has left there goes with the next one.

Beside ``NAME`` stands a folder ``.NAME.xxxxxxxx.tmp`` with a lock, so that it is known whether its process is alive,
and with all that libraries put beside what they write.
"""

import contextlib
import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from truthheads.locks import Lock, take

NEW, OLD, LOCK = "new", "old", "lock"
_CHANGE_PLACES = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` that nothing has yet; what has not been moved away from there is removed at the end.

    Args:
        path: The final name. Its folder is made where it is missing.

    Raises:
        OSError: The folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    box, lock = _box(path)
    try:
        yield box / f"{NEW}{path.suffix}"
    finally:
        _remove(box, lock, path)


def recover(path: Path) -> None:
    """Remove what killed processes have left beside ``path``; give it back what the last one had moved aside.

    What a living process is writing stays as it is.
    """
    for box, lock in _abandoned(path):
        if _only_here(box, path):
            with contextlib.suppress(OSError):
                (box / OLD).rename(path)
        _remove(box, lock, path)


def put_in_place(new: Path, path: Path) -> None:
    """Give a folder its final name, in one step also where another has it, which then lies aside.

    On file systems where two names cannot change places, the old one is moved aside first: a kill just then is mended
    by :func:`recover`.

    Args:
        new: From :func:`aside`.
        path: The final name.

    Raises:
        OSError: The names cannot be changed; the old folder has its name.
    """
    if not os.path.lexists(path):
        new.rename(path)
        return
    if _change_places(new, path):
        return
    old = new.with_name(OLD)
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise


def _change_places(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where that cannot be done."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one.absolute()), os.fsencode(other.absolute())
    if sys.platform == "darwin":
        failed = library.renamex_np(*names, _CHANGE_PLACES) if hasattr(library, "renamex_np") else -1
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(_HERE, names[0], _HERE, names[1], _CHANGE_PLACES)
    else:
        return False
    code = ctypes.get_errno() if failed else 0
    if failed and code not in _CANNOT:
        raise OSError(code, os.strerror(code), str(other))
    return not failed


def _box(path: Path) -> tuple[Path, Lock]:
    while True:
        box = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        with contextlib.suppress(FileNotFoundError):  # taken for abandoned before it was locked: once more
            if (lock := take(box / LOCK)) is not None:
                return box, lock


def _abandoned(path: Path) -> Iterator[tuple[Path, Lock]]:
    """Yield the boxes beside ``path`` whose processes are gone, each locked."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            lock = None
            if pattern.fullmatch(name):
                with contextlib.suppress(OSError):  # gone in the meantime, or another user's
                    lock = take(path.parent / name / LOCK)
            if lock is not None and lock.held:
                yield path.parent / name, lock
            elif lock is not None:
                lock.release(remove=False)


def _only_here(box: Path, path: Path) -> bool:
    return os.path.lexists(box / OLD) and not os.path.lexists(path)


def _remove(box: Path, lock: Lock, path: Path) -> None:
    """Remove a box, its lock last: until then everybody knows that it is somebody's."""
    if _only_here(box, path):
        lock.release(remove=False)
        return
    with contextlib.suppress(OSError):
        for entry in os.scandir(box):
            if entry.name == LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                Path(entry).unlink()
    lock.release()
    with contextlib.suppress(OSError):
        box.rmdir()
