"""A gate as a PEFT adapter: IA³ on the output projections is the same scaling, on a base that stays as it is."""

import json
from pathlib import Path
from typing import TypedDict

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from truthheads.errors import ArchitectureError
from truthheads.models.architectures import HeadLayer, HeadLayout
from truthheads.models.weight_files import Header
from truthheads.results.gate import Gate
from truthheads.storage.files import dumps

CONFIG = "adapter_config.json"

WEIGHTS = "adapter_model.safetensors"

PREFIX = "base_model.model."


class GateNote(TypedDict):
    """What exported weights say of their gate, in the metadata of each file.

    Attributes:
        format_version: The version of this note.
        kind: ``gated``.
        gate: Digest of the gate.
        site: What it scales.
        factors: Its factors, ``[layers, heads]``.
        packages: Versions of the packages that wrote the files.
    """

    format_version: int
    kind: str
    gate: str
    site: str
    factors: list[list[float]]
    packages: dict[str, str]


class AdapterNote(TypedDict):
    """What exported weights say of the adapter inside them, in the metadata of each file.

    Attributes:
        format_version: The version of this note.
        kind: ``adapted``.
        adapter: Digest of the adapter.
        modules: The modules that it changes.
        heads: The heads that it was made for, as (layer, head); none for a LoRA of whole modules.
        packages: Versions of the packages that wrote the files.
    """

    format_version: int
    kind: str
    adapter: str
    modules: list[str]
    heads: list[tuple[int, int]]
    packages: dict[str, str]


def write_adapter(folder: Path, gate: Gate, layout: HeadLayout, *, width: int, base: str, note: GateNote) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, which ``PeftModel.from_pretrained`` loads.

    For PEFT a feed-forward module is one whose input is scaled, which is the site ``z``; any other module has its
    output scaled, bias included, which is the site ``output``. Modules are named by their full path, so that neither a
    tower nor another decoder of the network is touched. Every layer that has heads gets its vector, ones included.

    Args:
        folder: Where to.
        gate: Gate of the layout's shape.
        layout: Where the heads are.
        width: Width of the projections' output.
        base: What the adapter belongs to: a hub id or a folder.
        note: Goes into the weights' metadata.

    Raises:
        ArchitectureError: Site ``output``, and the width is no multiple of the heads.

    Source:
        Liu and others (2022), "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
        Learning"; the names are PEFT's.
    """
    from peft import IA3Config, TaskType

    paths = [head.path for head in layout.layers]
    config = IA3Config(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        target_modules=paths,
        feedforward_modules=paths if gate.site == "z" else [],
        fan_in_fan_out=any(head.transposed for head in layout.layers),
        inference_mode=True,
    ).to_dict()
    config |= {"target_modules": paths, "feedforward_modules": paths if gate.site == "z" else []}  # PEFT makes sets
    (folder / CONFIG).write_text(dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for head in layout.layers:
        vector = spread(gate, head, width)
        tensors[f"{PREFIX}{head.path}.ia3_l"] = vector[None] if gate.site == "z" else vector[:, None]
    data = save(tensors)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = Header(begin, json.loads(data[8:begin]))
    (folder / WEIGHTS).write_bytes(header.noted(note) + data[begin:])


def spread(gate: Gate, head: HeadLayer, width: int) -> Float[Tensor, " width"]:
    """Return a layer's factors, one for each input (site ``z``) or output of its projection.

    Args:
        gate: The gate.
        head: The layer.
        width: Width of the projection's output.

    Raises:
        ArchitectureError: Site ``output``, and the width is no multiple of the heads.
    """
    factors = gate.gate[head.index, : head.num_heads]
    if gate.site == "z":
        return factors.repeat_interleave(head.head_dim)
    if width % head.num_heads:
        raise ArchitectureError(
            f"{head.path} has no block of output for each head",
            expected=f"an output width that is a multiple of {head.num_heads} heads",
            got=str(width),
            fix="use site z",
        )
    return factors.repeat_interleave(width // head.num_heads)


def moved_layers(gate: Gate, layout: HeadLayout) -> list[HeadLayer]:
    """Return the layers that have a factor other than 1."""
    return [head for head in layout.layers if bool(torch.any(gate.gate[head.index, : head.num_heads] != 1))]
