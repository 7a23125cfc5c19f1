"""Write files and folders so that a kill leaves the old one or the new one; locks that end with their process."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError

from truthheads.errors import ArtifactError

UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
"""What a file system without locks says; some network shares are mounted so."""

_HANDLES: set[int] = set()


class Lock:
    """A file that this process has locked, until it releases the lock or ends.

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
        """Release the lock; a second call does nothing.

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
    """Lock a file, which is created if missing; None where another process has locked it.

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


NEW, OLD, LOCK = "new", "old", "lock"


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` that nothing has yet; what has not been moved away from there is removed at the end.

    Args:
        path: The final name. Its folder is made where it is missing.

    Raises:
        OSError: The folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    box, lock = _workspace(path)
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


def replace_folder(new: Path, path: Path) -> None:
    """Give a folder its final name; a folder that has the name is moved aside first and removed afterwards.

    No system call of Python's library swaps two folders, so there is a moment between two renames when nothing has
    the name. A process killed in that moment leaves the old folder aside, and :func:`recover`, with which the next
    command on this name begins, gives it back.

    Args:
        new: From :func:`temporary_beside`.
        path: The final name.

    Raises:
        OSError: The names cannot be changed; the old folder has its name.
    """
    if not os.path.lexists(path):
        new.rename(path)
        return
    old = new.with_name(OLD)
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise


def _workspace(path: Path) -> tuple[Path, Lock]:
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
    """Remove a box, its lock last: until then other processes see that it is in use."""
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


SURROGATE = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` only if the block succeeds.

    What a killed process has left of an earlier attempt is removed.

    Args:
        path: The final name. Its folder is made where it is missing.

    Raises:
        ArtifactError: The folder cannot be written to, or the disk is full.
    """
    try:
        with temporary_beside(path) as temporary:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error


def as_path(name: str | Path) -> Path:
    """Return a path as it was meant: ``~`` at its beginning is the home folder, also where no shell has replaced it."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~somebody who is not there: a file may be called so
        return Path(name)


def distinct_names(paths: Sequence[Path], *, join: str | None = None, suffixes: bool = False) -> list[str]:
    """Name files by their stems; where stems are alike, by the folder that tells them apart.

    Where all stems are alike, that folder is the whole name; else it stands before the stem (``base/probe``). A file
    that is given twice is numbered.

    Args:
        paths: The files.
        join: What stands between folder and stem; given, the stem is always there.
        suffixes: Keep what stands behind the last point of a name, as in the name of a model.
    """
    stems = [path.name if suffixes else path.stem for path in paths]
    named = list(stems)
    for stem in set(stems):
        alike = [at for at, one in enumerate(stems) if one == stem]
        if len(alike) > 1:
            folders = _folders([paths[at] for at in alike])
            for at, folder in zip(alike, folders, strict=True):
                named[at] = _joined(folder, stem, alone=len(alike) == len(stems), join=join)
    return [name if named.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(named, start=1)]


def _joined(folder: str, stem: str, *, alone: bool, join: str | None) -> str:
    if not folder:
        return stem
    if join is not None:
        return f"{folder.replace('/', join)}{join}{stem}"
    return folder if alone else f"{folder}/{stem}"


def _folders(paths: Sequence[Path]) -> list[str]:
    """Return for each path the lowest folder that no other has in its place; several, where none does alone."""
    parts = [path.absolute().parts[-2::-1] for path in paths]
    depth = min(map(len, parts))
    levels = [level for level in range(depth) if len({one[level] for one in parts}) > 1]
    for level in levels:
        if len({one[level] for one in parts}) == len(parts):
            return [one[level] for one in parts]
    return ["/".join(one[level] for level in reversed(levels)) for one in parts]


def check_target(path: Path) -> None:
    """Raise ArtifactError where a file cannot be written under this name, before any work is done for it."""
    if path.is_dir():
        raise ArtifactError(
            f"{path} is a folder", expected="the name of a file", got="a folder", fix="choose another --out"
        )
    check_around(path)


def check_new(path: Path, *, force: bool, unfinished: Path | None = None) -> None:
    """Raise ArtifactError where something has this name already, so that no result is replaced unasked.

    Args:
        path: The final name.
        force: Replace it.
        unfinished: Where it is there, a run that was to replace the result was killed, and may go on.
    """
    if force or not os.path.lexists(path) or (unfinished is not None and unfinished.exists()):
        return
    raise ArtifactError(
        f"{path} exists already",
        expected="a name that is not taken",
        got="a folder" if path.is_dir() else "a file",
        fix="choose another --out, or pass --force to replace it",
    )


def check_around(path: Path) -> None:
    """Raise ArtifactError where nothing can be written beside a name, whatever has that name."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise unwritable(path, PermissionError(f"{folder} cannot be written to"))


def check_space(path: Path, size: int, *, what: str | None = None, note: str = "") -> None:
    """Raise ArtifactError where the disk has less than ``size`` bytes left, before any long work is done.

    Args:
        path: What is to be written; it need not be there.
        size: In bytes.
        what: What is said not to fit; None: the path.
        note: Behind the size.
    """
    around = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(around).free
    if free < size:
        raise ArtifactError(
            f"{what or path} could not be written",
            expected=f"{size / 1e9:,.2f} GB of free space{note}",
            got=f"{free / 1e9:,.2f} GB",
            fix="free some space, or choose an --out on another disk",
        )


def unwritable(path: Path, error: Exception) -> ArtifactError:
    """Return the error for a file that could not be written, with the system's own reason."""
    code = getattr(error, "errno", None)
    full = code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return ArtifactError(
        f"{path} could not be written",
        expected="a folder that can be written to, with enough free space",
        got=("the disk is full" if full else f"{type(error).__name__}: {error}"),
        fix="free some space and run the same command again"
        if full
        else "choose another --out, or check the folder's permissions",
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: sorted keys, two spaces, NaN as null."""
    with replaced(path) as temporary:
        temporary.write_text(dumps(value, indent=2) + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; see :func:`as_text`."""
    with replaced(path) as temporary:
        temporary.write_text(as_text(text), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return a JSON result; null comes back as None.

    Raises:
        ArtifactError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} cannot be read",
            expected="a JSON result of truthheads",
            got=f"{type(error).__name__}: {error}",
            fix="check the path, or write the file again",
        ) from error


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return JSON with sorted keys; a number that is not finite ("not measured") becomes null.

    Names of files that are not in the encoding of the system's locale are read as UTF-8, as in :func:`as_text`; half a
    character, which JSON may hold and UTF-8 may not, stays escaped.
    """
    text = json.dumps(_finite(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def as_text(text: str) -> str:
    """Make a text writable as UTF-8: surrogate escapes become the bytes they stand for, which are decoded as UTF-8.

    Under an ASCII locale, that is every name of a file with other letters; what is no UTF-8 becomes a question mark
    in a box (U+FFFD).
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        except UnicodeEncodeError:  # half a pair, which no file name holds
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def read_into(path: Path, start: int, views: Sequence[memoryview]) -> int:
    """Fill buffers, one after the other, with a file's bytes from ``start`` on; return how many there were.

    Raises:
        OSError: The file cannot be read.
    """
    total = 0
    with path.open("rb", buffering=0) as opened:
        opened.seek(start)
        for view in views:
            got = 0
            while got < len(view) and (count := opened.readinto(view[got:])):
                got += count
            total += got
    return total


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class FileSummary(TypedDict):
    """What a result says about a file that it rests on: its path and the SHA-256 of its bytes."""

    path: str
    sha256: str


def describe_file(path: Path) -> FileSummary:
    """Describe a file for a result's settings."""
    return {"path": path.name, "sha256": file_sha256(path)}
