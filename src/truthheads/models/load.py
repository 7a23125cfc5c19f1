"""Load a model by its name, in full precision or in 8 or 4 bits; and what is wrong with how it is to be loaded."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from truthheads.errors import ModelError, TruthHeadsError
from truthheads.models.adapters import Adapter, find_adapter, merge
from truthheads.models.architectures import HeadLayout, locate_heads
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
from truthheads.models.gguf_config import NO_ADAPTER
from truthheads.models.inspection import check_source, skeleton
from truthheads.models.offload import execution_device, is_spread, scratch_folder, stored_tensors
from truthheads.models.pretrained import (
    borrowed_processor,
    explained,
    network_class_of,
    quiet,
    reach,
    read_config,
    read_processor,
    read_tokenizer,
)
from truthheads.models.quantised import check_stays_quantised, keep_unpacked, quantisation, quieten, stored_quantised
from truthheads.models.sources import resolve
from truthheads.models.whole_weights import check_loaded
from truthheads.plots.views import Shown, table_html
from truthheads.storage.artifacts import without_folder

FINGERPRINT_VALUES = 256


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
            **reach(source),
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
    return Model(
        network,
        tokenizer,
        sight,
        locate_heads(network),
        name,
        load_in or stored,
        None if adapter is None else str(adapter),
    )


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
    tried(lambda: check_source(name, how.get("trust_remote_code", False)))
    return found


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
