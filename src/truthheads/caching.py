"""The cache of keys and values under both of its names: transformers calls it ``cache`` from 5.24 on."""

import inspect
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

NEW, OLD = "cache", "past_key_values"


def cache_name(network: Any) -> str:
    """Return what a network's ``forward`` calls the cache that it takes; code of a hub may keep the old name."""
    taken = inspect.signature(network.forward).parameters
    return next((name for name in (NEW, OLD) if name in taken), None) or _own_name()


def cache_of(outputs: Any) -> Any:
    """Return the cache that a network gives back."""
    return outputs[NEW] if NEW in outputs else outputs[OLD]


def _own_name() -> str:
    """Return what this release of transformers calls it."""
    return NEW if NEW in {field.name for field in fields(BaseModelOutputWithPast)} else OLD
