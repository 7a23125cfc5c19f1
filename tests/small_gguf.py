"""A small Llama as a GGUF file."""

from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, quants
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, HEADS, HEAD_DIM, VOCAB = 2, 4, 64, 64
WIDTH = HEADS * HEAD_DIM


def small_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = LlamaForCausalLM(config)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return network.eval()


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(path: Path, kind: Type, *, architecture: str = "llama") -> Path:
    """Write the small Llama as GGUF, its output projections in one type, everything else in F32."""
    writer = GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_embedding_length(WIDTH)
    writer.add_string("general.name", "small")
    for name, value in small_llama().state_dict().items():
        array = value.numpy()
        if name.startswith("model.layers."):
            _, _, layer, *rest = name.split(".")
            target = f"blk.{layer}.{NAMES['.'.join(rest[:-1])]}.weight"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
                name, "output.weight"
            )
        if target.endswith("attn_output.weight"):
            writer.add_tensor(target, quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
