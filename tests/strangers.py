"""Two small language models of one shape, trained for a moment from different seeds: unrelated by birth."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from truthheads.synthetic.text import make_text
from zoo import tiny_tokenizer

LENGTH = 96


class Stranger(NamedTuple):
    """A trained model and the mean loss of its first and last five steps, in nats a token."""

    network: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    before: float
    after: float


@cache
def stranger(seed: int, *, steps: int = 60, layers: int = 3, heads: int = 4) -> Stranger:
    """Train a small Llama on generated contexts, byte by byte; seed decides weights and rows."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8 * heads,
        intermediate_size=16 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        network = LlamaForCausalLM(config)
    rows = [tokenizer(question.context).input_ids for question in make_text(200, seed=seed, split="train")]
    whole = np.array([token for row in rows for token in row])
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        starts = rng.integers(0, len(whole) - LENGTH, 16)
        ids = torch.from_numpy(np.stack([whole[start : start + LENGTH] for start in starts]))
        loss: Tensor = network(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return Stranger(network.eval().requires_grad_(False), tokenizer, np.mean(losses[:5]), np.mean(losses[-5:]))
