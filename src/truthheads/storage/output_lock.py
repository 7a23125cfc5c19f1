"""One command at a time on one ``--out``: the second is told so before it has done any work."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from truthheads.errors import ArtifactError
from truthheads.storage.distributed import ranks
from truthheads.storage.files import as_path, check_around, recover, take, unwritable


def in_use(name: Path) -> ArtifactError:
    """Return the error for a file or folder that another process is writing."""
    return ArtifactError(
        f"{name} is in use",
        expected="one command at a time on one --out",
        got="another process is writing there",
        fix="wait for it, or choose another --out",
    )


P = ParamSpec("P")

R = TypeVar("R")


@contextmanager
def locked_output(*paths: Path) -> Iterator[None]:
    """Keep other commands from writing these files; clear away what a killed one has left beside them.

    Of several processes of one command the first holds the names for all.

    Args:
        paths: Final names; of a folder that is written aside and renamed as well.

    Raises:
        ArtifactError: Another process is writing one of them, or one cannot be written.
    """
    for path in paths:
        check_around(path)
    whole = [path.absolute() for path in paths]  # "." has no name of its own
    locks = [path.with_name(f".{path.name}.lock") for path in whole]
    with _held(list(zip(paths, locks, strict=True))):
        for path in whole:
            recover(path)
        yield


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other commands from writing into a folder, which is made where it is missing.

    Raises:
        ArtifactError: Another process is writing there, or the folder cannot be written to.
    """
    check_around(folder / "file")
    with _held([(folder, folder / ".lock")]):
        yield


def lock_output(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: while the function runs, the folder that it is given under ``name`` is claimed."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with locked_folder(as_path(signature.bind(*args, **kwargs).arguments[name])):
                return function(*args, **kwargs)

        return run

    return decorate


@contextmanager
def _held(wanted: list[tuple[Path, Path]]) -> Iterator[None]:
    """Hold each lock; folders that were made for them and stay empty are removed again."""
    if ranks().rank:
        yield
        return
    with ExitStack() as let_go:
        for path, file in sorted(wanted):
            missing = [one for one in (file.absolute().parent, *file.absolute().parents) if not one.exists()]
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                for made in reversed(missing):
                    let_go.callback(_remove_if_empty, made)
                lock = take(file)
            except OSError as error:
                raise unwritable(path, error) from error
            if lock is None:
                raise in_use(path)
            let_go.callback(lock.release)
        yield


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
