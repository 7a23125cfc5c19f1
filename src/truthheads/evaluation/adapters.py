"""Adapters to be evaluated: read from their folders, held against the model, beside their random-head controls."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from truthheads.errors import ShapeError
from truthheads.models.adapters import SETTINGS
from truthheads.models.load import Model
from truthheads.models.sources import reference
from truthheads.results.head_adapter import AdapterLike, HeadAdapter, as_adapter
from truthheads.results.tuning import CONTROLS
from truthheads.storage.files import as_path, distinct_names

if TYPE_CHECKING:
    AdaptersLike: TypeAlias = AdapterLike | Mapping[str, AdapterLike] | Sequence[AdapterLike]
else:  # what is no adapter is answered in our words, not in those of a type checker at run time
    AdaptersLike = object


@dataclass(frozen=True, slots=True)
class ControlledAdapter:
    """An adapter and those of random heads that it is to be held against, by the names of their folders."""

    adapter: HeadAdapter
    controls: Mapping[str, HeadAdapter] = field(default_factory=dict)


def read_adapters(given: AdaptersLike, *, controls: int) -> dict[str, ControlledAdapter]:
    """Return adapters by the names of their runs: the folders' own, with the parent's in front where two share one.

    Args:
        given: Adapters, or folders of adapters (any PEFT LoRA): by name, in a list, or one.
        controls: How many of each adapter's controls are read, at most.

    Raises:
        ArtifactError: A folder holds no adapter that can be read.
        GateError: What is given is no adapter, or its factors cannot be used.
    """
    if isinstance(given, Mapping):
        named = {str(name): one for name, one in given.items()}
    else:
        every = [given] if isinstance(given, HeadAdapter | str | Path) else list(cast("Iterable[AdapterLike]", given))
        folders = [as_path(one).resolve() for one in every if isinstance(one, str | Path)]
        names = iter(distinct_names(folders, join="-", suffixes=True))
        named = {
            next(names) if isinstance(one, str | Path) else f"adapter-{at}": one
            for at, one in enumerate(every, start=1)
        }
    found = {}
    for name, one in named.items():
        beside = _control_folders(as_path(one))[:controls] if isinstance(one, str | Path) else []
        found[name] = ControlledAdapter(as_adapter(one), {path.name: HeadAdapter.load(path) for path in beside})
    return found


def _control_folders(folder: Path) -> list[Path]:
    """Return the folders of an adapter's controls, ``random-2`` before ``random-10``."""
    found = [path for path in (folder / CONTROLS).glob("*") if (path / SETTINGS).is_file()]
    return sorted(found, key=lambda path: (int((re.findall(r"\d+", path.name) or ["0"])[-1]), path.name))


def check_fits(model: Model, name: str, adapter: HeadAdapter) -> None:
    """Raise ShapeError where an adapter was made for a model of another shape.

    The shapes of single modules alone would not tell: 8 heads of 64 are as wide as 16 of 32, and an adapter of a model
    with fewer layers would find a module for each of its updates.

    Raises:
        ShapeError: Layers, heads, head_dim or a module differ.
        GateError: The model is at work under a gate or an adapter.
    """
    layout, touched = model.layout, {place.layer for place in adapter.places}
    wide = max((head.head_dim for head in layout.layers if head.index in touched), default=layout.head_dim)
    here = {"layers": layout.num_layers, "heads": layout.num_heads, "head_dim": wide}
    shape = adapter.meta.get("shape")
    made = dict(zip(("layers", "heads"), map(int, shape), strict=True)) if shape else {}
    made |= {"head_dim": max(place.output.width for place in adapter.places)} if touched else {}
    if any(here[what] != count for what, count in made.items()):
        raise ShapeError(
            f"the adapter {name} does not fit {model.name}",
            expected=", ".join(f"{count} {what}" for what, count in here.items()),
            got=", ".join(f"{count} {what}" for what, count in made.items()) + f" ({adapter.base or 'its base'})",
            fix="use it on the model that it was trained on, or on a descendant of the same shape",
        )
    adapter.apply(model).remove()


def adapter_notes(model: Model, adapters: Mapping[str, ControlledAdapter], *, controls: int) -> list[str]:
    """Return a sentence for each adapter of another model, and for each that lacks controls."""
    notes = []
    for name, one in adapters.items():
        made = one.adapter.meta.get("model") or {}
        base = str(made.get("name") or one.adapter.base or "")
        known = made.get("fingerprint")
        elsewhere = known != model.fingerprint if known else bool(base) and base != reference(model.name)
        if elsewhere:
            notes.append(f"adapter {name} was made on another model ({base}) and is applied to {model.name} unchanged")
        if len(one.controls) < controls:
            notes.append(
                f"adapter {name} has {len(one.controls)} of {controls} random-head adapters as controls: "
                f"`truthheads tune adapt --controls {controls}` makes them"
            )
    return notes
