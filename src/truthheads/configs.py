"""Whether a model's config.json can be believed, before a library builds what it asks for."""

import json
import re
from pathlib import Path
from typing import Any

from truthheads.errors import ModelError

MOST = 65_536
"""Heads, experts, labels and the like; the largest models have some hundreds of heads, and 21,843 labels."""
MOST_LAYERS = 4_096
"""A layer takes a millisecond to be made."""
LAYERS = re.compile(r"layer|depth|block", re.IGNORECASE)
COUNTS = re.compile(r"layer|head|expert|depth|block|label|group|stage|num_|^n_", re.IGNORECASE)
SIZES = re.compile(r"vocab|embed|token|position|size|dim|_id|token|ctx|inner|length|theta|patch|frame|sample|mel|bin")
"""What may be large: it makes tensors larger, which are not allocated, and no more of them."""
LARGEST = 64 * 2**20


def check_config(folder: Path) -> None:
    """Raise ModelError where config.json is no JSON object, or counts layers, heads or labels beyond reason.

    Libraries make a module for every layer, and a name for every label, that a configuration says there are: a number
    with nine digits in a file of a kilobyte would take all memory.

    Args:
        folder: A model's, with config.json.
    """
    path = folder / "config.json"
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise ValueError("no regular file, or too large")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a JSON {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{folder} could not be loaded",
            expected="config.json with a JSON object, as save_pretrained writes it",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="download it again",
        ) from error
    check_counts(str(path), config)


def check_counts(name: str, config: dict[str, Any]) -> None:
    """Raise ModelError where a configuration counts layers, heads or labels beyond reason.

    Args:
        name: The file that it comes from.
        config: The configuration.
    """
    try:
        found = _beyond(config)
    except RecursionError:
        found = ("a nesting", "without end")
    if found is not None:
        raise ModelError(
            f"{name} cannot be believed",
            expected=f"up to {MOST_LAYERS} layers, and up to {MOST} heads, experts and labels",
            got=f"{found[0]} {found[1]}"[:200],
            fix="do not use this model, or mend the counts in it",
        )


def _beyond(value: Any, name: str = "") -> tuple[str, Any] | None:
    """Return the first count that is beyond reason, with its key."""
    if isinstance(value, dict):
        return next((found for key, one in value.items() if (found := _beyond(one, str(key))) is not None), None)
    if isinstance(value, list):
        return next((found for one in value if (found := _beyond(one, name)) is not None), None)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    counts = COUNTS.search(name) is not None and SIZES.search(name.lower()) is None
    most = MOST_LAYERS if LAYERS.search(name) else MOST
    return (name, value) if number and counts and abs(value) > most else None
