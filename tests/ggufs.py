"""Tiny GGUF models with a tokenizer, whole or split as llama.cpp splits them, written by the gguf package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM

from zoo import CHAT_TEMPLATE, VOCAB_SIZE, tiny_tokenizer

LAYERS, HEADS, KV_HEADS, WIDTH, INNER = 3, 4, 2, 32, 64
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def small_llama(**settings: Any) -> LlamaForCausalLM:
    """Return the network that the files hold."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=512, rms_norm_eps=1e-5,
        rope_theta=10000.0, tie_word_embeddings=False, **settings,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = LlamaForCausalLM(config)
    return network.eval()


def tensors_of(network: LlamaForCausalLM) -> dict[str, np.ndarray]:
    """Return a Llama's weights under llama.cpp's names, rows of queries and keys in its order."""
    found = {}
    for name, value in network.state_dict().items():
        array = value.numpy()
        if name in OUTER:
            found[OUTER[name]] = array
            continue
        _, _, layer, *rest, kind = name.split(".")
        inner = NAMES[".".join(rest)]
        if inner in ("attn_q", "attn_k"):
            heads = HEADS if inner == "attn_q" else KV_HEADS
            # llama.cpp turns pairs of neighbours, transformers both halves: its converter permutes the rows
            array = array.reshape(heads, 2, len(array) // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        found[f"blk.{layer}.{inner}.{kind}"] = np.ascontiguousarray(array)
    return found


def write_gguf(
    path: Path, tensors: Mapping[str, np.ndarray] | None = None, *, most: int = 0, theta: float = 10000.0
) -> list[Path]:
    """Write a small Llama as GGUF, and return its files in order.

    Args:
        path: The file; of a split model ``path``'s stem with ``-00001-of-00002`` and so on.
        tensors: None: those of ``small_llama``.
        most: Tensors in a part; 0 does not split.
        theta: Base of the rotary frequencies.
    """
    writer = GGUFWriter(str(path), "llama", split_max_tensors=most)
    writer.add_string("general.name", "small")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(VOCAB_SIZE)
    vocabulary = tiny_tokenizer().get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    words.append("Ġt")  # a file without any merge cannot be read
    words += [f"<spare{number}>" for number in range(len(words), VOCAB_SIZE)]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word.startswith("<") and len(word) > 1 else 1 for word in words])
    writer.add_token_merges(["Ġ t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, array in (tensors_of(small_llama()) if tensors is None else tensors).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}-0*.gguf")) if most else [path]


def split_gguf(source: Path, out: Path, most: int) -> list[Path]:
    """Write a GGUF file in parts of ``most`` tensors, and return them in order."""
    reader = GGUFReader(str(source))
    writer = GGUFWriter(str(out), str(reader.fields["general.architecture"].contents()), split_max_tensors=most)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=GGMLQuantizationType(tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(out.parent.glob(f"{out.stem}-0*.gguf"))
