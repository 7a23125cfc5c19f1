"""The zoo: one tiny model with random weights for every architecture the package has to read.

Each row builds the real ``transformers`` class from a small config and states, as literals worked out by hand from what
the config means, where that class keeps its heads. The rows are the truth that the package is tested against, so
nothing in them is computed by the package, and ``test_zoo.py`` checks them against the modules themselves.

``ROWS`` holds the text models, ``MULTIMODAL`` the models that also see or hear (built whole, run on text).
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<image>",
    "<video>",
    "<audio>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|audio_start|>",
    "<|audio_end|>",
)
"""Ids 0 to 14 of every tiny tokenizer, in this order; bytes or words follow."""

VOCAB_SIZE = 300
"""Rows of every embedding: 15 special tokens, 256 bytes, and some to spare, as most released models have."""

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

NO_REPEAT = "AttributeError: 'LinearAttentionLayer' object has no attribute 'batch_repeat_interleave'"

HALF = "RuntimeError: Sizes of tensors must match except in dimension 2"
"""Keys are repeated, the state beside them is not."""


@dataclass(frozen=True, slots=True, eq=False)
class ZooRow:
    """One architecture: how to build it tiny, and where its heads are.

    Attributes:
        name: Unique in both tables.
        config_class: Class of the config, by name, found in ``transformers``.
        model_class: Class of the model with its language-model head, likewise.
        settings: Keyword arguments of the config.
        num_layers: Layers of the text decoder.
        num_heads: Query heads per layer.
        head_dim: Width of one head's slice of the output projection's input. For multi-head latent attention that is
            the width of a value, whatever the config calls ``head_dim``.
        num_kv_heads: Key-value heads per layer after all of the config's switches have been read.
        out_proj: Path, from the model, of the attention output projection of the first layer that has one.
        transposed: The projection is a ``Conv1D``, whose weight is stored (in, out).
        without_attention: Layers of the decoder that have no softmax self-attention.
        runner: Path of the submodule whose ``forward`` reads text; empty where it is the model itself.
        position_ids: ``forward`` declares ``position_ids``. Where it does not, a stray one is ignored in silence.
        needs_positions: Left padding, or a cache that is continued, gives wrong logits in silence (in Omni: an error)
            unless ``position_ids`` are passed: positions are learned and absolute, or counted anew after the prefix.
        token_types: ``forward`` has to be told which tokens are prompt (0, seen in both directions) and which are
            answer (1, causal). Without that, it attends in both directions where nothing is padded, causally where
            something is.
        cache_repeat: ``cache.batch_repeat_interleave(n)`` followed by different continuations equals the plain runs.
        cache_reorder: ``cache.reorder_cache(indices)`` with repeated indices followed by different continuations does.
        cache_hole: So does a prefix that was padded on its right, padding staying in the cache between the prefix and
            its continuation. (Padded on its left, every family does but Jamba.)
        cache_reason: Why ``cache_repeat`` or ``cache_reorder`` does not hold.
    """

    name: str
    config_class: str
    model_class: str
    settings: Mapping[str, Any]
    num_layers: int
    num_heads: int
    head_dim: int
    num_kv_heads: int
    out_proj: str
    transposed: bool = False
    without_attention: tuple[int, ...] = ()
    runner: str = ""
    position_ids: bool = True
    needs_positions: bool = False
    token_types: bool = False
    cache_repeat: bool = True
    cache_reorder: bool = True
    cache_hole: bool = True
    cache_reason: str = ""

    def __str__(self) -> str:
        return self.name

    def config(self) -> PreTrainedConfig:
        """Return a fresh config that shares nothing with the row. Where its class is missing, the test is skipped."""
        if not hasattr(transformers, self.config_class):  # tests/test_packaging.py: never with the pinned release
            pytest.skip(f"transformers {transformers.__version__} has no {self.config_class}")
        return cast(PreTrainedConfig, getattr(transformers, self.config_class)(**copy.deepcopy(dict(self.settings))))

    @property
    def attending(self) -> tuple[int, ...]:
        """Layers with softmax self-attention."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.without_attention)

    def projection(self, layer: int) -> str:
        """Return the path of a layer's output projection; of one without attention, where it would be."""
        before, after = self.out_proj.rsplit(f".{self.attending[0]}.", 1)
        return f"{before}.{layer}.{after}"


_IDS = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = _IDS | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GQA = _TEXT | {"num_key_value_heads": 2}
_GPT = _IDS | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
_FALCON = _IDS | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

OMNI = "model.language_model" if hasattr(transformers, "Qwen2_5OmniThinkerModel") else "model"
"""Where Omni's thinker keeps its decoder: it is one itself in releases that have no class for all of it."""

# fmt: off
ROWS: tuple[ZooRow, ...] = (
    # name, config, model, settings, then: layers, heads, head_dim, key-value heads, first output projection
    ZooRow("llama", "LlamaConfig", "LlamaForCausalLM", _TEXT,
           3, 4, 8, 4, "model.layers.0.self_attn.o_proj"),
    ZooRow("llama_gqa", "LlamaConfig", "LlamaForCausalLM", _GQA | {"attention_bias": True, "mlp_bias": True},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    # InternLM3 has a config of its own and runs on the Llama class; heads 16 wide, 4 of them on a hidden size of 32.
    ZooRow("internlm3", "InternLM3Config", "LlamaForCausalLM", _GQA | {"head_dim": 16, "qkv_bias": True, "bias": True},
           3, 4, 16, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("mistral", "MistralConfig", "MistralForCausalLM", _GQA | {"sliding_window": 8},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj", cache_hole=False),
    # Mistral-Nemo: 32 heads of 128 on a hidden size of 5120, so the projection is narrower than the stream.
    ZooRow("mistral_nemo", "MistralConfig", "MistralForCausalLM",
           _GQA | {"hidden_size": 40, "head_dim": 8, "sliding_window": None},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("mixtral", "MixtralConfig", "MixtralForCausalLM", _GQA | {"num_local_experts": 4, "num_experts_per_tok": 2},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("qwen2", "Qwen2Config", "Qwen2ForCausalLM", _GQA,
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    # Qwen2.5's small models: a number of heads that is no power of two (14 in the 0.5B), embeddings tied.
    ZooRow("qwen2_5", "Qwen2Config", "Qwen2ForCausalLM",
           _GQA | {"hidden_size": 48, "num_attention_heads": 6, "tie_word_embeddings": True},
           3, 6, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("qwen3", "Qwen3Config", "Qwen3ForCausalLM", _GQA | {"head_dim": 16},
           3, 4, 16, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", _GQA | _MOE | {"head_dim": 16},
           3, 4, 16, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("gemma2", "Gemma2Config", "Gemma2ForCausalLM",
           _GQA | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
           3, 4, 16, 2, "model.layers.0.self_attn.o_proj", cache_hole=False),
    ZooRow("gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM",
           _TEXT | {"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
                    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
           3, 4, 16, 1, "model.layers.0.self_attn.o_proj", cache_hole=False),
    ZooRow("phi3", "Phi3Config", "Phi3ForCausalLM", _GQA,
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("phi", "PhiConfig", "PhiForCausalLM", _TEXT,
           3, 4, 8, 4, "model.layers.0.self_attn.dense"),
    ZooRow("olmo2", "Olmo2Config", "Olmo2ForCausalLM", _GQA,
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("granite", "GraniteConfig", "GraniteForCausalLM",
           _GQA | {"attention_multiplier": 0.3, "logits_scaling": 0.5, "residual_multiplier": 0.5,
                   "embedding_multiplier": 2.0},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("cohere", "CohereConfig", "CohereForCausalLM", _GQA | {"logit_scale": 1.0, "use_qk_norm": True},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("stablelm", "StableLmConfig", "StableLmForCausalLM", _GQA | {"use_qkv_bias": True, "qk_layernorm": True},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj"),
    ZooRow("starcoder2", "Starcoder2Config", "Starcoder2ForCausalLM", _GQA | {"sliding_window": 8},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj", cache_hole=False),
    # Attention sinks: one logit per head that takes probability and gives no value.
    ZooRow("gpt_oss", "GptOssConfig", "GptOssForCausalLM",
           _GQA | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                   "rope_parameters": _ROPE},
           3, 4, 16, 2, "model.layers.0.self_attn.o_proj", cache_hole=False),
    # Multi-head latent attention: queries and keys are 8 + 8 wide, values 12; config.head_dim (8) is the rotary part.
    ZooRow("deepseek_v3", "DeepseekV3Config", "DeepseekV3ForCausalLM",
           _TEXT | {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8,
                    "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "n_group": 2, "topk_group": 1,
                    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1},
           3, 4, 12, 4, "model.layers.0.self_attn.o_proj"),
    ZooRow("gpt2", "GPT2Config", "GPT2LMHeadModel", _GPT,
           3, 4, 8, 4, "transformer.h.0.attn.c_proj", transposed=True, needs_positions=True),
    # StarCoder 1: GPT-2's names on a Linear, one key-value head for all queries.
    ZooRow("gpt_bigcode", "GPTBigCodeConfig", "GPTBigCodeForCausalLM", _GPT | {"multi_query": True},
           3, 4, 8, 1, "transformer.h.0.attn.c_proj", needs_positions=True),
    ZooRow("gpt_neo", "GPTNeoConfig", "GPTNeoForCausalLM",
           _IDS | {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
                   "window_size": 8, "max_position_embeddings": 512},
           2, 4, 8, 4, "transformer.h.0.attn.attention.out_proj", needs_positions=True, cache_hole=False),
    ZooRow("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", _TEXT,
           3, 4, 8, 4, "gpt_neox.layers.0.attention.dense"),
    ZooRow("gptj", "GPTJConfig", "GPTJForCausalLM", _GPT | {"rotary_dim": 4},
           3, 4, 8, 4, "transformer.h.0.attn.out_proj"),
    # CodeGen keeps queries, keys and values in 4 blocks for its tensor-parallel training: heads come in fours.
    ZooRow("codegen", "CodeGenConfig", "CodeGenForCausalLM", _GPT | {"rotary_dim": 4},
           3, 4, 8, 4, "transformer.h.0.attn.out_proj"),
    ZooRow("opt", "OPTConfig", "OPTForCausalLM",
           _IDS | {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3,
                   "num_attention_heads": 4, "max_position_embeddings": 512},
           3, 4, 8, 4, "model.decoder.layers.0.self_attn.out_proj"),
    ZooRow("falcon_multi_query", "FalconConfig", "FalconForCausalLM",
           _FALCON | {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True},
           3, 4, 8, 1, "transformer.h.0.self_attention.dense"),
    ZooRow("falcon_new", "FalconConfig", "FalconForCausalLM",
           _FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True},
           3, 4, 8, 2, "transformer.h.0.self_attention.dense"),
    ZooRow("falcon_alibi", "FalconConfig", "FalconForCausalLM",
           _FALCON | {"alibi": True, "multi_query": False, "new_decoder_architecture": False, "parallel_attn": False,
                      "bias": True},
           3, 4, 8, 4, "transformer.h.0.self_attention.dense"),
    ZooRow("bloom", "BloomConfig", "BloomForCausalLM", _IDS | {"hidden_size": 32, "n_layer": 3, "n_head": 4},
           3, 4, 8, 4, "transformer.h.0.self_attention.dense", position_ids=False),
    ZooRow("mpt", "MptConfig", "MptForCausalLM",
           _IDS | {"d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 512},
           3, 4, 8, 4, "transformer.blocks.0.attn.out_proj", position_ids=False, cache_hole=False),
    ZooRow("persimmon", "PersimmonConfig", "PersimmonForCausalLM", _TEXT,
           3, 4, 8, 4, "model.layers.0.self_attn.dense"),
    ZooRow("xglm", "XGLMConfig", "XGLMForCausalLM",
           _IDS | {"d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 512},
           3, 4, 8, 4, "model.layers.0.self_attn.out_proj", needs_positions=True),
    ZooRow("biogpt", "BioGptConfig", "BioGptForCausalLM", _TEXT,
           3, 4, 8, 4, "biogpt.layers.0.self_attn.out_proj", needs_positions=True),
    # Hybrids: softmax attention in some layers only. Qwen3-Next's and LFM2's other layers have an out_proj too.
    ZooRow("qwen3_next", "Qwen3NextConfig", "Qwen3NextForCausalLM",
           _GQA | _MOE | {"num_hidden_layers": 4, "head_dim": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                          "linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 32,
                          "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]},
           4, 4, 16, 2, "model.layers.1.self_attn.o_proj", without_attention=(0, 2),
           cache_repeat=False, cache_hole=False, cache_reason=NO_REPEAT),
    ZooRow("lfm2", "Lfm2Config", "Lfm2ForCausalLM",
           _GQA | {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
           3, 4, 8, 2, "model.layers.1.self_attn.out_proj", without_attention=(0, 2),
           cache_repeat=False, cache_hole=False, cache_reason=NO_REPEAT),
    ZooRow("bamba", "BambaConfig", "BambaForCausalLM",
           _GQA | {"attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
                   "mamba_chunk_size": 4},
           3, 4, 8, 2, "model.layers.1.self_attn.o_proj", without_attention=(0, 2), needs_positions=True,
           cache_repeat=False, cache_hole=False, cache_reason=NO_REPEAT),
    ZooRow("jamba", "JambaConfig", "JambaForCausalLM",
           _GQA | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
                   "mamba_d_state": 4, "mamba_dt_rank": 4},
           3, 4, 8, 2, "model.layers.1.self_attn.o_proj", without_attention=(0, 2),
           cache_repeat=False, cache_reorder=False, cache_hole=False,
           cache_reason=NO_REPEAT + "; a Mamba layer given several tokens starts from state 0, whatever is cached"),
    # Attention beside a Mamba part in every layer; the outputs of both are added.
    ZooRow("falcon_h1", "FalconH1Config", "FalconH1ForCausalLM",
           _GQA | _MAMBA | {"mamba_d_ssm": 64, "attention_out_multiplier": 0.5, "key_multiplier": 0.7},
           3, 4, 8, 2, "model.layers.0.self_attn.o_proj", cache_repeat=False, cache_hole=False, cache_reason=HALF),
    ZooRow("granitemoehybrid", "GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM",
           _GQA | _MAMBA | {"layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4,
                            "num_experts_per_tok": 2, "shared_intermediate_size": 32, "attention_multiplier": 0.3},
           3, 4, 8, 2, "model.layers.1.self_attn.o_proj", without_attention=(0, 2),
           cache_repeat=False, cache_hole=False, cache_reason=NO_REPEAT),
    ZooRow("nemotron_h", "NemotronHConfig", "NemotronHForCausalLM",
           _GQA | {"head_dim": 8, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 4,
                   "mamba_head_dim": 16, "ssm_state_size": 8, "chunk_size": 4, "n_groups": 1},
           3, 4, 8, 2, "model.layers.1.mixer.o_proj", without_attention=(0, 2),
           cache_repeat=False, cache_hole=False, cache_reason=NO_REPEAT),
)

_CLIP = {"model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 3, "image_size": 16, "patch_size": 8, "projection_dim": 16}
_SIGLIP = _CLIP | {"model_type": "siglip_vision_model"}
_IDEFICS = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 16, "patch_size": 4}
_QWEN_VISION = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 3, "patch_size": 8,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32}
_QWEN_IDS = {"image_token_id": 8, "video_token_id": 9, "vision_start_token_id": 11, "vision_end_token_id": 12}
_MROPE = _ROPE | {"mrope_section": [1, 1, 2]}
_OMNI_IDS = {"image_token_index": 8, "video_token_index": 9, "audio_token_index": 10, "vision_start_token_id": 11,
             "vision_end_token_id": 12, "audio_start_token_id": 13, "audio_end_token_id": 14}
_THINKER = _OMNI_IDS | {
    "pad_token_id": 0, "user_token_id": 4,
    "text_config": _GQA | {"rope_parameters": _MROPE},
    "vision_config": _QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1]},
    "audio_config": {"num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 3, "encoder_ffn_dim": 32,
                     "d_model": 24, "max_source_positions": 32, "n_window": 4, "output_dim": 32},
}
_TALKER = _OMNI_IDS | {
    "vocab_size": 64, "embedding_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512,
    "rope_parameters": _MROPE, "tts_text_start_token_id": 1, "tts_text_end_token_id": 2, "tts_text_pad_token_id": 0,
    "tts_codec_start_token_id": 60, "tts_codec_end_token_id": 61, "tts_codec_pad_token_id": 62,
    "tts_codec_mask_token_id": 63,
}
_TOKEN2WAV = {
    "dit_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ff_mult": 2, "emb_dim": 16,
                   "head_dim": 8, "num_embeds": 65, "mel_dim": 8, "enc_emb_dim": 8, "enc_dim": 8,
                   "enc_channels": [8, 8, 8, 8, 24], "enc_attention_channels": 4, "enc_se_channels": 4},
    "bigvgan_config": {"mel_dim": 8, "upsample_initial_channel": 64, "resblock_kernel_sizes": [3],
                       "resblock_dilation_sizes": [[1, 3, 5]], "upsample_rates": [2], "upsample_kernel_sizes": [4]},
}

MULTIMODAL: tuple[ZooRow, ...] = (
    ZooRow("llava", "LlavaConfig", "LlavaForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "llama"}, "vision_config": _CLIP, "image_token_index": 8,
            "image_seq_length": 4},
           3, 4, 8, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("llava_mistral", "LlavaConfig", "LlavaForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "mistral", "sliding_window": None}, "vision_config": _CLIP,
            "image_token_index": 8, "image_seq_length": 4},
           3, 4, 8, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("pixtral", "LlavaConfig", "LlavaForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
            "vision_config": {"model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32,
                              "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 4},
            "image_token_index": 8, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
           3, 4, 16, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("llava_next_vicuna", "LlavaNextConfig", "LlavaNextForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "llama"}, "vision_config": _CLIP, "image_token_index": 8,
            "image_seq_length": 4, "image_grid_pinpoints": [[16, 16], [16, 32]]},
           3, 4, 8, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("llava_next", "LlavaNextConfig", "LlavaNextForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
            "vision_config": _CLIP, "image_token_index": 8, "image_seq_length": 4,
            "image_grid_pinpoints": [[16, 16], [16, 32]]},
           3, 4, 16, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("qwen2_5_vl", "Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration",
           _QWEN_IDS | {"text_config": _GQA | {"rope_parameters": _MROPE},
                        "vision_config": _QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1]}},
           3, 4, 8, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("qwen3_vl", "Qwen3VLConfig", "Qwen3VLForConditionalGeneration",
           _QWEN_IDS | {"text_config": _GQA | {"head_dim": 16, "rope_parameters": _ROPE | {
               "mrope_section": [4, 2, 2], "mrope_interleaved": True}},
                        "vision_config": _QWEN_VISION | {"num_position_embeddings": 16,
                                                         "deepstack_visual_indexes": [0]}},
           3, 4, 16, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("qwen2_5_omni_thinker", "Qwen2_5OmniThinkerConfig", "Qwen2_5OmniThinkerForConditionalGeneration", _THINKER,
           3, 4, 8, 2, f"{OMNI}.layers.0.self_attn.o_proj", needs_positions=True),
    # The whole of Omni has no forward and is its own get_decoder(); its talker has heads that are none of ours.
    ZooRow("qwen2_5_omni", "Qwen2_5OmniConfig", "Qwen2_5OmniForConditionalGeneration",
           {"thinker_config": _THINKER, "talker_config": _TALKER, "token2wav_config": _TOKEN2WAV},
           3, 4, 8, 2, f"thinker.{OMNI}.layers.0.self_attn.o_proj", runner="thinker",
           needs_positions=True),
    ZooRow("internvl", "InternVLConfig", "InternVLForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "qwen2"}, "image_token_id": 8, "image_seq_length": 4,
            "vision_config": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                              "num_attention_heads": 3, "image_size": [16, 16], "patch_size": [4, 4]}},
           3, 4, 8, 2, "model.language_model.layers.0.self_attn.o_proj"),
    ZooRow("gemma3_vision", "Gemma3Config", "Gemma3ForConditionalGeneration",
           {"text_config": _GQA | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "layer_types": [
               "sliding_attention", "sliding_attention", "full_attention"]},
            "vision_config": _SIGLIP, "mm_tokens_per_image": 4, "boi_token_index": 11, "eoi_token_index": 12,
            "image_token_index": 8},
           3, 4, 16, 2, "model.language_model.layers.0.self_attn.o_proj", cache_hole=False),
    ZooRow("idefics3", "Idefics3Config", "Idefics3ForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "llama"}, "vision_config": _IDEFICS, "image_token_id": 8,
            "scale_factor": 2, "pad_token_id": 0},
           3, 4, 8, 2, "model.text_model.layers.0.self_attn.o_proj"),
    ZooRow("smolvlm", "SmolVLMConfig", "SmolVLMForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "llama"}, "vision_config": _IDEFICS, "image_token_id": 8,
            "scale_factor": 2, "pad_token_id": 0},
           3, 4, 8, 2, "model.text_model.layers.0.self_attn.o_proj"),
    # Layer 1 attends to the image only (cross_attn.o_proj) and is skipped where there is none.
    ZooRow("mllama", "MllamaConfig", "MllamaForConditionalGeneration",
           {"text_config": _GQA | {"num_hidden_layers": 4, "cross_attention_layers": [1], "rope_parameters": _ROPE},
            "vision_config": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
                              "num_global_layers": 1, "attention_heads": 3, "image_size": 16, "patch_size": 8,
                              "vision_output_dim": 72, "intermediate_layers_indices": [0, 1], "max_num_tiles": 2,
                              "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]},
            "image_token_index": 8},
           4, 4, 8, 2, "model.language_model.layers.0.self_attn.o_proj", without_attention=(1,)),
    ZooRow("paligemma", "PaliGemmaConfig", "PaliGemmaForConditionalGeneration",
           {"text_config": _GQA | {"model_type": "gemma", "head_dim": 16},
            "vision_config": _SIGLIP | {"projection_dim": 32}, "projection_dim": 32, "hidden_size": 32,
            "image_token_index": 8, "vocab_size": VOCAB_SIZE},
           3, 4, 16, 2, "model.language_model.layers.0.self_attn.o_proj", token_types=True),
)
# fmt: on


def build(row: ZooRow, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the row's model in evaluation mode, with random weights that are the same for the same seed.

    The default initialisation (std 0.02, biases 0, norms 1) makes a tiny model next to indifferent to what it reads, so
    matrices are drawn again with std 0.2, and noise of std 0.1 is added to every vector: norm weights stay near 1 (near
    0 where the class counts them from there), biases are not 0.

    Args:
        row: The architecture.
        seed: Of the weights. The global generator is left as it was.
        dtype: The weights are drawn in float32, then converted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = cast(PreTrainedModel, getattr(transformers, row.model_class)(row.config()))
        with torch.no_grad():
            for parameter in network.parameters():  # tied weights come once
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return cast(PreTrainedModel, network.to(dtype).eval())  # type: ignore[arg-type]


def runner(row: ZooRow, network: PreTrainedModel) -> PreTrainedModel:
    """Return the module whose ``forward`` reads text: the network, or the thinker of an omni network."""
    return cast(PreTrainedModel, network.get_submodule(row.runner))


def text_inputs(row: ZooRow, mask: Tensor, *, new: int | None = None, answer: int = 0) -> dict[str, Tensor]:
    """Return what ``forward`` needs beside the tokens so that padding and caches change nothing.

    Args:
        row: The architecture.
        mask: 1 for tokens, 0 for padding, over everything seen so far, ``(batch, length)``.
        new: How many of the last columns are passed to ``forward``, the others being in the cache; all by default.
        answer: How many of the last columns are answer, not prompt (read by models with token types only).

    Returns:
        ``attention_mask`` and, where the row takes them, ``position_ids`` (from 0, padding not counted) and
        ``token_type_ids``.
    """
    new = mask.shape[1] if new is None else new
    inputs = {"attention_mask": mask}
    if row.position_ids:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, mask.shape[1] - new :]
    if row.token_types:
        columns = torch.arange(mask.shape[1])[mask.shape[1] - new :]
        inputs["token_type_ids"] = (columns >= mask.shape[1] - answer).long().expand(mask.shape[0], -1)
    return inputs


def tiny_tokenizer(words: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer made in memory, with offsets, padding, BOS in front of every text and a chat template.

    Args:
        words: None for bytes: any text can be encoded, one token per byte, and decodes to itself. Else the words the
            tokenizer knows, one token each; text is split at white space and around ``. , ; ? !``, and a word that is
            not known becomes ``<unk>``.
    """
    specials = {token: number for number, token in enumerate(SPECIAL_TOKENS)}
    if words is None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = specials | {byte: len(specials) + number for number, byte in enumerate(alphabet)}
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        unique = dict.fromkeys(word for word in words if word not in specials)
        vocabulary = specials | {word: len(specials) + number for number, word in enumerate(unique)}
        tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[.,;?!]"), "isolated")]
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", specials["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL_TOKENS[4:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def save(row: ZooRow, folder: Path, *, shards: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write the row's model as a checkpoint: config, weights in ``shards`` safetensors files, tokenizer.

    Args:
        row: The architecture.
        folder: Made if it is not there; must be empty.
        shards: Number of weight files.
        seed: Of the weights.
        dtype: Of the weights.

    Returns:
        The folder.

    Raises:
        ValueError: No shard size gives that many files.
    """
    network = build(row, seed=seed, dtype=dtype)
    total = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    # Files are filled one after the other, so the size that gives n files is total / n or somewhat above it.
    for percent in range(100, 200, 2):
        network.save_pretrained(folder, max_shard_size=max(1, total * percent // (100 * shards)))
        files = sorted(folder.glob("*.safetensors"))
        if len(files) <= shards:
            break
        for file in files:
            file.unlink()
    if len(files) != shards:
        raise ValueError(f"{row.name} does not split into {shards} files, only into {len(files)}")
    tiny_tokenizer().save_pretrained(folder)
    return folder
