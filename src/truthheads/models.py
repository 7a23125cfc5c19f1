"""Load a model and know where its heads are."""

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from truthheads.architectures import HeadLayout, locate_heads, widths
from truthheads.configs import check_config
from truthheads.devices import pick_device, pick_dtype
from truthheads.errors import ModelError
from truthheads.sources import resolve, smollm2_gguf

FINGERPRINT_VALUES = 256


@dataclass(frozen=True)
class Model:
    """A network with its tokenizer, processor and heads.

    Attributes:
        network: The transformers model, in eval mode, parameters frozen.
        tokenizer: Its tokenizer.
        processor: Its processor where it takes images, else None.
        layout: Where its heads are.
        name: What the user called it.
    """

    network: PreTrainedModel
    tokenizer: Any
    processor: Any
    layout: HeadLayout
    name: str

    @property
    def device(self) -> torch.device:
        """Where token ids are to be sent."""
        place: torch.device = self.network.device
        return place

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        kind: torch.dtype = self.network.dtype
        return kind

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the weights: names, shapes and 256 evenly spaced values of each, rounded to bf16.

        Rounded, so that one checkpoint loaded in bf16 and in fp32 has one fingerprint.
        """
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            flat = value.reshape(-1)
            sample = flat[:: max(1, flat.numel() // FINGERPRINT_VALUES)][:FINGERPRINT_VALUES]
            digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:32]


def load(name: str, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> Model:
    """Load a model with its tokenizer.

    Args:
        name: A transformers folder or hub id, a ``.gguf`` file, ``smollm2``, ``smollm2:reader`` or ``smollm2:vision``.
        device: ``auto`` (the first accelerator, else the CPU) or a torch device.
        dtype: ``auto`` (bf16 where the hardware has it, else fp32), ``bf16``, ``fp16`` or ``fp32``.
        trust_remote_code: Run modelling code that comes with the model. Off: such a model is refused.

    Raises:
        ModelError: The model or its tokenizer is missing, damaged, or needs code that is not allowed to run.
        ArchitectureError: Its heads could not be located.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    source = resolve(name)
    config = _config(name, source, trust_remote_code)
    tokenizer = _tokenizer(name, source, trust_remote_code)
    with _quiet(source), _explained(name, "whole safetensors weights that fit config.json"):
        network_class = _network_class(config, trust_remote_code)
        config = getattr(config, "thinker_config", config)  # the thinker's class reads no more than its own
        network, info = network_class.from_pretrained(
            source, config=config, dtype=kind, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        if info["missing_keys"]:  # transformers fills them with random numbers
            raise ValueError(f"no weights for {', '.join(sorted(info['missing_keys']))}")
    network = network.to(place).eval().requires_grad_(False)
    return Model(network, tokenizer, _processor(source, config, trust_remote_code), locate_heads(network), name)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a model without loading its weights.

    Attributes:
        layout: Where its heads are.
        parameters: Number of parameters, tied ones counted once.
        dtype: Type that the configuration names, or None.
        image: True where the model takes images.
        sites: What a gate may scale.
        exports: What a gate may become.
        refused: The sites and exports that are not among them, and why.
    """

    layout: HeadLayout
    parameters: int
    dtype: str | None
    image: bool
    sites: tuple[str, ...]
    exports: tuple[str, ...]
    refused: dict[str, str]

    def json(self) -> dict[str, Any]:
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
        }


def inspect(name: str, *, trust_remote_code: bool = False) -> Inspection:
    """Return the heads of a model from its configuration alone; no weight is read or allocated.

    Args:
        name: As for :func:`load`; the folder need not hold weights or a tokenizer.
        trust_remote_code: As for :func:`load`.

    Raises:
        ModelError: There is no usable configuration.
        ArchitectureError: Its heads could not be located.
    """
    network = skeleton(name, trust_remote_code=trust_remote_code)
    config = network.config
    layout = locate_heads(network)
    stored = getattr(config.get_text_config(decoder=True), "dtype", None) or getattr(config, "dtype", None)
    refused = _refused(name, config, network, layout)
    return Inspection(
        layout=layout,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        dtype=None if stored is None else str(stored).removeprefix("torch."),
        image=_takes_images(config),
        sites=tuple(site for site in ("z", "output") if site not in refused),
        exports=tuple(target for target in ("adapter", "checkpoint", "gguf") if target not in refused),
        refused=refused,
    )


def _refused(name: str, config: PreTrainedConfig, network: PreTrainedModel, layout: HeadLayout) -> dict[str, str]:
    """Return what a gate of this model cannot scale or become, and why."""
    refused = {}
    outs = [(widths(network.get_submodule(head.path)), head) for head in layout.layers]
    if not all(wide and wide[1] % head.num_heads == 0 for wide, head in outs):
        refused["output"] = "the projections' width is no multiple of the heads"
    parts = (config, config.get_text_config(decoder=True))
    found = next((part.quantization_config for part in parts if getattr(part, "quantization_config", None)), None)
    if found is not None:
        how = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
        how = str(getattr(how, "value", how) or "unknown")
        refused["checkpoint"] = f"a factor merged into quantised weights ({how}) would be rounded away"
        if how != "bitsandbytes":
            refused["adapter"] = f"PEFT's IA³ does not wrap {how} layers; the hook (`gated`) works"
    if not (name.lower().endswith(".gguf") or (name == "smollm2" and smollm2_gguf() is not None)):
        refused["gguf"] = "the model is no .gguf file"
    return refused


def skeleton(name: str, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a model's network without weights, on the meta device; ModelError without a usable configuration."""
    source = resolve(name)
    config = _config(name, source, trust_remote_code)
    with _quiet(source), _explained(name, "a configuration that its class accepts"), torch.device("meta"):
        network_class = _network_class(config, trust_remote_code)
        config = getattr(config, "thinker_config", config)
        make = getattr(network_class, "_from_config", None) or network_class.from_config
        network: PreTrainedModel = make(config)
    network.tie_weights()
    return network


def _config(name: str, source: str, trust_remote_code: bool) -> PreTrainedConfig:
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} is not a model folder",
            expected="a folder with config.json",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "an empty folder",
            fix="give the folder that save_pretrained wrote",
        )
    if folder.is_dir():
        check_config(folder)
    with _quiet(source), _explained(name, "a config.json of an architecture that transformers knows"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    return config


def _network_class(config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    """Return the class that the configuration names where it generates text, else the auto class for its type."""
    if hasattr(config, "thinker_config"):  # an omni model: its talker and its own from_pretrained stay out
        return getattr(transformers, type(config).__name__.replace("Config", "ThinkerForConditionalGeneration"))
    generators: set[str] = set()
    for table in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for names in table.values():
            generators.update([names] if isinstance(names, str) else names)
    for architecture in getattr(config, "architectures", None) or []:
        named = getattr(transformers, architecture, None)
        if named is not None and (architecture in generators or architecture.endswith("ForConditionalGeneration")):
            return named
    model_type = getattr(config, "model_type", "")
    if model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _tokenizer(name: str, source: str, trust_remote_code: bool) -> Any:
    folder = Path(source)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        raise ModelError(
            f"{name} has no tokenizer",
            expected="tokenizer.json (or tokenizer.model, vocab.json) beside config.json",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]),
            fix="copy the tokenizer of the model's base into the folder: tokenizer.save_pretrained(folder)",
        )
    with _quiet(source), _explained(name, "a tokenizer that transformers can read"):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)


def _takes_images(config: PreTrainedConfig) -> bool:
    return config.get_text_config(decoder=True) is not config and hasattr(config, "vision_config")


def _processor(source: str, config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    if not _takes_images(config):
        return None
    with _quiet(source), _explained(source, "a processor that transformers can read"):
        return AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)


@contextmanager
def _explained(name: str, expected: str) -> Iterator[None]:
    """Turn whatever transformers raises for a model that it cannot read into one clear message."""
    try:
        yield
    except (KeyboardInterrupt, ModelError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        got = f"{type(error).__name__}: {text[:300]}"
        fix = "check the folder or hub id; download damaged files again"
        if "trust_remote_code" in text:
            got, fix = "a model that brings its own code", "read that code, then pass --trust-remote-code"
        elif "couldn't connect" in text:
            got = "no such folder, and no connection to the hub"
            fix = "check the spelling, or the network; a model that is at hand loads by its folder"
        elif isinstance(error, ImportError):
            fix = "install what this model's processor needs: pip install 'truthheads[vision]'"
        raise ModelError(f"{name} could not be loaded", expected=expected, got=got, fix=fix) from error


@contextmanager
def _quiet(source: str) -> Iterator[None]:
    """Keep the libraries' own notes off the terminal, and their bars where nothing is downloaded."""
    ours, hub = transformers.utils.logging, huggingface_hub.utils.logging
    before, hub_before, bars = ours.get_verbosity(), hub.get_verbosity(), ours.is_progress_bar_enabled()
    ours.set_verbosity_error()
    hub.set_verbosity_error()  # type: ignore[no-untyped-call]
    if Path(source).is_dir():
        ours.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            yield
    finally:
        ours.set_verbosity(before)
        hub.set_verbosity(hub_before)
        if bars:
            ours.enable_progress_bar()
