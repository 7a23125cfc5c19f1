"""Weights in 8 or 4 bits: what transformers is told, and what must not happen to them afterwards."""

import importlib.util
import logging
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from truthheads.errors import ModelError

LoadIn = Literal["8bit", "4bit", "int8"]
"""``8bit`` (LLM.int8) and ``4bit`` (NF4) by bitsandbytes, ``int8`` (weights alone, rounded row by row) by torchao."""

PACKS, PACKED = "support_avx512bf16_for_cpu", "packing_format_for_cpu"
"""What bitsandbytes calls that a layer will pack its weights on the CPU, and that it has done so (since 0.49)."""

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
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def quieten() -> None:
    """Switch off two messages of bitsandbytes that nobody can act on; to be called before transformers imports it.

    One is written in every product of ``8bit``: inputs are cast to fp16, which is how it works. The other asks for a
    faster kernel for packed weights, which :func:`keep_unpacked` does not let it make.
    """
    for module in ("autograd._functions", "backends.cpu.ops"):
        logging.getLogger(f"bitsandbytes.{module}").setLevel(logging.ERROR)


def keep_unpacked(network: nn.Module) -> None:
    """Keep bitsandbytes from packing the 4-bit weights of a network anew in a forward pass on the CPU.

    On a processor with AVX-512 bf16 its layers do so in the first pass without gradients, and the weights are not what
    they were afterwards: scales and inputs are rounded to bf16 whatever the dtype, the product has no backward pass, so
    that gradients stop there, and reading the weights (``state_dict``) scrambles them for the next pass.
    Decision 0011 has the figures.

    Raises:
        ModelError: A layer was packed before.
    """
    for name, module in network.named_modules():
        if getattr(getattr(getattr(module, "weight", None), "quant_state", None), PACKED, False):
            raise ModelError(
                f"the 4-bit weights of {name} were rounded by a forward pass",
                expected="weights as they were loaded",
                got="weights that bitsandbytes packed anew for this processor, whose products have no gradients",
                fix="load the network again, with truthheads.load, or make the Model before the first forward pass",
            )
        if hasattr(module, PACKS):
            setattr(module, PACKS, False)


def stored_quantised(config: PreTrainedConfig) -> str | None:
    """Return by which method the weights of a checkpoint are quantised already, or None."""
    parts = (config, config.get_text_config(decoder=True))
    found = next((part.quantization_config for part in parts if getattr(part, "quantization_config", None)), None)
    if found is None:
        return None
    how = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(how, "value", how) or "unknown")


def check_stays_quantised(network: PreTrainedModel, load_in: str) -> None:
    """Raise ModelError where quantised layers were sent where they would not stay quantised."""
    places = set(map(str, (getattr(network, "hf_device_map", None) or {}).values()))
    if "disk" in places or (places - {"cpu"} and "cpu" in places):
        raise ModelError(
            f"weights in {load_in} cannot be offloaded",
            expected="a model that fits its devices when it is quantised",
            got=f"layers on {', '.join(sorted(places))}",
            fix=("" if load_in == "4bit" else "use --load-in 4bit, ")
            + "give a larger --max-memory, or leave --load-in out",
        )
