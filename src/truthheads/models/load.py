"""Load a model, in full precision or in 8 or 4 bits, and know where its heads are."""

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from truthheads.errors import ModelError, TruthHeadsError
from truthheads.models.adapters import Adapter, find_adapter, merge
from truthheads.models.architectures import HeadLayout, locate_heads, widths
from truthheads.models.devices import (
    DeviceMap,
    MaxMemory,
    main_device,
    pick_device,
    pick_dtype,
    read_device_map,
    read_max_memory,
    spread_over,
)
from truthheads.models.gguf_config import NO_ADAPTER, check_tensors, gguf_config, one_file
from truthheads.models.gguf_parts import read_parts
from truthheads.models.offload import execution_device, is_spread, scratch_folder, stored_tensors
from truthheads.models.pretrained import (
    borrowed_processor,
    check_class,
    explained,
    network_class_of,
    quiet,
    read_config,
    read_processor,
    read_tokenizer,
    takes_images,
)
from truthheads.models.sources import converted, gguf_path, resolve
from truthheads.models.whole_weights import check_loaded
from truthheads.plots.views import Shown, table_html
from truthheads.storage.artifacts import without_folder

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


FINGERPRINT_VALUES = 256

EXPORTS = ("adapter", "checkpoint", "gguf")


class ModelSummary(TypedDict):
    """What an artefact says about the model that it was made on.

    Attributes:
        name: What the user called it.
        fingerprint: Fingerprint of its weights.
        architecture: The network's class.
        load_in: How its weights are quantised, where they are.
        adapter: The PEFT adapter that is merged into them, where there is one.
    """

    name: str
    fingerprint: str
    architecture: str
    load_in: NotRequired[str]
    adapter: NotRequired[str]


@dataclass(frozen=True, repr=False)
class Model(Shown):
    """A network with its tokenizer, processor and heads.

    Attributes:
        network: The transformers model, in eval mode; parameters are frozen, except of a network given in memory.
        tokenizer: Its tokenizer.
        processor: Its processor where it takes images and was saved with one, else None.
        layout: Where its heads are.
        name: What the user called it.
        load_in: What its weights are quantised to: as ``load`` was told, or as its checkpoint says; else None.
        adapter: Which PEFT adapter was merged into its weights, or is at work in them; or None.
        in_memory: True where the network was given in memory: its owner may change it, and no file holds it.
    """

    network: PreTrainedModel
    tokenizer: Any
    processor: Any
    layout: HeadLayout
    name: str
    load_in: str | None = None
    adapter: str | None = None
    in_memory: bool = False

    def __post_init__(self) -> None:
        """See to it that every pass computes with the weights that were loaded; ModelError where it is too late."""
        keep_unpacked(self.network)

    @property
    def device(self) -> torch.device:
        """Where token ids are to be sent: to the embedding, which may be elsewhere than other layers."""
        if is_spread(self.network):
            return execution_device(self.network.get_input_embeddings())
        place: torch.device = self.network.device
        return place

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        kind: torch.dtype = self.network.dtype
        return kind

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the weights: names, shapes and 256 evenly spaced values of each, rounded to bf16.

        Rounded, so that one checkpoint loaded in bf16 and in fp32 has one fingerprint; offloaded or spread over devices
        it has the same. Quantised, it is another model and has another.
        """
        return self._digest() if self.in_memory else self._digest_once

    @cached_property
    def _digest_once(self) -> str:
        return self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, value in stored_tensors(self.network):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            for part in _plain(value):
                flat = part.reshape(-1)
                sample = flat[:: max(1, flat.numel() // FINGERPRINT_VALUES)][:FINGERPRINT_VALUES]
                digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:32]

    def in_short(self) -> str:
        """Return name, class, shape, type and place of the weights, and whether it sees images."""
        kind = self.load_in or str(self.dtype).removeprefix("torch.")
        more = [", ".join(filter(None, (self.adapter, "takes images" if self.processor is not None else None)))]
        shape = f"{self.layout.num_layers} layers x {self.layout.num_heads} heads"
        facts = [repr(self.name), self.layout.architecture, shape, f"{kind} on {self.device}", *filter(None, more)]
        return ", ".join(facts)

    def _repr_html_(self) -> str:
        return table_html(self.in_short(), [])

    def describe(self) -> ModelSummary:
        """Describe the model for an artefact's metadata."""
        said: ModelSummary = {
            "name": without_folder(self.name),
            "fingerprint": self.fingerprint,
            "architecture": self.layout.architecture,
        }
        if self.load_in is not None:
            said["load_in"] = self.load_in
        if self.adapter is not None:
            said["adapter"] = self.adapter
        return said


def _plain(value: Tensor) -> Iterator[Tensor]:
    """Yield a tensor, or the plain ones that a quantised one is made of."""
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from _plain(getattr(value, name))
    else:
        yield value


class Loading(TypedDict, total=False):
    """How a model is loaded; see :func:`truthheads.load`."""

    device: str
    dtype: str
    device_map: DeviceMap | None
    max_memory: MaxMemory | None
    offload_folder: str | Path | None
    load_in: str | None
    trust_remote_code: bool
    processor: str | None


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    offload_folder: str | Path | None = None,
    load_in: str | None = None,
    trust_remote_code: bool = False,
    processor: str | None = None,
) -> Model:
    """Load a model by its name; see :func:`truthheads.load`."""
    spread = None if device_map is None and max_memory is None else read_device_map(device_map or "auto")
    if spread is not None and device != "auto":
        raise ModelError(
            "--device and --device-map exclude each other",
            expected="--device or --device-map",
            got=f"--device {device} and a device map",
            fix="leave one of them out",
        )
    place = pick_device(device) if spread is None else main_device(spread)
    kind = pick_dtype(dtype, place)
    limits = None if max_memory is None else read_max_memory(max_memory)
    adapter = find_adapter(name)
    source = resolve(name if adapter is None else adapter.base)
    config = read_config(name, source, trust_remote_code)
    stored = stored_quantised(config)
    if adapter is not None:
        _check_mergeable(name, adapter, load_in or stored, spread)
    if load_in is not None and stored is not None:
        raise ModelError(
            f"the weights of {name} are quantised already",
            expected="unquantised weights for --load-in",
            got=stored,
            fix="leave --load-in out",
        )
    settings: dict[str, Any] = {}
    if load_in is not None or stored is not None:
        quieten()
    if isinstance(spread, dict):
        spread = spread_over(spread, skeleton(name, trust_remote_code=trust_remote_code))
    tokenizer = read_tokenizer(name, _tokenizer_source(adapter, source), trust_remote_code)
    seen = getattr(config, "thinker_config", config)  # the thinker's class reads no more than its own
    if processor is None:
        sight = read_processor(source, seen, trust_remote_code)
    else:
        sight = borrowed_processor(name, processor, resolve(processor), seen, trust_remote_code)
    whole = explained(name, "whole safetensors weights that fit config.json", quantised=stored is not None)
    with quiet(source), whole, scratch_folder() as scratch:
        if load_in is not None:
            settings = {"quantization_config": quantisation(load_in, kind), "device_map": {"": place}}
        if spread is not None:
            folder = offload_folder or scratch.folder()
            settings |= {"device_map": spread, "max_memory": limits, "offload_folder": folder}
        network_class = network_class_of(config)
        network, info = network_class.from_pretrained(
            source,
            config=seen,
            dtype=kind,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # and refused below, by name
            adapter_kwargs=dict(NO_ADAPTER),
            **settings,
        )
        check_loaded(name, network, info)
        if adapter is not None:
            network = merge(name, network, adapter)
        scratch.keep_for(network)
    if not settings:
        network = network.to(place)
    elif load_in is not None:
        check_stays_quantised(network, load_in)
    network = network.eval().requires_grad_(False)
    return Model(network, tokenizer, sight, locate_heads(network), name, load_in or stored, _said(adapter))


def loading_faults(name: str, **how: Unpack[Loading]) -> list[TruthHeadsError]:
    """List all that is wrong with what :func:`load` would be told, before a weight is read; empty where nothing is.

    Args:
        name: As for ``load``.
        how: As for ``load``.
    """
    found: list[TruthHeadsError] = []

    def tried(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except TruthHeadsError as error:
            found.append(error)
            return None

    device, device_map, max_memory = how.get("device", "auto"), how.get("device_map"), how.get("max_memory")
    if device_map is None and max_memory is None:
        place = tried(lambda: pick_device(device))
    else:
        spread = tried(lambda: read_device_map(device_map or "auto"))
        place = None if spread is None else tried(lambda: main_device(spread))
    tried(lambda: pick_dtype(how.get("dtype", "auto"), place or torch.device("cpu")))
    if max_memory is not None:
        tried(lambda: read_max_memory(max_memory))
    tried(lambda: _check_source(name, how.get("trust_remote_code", False)))
    return found


def _check_source(name: str, trust_remote_code: bool) -> None:
    """Raise ModelError where a model is not there, or its configuration or GGUF headers cannot be used."""
    adapter = find_adapter(name)
    base = name if adapter is None else adapter.base
    path = gguf_path(base)
    if path is not None and converted(path) is None:
        _from_header(name, path)
    else:
        read_config(name, resolve(base), trust_remote_code)


def _said(adapter: Adapter | None) -> str | None:
    return None if adapter is None else str(adapter)


def _check_mergeable(name: str, adapter: Adapter, quantised: str | None, spread: DeviceMap | None) -> None:
    """Raise ModelError where an adapter cannot be merged exactly: into quantised weights, or into ones elsewhere."""
    if quantised is None and spread is None:
        return
    raise ModelError(
        f"the adapter in {adapter.folder} cannot be merged while {name} is loaded in this way",
        expected="a base in bf16, fp16 or fp32, on one device",
        got=f"weights quantised to {quantised}" if quantised is not None else "a device map",
        fix="merge it into the unquantised base first (merge_and_unload, then save_pretrained), and give that folder",
    )


def _tokenizer_source(adapter: Adapter | None, source: str) -> str:
    """Return where the tokenizer lies: beside the adapter where it was trained with one of its own."""
    own = adapter is not None and (adapter.folder / "tokenizer_config.json").is_file()
    return str(adapter.folder) if adapter is not None and own else source


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
        adapter=_said(adapter),
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
    adapter = find_adapter(name)
    base = name if adapter is None else adapter.base
    path = gguf_path(base)
    if path is not None and converted(path) is None:
        return _from_header(name, path)
    source = resolve(base)
    config = read_config(name, source, trust_remote_code)
    with quiet(source), explained(name, "a configuration that its class accepts"):
        return _made(config)


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
