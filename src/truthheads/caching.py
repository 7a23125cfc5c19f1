"""The cache of keys and values under both of its names: transformers calls it ``cache`` from 5.24 on."""

import inspect
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

NEW, OLD = "cache", "past_key_values"


def cached(network: Any, cache: Any) -> dict[str, Any]:
    """Return a cache as the argument that a network's ``forward`` takes it as; code of a hub may keep the old name."""
    taken = inspect.signature(network.forward).parameters
    name = next((name for name in (NEW, OLD) if name in taken), None)
    return {name or _own_name(): cache}


def cache_of(outputs: Any) -> Any:
    """Return the cache that a network gives back."""
    return outputs[NEW] if NEW in outputs else outputs[OLD]


def _own_name() -> str:
    """Return what this release of transformers calls it."""
    return NEW if NEW in {field.name for field in fields(BaseModelOutputWithPast)} else OLD
