"""RAGTruth's two files, read together: a response and the source that it was written from."""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from truthheads.data.hub import on_hub
from truthheads.data.lines import Row
from truthheads.data.tables import read_rows
from truthheads.errors import DataError

RESPONSES, SOURCES = "response", "source_info"
"""What the names of the two files contain."""

ASKED = {"Summary": "Summarize the text.", "Data2txt": "Write an overview of the data."}
"""What is asked where a source's prompt does not say."""


class Opened(NamedTuple):
    """A file whose rows are about to be read: which one it is in the end, and its rows."""

    path: Path
    rows: Iterator[Row]


def open_rows(path: Path, *, encoding: str | None = None, tell: Callable[[str], None] | None = None) -> Opened:
    """Open a file of rows; of RAGTruth's two files, whichever was given, that of the responses, each with its source.

    Args:
        path: The file, or ``hf://datasets/…``.
        encoding: As for :func:`truthheads.data.tables.read_rows`.
        tell: As there.

    Raises:
        DataError: The file cannot be read; or the other one of the two is not beside it.
    """
    rows = read_rows(path, encoding=encoding, tell=tell)
    first = next(rows, None)
    columns = set(first.fields or {}) if first is not None else set()
    if on_hub(path) or first is None:
        return Opened(path, chain([] if first is None else [first], rows))
    if {"source_id", "source_info"} <= columns and not {"response", "labels"} & columns:
        path = _beside(path, SOURCES, RESPONSES)
        return open_rows(path, encoding=encoding, tell=tell)
    rows = chain([first], rows)
    if not {"source_id", "response", "labels"} <= columns or "source_info" in columns:
        return Opened(path, rows)
    beside = _beside(path, RESPONSES, SOURCES)
    sources = _read_sources(beside, encoding)
    if tell is not None:
        tell(f"with the sources in {beside.name}")
    return Opened(path, (_with_source(row, sources) for row in rows))


def _beside(path: Path, own: str, other: str) -> Path:
    """Return the other one of the two files."""
    likely = path.with_name(path.name.replace(own, other))
    if own in path.name and likely.is_file():
        return likely
    near = [one for one in sorted(path.parent.glob(f"*{other}*")) if one.suffix.lower() in (".jsonl", ".json")]
    if len(near) == 1:
        return near[0]
    raise DataError(
        f"{path} is one of RAGTruth's two files, and the other one is not beside it",
        expected=f"{likely.name if own in path.name else f'{other}.jsonl'} in the same folder",
        got=", ".join(one.name for one in near) or "no such file",
        fix=f"put RAGTruth's {other}.jsonl beside {path.name}, under a name that goes with it",
    )


def _read_sources(path: Path, encoding: str | None = None) -> dict[str, Mapping[str, object]]:
    """Return the sources of a file by their ``source_id``; rows that cannot be read are left out."""
    rows = (row.fields for row in read_rows(path, encoding=encoding))
    return {str(fields["source_id"]): fields for fields in rows if fields is not None and "source_id" in fields}


def _with_source(row: Row, sources: Mapping[str, Mapping[str, object]]) -> Row:
    """Return a response's row with the context and the question of its source."""
    fields = row.fields
    if fields is None:
        return row
    source = sources.get(str(fields.get("source_id")))
    if source is None:
        return Row(row.place, None, f"no source has the source_id {fields.get('source_id')!r}")
    context, question = _asked(source)
    told = {"source_info": True, "context": context, "question": question, "task_type": source.get("task_type")}
    return row._replace(fields={**told, **fields})


def _asked(source: Mapping[str, object]) -> tuple[object, str]:
    """Return context and question of a source: passages and a question, a text, or data to be described."""
    info, prompt = source.get("source_info"), str(source.get("prompt") or "")
    if isinstance(info, Mapping) and "passages" in info:
        return info["passages"], str(info.get("question") or "")
    text = info if isinstance(info, str) else json.dumps(info, ensure_ascii=False)
    before = prompt.partition(text)[0] if text in prompt else prompt.partition("Structured data:")[0]
    asked = before.strip() if len(before) < len(prompt) else ""
    return text, asked or ASKED.get(str(source.get("task_type")), "What does the text say?")
