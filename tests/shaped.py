"""Compare a value with a type as deep as it goes: what beartype, which stops at the mapping, leaves open."""

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict


def misfits(value: object, hint: Any, path: str = "") -> list[str]:
    """Return every place where a value is not of its type; keys that a TypedDict does not name are such places.

    Args:
        value: What a function returned.
        hint: Its type: a TypedDict, or built from lists, dictionaries, unions, literals and plain types.
        path: Where the value stands.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return []
    if origin in (NotRequired, Required):
        return misfits(value, args[0], path)
    if is_typeddict(hint):
        return _misfitting_keys(value, hint, path)
    if origin in (Union, UnionType):
        each = [misfits(value, one, path) for one in args]
        return [] if any(not found for found in each) else min(each, key=len)
    if origin is Literal:
        return [] if value in args else [f"{path}: {value!r} is none of {args}"]
    if origin in (list, Sequence):
        if not isinstance(value, list):
            return [f"{path}: {type(value).__name__} is no list"]
        return [each for at, item in enumerate(value) for each in misfits(item, args[0], f"{path}[{at}]")]
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            return [f"{path}: {type(value).__name__} is no dictionary"]
        return [each for key, item in value.items() for each in misfits(item, args[1], f"{path}.{key}")]
    fits = isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)
    return [] if fits else [f"{path}: {value!r} is no {hint.__name__}"]


def _misfitting_keys(value: object, hint: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {type(value).__name__} is no dictionary"]
    hints = get_type_hints(hint, include_extras=True)
    found = [f"{path}: {key} is missing" for key in sorted(hint.__required_keys__ - set(value))]
    found += [f"{path}: {key} is not of {hint.__name__}" for key in sorted(set(value) - set(hints))]
    return found + [
        each for key, item in value.items() if key in hints for each in misfits(item, hints[key], f"{path}.{key}")
    ]
