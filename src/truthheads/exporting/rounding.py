"""What it costs to round changed weights to a GGUF file's types, measured on neutral text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from truthheads.exporting.gguf_adapter import names_in, values_of
from truthheads.models.gguf_parts import read_parts
from truthheads.models.hooks import place_updates
from truthheads.models.load import Model, load
from truthheads.models.neutral_text import measure_harm, neutral_ids
from truthheads.results.head_adapter import HeadAdapter
from truthheads.stats.figures import Figure

TEXTS = 24


@dataclass(frozen=True, slots=True)
class Swapped:
    """An intervention that puts other weights in place of a network's.

    Attributes:
        weights: By the paths of their modules.
    """

    weights: Mapping[str, Tensor]

    @contextmanager
    def apply(self, model: Model | PreTrainedModel) -> Iterator[None]:
        """Put the weights in place inside the block."""
        network = model.network if isinstance(model, Model) else model
        own = {path: _weight(network.get_submodule(path)).data for path in self.weights}
        try:
            for path, value in self.weights.items():
                _weight(network.get_submodule(path)).data = value
            yield
        finally:
            for path, value in own.items():
                _weight(network.get_submodule(path)).data = value


def rounding_cost(name: str, adapter: HeadAdapter, written: Path, *, seed: int) -> Figure:
    """Return how far a GGUF file with an adapter is from the exact sum of weights and adapter, in nats a token.

    It is the mean KL divergence of the file's next-token distributions from those of the exact sum, in fp32, on text
    that the model itself writes.

    Args:
        name: The model, a ``.gguf`` file.
        adapter: The adapter.
        written: The file with the adapter inside.
        seed: Random seed of the text and of the interval.

    Raises:
        ModelError: The model cannot be loaded.
    """
    model = load(name, dtype="fp32")
    rows = neutral_ids(model, [], texts=TEXTS, seed=seed)
    updates = place_updates(model.network, model.layout, adapter.updates)
    (part,) = read_parts(written)
    names = names_in(part)
    tensors = {tensor.name: tensor for tensor in part.tensors}
    rounded = {}
    for path, update in updates.items():
        module = model.network.get_submodule(path)
        weight, turned = _weight(module), isinstance(module, Conv1D)
        stored = names.tensor(path)
        values = values_of(part, tensors[stored])
        order = names.order(stored, len(values))
        if order is not None:
            values = values[np.argsort(order)]
        found = torch.from_numpy(values).to(weight.device)
        change = (update.b @ update.a).to(weight.device)
        rounded[path] = (found.T if turned else found).contiguous()
        weight.data = weight.data + (change.T if turned else change)
    return measure_harm(model, rows, Swapped(rounded)).figures(seed=seed)["kl"]


def _weight(module: nn.Module) -> nn.Parameter:
    weight: Any = module.weight
    return weight  # type: ignore[no-any-return]
