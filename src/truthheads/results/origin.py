"""What an artefact's metadata says of where it comes from, in words for its chart; whoever wrote the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from truthheads.storage.artifacts import without_folder


def of_model(meta: Mapping[str, Any]) -> str:
    """Return the name of the model that an artefact was made on, without the folder that it lay in; else nothing."""
    model = meta.get("model")
    named = model.get("name") if isinstance(model, Mapping) else None
    return without_folder(str(named or meta.get("source") or ""))


def told_rows(meta: Mapping[str, Any], questions: int | None) -> list[str]:
    """Return the sentence that says how many rows of which file an artefact rests on; none where it does not tell.

    Args:
        meta: The artefact's metadata.
        questions: Its independent questions.
    """
    data = meta.get("data")
    if not isinstance(data, Mapping) or not data.get("rows"):
        return []
    groups = "" if questions is None else f" ({questions} independent questions)"
    file = f" of {Path(str(data['path'])).name}" if data.get("path") else ""
    return [f"From {data['rows']} rows{groups}{file}; point at a square for its value and its 95 % interval."]


def told_groups(meta: Mapping[str, Any], sample_group: Int[Tensor, " samples"]) -> int | None:
    """Return the independent questions that an artefact of heads rests on; None where it does not tell.

    Args:
        meta: Its metadata; files before ``groups`` was written in them are known by their package versions.
        sample_group: Groups of the samples that it kept.
    """
    known = meta.get("groups")
    if isinstance(known, int):
        return known
    return len(torch.unique(sample_group)) if len(sample_group) and "packages" in meta else None
