"""Whether a network and the file that it was loaded from hold the same parameters: none at random, none left over."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypedDict

from torch import nn

from truthheads.errors import ModelError

MOST_NAMED = 5

STALE = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|cos_cached|sin_cached|(k|v|q|prob)_scale)$|\.attn\.bias$")
"""Tensors that hold nothing a network computes with: buffers that earlier releases of transformers saved (frequencies,
masks, positions), and scales of an fp8 key-value cache, which only servers use."""

GGUF_STALE = re.compile(r"\.(rope_freqs|attn_rot_embd)(\.weight)?$|^blk\.\d+\.nextn\.")
"""Tensors of a GGUF file that are no parameters, and the layer that some models predict further tokens with."""

HEADLESS = re.compile(r"Model$")

BARE = "a class without the head that predicts words"


class LoadingInfo(TypedDict, total=False):
    """What ``from_pretrained`` says of the tensors that it could not place."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    error_msgs: Sequence[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]


def check_loaded(name: str, network: Any, info: LoadingInfo) -> None:
    """Raise ModelError where a network's parameters are not those of its files.

    Tied weights, buffers that are computed, and what the class itself declares as ignorable have been taken out by
    transformers. Whole parts of a checkpoint that the class does not build are no error: the vision tower of a model
    that is loaded as text, a value head, layers that predict further tokens. A tensor left over inside a layer or a
    projection that the network has, or a layer beyond its last, is one: the network would compute something else than
    the checkpoint says.

    Args:
        name: What the user called the model.
        network: What ``from_pretrained`` made.
        info: What it returned with ``output_loading_info`` and ``ignore_mismatched_sizes``.
    """
    mismatched = sorted(info.get("mismatched_keys") or ())
    if mismatched:
        key, stored, wanted = mismatched[0]
        more = f", and {len(mismatched) - 1} more such tensors" if len(mismatched) > 1 else ""
        raise ModelError(
            f"{name} could not be loaded: the tensor {key} has the wrong shape",
            expected=f"{_shape(wanted)}, as the configuration says: whole weights that fit config.json",
            got=f"{_shape(stored)}{more}",
            fix="give the configuration and the weights of one model; download both again",
        )
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise headless(name, network, missing) if _only_head(network, missing) else incomplete(name, missing)
    surplus = sorted(key for key in info.get("unexpected_keys") or () if belongs(network, key))
    if surplus:
        raise left_over(name, surplus)
    if info.get("error_msgs"):
        raise ModelError(
            f"{name} could not be loaded",
            expected="weights that fit config.json",
            got="; ".join(map(str, info["error_msgs"]))[:300],
            fix="download it again",
        )


def belongs(network: nn.Module, key: str) -> bool:
    """Return whether a tensor that the network does not read would be part of a layer or projection that it has.

    The deepest module on the tensor's path that exists decides: a list of layers (the tensor is of a layer beyond the
    last), a module inside such a layer, or one without modules of its own (a bias that the configuration leaves out).
    """
    if STALE.search(key):
        return False
    module, inside = network, False
    parts = key.split(".")
    for at, part in enumerate(parts):
        child = module._modules.get(part)
        if child is None:
            if part.isdigit():
                return isinstance(module, nn.ModuleList) and not _predicts_further(network, part)
            return (inside or not module._modules) and (at > 0)
        inside = inside or isinstance(module, nn.ModuleList)
        module = child
    return True


def incomplete(name: str, missing: Collection[str]) -> ModelError:
    """Return the error for parameters that are in no file; transformers would fill them with random numbers."""
    return ModelError(
        f"{name} could not be loaded: it lacks {_count(missing)} of its weights: {_named(missing)}",
        expected="whole safetensors or GGUF weights that fit config.json, every parameter of the network in a file",
        got=f"no weights for {_named(missing)}",
        fix="download the model again, all of its files",
    )


def left_over(name: str, surplus: Collection[str], *, gguf: bool = False) -> ModelError:
    """Return the error for tensors that the network has no place for, though they belong to what it computes."""
    return ModelError(
        f"{name} holds {_count(surplus)} that the network has no place for: {_named(surplus)}",
        expected="weights that fit config.json: no tensor left over inside a layer, and no layer beyond the last",
        got=_named(surplus),
        fix="give the original transformers folder: transformers reads a GGUF file of this kind in part"
        if gguf
        else "give the configuration and the weights of one model (number of layers, biases); download both again",
    )


def headless(name: str, network: Any, missing: Collection[str]) -> ModelError:
    """Return the error for a model that was saved without its language-model head."""
    named = getattr(getattr(network, "config", None), "architectures", None) or ["none"]
    return ModelError(
        f"{name} was saved without the head that predicts words ({_named(missing)}): its class is the reason",
        expected=f"the weights of {type(network).__name__}",
        got=f"the weights of {', '.join(map(str, named))}, {BARE}",
        fix=f"save it from {type(network).__name__} where it was trained, or give the model that it was made from",
    )


def check_names(name: str, expected: Iterable[str], found: Iterable[str], *, optional: Collection[str] = ()) -> None:
    """Raise ModelError where the tensors of a GGUF header are not the ones that a network expects.

    Args:
        name: What the user called the model.
        expected: GGUF names of the network's parameters.
        found: Names in the file.
        optional: Names among the expected that may be missing, because another tensor stands for them.
    """
    expected, found = set(expected), set(found)
    missing = sorted(expected - found - set(optional))
    if missing:
        raise incomplete(name, missing)
    surplus = sorted(one for one in found - expected if not GGUF_STALE.search(one))
    if surplus:
        raise left_over(name, surplus, gguf=True)


def _only_head(network: Any, missing: Collection[str]) -> bool:
    """Return whether a network was saved from a class without a head, and no more than that is missing."""
    prefix = str(getattr(network, "base_model_prefix", ""))
    named = list(getattr(network.config, "architectures", None) or [])
    bare = bool(named) and all(HEADLESS.search(one) and not one.endswith("LMHeadModel") for one in named)
    return bare and bool(prefix) and not any(key.startswith(f"{prefix}.") for key in missing)


def _predicts_further(network: Any, index: str) -> bool:
    """Return whether a layer beyond the last is one that predicts further tokens, as the configuration says."""
    config = network.config.get_text_config(decoder=True)
    first = int(getattr(config, "num_hidden_layers", 0))
    more = getattr(config, "num_nextn_predict_layers", None) or 0
    return first <= int(index) < first + int(more)


def _shape(value: Iterable[int]) -> str:
    return " x ".join(map(str, value)) or "one number"


def _count(names: Collection[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) != 1 else ''}"


def _named(names: Collection[str]) -> str:
    first = sorted(names)[:MOST_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
