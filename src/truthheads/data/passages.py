"""A context that comes as passages: one text with one separator, and where each passage begins in it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

PASSAGE_SEPARATOR = "\n\n"
"""What stands between two passages of a context."""

TEXT_KEYS = (
    "text",
    "page_content",
    "content",
    "contents",
    "contexts",
    "passage",
    "passage_text",
    "paragraph",
    "paragraph_text",
    "chunk",
    "snippet",
    "body",
    "sentences",
)
"""Keys under which retrievers and data sets keep a passage's text; the first that a passage has is read."""

INNER_KEYS = ("kwargs", "node", "document")
"""Keys under which a retriever wraps the passage itself: LangChain's ``kwargs``, LlamaIndex's ``node``."""

FORMS = "text, or passages: a list of texts, of objects with a text under 'text' or the like, of [title, [sentences]]"


class Joined(NamedTuple):
    """Passages as one text.

    Attributes:
        text: The passages in their order, ``PASSAGE_SEPARATOR`` between them; blank ones are left out.
        spans: For every passage of the row, blank ones included, the characters ``[start, end)`` of its own text; a
            title that was put in front of it is not part of that.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


class _Passage(NamedTuple):
    title: str
    text: str


def join_passages(value: Any) -> Joined:
    """Join the passages of a context into one text.

    Args:
        value: A text, which stays as it is; or passages: a list, or an array, of texts, of objects that hold a text
            under one of ``TEXT_KEYS`` (a ``title`` is put on a line of its own in front of it), or of HotpotQA's
            ``[title, [sentences]]``; or an object of such columns (``{"title": […], "sentences": [[…], …]}``). Lists
            inside of lists are more passages. None and the empty list are an empty context.

    Raises:
        ValueError: It holds something else, for instance a number.
    """
    if isinstance(value, str):
        return Joined(value, ((0, len(value)),))
    text, spans = "", []
    for passage in _passages(value):
        if not passage.text.strip():
            spans.append((len(text), len(text)))
            continue
        titled = bool(passage.title.strip()) and not passage.text.lstrip().startswith(passage.title.strip())
        head = f"{passage.title.strip()}\n" if titled else ""
        text += (PASSAGE_SEPARATOR if text else "") + head
        spans.append((len(text), len(text) + len(passage.text)))
        text += passage.text
    return Joined(text, tuple(spans))


def _passages(value: Any) -> list[_Passage]:
    value = _plain(value)
    if value is None:
        return []
    if isinstance(value, str):
        return [_Passage("", value)]
    if isinstance(value, Mapping):
        return _of_object(value)
    if not isinstance(value, list):
        raise ValueError(FORMS)
    if _titled(value):
        return [_Passage(value[0], _sentences(value[1]))]
    return [passage for one in value for passage in (_passages(one) or [_Passage("", "")])]


def _of_object(fields: Mapping[str, object]) -> list[_Passage]:
    """Return the passage that an object holds, or the passages whose columns it holds."""
    key = next((name for name in TEXT_KEYS if fields.get(name) is not None), None)
    if key is None:
        inner = next((one for name in INNER_KEYS if isinstance(one := fields.get(name), Mapping)), None)
        if inner is None:
            raise ValueError(FORMS)
        return _of_object(inner)
    title, held = _plain(fields.get("title")), _plain(fields[key])
    if isinstance(title, list):  # columns: the first passage has the first title
        held = held if isinstance(held, list) else [held]
        if len(title) != len(held):
            raise ValueError(f"as many titles as passages, not {len(title)} and {len(held)}")
        return [_Passage(_title(name), _whole(text)) for name, text in zip(title, held, strict=True)]
    if isinstance(held, list) and key != "sentences":
        return [passage._replace(title=_title(title)) if title else passage for passage in _passages(held)]
    return [_Passage(_title(title), _whole(held))]


def _titled(value: list[Any]) -> bool:
    """Return whether a list is one passage as HotpotQA has it: a title and a list of sentences."""
    sentences = _plain(value[1]) if len(value) == 2 else None
    return (
        isinstance(value[0] if value else None, str)
        and isinstance(sentences, list)
        and all(isinstance(one, str) for one in sentences)
    )


def _whole(value: Any) -> str:
    value = _plain(value)
    return _sentences(value) if isinstance(value, list) else _text(value)


def _sentences(value: Any) -> str:
    """Return sentences in a row, a blank between two that have none."""
    text = ""
    for one in map(_text, _plain(value)):
        apart = text and one and not text[-1].isspace() and not one[0].isspace()
        text += f" {one}" if apart else one
    return text


def _title(value: Any) -> str:
    return "" if value is None else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(FORMS)
    return value


def _plain(value: Any) -> Any:
    """Return an array or a tuple as a list."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
