"""What can be said of a model without its weights: where its heads are, and what a gate of it may become."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from truthheads.models.adapters import find_adapter
from truthheads.models.architectures import HeadLayout, locate_heads, widths
from truthheads.models.gguf_config import check_tensors, gguf_config, one_file
from truthheads.models.gguf_parts import read_parts
from truthheads.models.pretrained import check_class, explained, network_class_of, quiet, read_config, takes_images
from truthheads.models.quantised import stored_quantised
from truthheads.models.sources import converted, gguf_path, resolve
from truthheads.plots.views import Shown, table_html

EXPORTS = ("adapter", "checkpoint", "gguf")


class ModelInfo(TypedDict):
    """What ``truthheads inspect --json`` prints: where a model's heads are, and what a gate of it may become.

    Attributes:
        architecture: The network's class.
        num_layers: Layers of the decoder.
        num_heads: Heads of a layer, at most.
        head_dim: Width of a head.
        num_kv_heads: Key-value heads of a layer.
        projection: Path of the output projection in a layer.
        skipped: Layers without heads, and why.
        parameters: Number of parameters, tied ones counted once.
        dtype: Type that the configuration names.
        image: Whether it takes images.
        sites: What a gate may scale.
        exports: What a gate may become.
        refused: The sites and exports that are not among them, and why.
        adapter: The PEFT adapter that is merged into the weights.
    """

    architecture: str
    num_layers: int
    num_heads: int
    head_dim: int
    num_kv_heads: int
    projection: str
    skipped: dict[str, str]
    parameters: int
    dtype: str | None
    image: bool
    sites: list[str]
    exports: list[str]
    refused: dict[str, str]
    adapter: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Shown):
    """The facts about a model that need no weights.

    Attributes:
        layout: Where its heads are.
        parameters: Number of parameters, tied ones counted once.
        dtype: Type that the configuration names, or None.
        image: True where the model takes images.
        sites: What a gate may scale.
        exports: What a gate may become.
        refused: The sites and exports that are not among them, and why.
        adapter: Which PEFT adapter is merged into the weights, or None.
    """

    layout: HeadLayout
    parameters: int
    dtype: str | None
    image: bool
    sites: tuple[str, ...]
    exports: tuple[str, ...]
    refused: dict[str, str]
    adapter: str | None = None

    def in_short(self) -> str:
        """Return shape, size, and what a gate may become."""
        shape = f"{self.layout.num_layers} layers x {self.layout.num_heads} heads"
        to = ", ".join(self.exports) or "nothing"
        return f"{self.layout.architecture}, {shape}, {self.parameters:,} parameters, exports to {to}"

    def _repr_html_(self) -> str:
        return table_html(self.in_short(), [{"": name, "value": value} for name, value in self.json().items()])

    def json(self) -> ModelInfo:
        """Return the JSON result of ``truthheads inspect``."""
        layout = self.layout
        return {
            "architecture": layout.architecture,
            "num_layers": layout.num_layers,
            "num_heads": layout.num_heads,
            "head_dim": layout.head_dim,
            "num_kv_heads": layout.num_kv_heads,
            "projection": layout.projection,
            "skipped": {str(layer): why for layer, why in layout.skipped.items()},
            "parameters": self.parameters,
            "dtype": self.dtype,
            "image": self.image,
            "sites": list(self.sites),
            "exports": list(self.exports),
            "refused": self.refused,
            "adapter": self.adapter,
        }


def inspect(name: str, *, trust_remote_code: bool = False) -> Inspection:
    """Return the heads of a model by its name; see :func:`truthheads.inspect`."""
    adapter = find_adapter(name)
    network = skeleton(name, trust_remote_code=trust_remote_code)
    config = network.config
    layout = locate_heads(network)
    stored = getattr(config.get_text_config(decoder=True), "dtype", None) or getattr(config, "dtype", None)
    refused = _refused(name, config, network, layout)
    if adapter is not None:
        refused |= dict.fromkeys(EXPORTS, adapter.refusal())
    return Inspection(
        layout=layout,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        dtype=None if stored is None else str(stored).removeprefix("torch."),
        image=takes_images(config),
        sites=tuple(site for site in ("z", "output") if site not in refused),
        exports=tuple(target for target in EXPORTS if target not in refused),
        refused=refused,
        adapter=None if adapter is None else str(adapter),
    )


def inspect_network(network: PreTrainedModel) -> Inspection:
    """Return the heads of a network in memory; it is to be saved before anything is exported."""
    config, layout = network.config, locate_heads(network)
    refused = dict.fromkeys(EXPORTS, "the network is in memory: save it (save_pretrained), and export the folder")
    if "output" in (own := _refused("", config, network, layout)):
        refused["output"] = own["output"]
    return Inspection(
        layout=layout,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        dtype=str(network.dtype).removeprefix("torch."),
        image=takes_images(config),
        sites=tuple(site for site in ("z", "output") if site not in refused),
        exports=(),
        refused=refused,
    )


def _refused(name: str, config: PreTrainedConfig, network: PreTrainedModel, layout: HeadLayout) -> dict[str, str]:
    """List the sites and export formats that a gate of this model cannot have, with the reasons."""
    refused = {}
    outs = [(widths(network.get_submodule(head.path)), head) for head in layout.layers]
    if not all(wide and wide[1] % head.num_heads == 0 for wide, head in outs):
        refused["output"] = "the projections' width is no multiple of the heads"
    how = stored_quantised(config)
    if how is not None:
        refused["checkpoint"] = f"a factor merged into quantised weights ({how}) would be rounded away"
        if how != "bitsandbytes":
            refused["adapter"] = f"PEFT's IA³ does not wrap {how} layers; the hook (`gated`) works"
    if gguf_path(name) is None:
        refused["gguf"] = "the model is no .gguf file"
    return refused


def skeleton(name: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a model's network without weights, on the meta device; ModelError without a usable configuration."""
    base = _base_of(name)
    if (file := gguf_path(base)) is not None:  # also where it was converted: to know that, the whole file is read
        return _from_header(name, file)
    source = resolve(base)
    config = read_config(name, source, trust_remote_code)
    with quiet(source), explained(name, "a configuration that its class accepts"):
        return _made(config)


def check_source(name: str, trust_remote_code: bool) -> None:
    """Raise ModelError where a model is not there, or its configuration or GGUF headers cannot be used."""
    base = _base_of(name)
    file = gguf_path(base)
    if file is not None and converted(file) is None:
        _from_header(name, file)
    else:
        read_config(name, resolve(base), trust_remote_code)


def _base_of(name: str) -> str:
    """Return the model that holds the weights: an adapter's base."""
    adapter = find_adapter(name)
    return name if adapter is None else adapter.base


def _from_header(name: str, path: Path) -> PreTrainedModel:
    """Return the network of a GGUF model from its headers."""
    parts = read_parts(path)
    with quiet(str(path.parent)), explained(name, "a GGUF header of an architecture that transformers converts"):
        with one_file(parts) as file:
            config = gguf_config(file, parts)
        check_class(name, config)
        network = _made(config)
        check_tensors(name, network, parts)
    return network


def _made(config: PreTrainedConfig) -> PreTrainedModel:
    network_class = network_class_of(config)
    config = getattr(config, "thinker_config", config)
    make = getattr(network_class, "_from_config", None) or network_class.from_config
    with torch.device("meta"):
        network: PreTrainedModel = make(config)
    network.tie_weights()
    return network
