"""Questions, models and activations that the benchmarks run on."""

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from truthheads.data.answers import list_answers
from truthheads.data.questions import Question
from truthheads.data.readers import read_questions
from truthheads.models.architectures import locate_heads
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.load import Model, load
from truthheads.models.prompts import encode
from truthheads.scoring.activations import collect, field_name
from truthheads.synthetic.text import make_text

NQSWAP = Path(os.environ.get("TRUTHHEADS_DATA", "../shared/data")) / "nqswap.parquet"


@cache
def smollm2(dtype: str = "auto") -> Model:
    """Return SmolLM2-135M; loaded once for each type."""
    return load("smollm2", dtype=dtype)


def nqswap(rows: int) -> Sequence[Question] | None:
    """Return rows of NQ-Swap (long contexts), evenly from its first 100, or None where the file is not there."""
    if not NQSWAP.is_file():
        return None
    return read_questions(NQSWAP, limit=100)[:: 100 // rows][:rows]


def embedded(rows: int, *, seed: int = 0) -> list[Question]:
    """Return generated rows (short contexts)."""
    return make_text(rows, seed=seed)


def random_llama(num_layers: int, num_heads: int) -> Model:
    """Return a tiny Llama with random weights whose cost grows with layers × heads and with nothing else.

    Hidden and MLP width stay, and every head has its own keys, so twice the heads is twice the attention.
    """
    tokenizer = smollm2().tokenizer
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=16,
        max_position_embeddings=4096,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = transformers.LlamaForCausalLM(config)
    network = network.eval().requires_grad_(False)
    return Model(network, tokenizer, None, locate_heads(network), f"random-llama-{num_layers}x{num_heads}")


def activations(model: Model, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """Return z of every answer ``[num_layers, num_heads, answers, head_dim]`` in fp32, and the labels (0 or 1)."""
    encoded = encode(model, questions)
    label = torch.from_numpy(list_answers(questions).label).float()
    with tempfile.TemporaryDirectory() as folder:
        store = collect(
            model, encoded, questions, Path(folder), identity="bench", batch_tokens=pick_batch_tokens(model.device)
        )
        layers = [store.read(field_name(head.index)).transpose(0, 1).float() for head in model.layout.layers]
        z = torch.stack(layers)
        store.close()
    return z, label


def synthetic(heads: int, n: int, width: int) -> tuple[Tensor, Tensor]:
    """Return made-up activations ``[heads, n, width]`` whose heads know from nothing to nearly everything, and labels.

    Coordinates are correlated and differ in scale, as those of real heads do.
    """
    draw = np.random.default_rng(0)
    label = (np.arange(n) % 2).astype(np.float32)
    z = np.empty((heads, n, width), dtype=np.float32)
    for head, strength in enumerate(np.linspace(0, 3, heads)):
        mixing = draw.standard_normal((width, width), dtype=np.float32) * np.geomspace(1, 0.05, width, dtype=np.float32)
        way = draw.standard_normal(width, dtype=np.float32)
        way *= strength / np.linalg.norm(way)
        noise = draw.standard_normal((n, width), dtype=np.float32)
        z[head] = (noise + (label - 0.5)[:, None] * way) @ mixing.T / width**0.5
    return torch.from_numpy(z), torch.from_numpy(label)
