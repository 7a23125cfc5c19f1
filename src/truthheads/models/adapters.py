"""A PEFT adapter as a model: its base is loaded, and the adapter is merged into the base's weights in memory."""

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from truthheads.errors import ModelError
from truthheads.models.sources import gguf_path, resolve
from truthheads.models.weight_files import INDEX, SINGLE
from truthheads.models.whole_weights import incomplete, left_over
from truthheads.storage.artifacts import without_folder
from truthheads.storage.hub import hub_answers

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

FETCHED = [SETTINGS, WEIGHTS, "*.json", "*.model", "*.txt", "*.jinja"]

MERGED = ("LORA", "IA3", "LOHA", "LOKR", "ADALORA", "OFT", "BOFT", "HRA", "VERA")
"""Methods whose change of the weights can be added to them; a learned prompt cannot."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT adapter and the model that it belongs to.

    Attributes:
        folder: Where the adapter lies.
        base: The base model's name, as for ``load``.
        method: PEFT's name of the method, such as ``LORA``.
        beside: True where the base's weights lie in the adapter's own folder.
    """

    folder: Path
    base: str
    method: str
    beside: bool

    def __str__(self) -> str:
        """Return one phrase that says what is loaded."""
        base = "the weights beside it" if self.beside else without_folder(self.base)
        return f"{self.method} adapter in {self.folder.resolve().name}, merged into {base}"

    def refusal(self) -> str:
        """Return why a model with this adapter cannot be exported."""
        return f"the model is a base and a {self.method} adapter: merge them first (merge_and_unload, save_pretrained)"


def find_adapter(name: str) -> Adapter | None:
    """Return the adapter that a model's name stands for, or None of a whole model.

    A folder is an adapter's where ``adapter_config.json`` lies in it. Weights beside it are its base; without any, the
    base is what ``base_model_name_or_path`` says: a folder (also relative to the adapter's), a ``.gguf`` file or a hub
    id.

    Raises:
        ModelError: Its settings cannot be read, or name no base or a method that cannot be merged.
    """
    if gguf_path(name) is not None:
        return None
    source = resolve(name)
    folder = Path(source)
    if not folder.is_dir():
        if find_adapter_config_file(source, local_files_only=not hub_answers()) is None:
            return None
        folder = _fetched(name, source)
    elif not (folder / SETTINGS).is_file():
        return None
    settings = _settings(folder)
    method = str(settings.get("peft_type", "")).upper()
    beside = any((folder / file).is_file() for file in (SINGLE, INDEX))
    base = str(folder) if beside else _base(folder, settings)
    if method not in MERGED:
        raise ModelError(
            f"the adapter in {folder} cannot be merged into its base",
            expected=f"peft_type {', '.join(MERGED)} in {SETTINGS}",
            got=method or "none",
            fix="merge the adapter into its base model first (merge_and_unload, then save_pretrained), or take it out",
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"the adapter in {folder} has no weights that can be read",
            expected=WEIGHTS,
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:8]),
            fix="save it again with PEFT's save_pretrained, which writes safetensors; pickles can run code",
        )
    return Adapter(folder, base, method, beside)


def merge(name: str, network: PreTrainedModel, adapter: Adapter) -> PreTrainedModel:
    """Return the network with an adapter merged into its weights; heads are then where the base has them.

    The sum is computed in the weights' own type, as in a checkpoint that PEFT's ``merge_and_unload`` writes: the logits
    are those of base and adapter side by side to 1e-5 in fp32, and to the rounding of one weight in bf16.

    Raises:
        ModelError: The adapter does not fit the base, or some of its tensors are missing or have no place.
    """
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on attributes that transformers renamed, and on what is checked below
            config: Any = PeftConfig.from_pretrained(str(adapter.folder))
            wrapped: Any = PeftModel(network, config, autocast_adapter_dtype=True)
            found = wrapped.load_adapter(str(adapter.folder), "default", torch_device="cpu")
            missing, surplus = list(found.missing_keys), list(found.unexpected_keys)
            if missing or surplus:
                what = f"the adapter in {adapter.folder}"
                raise incomplete(what, missing) if missing else left_over(what, surplus)
            _untie(wrapped)
            merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    except (ModelError, MemoryError):
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"the adapter of {name} does not fit its base",
            expected=f"an adapter that was made for {adapter.base}",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix=f"check base_model_name_or_path in {adapter.folder / SETTINGS}, or download the adapter again",
        ) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged


def _untie(wrapped: nn.Module) -> None:
    """Give a module that the adapter changes weights of its own where it shares them, as output head with embedding.

    Merged in place, the change of the one would reach the other too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    changed = [module.get_base_layer() for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]
    owners = Counter(
        id(weight) for module in wrapped.modules() for weight in module._parameters.values() if weight is not None
    )
    for module in changed:
        if isinstance(module, nn.Module) and owners[id(module._parameters.get("weight"))] > 1:
            weight: Any = module.weight
            module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError(f"a JSON {type(settings).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read",
            expected="the JSON object that PEFT's save_pretrained writes",
            got=f"{type(error).__name__}: {error}"[:200],
            fix="download it again",
        ) from error
    return settings


def _base(folder: Path, settings: Mapping[str, object]) -> str:
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"the adapter in {folder} does not say which model it belongs to",
            expected=f"base_model_name_or_path in {SETTINGS}: a folder, a .gguf file or a hub id",
            got=repr(base)[:80],
            fix="write the base model's name there",
        )
    if not Path(base).expanduser().exists():  # an adapter of ours names a folder, not where it lay
        base = next((str(place / base) for place in (folder, folder.parent) if (place / base).exists()), base)
    if Path(base).is_dir() and (Path(base) / SETTINGS).is_file():
        raise ModelError(
            f"the base of the adapter in {folder} is an adapter itself",
            expected="a base with whole weights and no adapter",
            got=f"{base} with {SETTINGS}",
            fix="merge that one into its base first (merge_and_unload, then save_pretrained)",
        )
    return base


def _fetched(name: str, source: str) -> Path:
    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=[*FETCHED, SINGLE, INDEX, "model-*"]))
    except Exception as error:  # no network, no such revision: the library has an exception for each
        raise ModelError(
            f"{name} could not be loaded",
            expected="an adapter on the hub that can be reached",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="check the network; an adapter that is at hand loads by its folder",
        ) from error
