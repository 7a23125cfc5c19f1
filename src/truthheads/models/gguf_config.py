"""What transformers makes of a GGUF header: a configuration, and which tensors the network then expects."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from truthheads.errors import ModelError
from truthheads.models.gguf_header import GgufHeader, tensor_bytes
from truthheads.models.gguf_parts import join
from truthheads.models.pretrained import check_counts
from truthheads.models.whole_weights import check_names

ROPE = "rope_freqs.weight"
"""What llama.cpp divides the rotary frequencies by; Llama 3.1 and its descendants carry it."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""How all released models of Llama 3.1, 3.2 and 3.3 stretch their frequencies, by a factor of 8 or 32."""

NO_ADAPTER = {"subfolder": "no-adapter-is-looked-for"}
"""Given as ``adapter_kwargs`` it keeps ``from_pretrained`` from applying an adapter that lies beside the weights, whose
report would then stand in place of the weights' own."""


@contextmanager
def one_file(parts: Sequence[GgufHeader]) -> Iterator[Path]:
    """Yield a file with the whole header of a GGUF model: its own, or one that its parts are joined into, unfilled."""
    if len(parts) == 1:
        yield parts[0].path
        return
    with tempfile.TemporaryDirectory(prefix="truthheads-") as folder:
        file = Path(folder) / "joined.gguf"
        join(parts, file, data=False)
        yield file


def gguf_config(file: Path, parts: Sequence[GgufHeader]) -> Any:
    """Return the configuration that transformers reads from a GGUF file.

    It leaves out how Llama 3.1 stretches its rotary frequencies, which stands in a tensor; that is added here.

    Args:
        file: The model in one file.
        parts: Its headers.

    Raises:
        ModelError: The frequencies are stretched in a way that is not known.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )
    check_counts(str(parts[0].path), config.to_dict())
    config.dtype = torch.float32  # what it is converted to
    factors = _rope_factors(parts)
    if factors is None or (factors == 1).all():
        return config
    theta = float(config.rope_parameters["rope_theta"])
    stretched = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max()), **LLAMA3}
    if not np.allclose(factors, llama3_factors(theta, float(factors.max()), len(factors)), rtol=1e-3):
        raise ModelError(
            f"the rotary frequencies of {parts[0].path} are stretched in an unknown way",
            expected=f"{ROPE} as in Llama 3.1: {LLAMA3}",
            got=f"{len(factors)} factors from {factors.min():.4g} to {factors.max():.4g}",
            fix="give the original transformers folder",
        )
    config.rope_parameters = stretched
    return config


def llama3_factors(theta: float, factor: float, count: int) -> Float[np.ndarray, " count"]:
    """Return by what Llama 3.1 divides each of ``count`` rotary frequencies of base ``theta``.

    Long waves are divided by ``factor``, short ones left as they are, with a smooth step between.

    Source:
        ``_compute_llama3_parameters`` of transformers; ``rope_freqs`` of llama.cpp's ``convert_hf_to_gguf.py``.
    """
    waves = 2 * np.pi * theta ** (np.arange(count) / count)
    turns = LLAMA3["original_max_position_embeddings"] / waves
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    found: Float[np.ndarray, " count"] = 1 / ((1 - smooth) / factor + smooth)
    return found


def check_tensors(name: str, network: Any, parts: Sequence[GgufHeader]) -> None:
    """Raise ModelError where a GGUF model lacks a tensor of the network, or holds one that has no place in it.

    Args:
        name: What the user called the model.
        network: The network, on any device.
        parts: The model's headers.
    """
    architecture = str(parts[0].keys["general.architecture"].value)
    names = {tensor.name for part in parts for tensor in part.tensors} - {ROPE}
    expected = _expected(network, architecture)
    if expected is None:  # transformers reports what is missing and left over of these itself
        return
    tied = {gguf for gguf, own in expected.items() if own in (getattr(network, "all_tied_weights_keys", None) or {})}
    merged = {one for one in names | set(expected) if "_exps." in one}  # experts: joined or split by transformers
    check_names(name, set(expected) - merged, names - merged, optional=tied)


def _expected(network: Any, architecture: str) -> dict[str, str] | None:
    """Return the network's names by those that llama.cpp gives them; None where transformers has another reader."""
    from transformers import modeling_gguf_pytorch_utils as legacy

    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported  # since 5.22
    except ImportError:
        pass
    else:
        if is_gguf_arch_supported(architecture):
            return None
    processor = legacy.TENSOR_PROCESSORS.get(architecture, legacy.TensorProcessor)(config=network.config.to_dict())
    found: dict[str, str] = legacy.get_gguf_hf_weights_map(network, processor)
    return found


def _rope_factors(parts: Sequence[GgufHeader]) -> Float[np.ndarray, " count"] | None:
    for part in parts:
        for tensor in part.tensors:
            if tensor.name == ROPE and tensor.kind == 0:
                with part.path.open("rb") as opened:
                    opened.seek(part.start + tensor.offset)
                    return np.frombuffer(opened.read(tensor_bytes(tensor)), dtype="<f4").astype(np.float64)
    return None
