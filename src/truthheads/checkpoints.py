"""A checkpoint with its heads located: nothing but configuration and headers is read."""

from typing import Any, NamedTuple

from transformers import AutoConfig

from truthheads.adapters import find_adapter
from truthheads.architectures import HeadLayout
from truthheads.errors import ModelError
from truthheads.models import inspect
from truthheads.projections import PARTS, LayerParts, locate_parts
from truthheads.shards import INDEX, SINGLE, Shards
from truthheads.sources import local_folder

WANTED = ["config.json", SINGLE, INDEX, "model-*.safetensors"]


class Checkpoint(NamedTuple):
    """Where the heads of one model's weights lie on disk.

    Attributes:
        name: What the user called it.
        layout: Its heads, from the configuration.
        shards: Its tensors.
        layers: The slices of every head, for the layers that have heads.
    """

    name: str
    layout: HeadLayout
    shards: Shards
    layers: tuple[LayerParts, ...]

    def describe(self) -> dict[str, Any]:
        """Return what an artefact says about the checkpoint."""
        first = self.layers[0].parts
        return {
            "name": self.name,
            "architecture": self.layout.architecture,
            "dtype": self.shards.entries[first["o"].tensor].dtype,
            "layers": [layer.index for layer in self.layers],
            "tensors": {part: first[part].tensor for part in PARTS},
        }

    def shapes(self, part: str) -> list[tuple[int, int, int, int]]:
        """Return the axis, the slices, their width and their length of one part, in every layer that has heads."""
        found = []
        for layer in self.layers:
            one = layer.parts[part]
            found.append((one.axis, len(one.starts), one.width, self.length(layer, part)))
        return found

    def count(self, part: str) -> int:
        """Return the number of weights in one part, over all layers."""
        return sum(heads * width * length for _, heads, width, length in self.shapes(part))

    def length(self, layer: LayerParts, part: str) -> int:
        """Return the length of one row of a slice: the width of what the projection reads, or writes for ``o``."""
        one = layer.parts[part]
        return self.shards.entries[one.tensor].shape[1 - one.axis]

    def in_words(self) -> str:
        """Return the shape of its attention."""
        first = self.layers[0]
        q, k = first.parts["q"], first.parts["k"]
        return (
            f"{len(self.layers)} layers with {len(q.starts)} heads of {q.width}, {len(k.starts)} key-value heads, "
            f"on a width of {self.length(first, 'q')}"
        )


def open_checkpoint(name: str) -> Checkpoint:
    """Return a checkpoint by its name, as for ``load``.

    Raises:
        ModelError: There is no such model, or its weights are missing, damaged, quantised, or not safetensors.
        ArchitectureError: Its heads or their projections could not be located.
    """
    adapter = find_adapter(name)
    if adapter is not None:
        raise ModelError(
            f"the weights of {name} are a base and an adapter, and cannot be compared as they lie on disk",
            expected="whole weights",
            got=str(adapter),
            fix="merge the adapter into its base model first (merge_and_unload, then save_pretrained)",
        )
    folder = local_folder(name, allow_patterns=WANTED)
    layout = inspect(str(folder)).layout
    shards = Shards.open(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config(decoder=True)
    return Checkpoint(name, layout, shards, locate_parts(shards, layout, getattr(config, "model_type", "")))
