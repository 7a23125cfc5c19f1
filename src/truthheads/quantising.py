"""Weights in 8 or 4 bits: made while a model is loaded, or stored so already."""

import importlib.util
import logging
from typing import Any, Literal, get_args

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from truthheads.errors import ModelError

LoadIn = Literal["8bit", "4bit", "int8"]
"""``8bit`` (LLM.int8) and ``4bit`` (NF4) by bitsandbytes, ``int8`` (weights alone, rounded row by row) by torchao."""
PACKAGES = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}


def quantisation(load_in: str, dtype: torch.dtype) -> Any:
    """Return the configuration with which transformers quantises while it loads.

    Args:
        load_in: See ``LoadIn``.
        dtype: In which products are computed and everything that is not quantised is kept.

    Raises:
        ModelError: The name is not known, or the package that does it is not installed.

    Source:
        Dettmers et al. (2022), https://arxiv.org/abs/2208.07339 (``8bit``); Dettmers et al. (2023),
        https://arxiv.org/abs/2305.14314 (``4bit``).
    """
    if load_in not in get_args(LoadIn):
        raise ModelError(
            f"weights cannot be loaded in {load_in!r}",
            expected=" or ".join(get_args(LoadIn)),
            got=load_in,
            fix="choose one of them; --dtype bf16 halves fp32",
        )
    package = PACKAGES[load_in]
    if importlib.util.find_spec(package) is None:
        raise ModelError(
            f"{package} is not installed",
            expected=f"{package}, which loads weights in {load_in}",
            got="no such package",
            fix=f"pip install {package}",
        )
    if package == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    # It says in every product that inputs are cast to fp16, which is how it works.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def stored_quantised(config: PreTrainedConfig) -> str | None:
    """Return by which method the weights of a checkpoint are quantised already, or None."""
    parts = (config, config.get_text_config(decoder=True))
    found = next((part.quantization_config for part in parts if getattr(part, "quantization_config", None)), None)
    if found is None:
        return None
    how = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(how, "value", how) or "unknown")


def check_whole(network: PreTrainedModel, load_in: str) -> None:
    """Raise ModelError where quantised layers were sent where they would not stay quantised."""
    places = set(map(str, (getattr(network, "hf_device_map", None) or {}).values()))
    if "disk" in places or (places - {"cpu"} and "cpu" in places):
        raise ModelError(
            f"weights in {load_in} cannot be offloaded",
            expected="a model that fits its devices when it is quantised",
            got=f"layers on {', '.join(sorted(places))}",
            fix="use --load-in 4bit, a larger --max-memory, or leave --load-in out",
        )
