"""Where the weights come from, and whether they can take a gate."""

import json
from pathlib import Path
from typing import Any

from truthheads.artifacts import KEY
from truthheads.errors import ModelError
from truthheads.exports.headers import read_header
from truthheads.sources import local_folder

OTHER_WEIGHTS = (".bin", ".gguf", ".pth", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".tflite", ".ckpt")
"""Formats that do not get the gate, and are therefore left behind; ``.pt`` is not among them (Omni keeps its voices in
one)."""
NOT_FETCHED = [*(f"*{suffix}" for suffix in OTHER_WEIGHTS), "consolidated*"]


def source_folder(name: str) -> Path:
    """Return the folder with all of a model's files but other formats' weights; ModelError where there is none."""
    return local_folder(name, ignore_patterns=NOT_FETCHED)


def check_source(folder: Path) -> None:
    """Raise ModelError where a folder's weights cannot take a gate.

    Raises:
        ModelError: It is an adapter, its weights are quantised, or it has no configuration that can be read.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter",
            expected="whole weights",
            got="adapter_config.json",
            fix="merge the adapter into its base model first (merge_and_unload, then save_pretrained)",
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{folder} is not a model folder",
            expected="a folder with config.json",
            got=f"{type(error).__name__}: {error}",
            fix="give the folder that save_pretrained wrote",
        ) from error
    found = _quantisation(config)
    if found is not None:
        raise quantised(folder, f"{found.get('quant_method', 'quantised')} weights, as config.json says")


def check_ungated(folder: Path) -> None:
    """Raise ModelError where a checkpoint of ours has a gate inside already."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            note = json.loads(read_header(file).meta.get(KEY, "null"))
        except (ValueError, OSError, RecursionError, TypeError):
            continue  # damaged: the reader of the tensors says it better
        if isinstance(note, dict) and "gate" in note:
            raise ModelError(
                f"{folder} has a gate inside already",
                expected="the model without a gate",
                got=f"gate {note['gate']} in {file.name}",
                fix="export from the base model; to have both gates, multiply them into one",
            )


def quantised(folder: Path, got: str) -> ModelError:
    """Return the error for weights that are no plain numbers."""
    return ModelError(
        f"the weights of {folder} are quantised and cannot be scaled column by column",
        expected="weights in bf16, fp16 or fp32: quantised ones share one scale in a block, which a gate would split",
        got=got,
        fix="gate the unquantised model and quantise that, or use --to adapter where `truthheads inspect` lists it",
    )


def _quantisation(config: Any) -> dict[str, Any] | None:
    """Return what a configuration, or one inside it, says about quantised weights."""
    if not isinstance(config, dict):
        return None
    for key in ("quantization_config", "compression_config"):
        if isinstance(config.get(key), dict):
            return dict(config[key])
    return next((found for value in config.values() if (found := _quantisation(value)) is not None), None)
