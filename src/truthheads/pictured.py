"""What a network takes beside its tokens where a prompt shows an image: pixels, positions, token types."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from truthheads.images import load_image
from truthheads.models import Model

PREFIX_FIRST = ("paligemma",)
"""The prompt attends to itself in both directions, so no part of it can be computed before the rest is there."""
CROSSING = ("mllama",)
"""Layers of their own attend to the image; a cache of a part of the prompt would lack it."""


Pixels = dict[str, np.ndarray]
"""What an image processor returns, by its own names."""


def kind_of(model: Model) -> str:
    """Return the network's type, as its configuration names it."""
    return str(model.network.config.model_type)


def shares_with_image(model: Model) -> bool:
    """Return whether a prompt, image included, may be computed once for several answers."""
    return kind_of(model) not in (*PREFIX_FIRST, *CROSSING)


def placeholder(model: Model) -> str:
    """Return what stands for an image in a prompt before the processor puts image tokens in its place."""
    processor, kind = model.processor, kind_of(model)
    if kind == "gemma3":
        return str(processor.boi_token)
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        return f"<|vision_start|>{processor.image_token}<|vision_end|>"
    if kind == "qwen2_5_omni_thinker":
        return f"{processor.vision_bos_token}{processor.image_token}{processor.vision_eos_token}"
    return str(processor.image_token)


def prepared(image_processor: Any, paths: Sequence[str]) -> Pixels:
    """Return what an image processor makes of images, one for each row; a file that several rows show is read once.

    Raises:
        DataError: An image cannot be read.
    """
    images = {path: load_image(path) for path in dict.fromkeys(paths)}
    made = image_processor(images=[[images[path]] for path in paths], return_tensors="pt")
    return {name: value.numpy() for name, value in made.items() if isinstance(value, Tensor)}


def beside(
    model: Model,
    ids: Int[Tensor, "rows seq"],
    seen: Bool[Tensor, "rows seq"],
    paths: Sequence[str | None],
    starts: Int[Tensor, " rows"] | None = None,
    *,
    pixels: Pixels | None = None,
) -> dict[str, Tensor]:
    """Return what the network is to be given beside its tokens; nothing for plain text in most models.

    Args:
        model: The model.
        ids: The tokens of a pass without a cache.
        seen: True where a token is not padding.
        paths: One image for each row, or None.
        starts: For whole rows the index of the answer's first token, else None.
        pixels: What :func:`prepared` makes of these paths, where that has been done ahead.

    Returns:
        By the network's own names; ``position_ids`` ``[3, rows, seq]`` where positions have three axes.

    Raises:
        DataError: An image cannot be read.
    """
    kind = kind_of(model)
    place = torch.arange(ids.shape[1], device=ids.device)
    found: dict[str, Tensor] = {}
    if kind in PREFIX_FIRST and starts is not None:
        found["token_type_ids"] = (place >= starts[:, None]).long()
    shown = tuple(path for path in paths if path is not None)
    if not shown:
        return found
    taken = inspect.signature(model.network.forward).parameters
    made = (pixels or prepared(model.processor.image_processor, shown)).items()
    values = ((name, torch.from_numpy(array)) for name, array in made if name in taken)
    found |= {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in values
    }
    config = model.network.config
    image = ids == getattr(config, "image_token_id", getattr(config, "image_token_index", -1))
    if kind == "gemma3":
        found["token_type_ids"] = image.long()
    if kind in CROSSING:
        after = (image.long().cumsum(1) > 0) & seen
        found["cross_attention_mask"] = after[:, :, None, None] * found["aspect_ratio_mask"][:, None]
    if "image_grid_thw" in found:
        found["position_ids"] = _three_axes(model, ids, seen, image, found["image_grid_thw"])
    return found


def _three_axes(model: Model, ids: Tensor, seen: Tensor, image: Tensor, grid: Tensor) -> Int[Tensor, "3 rows seq"]:
    """Return positions in time, height and width, by the network's own rule."""
    holder = next(one for one in (model.network.base_model, model.network) if hasattr(one, "get_rope_index"))
    given = {
        "input_ids": ids,
        "mm_token_type_ids": image.int(),
        "image_grid_thw": grid,
        "attention_mask": seen.long(),
    }
    taken = inspect.signature(holder.get_rope_index).parameters
    positions: Tensor = holder.get_rope_index(**{name: value for name, value in given.items() if name in taken})[0]
    return positions.long()
