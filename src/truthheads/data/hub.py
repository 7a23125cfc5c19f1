"""Rows of a data set on the hub, as they come."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import huggingface_hub

from truthheads.errors import DataError
from truthheads.storage.hub import hub_answers

FORM = "hf://datasets/OWNER/NAME[@REVISION][/FILE][?split=SPLIT&config=CONFIG]"

PATH = re.compile(
    r"hf:/+datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/?]+))?(?:/(?P<file>[^?]+))?(?:\?(?P<query>.*))?"
)


class HubData(NamedTuple):
    """Where rows lie on the hub.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None: the main one.
        file: One file, or a pattern of several; None: the whole data set.
        split: Split of the whole data set.
        config: Configuration of the whole data set.
    """

    repo: str
    revision: str | None
    file: str | None
    split: str | None
    config: str | None


def on_hub(path: str | Path) -> bool:
    """Return whether a path names a data set on the hub; a Path drops one of the two slashes."""
    return str(path).startswith("hf:/")


def address(path: str | Path) -> str:
    """Return a path as it was written, with both slashes."""
    return str(path).replace("hf:/", "hf://", 1).replace("hf:///", "hf://") if on_hub(path) else str(path)


def parse_hub(path: str | Path) -> HubData:
    """Return the parts of ``hf://datasets/…``.

    Raises:
        DataError: It has another form.
    """
    found = PATH.fullmatch(str(path))
    query = parse_qs(found["query"] or "", keep_blank_values=True) if found else {}
    if found is None or not set(query) <= {"split", "config"}:
        raise DataError(f"{address(path)} names no data set", expected=FORM, got=str(path), fix="correct the address")
    return HubData(
        found["repo"], found["revision"], found["file"], *(query.get(key, [None])[0] for key in ("split", "config"))
    )


def hub_rows(path: str | Path) -> Iterator[dict[str, object]]:
    """Yield the rows of a data set on the hub in order, as they come; code that lies beside it is never run.

    Raises:
        DataError: The address has another form, the data set is not there or cannot be read, or has several splits
            and none was named.
    """
    data, name = parse_hub(path), address(path)
    try:
        library = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{name} cannot be read",
            expected="the package datasets",
            got="it is not installed",
            fix="pip install 'truthheads[hub]', or download the file and give its path",
        ) from error
    if not hub_answers() and not huggingface_hub.constants.HF_HUB_OFFLINE:
        raise DataError(
            f"{name} cannot be read",
            expected="a connection to the hub",
            got="no answer from the hub",
            fix="check the network, or download the file elsewhere and give its path; a data set that is in the cache "
            "already is read with HF_HUB_OFFLINE=1 in the environment",
        )
    try:
        with _quiet():
            found = library.load_dataset(
                data.repo,
                name=data.config,
                split="train" if data.file and not data.split else data.split,
                revision=data.revision,
                data_files=data.file,
                streaming=True,
            )
        if isinstance(found, dict):
            if len(found) > 1:
                raise DataError(
                    f"{name} has several splits",
                    expected="one of them, by ?split=NAME",
                    got=", ".join(map(str, found)),
                    fix=f"give {name}?split={next(iter(found))}",
                )
            found = next(iter(found.values()))
        yield from found
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # no network, no such data set, a damaged file: the library has an exception for each
        raise DataError(
            f"{name} cannot be read",
            expected=FORM,
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="check the address and the network; a private data set needs `hf auth login`",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's remarks about a data set's card."""
    logging: Any = huggingface_hub.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
