"""Where each architecture keeps its attention heads: one table, and discovery for what the table does not know."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from truthheads.errors import ArchitectureError
from truthheads.plots.views import Shown


@dataclass(frozen=True, slots=True)
class ArchitectureRow:
    """Where one model family keeps its attention output projection.

    Attributes:
        layers: The list of layers, below the text decoder.
        out_proj: The projection whose input is the heads, concatenated; below one layer.
    """

    layers: str = "layers"
    out_proj: str = "self_attn.o_proj"


DEFAULT = ArchitectureRow()

ROWS = {
    "bloom": ArchitectureRow(layers="h", out_proj="self_attention.dense"),
    "codegen": ArchitectureRow(layers="h", out_proj="attn.out_proj"),
    "falcon": ArchitectureRow(layers="h", out_proj="self_attention.dense"),
    "gpt2": ArchitectureRow(layers="h", out_proj="attn.c_proj"),
    "gpt_bigcode": ArchitectureRow(layers="h", out_proj="attn.c_proj"),
    "gpt_neo": ArchitectureRow(layers="h", out_proj="attn.attention.out_proj"),
    "gpt_neox": ArchitectureRow(out_proj="attention.dense"),
    "gptj": ArchitectureRow(layers="h", out_proj="attn.out_proj"),
    "lfm2": ArchitectureRow(out_proj="self_attn.out_proj"),
    "mpt": ArchitectureRow(layers="blocks", out_proj="attn.out_proj"),
    "opt": ArchitectureRow(out_proj="self_attn.out_proj"),
    "phi": ArchitectureRow(out_proj="self_attn.dense"),
    "zamba": ArchitectureRow(out_proj="shared_transf.self_attn.o_proj"),
    "zamba2": ArchitectureRow(out_proj="shared_transformer.self_attn.o_proj"),
}
"""By ``model_type`` of the text decoder. A family gets a row only where the default is wrong; the layout of the
weights (Linear or Conv1D) is read from the module."""

SOFTMAX_LAYERS = {
    "attention",
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "global_attention",
    "hybrid",
    "hybrid_sliding",
}
"""Entries of ``config.layer_types`` that are softmax attention, or have it beside a state-space part or a convolution;
any other entry names a layer that is left alone."""

STATEFUL = {"hybrid", "hybrid_sliding"}
"""Those whose layers carry a state beside the keys and values, which does not branch as they do."""

NONE = "which has no softmax attention in any layer, and so no heads"

OUT_OF_SCOPE = {
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"), NONE),
    "hrm_text": "which runs the same layers several times for each token, so that a head has no single output",
    "recurrent_gemma": "whose recurrent state takes in padding, so that an answer would depend on the rows beside it",
}
"""Families that no row of the table can make work, and why; by ``model_type`` of the text decoder."""

ATTENTION_NAME = re.compile(r"(^|_)att(e)?n(tion)?(_|$)")

OTHER_MIXER = re.compile(r"cross|linear|mamba|delta|conv|recurrent", re.IGNORECASE)

INPUT_SIDE = re.compile(r"(^|_)(q|k|v|qkv|kv|query|key|value|c_attn|gate|in|up|down|fc\d?|a|b)(_|$)")


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """The heads of one layer with softmax attention.

    Attributes:
        index: The layer, counted from 0.
        path: Full path of the output projection inside the network.
        num_heads: Heads in this layer.
        head_dim: Width of one head's z, from the projection: input width over ``num_heads``.
        num_kv_heads: Key-value heads.
        transposed: True where the weight is stored as (in, out), as in Conv1D.
    """

    index: int
    path: str
    num_heads: int
    head_dim: int
    num_kv_heads: int
    transposed: bool


@dataclass(frozen=True, slots=True, repr=False)
class HeadLayout(Shown):
    """Where the heads of one model are.

    Attributes:
        architecture: Class of the network.
        num_layers: Layers of the text decoder, those without softmax attention included.
        num_heads: Heads in the layer that has most.
        head_dim: Width of z in the layer where it is widest.
        num_kv_heads: Key-value heads in the layer that has most.
        projection: Path of the output projections, ``*`` for the layer.
        layers: The layers that have heads.
        skipped: The layers that have none, and what they are.
        max_positions: Longest sequence in tokens, or None where the architecture sets no limit.
    """

    architecture: str
    num_layers: int
    num_heads: int
    head_dim: int
    num_kv_heads: int
    projection: str
    layers: tuple[HeadLayer, ...]
    skipped: dict[int, str]
    max_positions: int | None

    @property
    def shape(self) -> tuple[int, int]:
        """``(num_layers, num_heads)``, the shape of scores and gates."""
        return self.num_layers, self.num_heads

    def in_short(self) -> str:
        """Return class, shape and projection."""
        skipped = f", {len(self.skipped)} layers left alone" if self.skipped else ""
        return f"{self.architecture}, {self.num_layers} layers x {self.num_heads} heads at {self.projection}{skipped}"


def locate_heads(network: PreTrainedModel) -> HeadLayout:
    """Return where the heads of a network are, by the table, else by discovery.

    Args:
        network: A model with a text decoder; parameters may be on the meta device.

    Raises:
        ArchitectureError: No list of layers or no single output projection per attention layer was found.
    """
    config = network.config.get_text_config(decoder=True)
    if not hasattr(network, "thinker"):
        check_in_scope(type(network).__name__, network.config)
    decoder = text_decoder(network)
    row = ROWS.get(getattr(decoder.config.get_text_config(decoder=True), "model_type", ""), DEFAULT)
    layers = _layers(network, decoder, row, config)
    paths = {id(module): path for path, module in network.named_modules()}
    types = list(getattr(config, "layer_types", None) or [])
    found: list[HeadLayer] = []
    skipped: dict[int, str] = {}
    for index, layer in enumerate(layers):
        kind = types[index] if index < len(types) else "attention"
        if kind not in SOFTMAX_LAYERS:
            skipped[index] = kind
            continue
        projection = _out_proj(layer, row, getattr(config, "hidden_size", None))
        if projection is None:
            skipped[index] = _describe(layer)
            continue
        found.append(_measure(network, config, index, paths[id(projection)], projection))
    if not found and not any(kind in SOFTMAX_LAYERS for kind in types[: len(layers)] or ["attention"]):
        raise ArchitectureError(
            f"no layer of this {type(network).__name__} has softmax attention, so there are no heads to measure",
            expected=f"layers of a kind among {', '.join(sorted(SOFTMAX_LAYERS))} in config.json",
            got=f"{len(layers)} layers of the kinds {', '.join(sorted(set(types)))}",
            fix="choose a model of this family that has attention layers, or check that config.json is the model's own",
        )
    if not found:
        raise _unknown(
            network,
            f"in each layer {row.out_proj}, or one projection back to the model's width inside an attention module",
            f"layers of {', '.join(sorted({type(layer).__name__ for layer in layers}))} with {_children(layers[0])}",
        )
    _check_own_weights(network, found)
    patterns = {re.sub(r"\.\d+\.", ".*.", f"{head.path}.", count=1).rstrip(".") for head in found}
    return HeadLayout(
        architecture=type(network).__name__,
        num_layers=len(layers),
        num_heads=max(head.num_heads for head in found),
        head_dim=max(head.head_dim for head in found),
        num_kv_heads=max(head.num_kv_heads for head in found),
        projection=" | ".join(sorted(patterns)),
        layers=tuple(found),
        skipped=skipped,
        max_positions=_max_positions(config),
    )


def check_in_scope(name: str, config: PretrainedConfig) -> None:
    """Raise ArchitectureError for a class of models that has no heads of the kind that is measured here.

    Args:
        name: What the message calls the model.
        config: The model's configuration.
    """
    kind = str(getattr(config.get_text_config(decoder=True), "model_type", ""))
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder-decoder: its context is in the encoder, which the decoder sees by cross-attention alone"
    elif kind in OUT_OF_SCOPE:
        what = f"{kind}, {OUT_OF_SCOPE[kind]}"
    else:
        return
    raise ArchitectureError(
        f"{name} is out of scope: truthheads measures attention heads of decoder-only models",
        expected="a decoder whose layers have softmax self-attention (Llama, Qwen, Gemma, FalconH1 and the like)",
        got=what,
        fix="choose another model; no setting and no table row makes this one work",
    )


def _check_own_weights(network: PreTrainedModel, found: list[HeadLayer]) -> None:
    """Raise ArchitectureError where layers share the weights of their attention."""
    owners: dict[int, HeadLayer] = {}
    for head in found:
        first = owners.setdefault(id(getattr(network.get_submodule(head.path), "weight", head)), head)
        if first is not head:
            raise ArchitectureError(
                f"{type(network).__name__} is out of scope: its layers share one attention block's weights",
                expected="an output projection of its own in each layer",
                got=f"one weight for {first.path} and {head.path}: a factor for a head of one layer changes the other",
                fix="choose a model whose layers have attention of their own; no setting changes that of this one",
            )


def carries_state(network: PreTrainedModel) -> bool:
    """Return whether layers that have heads carry a state, too, beside keys and values."""
    return bool(STATEFUL.intersection(getattr(network.config.get_text_config(decoder=True), "layer_types", None) or ()))


def text_decoder(network: PreTrainedModel) -> Any:
    """Return the text decoder inside a network: the thinker's in an omni model, never a tower's or the talker's."""
    inner: Any = getattr(network, "thinker", network)
    for _ in range(4):
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
        if decoder is inner:
            break
        inner = decoder
    return inner


def _layers(network: PreTrainedModel, decoder: Any, row: ArchitectureRow, config: PretrainedConfig) -> nn.ModuleList:
    try:
        named = decoder.get_submodule(row.layers)
        if isinstance(named, nn.ModuleList):
            return named
    except AttributeError:
        pass
    count = getattr(config, "num_hidden_layers", None)
    lists = [
        module
        for path, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and path.count(".") < 3
    ]
    if len(lists) == 1:
        return lists[0]
    raise _unknown(
        network,
        f"the list of layers at {row.layers!r} of {type(decoder).__name__}, or one list of {count} layers below it",
        f"{len(lists)} lists of {count} layers",
    )


def _out_proj(layer: nn.Module, row: ArchitectureRow, width: int | None) -> nn.Module | None:
    try:
        return layer.get_submodule(row.out_proj)
    except AttributeError:
        found = list(_discover(layer, width))
        return found[0] if len(found) == 1 else None


def _discover(layer: nn.Module, width: int | None) -> Iterator[nn.Module]:
    """Yield the linear modules inside self-attention that lead back to the model's width, where it is known."""
    for name, child in layer.named_children():
        kind = type(child).__name__
        if OTHER_MIXER.search(name) or OTHER_MIXER.search(kind):
            continue
        if not (ATTENTION_NAME.search(name) or "Attention" in kind):
            continue
        for path, module in child.named_modules():
            last = path.rpartition(".")[2]
            wide = widths(module)
            if wide is None or not path or INPUT_SIDE.search(last):
                continue
            if width is None or wide[1] == width:
                yield module


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Return (input width, output width) of a linear module of any make, else None."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    wide = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(wide[0], int) and isinstance(wide[1], int):
        return wide[0], wide[1]
    return None


def _measure(
    network: PreTrainedModel, config: PretrainedConfig, index: int, path: str, projection: nn.Module
) -> HeadLayer:
    wide = widths(projection)
    num_heads = _count(config, "num_attention_heads", index)
    if wide is None or not num_heads or wide[0] % num_heads:
        raise _unknown(
            network,
            f"{path} to be linear, with an input width that is a multiple of num_attention_heads",
            f"{type(projection).__name__} of widths {wide} and num_attention_heads {num_heads}",
        )
    return HeadLayer(
        index=index,
        path=path,
        num_heads=num_heads,
        head_dim=wide[0] // num_heads,
        num_kv_heads=_kv_heads(config, index, num_heads),
        transposed=isinstance(getattr(projection, "base_layer", projection), Conv1D),  # inside a layer of PEFT
    )


def _kv_heads(config: PretrainedConfig, index: int, num_heads: int) -> int:
    old_falcon = getattr(config, "model_type", "") == "falcon" and not getattr(config, "new_decoder_architecture", True)
    if old_falcon or getattr(config, "model_type", "") == "gpt_bigcode":
        return 1 if getattr(config, "multi_query", False) else num_heads
    return _count(config, "num_key_value_heads", index) or _count(config, "num_kv_heads", index) or num_heads


def _count(config: PretrainedConfig, name: str, index: int) -> int | None:
    """Return a count that a configuration gives once, as a list, or in one configuration for each layer."""
    own = getattr(config, "per_layer_config", None)
    value = getattr(own[index] if own else config, name, None)
    chosen = value[index] if isinstance(value, list | tuple) else value
    return chosen if isinstance(chosen, int) else None


def _max_positions(config: PretrainedConfig) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 and not getattr(config, "alibi", False) else None


def _describe(layer: nn.Module) -> str:
    mixers = [name for name, child in layer.named_children() if "norm" not in name and "mlp" not in name]
    return f"no softmax self-attention ({', '.join(mixers) or type(layer).__name__})"


def _children(layer: nn.Module) -> str:
    return ", ".join(name for name, _ in layer.named_children()) or "no children"


def _unknown(network: PreTrainedModel, expected: str, got: str) -> ArchitectureError:
    return ArchitectureError(
        f"the attention heads of {type(network).__name__} could not be located",
        expected=expected,
        got=got,
        fix="add an ArchitectureRow for this model_type to truthheads.models.architectures.ROWS",
    )
