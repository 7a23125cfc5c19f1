"""Which rows or columns of which tensor of a checkpoint make queries, keys, values and output of each head."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

from transformers import AutoConfig

from truthheads.errors import ArchitectureError, ModelError
from truthheads.models.adapters import find_adapter
from truthheads.models.architectures import HeadLayer, HeadLayout
from truthheads.models.inspection import inspect
from truthheads.models.sources import local_folder
from truthheads.models.weight_files import INDEX, SINGLE, Shards
from truthheads.storage.artifacts import without_folder

WEIGHT_PARTS = ("q", "k", "v", "o")

NON_DECODER_PATH = re.compile(
    r"vision|visual|image|audio|speech|tower|talker|2wav|encoder|cross|draft|mtp|resampler|perceiver"
)
"""Prefixes of what is not the text decoder, asked only where several lists of layers have tensors of one name."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor that makes queries, keys or values, and the order in which it holds them.

    Attributes:
        tensor: The module, below the one that holds the output projection.
        holds: Some of ``q``, ``k``, ``v``, in their order inside a block.
        blocks: How often that order comes: once, four times, once for each key-value head, or once for each head.
            A block holds its share of the heads of each kind.
    """

    tensor: str
    holds: str
    blocks: Literal["one", "four", "group", "head"] = "one"


SEPARATE = (Stored("q_proj", "q"), Stored("k_proj", "k"), Stored("v_proj", "v"))

LATENT = (Stored("q_b_proj", "q"), Stored("kv_b_proj", "kv", "head"))

LATENT_KEYS = (Stored("q_proj", "q"), Stored("kv_b_proj", "kv", "head"))

DEFAULTS = (SEPARATE, LATENT, LATENT_KEYS)
"""Tried in this order where the table has no row. The latent forms (multi-head latent attention) give each head its own
up-projection from a latent that all heads share; the down-projection belongs to no head and is left out."""

IN_GROUPS = (Stored("query_key_value", "qkv", "group"),)

ROWS: Mapping[str, tuple[Stored, ...]] = {
    "bloom": IN_GROUPS,
    "codegen": (Stored("qkv_proj", "qvk", "four"),),
    "dbrx": (Stored("Wqkv", "qkv"),),
    "falcon": IN_GROUPS,
    "gpt2": (Stored("c_attn", "qkv"),),
    "gpt_bigcode": (Stored("c_attn", "qkv", "group"),),
    "gpt_neox": IN_GROUPS,
    "gpt_neox_japanese": IN_GROUPS,
    "mpt": (Stored("Wqkv", "qkv"),),
    "openai-gpt": (Stored("c_attn", "qkv"),),
    "persimmon": IN_GROUPS,
    "phi3": (Stored("qkv_proj", "qkv"),),
    "phi4_multimodal": (Stored("qkv_proj", "qkv"),),
}
"""By ``model_type`` of the text decoder, where queries, keys and values share a tensor. With one group per head the
groups are GPT-NeoX's interleaving; with a single group they are Falcon's multi-query order."""


@dataclass(frozen=True, slots=True)
class WeightSlice:
    """The slices of one kind in one layer.

    Attributes:
        tensor: Full name in the checkpoint.
        axis: 0 where a head owns rows, 1 where it owns columns.
        starts: First row or column of each head; of each key-value head for k and v.
        width: Rows or columns of each.
    """

    tensor: str
    axis: int
    starts: tuple[int, ...]
    width: int


@dataclass(frozen=True, slots=True)
class LayerParts:
    """The slices of one layer.

    Attributes:
        index: The layer, as the layout counts.
        num_heads: Query heads.
        parts: ``q``, ``k``, ``v``, ``o``.
    """

    index: int
    num_heads: int
    parts: Mapping[str, WeightSlice]


def locate_parts(shards: Shards, layout: HeadLayout, model_type: str) -> tuple[LayerParts, ...]:
    """Return where a checkpoint keeps the slices of every head, for the layers that have heads, in order.

    Checkpoints call the decoder of one model by different names (``model.layers``, ``model.language_model.layers``,
    ``language_model.model.layers`` …), so tensors are looked up by what stands below the list of layers.

    Args:
        shards: The checkpoint.
        layout: Layout of the model, from its configuration.
        model_type: Type of its text decoder.

    Raises:
        ArchitectureError: The checkpoint has no, or more than one, list of layers that fits, or its q, k and v are
            kept in a way that the table does not know.
        ModelError: A tensor is missing, or has another shape than the configuration says.
    """
    prefix = decoder_prefix(shards, layout)
    result = []
    for head in layout.layers:
        out = f"{prefix}{below(head)}.weight"
        attention = out.removesuffix(".weight").rpartition(".")[0]
        axis = 0 if head.transposed else 1
        rows = _two(shards, out)[axis]
        if rows != head.num_heads * head.head_dim:
            raise _misfit(shards, out, f"{head.num_heads} heads of {head.head_dim} along axis {axis}")
        parts = {"o": WeightSlice(out, axis, tuple(range(0, rows, head.head_dim)), head.head_dim)}
        for stored in _stored(shards, attention, model_type):
            parts |= _slices(shards, f"{attention}.{stored.tensor}.weight", stored, head)
        result.append(LayerParts(head.index, head.num_heads, {name: parts[name] for name in WEIGHT_PARTS}))
    return tuple(result)


def decoder_prefix(shards: Shards, layout: HeadLayout) -> str:
    """Find the prefix of the text decoder's list of layers in a checkpoint's tensor names, with its last dot.

    Raises:
        ArchitectureError: No list of layers, or more than one, has the output projections of the layout.
    """
    tails = [f"{below(head)}.weight" for head in layout.layers]
    found: set[str] | None = None
    for tail in tails:
        ends = {name.removesuffix(tail) for name in shards.entries if name == tail or name.endswith(f".{tail}")}
        found = ends if found is None else found & ends
    prefixes = sorted(found or ())
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if not NON_DECODER_PATH.search(prefix)] or prefixes
    if len(prefixes) != 1:
        raise ArchitectureError(
            f"the text decoder of {shards.folder} was not found among its tensors",
            expected=f"one list of layers with {tails[0]} … {tails[-1]}",
            got=f"{len(prefixes)} such lists{': ' if prefixes else ''}{', '.join(prefixes)}",
            fix="check that config.json belongs to these weights",
        )
    return prefixes[0]


def below(head: HeadLayer) -> str:
    """Return ``layers.7.self_attn.o_proj`` from the full path of an output projection."""
    before, number, after = head.path.partition(f".{head.index}.")
    return f"{before.rpartition('.')[2]}{number}{after}"


def _stored(shards: Shards, attention: str, model_type: str) -> tuple[Stored, ...]:
    choices = (ROWS[model_type],) if model_type in ROWS else DEFAULTS
    for choice in choices:
        if all(f"{attention}.{stored.tensor}.weight" in shards.entries for stored in choice):
            return choice
    there = sorted(name.removeprefix(f"{attention}.") for name in shards.entries if name.startswith(f"{attention}."))
    raise ArchitectureError(
        f"queries, keys and values of {attention} in {shards.folder} were not found",
        expected=" or ".join(", ".join(f"{stored.tensor}.weight" for stored in choice) for choice in choices),
        got=", ".join(there) or "no tensors",
        fix=f"add a row for model_type {model_type!r} to truthheads.models.head_weights.ROWS, "
        "or give unquantised weights",
    )


def _slices(shards: Shards, tensor: str, stored: Stored, head: HeadLayer) -> dict[str, WeightSlice]:
    axis = 1 if head.transposed else 0
    found = spans(stored, head, _two(shards, tensor)[axis])
    if found is None:
        num_kv_heads = head.num_heads if stored.blocks == "head" else head.num_kv_heads
        raise _misfit(shards, tensor, f"{stored.holds} of {head.num_heads} heads, {num_kv_heads} for keys and values")
    return {kind: WeightSlice(tensor, axis, span.starts, span.width) for kind, span in found.items()}


class Span(NamedTuple):
    """The first row of each head of one kind in a projection's output, and the rows of each."""

    starts: tuple[int, ...]
    width: int


def spans(stored: Stored, head: HeadLayer, rows: int) -> dict[str, Span] | None:
    """Return which rows of a projection's output make the queries, keys and values of each head.

    Args:
        stored: What the projection holds, and in which order.
        head: The layer.
        rows: Width of the projection's output.

    Returns:
        For each kind that it holds its rows; None where the width does not fit the heads.
    """
    num_kv_heads = head.num_heads if stored.blocks == "head" else head.num_kv_heads
    counts = {"q": head.num_heads, "k": num_kv_heads, "v": num_kv_heads}
    blocks = {"one": 1, "four": 4, "group": num_kv_heads, "head": head.num_heads}[stored.blocks]
    # A value is as wide as z. Queries and keys may be wider (a gate beside the query, latent attention's rotary part).
    values = counts["v"] * head.head_dim if "v" in stored.holds and len(stored.holds) > 1 else 0
    others = sum(counts[kind] for kind in stored.holds if kind != "v" or not values)
    if rows <= values or (rows - values) % others or any(counts[kind] % blocks for kind in stored.holds):
        return None
    wide = {kind: head.head_dim if kind == "v" and values else (rows - values) // others for kind in stored.holds}
    starts: dict[str, list[int]] = {kind: [] for kind in stored.holds}
    offset = 0
    for _ in range(blocks):
        for kind in stored.holds:
            for _ in range(counts[kind] // blocks):
                starts[kind].append(offset)
                offset += wide[kind]
    return {kind: Span(tuple(starts[kind]), wide[kind]) for kind in stored.holds}


def _two(shards: Shards, tensor: str) -> tuple[int, ...]:
    entry = shards.entries[tensor]
    if len(entry.shape) != 2 or entry.dtype not in ("F16", "BF16", "F32", "F64"):
        raise ModelError(
            f"{tensor} of {shards.folder} is not a plain matrix",
            expected="a two-dimensional tensor in bf16, fp16 or fp32",
            got=f"{entry.dtype} of shape {list(entry.shape)}",
            fix="give the unquantised checkpoint",
        )
    return entry.shape


def _misfit(shards: Shards, tensor: str, expected: str) -> ModelError:
    return ModelError(
        f"{tensor} of {shards.folder} does not fit config.json",
        expected=expected,
        got=f"shape {list(shards.entries[tensor].shape)}",
        fix="check that config.json belongs to these weights",
    )


WANTED = ["config.json", SINGLE, INDEX, "model-*.safetensors"]


class CheckpointSummary(TypedDict):
    """What an artefact says about a checkpoint.

    Attributes:
        name: What the user called it.
        architecture: Its class.
        dtype: Type of its weights, as safetensors names it.
        layers: The layers that have heads.
        tensors: For q, k, v and o the tensor of the first of them.
    """

    name: str
    architecture: str
    dtype: str
    layers: list[int]
    tensors: dict[str, str]


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

    def describe(self) -> CheckpointSummary:
        """Describe the checkpoint for an artefact's metadata."""
        first = self.layers[0].parts
        return {
            "name": without_folder(self.name),
            "architecture": self.layout.architecture,
            "dtype": self.shards.entries[first["o"].tensor].dtype,
            "layers": [layer.index for layer in self.layers],
            "tensors": {part: first[part].tensor for part in WEIGHT_PARTS},
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
