"""What the tests of exports read without the package: networks by their own classes, and the bytes of checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from zoo import ZooRow, text_inputs

IDS = torch.randint(20, 270, (2, 9), generator=torch.Generator().manual_seed(0))


def network_of(row: ZooRow, folder: Path) -> PreTrainedModel:
    """Load a folder with the row's own class; the whole of Omni needs files of voices, so its thinker is loaded."""
    name, settings = row.model_class, {}
    if row.runner:
        name = "Qwen2_5OmniThinkerForConditionalGeneration"
        settings = {"config": transformers.AutoConfig.from_pretrained(folder).thinker_config}
    network, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **settings
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return network.eval()  # type: ignore[no-any-return]


def logits_of(row: ZooRow, network: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = network(input_ids=IDS, **text_inputs(row, torch.ones_like(IDS))).logits
    return found


def header_of(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return json.loads(opened.read(int.from_bytes(opened.read(8), "little")))  # type: ignore[no-any-return]


def raw_tensors(folder: Path) -> dict[str, bytes]:
    """Return every tensor's bytes, read without the package."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        data = file.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        for name, item in header_of(file).items():
            if name != "__metadata__":
                first, last = item["data_offsets"]
                found[name] = data[begin + first : begin + last]
    return found


def with_config(folder: Path, **more: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
