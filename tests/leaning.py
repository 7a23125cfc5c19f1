"""A network that leans towards yes: one head writes the lean, another what it knows, and a gate can take the lean away.

A real GPT-2 of one layer. Every token is a coordinate pair of its own, so LayerNorm multiplies all of them by one
number. Head 0 attends to all tokens alike and writes how many more lying words it saw than true ones; head 1 writes
a constant. The language-model head says yes to both.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from truthheads.storage.files import dumps
from zoo import tiny_tokenizer

KNOWS, LEANS = 0, 1
TRUE, LYING = ("north", "amber", "seven"), ("south", "cobalt", "eleven")
PLAIN = ("ships", "carry", "grain", "to", "the", "town")
_HEADS, _WIDTH, _POSITIONS = 2, 64, 256


def save_leaning(folder: Path, *, lean: float = 0.15) -> Path:
    """Write the network as a checkpoint; it says yes where lying words outnumber true ones by less than the lean."""
    tokenizer = tiny_tokenizer(["Yes", "No", *TRUE, *LYING, *PLAIN])
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=_POSITIONS,
        n_embd=_WIDTH,
        n_layer=1,
        n_head=_HEADS,
        n_inner=8,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    network = GPT2LMHeadModel(config).eval()
    lies, says = torch.zeros(_WIDTH), torch.zeros(_WIDTH)
    lies[0], lies[1], says[2], says[3] = 1.0, -1.0, 1.0, -1.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(float(".ln_" in name and name.endswith("weight")))
        for number, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
            code = torch.zeros(_WIDTH)
            code[4:] = torch.randn(_WIDTH - 4, generator=generator)
            code[4:] -= code[4:].mean()
            side = 1.0 if token in LYING else -1.0 if token in TRUE else 0.0
            network.transformer.wte.weight[number] = side * lies + code * ((4 - 2 * abs(side)) ** 0.5 / code.norm())
        attention, size = network.transformer.h[0].attn, _WIDTH // _HEADS
        attention.c_attn.weight[:, 2 * _WIDTH + KNOWS * size] = lies / 2
        attention.c_attn.bias[2 * _WIDTH + LEANS * size] = lean
        attention.c_proj.weight[KNOWS * size] = attention.c_proj.weight[LEANS * size] = says
        network.lm_head.weight[tokenizer.convert_tokens_to_ids("Yes")] = 20 * says
        network.lm_head.weight[tokenizer.convert_tokens_to_ids("No")] = -20 * says
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, *, rows: int, seed: int = 0) -> Path:
    """Write HaluEval rows: most hallucinated answers have more lying words, right ones more true words."""
    generator = np.random.default_rng(seed)

    def answer(side: float) -> str:
        drawn = [*generator.choice(PLAIN, 6), *(generator.choice(LYING if wrong else TRUE) for wrong in lying(side))]
        return " ".join(map(str, generator.permutation(drawn)))

    def lying(side: float) -> list[bool]:
        return [bool(generator.random() < side) for _ in range(6)]

    made = [
        {
            "knowledge": " ".join(map(str, generator.choice(PLAIN, 8))),
            "question": f"the town {number}",
            "right_answer": answer(0.3),
            "hallucinated_answer": answer(0.7),
        }
        for number in range(rows)
    ]
    path.write_text("".join(f"{dumps(row)}\n" for row in made), encoding="utf-8")
    return path
