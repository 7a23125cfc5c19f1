"""Vision-language models as users load them: real classes and real processors, tiny, with random weights."""

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from truthheads.models.architectures import locate_heads
from truthheads.models.load import Model
from zoo import MULTIMODAL, ZooRow, build, tiny_tokenizer

IMAGE = "<image>"


def lacks_torchvision(images: type) -> bool:
    """Return whether a class is a stand-in for one that needs torchvision; Idefics3's is, in transformers 5.16."""
    return "torchvision" in getattr(images, "_backends", ())


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _llava(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    config, vision = network.config, network.config.vision_config
    size = {"shortest_edge": vision.image_size}
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size=size, crop_size=_square(vision.image_size)),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )


def _pixtral(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = network.config.vision_config
    return transformers.PixtralProcessor(
        transformers.PixtralImageProcessorPil(
            size={"longest_edge": vision.image_size}, patch_size=_square(vision.patch_size)
        ),
        tokenizer,
        patch_size=vision.patch_size,
        image_token=IMAGE,
        image_break_token="<|vision_start|>",
        image_end_token="<|vision_end|>",
    )


def _llava_next(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    config, vision = network.config, network.config.vision_config
    return transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": vision.image_size},
            crop_size=_square(vision.image_size),
            image_grid_pinpoints=config.image_grid_pinpoints,
        ),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )


def _qwen(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = network.config.vision_config
    tokenizer.image_token, tokenizer.video_token = IMAGE, "<video>"
    made = transformers.Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": 16 * vision.patch_size**2, "longest_edge": 64 * vision.patch_size**2},
    )
    if network.config.model_type == "qwen2_5_omni_thinker":
        marks = {"audio": "<audio>", "vision_bos": "<|vision_start|>", "vision_eos": "<|vision_end|>"}
        for name, token in (marks | {"audio_bos": "<|audio_start|>", "audio_eos": "<|audio_end|>"}).items():
            setattr(tokenizer, f"{name}_token", token)
        for name in ("image", "video", "audio"):
            setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(getattr(tokenizer, f"{name}_token")))
        ears = transformers.WhisperFeatureExtractor(feature_size=network.config.audio_config.num_mel_bins)
        return transformers.Qwen2_5OmniProcessor(made, transformers.Qwen2VLVideoProcessor(), ears, tokenizer)
    kind = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}[network.config.model_type]
    return getattr(transformers, kind)(made, tokenizer, transformers.Qwen2VLVideoProcessor())


def _internvl(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = network.config.vision_config
    tokenizer.start_image_token, tokenizer.end_image_token = "<unk>", "<unk>"
    tokenizer.context_image_token, tokenizer.video_token = IMAGE, "<video>"
    tokenizer.start_image_token_id = tokenizer.end_image_token_id = tokenizer.unk_token_id
    tokenizer.context_image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    return transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessorPil(
            size=_square(vision.image_size[0]), crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        transformers.InternVLVideoProcessor(),
        image_seq_length=network.config.image_seq_length,
    )


def _gemma3(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = network.config.vision_config
    tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token = "<|vision_start|>", "<|vision_end|>", IMAGE
    for name in ("boi", "eoi", "image"):
        setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(getattr(tokenizer, f"{name}_token")))
    return transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size=_square(vision.image_size)),
        tokenizer,
        image_seq_length=network.config.mm_tokens_per_image,
    )


def _idefics3(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    edge = network.config.vision_config.image_size
    smol = network.config.model_type == "smolvlm"
    images = transformers.SmolVLMImageProcessorPil if smol else transformers.Idefics3ImageProcessorPil
    kind = transformers.SmolVLMProcessor if smol else transformers.Idefics3Processor
    made = images(size={"longest_edge": 2 * edge}, max_image_size={"longest_edge": edge})
    tokenizer.fake_image_token, tokenizer.image_token, tokenizer.end_of_utterance_token = "<unk>", IMAGE, "</s>"
    tokenizer.global_image_token = "<unk>"
    side = edge // network.config.vision_config.patch_size // network.config.scale_factor
    return kind(made, tokenizer, *([transformers.SmolVLMVideoProcessor()] if smol else []), image_seq_len=side * side)


def _paligemma(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = network.config.vision_config
    images = transformers.SiglipImageProcessorPil(size=_square(vision.image_size))
    images.image_seq_length = (vision.image_size // vision.patch_size) ** 2
    return transformers.PaliGemmaProcessor(images, tokenizer)


def _mllama(network: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Any:
    vision = network.config.vision_config
    tokenizer.image_token, tokenizer.image_token_id = IMAGE, tokenizer.convert_tokens_to_ids(IMAGE)
    return transformers.MllamaProcessor(
        transformers.MllamaImageProcessorPil(size=_square(vision.image_size), max_image_tiles=vision.max_num_tiles),
        tokenizer,
    )


PROCESSORS: dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerFast], Any]] = {
    "llava": _llava,
    "llava_mistral": _llava,
    "pixtral": _pixtral,
    "llava_next": _llava_next,
    "llava_next_vicuna": _llava_next,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen2_5_omni_thinker": _qwen,
    "internvl": _internvl,
    "gemma3_vision": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "paligemma": _paligemma,
    "mllama": _mllama,
}
TORCHVISION = ["qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker", "internvl", "smolvlm", "pixtral"]
"""transformers builds their processors with torchvision alone: most carry a video processor (``make sight``)."""
if lacks_torchvision(transformers.Idefics3ImageProcessorPil):
    TORCHVISION.append("idefics3")
ROWS = [row for row in MULTIMODAL if row.name in PROCESSORS]


def seeing(row: ZooRow) -> Model:
    """Return a model with its processor."""
    network, tokenizer = build(row), tiny_tokenizer()
    processor = PROCESSORS[row.name](network, tokenizer)
    return Model(network, tokenizer, processor, locate_heads(network), row.name)
