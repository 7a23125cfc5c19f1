"""What is exported is what the hook does; what must not change has not changed; half an export is none."""

import dataclasses
import json
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import ggufs as with_a_tokenizer
import truthheads as th
from exported import header_of, logits_of, network_of, raw_tensors, with_config
from small_gguf import write as write_gguf
from truthheads.cli import app
from truthheads.errors import ArchitectureError, ArtifactError, GateError, ModelError, ShapeError
from truthheads.exporting.checkpoint import CHUNK
from truthheads.exporting.export import export
from truthheads.models.adapters import find_adapter
from truthheads.models.inspection import inspect
from truthheads.models.weight_files import INDEX, SINGLE, Shards
from truthheads.results.gate import Gate, gated
from truthheads.storage import files
from truthheads.storage.artifacts import KEY
from zoo import MULTIMODAL, ROWS, ZooRow, save

if TYPE_CHECKING:
    from truthheads.models.architectures import HeadLayout

EVERY = (*ROWS, *MULTIMODAL)
BY_NAME = {row.name: row for row in EVERY}
# PEFT leaves the adapter's configuration open and asks transformers for a deprecated name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]


def some_gate(layout: "HeadLayout", *, site: str = "z", seed: int = 0) -> Gate:
    factors = torch.ones(layout.shape)
    generator = torch.Generator().manual_seed(seed)
    for head in layout.layers:
        factors[head.index, : head.num_heads] = 0.3 + 1.4 * torch.rand(head.num_heads, generator=generator)
    return Gate(factors, site)  # type: ignore[arg-type]


def gate_for(folder: Path, *, site: str = "z") -> Gate:
    return some_gate(inspect(str(folder)).layout, site=site)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- hook = adapter = checkpoint -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", EVERY, ids=str)
def test_hook_adapter_and_checkpoint_give_the_same_logits(row: ZooRow, tmp_path: Path) -> None:
    from peft import PeftModel

    source = save(row, tmp_path / "model")
    network = network_of(row, source)
    layout = inspect(str(source)).layout
    plain = logits_of(row, network)
    close = {"atol": 1e-5 * max(1.0, float(plain.abs().max())), "rtol": 0}
    for site in ("z", "output"):
        gate = some_gate(layout, site=site)
        with gated(network, gate):
            hook = logits_of(row, network)
        assert float((hook - plain).abs().max()) > 1e-3
        checkpoint = export(str(source), gate, to="checkpoint", out=tmp_path / f"checkpoint-{site}")
        torch.testing.assert_close(logits_of(row, network_of(row, checkpoint)), hook, **close)
        adapter = export(str(source), gate, to="adapter", out=tmp_path / f"adapter-{site}")
        wrapped = PeftModel.from_pretrained(network, adapter)
        assert sum(name.endswith("ia3_l.default") for name, _ in wrapped.named_parameters()) == len(layout.layers)
        torch.testing.assert_close(logits_of(row, wrapped), hook, **close)
        network = wrapped.unload()


@pytest.mark.parametrize("row", EVERY, ids=str)
def test_a_gate_of_ones_changes_no_byte_of_any_tensor(row: ZooRow, tmp_path: Path) -> None:
    source = save(row, tmp_path / "model", dtype=torch.bfloat16)
    ones = Gate(torch.ones(inspect(str(source)).layout.shape))
    out = export(str(source), ones, to="checkpoint", out=tmp_path / "out")
    assert raw_tensors(out) == raw_tensors(source)
    if row.name in ("llama_gqa", "gpt2", "qwen2_5", "llava"):
        assert torch.equal(logits_of(row, network_of(row, out)), logits_of(row, network_of(row, source)))


@pytest.mark.parametrize("site", ["z", "output"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["llama_gqa", "qwen2_5", "gpt2", "falcon_alibi", "llava", "qwen2_5_omni"])
def test_only_the_projections_change_and_as_they_should(
    name: str, dtype: torch.dtype, shards: int, site: str, tmp_path: Path
) -> None:
    row = BY_NAME[name]
    source = save(row, tmp_path / "model", shards=shards, dtype=dtype)
    layout = inspect(str(source)).layout
    gate = some_gate(layout, site=site)
    gate.gate[layout.layers[1].index] = 1  # a layer that the gate leaves alone
    out = export(str(source), gate, to="checkpoint", out=tmp_path / "out")
    before, after = raw_tensors(source), raw_tensors(out)
    tail = row.out_proj.partition(".0.")[2]
    expected = set()
    for layer in (layout.layers[0], layout.layers[2]):
        weight = next(key for key in before if key.endswith(f".{layer.index}.{tail}.weight") and "talker" not in key)
        factors = gate.gate[layer.index]
        for key in (weight, weight.replace(".weight", ".bias")):
            if key not in before or (site == "z" and key != weight):
                continue
            expected.add(key)
            old = torch.frombuffer(bytearray(before[key]), dtype=dtype).float()
            if key == weight:
                matrix = (
                    old.reshape(row.num_heads * row.head_dim, -1).T
                    if row.transposed
                    else old.reshape(-1, row.num_heads * row.head_dim)
                )  # [out, in]
                rows, columns = matrix.shape
                for head, factor in enumerate(factors):
                    width = (columns if site == "z" else rows) // row.num_heads
                    where = slice(head * width, (head + 1) * width)
                    block = matrix[:, where] if site == "z" else matrix[where]
                    block *= factor
                old = matrix.T.flatten() if row.transposed else matrix.flatten()
            else:
                old = (old.reshape(row.num_heads, -1) * factors[:, None]).flatten()
            new = torch.frombuffer(bytearray(after[key]), dtype=dtype)
            assert torch.equal(new, old.to(dtype)), key
    assert {key for key in before if before[key] != after[key]} == expected
    assert before.keys() == after.keys()


def test_everything_else_of_a_folder_comes_along(tmp_path: Path) -> None:
    row = BY_NAME["llama_gqa"]
    source = save(row, tmp_path / "model", shards=3)
    kept = {
        "generation_config.json": "{}",
        "preprocessor_config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "modeling_own.py": "x = 1",
        "spk_dict.pt": "voices",
        "1_Pooling/config.json": "{}",
        "speech/model.safetensors": "another part",
    }
    left = {
        "README.md": "---\nlicense: llama3.2\ntags: [x]\n---\nold",
        "pytorch_model.bin": "pickle",
        "pytorch_model.bin.index.json": "{}",
        "model-Q8_0.gguf": "GGUF",
        "original/consolidated.00.pth": "pickle",
        "consolidated.safetensors": "another copy",
        "model.fp16.safetensors": "another copy",
        ".cache/huggingface/x.metadata": "x",
    }
    for name, text in {**kept, **left}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    gate = gate_for(source)
    out = export(str(source), gate, to="checkpoint", out=tmp_path / "new" / "out")
    before, after = listing(source), listing(out)
    shards = {file.name for file in source.glob("model-0*.safetensors")}
    assert len(shards) == 3 and kept.keys() <= after.keys()
    assert after.keys() == before.keys() - left.keys() | {"README.md"}
    assert all(after[name] == before[name] for name in after.keys() - shards - {"README.md"})
    assert "license: llama3.2" in (out / "README.md").read_text() and b"old" not in after["README.md"]
    for name in sorted(shards):
        old, new = header_of(source / name), header_of(out / name)
        note = json.loads(new["__metadata__"].pop(KEY))
        assert list(new.items()) == [("__metadata__", old.pop("__metadata__")), *old.items()]
        assert note["gate"] == gate.digest and note["site"] == "z" and note["factors"] == gate.gate.tolist()
        assert {"truthheads", "torch", "safetensors"} <= note["packages"].keys()
        assert (out / name).read_bytes().index(b"{") == 8
    assert oct(out.stat().st_mode)[-3:] == oct(source.stat().st_mode)[-3:]
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


def test_the_same_export_has_the_same_bytes(tmp_path: Path) -> None:
    source = save(BY_NAME["llava"], tmp_path / "model")
    gate = gate_for(source)
    for to in ("adapter", "checkpoint"):
        one, two = (export(str(source), gate, to=to, out=tmp_path / where / to) for where in "ab")  # type: ignore[arg-type]
        assert listing(one) == listing(two)


def test_a_tensor_of_many_blocks_is_scaled_as_one_of_few(tmp_path: Path) -> None:
    config = {"hidden_size": 1024, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 8}
    row = dataclasses.replace(BY_NAME["llama"], settings={**BY_NAME["llama"].settings, **config, "head_dim": 250})
    source = save(row, tmp_path / "model")
    name = "model.layers.0.self_attn.o_proj.weight"
    assert CHUNK < 1024 * 2000 * 4 and CHUNK * 1024 % (1024 * 2000 * 4)  # several blocks, the last one shorter
    for site, across in (("z", 1), ("output", 0)):
        gate = gate_for(source, site=site)
        out = export(str(source), gate, to="checkpoint", out=tmp_path / site)
        factors = gate.gate[0].repeat_interleave(250 if site == "z" else 128)
        old, new = (load_file(folder / SINGLE)[name] for folder in (source, out))
        assert torch.equal(new, old * (factors if across else factors[:, None]))


# --- names in files and names of modules -----------------------------------------------------------------------------


def renamed(source: Path, change: Callable[[str], str | None]) -> Path:
    """Write a folder's tensors under other names; None leaves one out."""
    tensors = {change(name): tensor for name, tensor in load_file(source / SINGLE).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, source / SINGLE, {"format": "pt"})
    return source


def test_a_decoder_goes_by_several_names(tmp_path: Path) -> None:
    llava, gpt2 = (save(BY_NAME[name], tmp_path / name) for name in ("llava", "gpt2"))
    names = set(raw_tensors(llava))
    assert inspect(str(llava)).layout.layers[0].path == "model.language_model.layers.0.self_attn.o_proj"
    for prefix in ("language_model.model.", "model.language_model.", "thinker.model."):
        old = next(name.partition("layers.")[0] for name in names if "language_model" in name and "o_proj" in name)
        folder = renamed(
            Path(shutil.copytree(llava, tmp_path / prefix)),
            lambda name, old=old, prefix=prefix: name.replace(old, prefix),  # type: ignore[misc]
        )
        out = export(str(folder), gate_for(folder), to="checkpoint", out=tmp_path / f"out-{prefix}")
        before, after = raw_tensors(folder), raw_tensors(out)
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {f"{prefix}layers.{layer}.self_attn.o_proj.weight" for layer in range(3)}
    renamed(gpt2, lambda name: name.removeprefix("transformer."))
    out = export(str(gpt2), gate_for(gpt2), to="checkpoint", out=tmp_path / "out")
    before, after = raw_tensors(gpt2), raw_tensors(out)
    assert {name for name in before if before[name] != after[name]} == {f"h.{i}.attn.c_proj.weight" for i in range(3)}


def drop_layer(name: str) -> str | None:
    return None if "layers.1.self_attn.o_proj" in name else name


def only_tower(name: str) -> str | None:
    return name.replace("model.layers", "vision_tower.layers")


@pytest.mark.parametrize("change", [drop_layer, only_tower], ids=["a layer less", "a tower alone"])
def test_a_gate_is_put_in_whole_or_not_at_all(change: Callable[[str], str | None], tmp_path: Path) -> None:
    source = renamed(save(BY_NAME["llama"], tmp_path / "model"), change)
    with pytest.raises(ArchitectureError, match=r"found"):
        export(str(source), gate_for(source), to="checkpoint", out=tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_two_lists_of_layers_that_fit_are_refused(tmp_path: Path) -> None:
    source = save(BY_NAME["llama"], tmp_path / "model")
    tensors = load_file(source / SINGLE)
    twice = {name.replace("model.", "other."): tensor.clone() for name, tensor in tensors.items()}
    save_file(twice | tensors, source / SINGLE, {"format": "pt"})
    with pytest.raises(ArchitectureError, match=r"2 such lists: model\., other\."):
        export(str(source), gate_for(source), to="checkpoint", out=tmp_path / "out")


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["z", "output"])
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "qwen3_next", "llava"])
def test_an_adapter_is_what_peft_itself_saves(name: str, site: str, tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    row = BY_NAME[name]
    source = save(row, tmp_path / "model")
    gate = gate_for(source, site=site)
    ours = export(str(source), gate, to="adapter", out=tmp_path / "ours")
    theirs = tmp_path / "theirs"
    settings = json.loads((ours / "adapter_config.json").read_text())
    base = {"base_model_name_or_path": str(source)}
    get_peft_model(network_of(row, source), IA3Config(**settings | base)).save_pretrained(str(theirs))
    mine, saved = (load_file(folder / "adapter_model.safetensors") for folder in (ours, theirs))
    assert {key: (value.shape, value.dtype) for key, value in mine.items()} == {
        key: (value.shape, value.dtype) for key, value in saved.items()
    }
    other = json.loads((theirs / "adapter_config.json").read_text())
    assert other["base_model_name_or_path"] == str(source)
    other["base_model_name_or_path"] = source.name  # ours does not say where it lies
    for either in (settings, other):
        for key in ("target_modules", "feedforward_modules"):
            either[key] = sorted(either[key])
    assert settings == other
    assert settings["task_type"] == "CAUSAL_LM" and settings["fan_in_fan_out"] is row.transposed
    assert settings["target_modules"] == sorted(row.projection(layer) for layer in row.attending)
    assert settings["feedforward_modules"] == (settings["target_modules"] if site == "z" else [])
    assert settings["base_model_name_or_path"] == source.name
    assert len({file.stat().st_mode for file in ours.iterdir()}) == 1  # nobody is kept from reading a part of it


@pytest.mark.parametrize("site", ["z", "output"])
def test_an_adapter_of_many_layers_loads_by_its_own_base_and_merges(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM

    row = dataclasses.replace(
        BY_NAME["llama_gqa"], settings={**BY_NAME["llama_gqa"].settings, "num_hidden_layers": 24}, num_layers=24
    )
    source = save(row, tmp_path / "model")
    gate = gate_for(source, site=site)
    network = network_of(row, source)
    with gated(network, gate):
        hook = logits_of(row, network)
    out = export(str(source), gate, to="adapter", out=tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)  # the adapter names its base's folder, not where that lies
    wrapped = AutoPeftModelForCausalLM.from_pretrained(out)  # more layers than PEFT shortens lists of names from
    close = {"atol": 1e-5 * max(1.0, float(hook.abs().max())), "rtol": 0}
    torch.testing.assert_close(logits_of(row, wrapped), hook, **close)
    torch.testing.assert_close(logits_of(row, wrapped.merge_and_unload()), hook, **close)


def test_an_adapter_of_a_gguf_names_the_file_and_its_card_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the folder that the file was converted to: it is in one machine's cache."""
    import re

    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path / "cache"))
    with_a_tokenizer.write_gguf(tmp_path / "small.gguf")
    out = export(str(tmp_path / "small.gguf"), gate_for(tmp_path / "small.gguf"), to="adapter", out=tmp_path / "out")
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "small.gguf"  # nor where it lies
    example = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(example, space)
    assert sum("ia3_l" in name for name, _ in space["model"].named_parameters()) > 0


def test_an_adapter_of_a_model_in_memory_is_that_of_its_folder(tmp_path: Path) -> None:
    source = save(BY_NAME["gpt2"], tmp_path / "model")
    gate = gate_for(source)
    one = export(th.load(str(source), dtype="fp32"), gate, to="adapter", out=tmp_path / "a" / "x")
    two = export(str(source), gate, to="adapter", out=tmp_path / "b" / "x")
    assert listing(one) == listing(two)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(BY_NAME["llama"], tmp_path / "model")


def eight_bit(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    name = "model.layers.2.self_attn.o_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, folder / SINGLE, {"format": "pt"})


def packed(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.self_attn.o_proj.weight"
    more = {name.replace("weight", "qweight"): torch.zeros(4, 32, dtype=torch.int32)}
    save_file({key: value for key, value in tensors.items() if key != name} | more, folder / SINGLE, {"format": "pt"})


def infinite(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = torch.inf
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def cut(folder: Path) -> None:
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def misshapen(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.self_attn.o_proj.weight"
    save_file({**tensors, name: tensors[name][:, :24].contiguous()}, folder / SINGLE, {"format": "pt"})


SOURCES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bitsandbytes": (lambda f: with_config(f, quantization_config={"quant_method": "bitsandbytes"}), "bitsandbytes"),
    "in the text part": (
        lambda f: with_config(f, text_config={"quantization_config": {"quant_method": "gptq"}}),
        "gptq",
    ),
    "fp8": (eight_bit, "F8_E4M3"),
    "gptq by its tensors": (packed, "qweight"),
    "only .bin": (pickled, "save_pretrained"),
    "cut short": (cut, "damaged or cut short"),
    "infinite": (infinite, "infinity in the weights"),
    "another shape": (misshapen, "does not fit config.json"),
    "no config.json": (lambda f: (f / "config.json").unlink(), "config.json"),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "merge_and_unload"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_source_that_takes_no_gate_is_refused(case: str, llama: Path, tmp_path: Path) -> None:
    gate = gate_for(llama)
    spoil, expected = SOURCES[case]
    spoil(llama)
    with pytest.raises(ModelError, match=expected) as caught:
        export(str(llama), gate, to="checkpoint", out=tmp_path / "out")
    assert caught.value.fix
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_quantised_weights_are_told_what_to_do_instead(llama: Path, tmp_path: Path) -> None:
    gate = gate_for(llama)
    with_config(llama, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ModelError, match="share one scale") as caught:
        export(str(llama), gate, to="checkpoint", out=tmp_path / "out")
    assert "--to adapter" in caught.value.fix and "unquantised" in caught.value.fix
    assert (export(str(llama), gate, to="adapter", out=tmp_path / "adapter") / "adapter_config.json").is_file()
    assert inspect(str(llama)).exports == ("adapter",)
    with_config(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    assert inspect(str(llama)).exports == () and "gptq" in inspect(str(llama)).refused["adapter"]
    with pytest.raises(ModelError, match="could not be loaded"):
        export(str(llama), gate, to="adapter", out=tmp_path / "other")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    source = save(BY_NAME["llama"], tmp_path / "model", shards=3)
    gone = sorted(source.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        export(str(source), gate_for(source), to="checkpoint", out=tmp_path / "out")


def test_a_product_that_overflows_is_refused(tmp_path: Path) -> None:
    source = save(BY_NAME["llama"], tmp_path / "model", dtype=torch.float16)
    tensors = load_file(source / SINGLE)
    tensors["model.layers.0.self_attn.o_proj.weight"][0, 0] = 60000
    save_file(tensors, source / SINGLE, {"format": "pt"})
    with pytest.raises(ModelError, match="overflow"):
        export(str(source), Gate(torch.full((3, 4), 1.5)), to="checkpoint", out=tmp_path / "out")


@pytest.mark.parametrize("to", ["adapter", "checkpoint"])
def test_a_gate_on_a_gate_is_refused_with_its_digest(to: Any, llama: Path, tmp_path: Path) -> None:
    gate = gate_for(llama)
    once = export(str(llama), gate, to="checkpoint", out=tmp_path / "once")
    with pytest.raises(ModelError, match=gate.digest):
        export(str(once), gate, to=to, out=tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("to", ["adapter", "checkpoint"])
def test_a_gate_that_does_not_fit_is_refused(to: Any, llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="3 layers x 4 heads"):
        export(str(llama), Gate(torch.full((3, 5), 0.5)), to=to, out=tmp_path / "out")
    lfm2 = save(BY_NAME["lfm2"], tmp_path / "lfm2")
    with pytest.raises(GateError, match="heads that the model lacks"):
        export(str(lfm2), Gate(torch.full((3, 4), 0.5)), to=to, out=tmp_path / "out")
    row = BY_NAME["mistral_nemo"]  # a stream 42 wide and 4 heads of 8: no block of output for each
    wide = dataclasses.replace(row, settings={**row.settings, "hidden_size": 42})
    nemo = save(wide, tmp_path / "nemo")
    with pytest.raises(ArchitectureError, match="use site z"):
        export(str(nemo), gate_for(nemo, site="output"), to=to, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_gguf_files_become_gguf_files(llama: Path, tmp_path: Path) -> None:
    gate = gate_for(llama)
    with pytest.raises(ModelError, match="convert_hf_to_gguf"):
        export(str(llama), gate, to="gguf", out=tmp_path / "out.gguf")
    write_gguf(tmp_path / "a.gguf", GGMLQuantizationType.F16)
    for out, expected in (("out", "ends in .gguf"), ("a.gguf", "the model itself"), ("model", "is a folder")):
        with pytest.raises(ArtifactError, match=expected):
            export(str(tmp_path / "a.gguf"), gate, to="gguf", out=tmp_path / out, force=True)


def test_another_format_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # its check would come first
    with pytest.raises(GateError, match="unknown format"):
        export(str(llama), gate_for(llama), to="onnx", out=tmp_path / "out")  # type: ignore[arg-type]


# --- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["adapter", "checkpoint"])
def test_a_name_that_is_taken_is_kept_without_force_and_replaced_whole_with_it(
    to: Any, llama: Path, tmp_path: Path
) -> None:
    gate = gate_for(llama)
    out = export(str(llama), gate, to=to, out=tmp_path / "out")
    (out / "left.over").write_text("old")
    before = listing(out)
    with pytest.raises(ArtifactError, match="exists already"):
        export(str(llama), gate, to=to, out=out)
    assert listing(out) == before
    export(str(llama), gate.scaled(0.5), to=to, out=out, force=True)
    after = listing(out)
    assert "left.over" not in after and after.keys() == before.keys() - {"left.over"}
    assert after["README.md"] != before["README.md"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "out"]


def test_force_replaces_nothing_but_models(llama: Path, tmp_path: Path) -> None:
    gate = gate_for(llama)
    home = tmp_path / "home"
    home.mkdir()
    (home / "letters.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in (home, tmp_path / "file"):
        with pytest.raises(ArtifactError, match="is not replaced"):
            export(str(llama), gate, to="checkpoint", out=out, force=True)
    for out in (llama, llama / "inside", tmp_path):
        with pytest.raises(ArtifactError, match="overlap"):
            export(str(llama), gate, to="adapter", out=out, force=True)
    assert (home / "letters.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 30 kB: what a full disk does in the middle of a shard."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def old_export(llama: Path, tmp_path: Path) -> Path:
    return export(str(llama), gate_for(llama), to="checkpoint", out=tmp_path / "out")


def test_a_write_that_fails_leaves_nothing_and_loses_nothing(
    llama: Path, old_export: Path, tmp_path: Path, small_files: None
) -> None:
    before = listing(old_export)
    for out, force in ((old_export, True), (tmp_path / "fresh", False)):
        with pytest.raises(ArtifactError, match="could not be written"):
            export(str(llama), gate_for(llama), to="checkpoint", out=out, force=force)
    assert listing(old_export) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "out"]


def test_a_disk_without_room_is_known_before_anything_is_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ArtifactError, match=r"0\.00 GB"):
        export(str(llama), gate_for(llama), to="checkpoint", out=tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_stop_in_the_middle_leaves_the_old_folder(llama: Path, old_export: Path, tmp_path: Path) -> None:
    before = listing(old_export)

    def stop(done: int, total: int) -> None:
        assert 0 < done <= total == (llama / SINGLE).stat().st_size
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(str(llama), gate_for(llama), to="checkpoint", out=old_export, force=True, progress=stop)
    assert listing(old_export) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "out"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_take_its_name(
    llama: Path, old_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(old_export)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == files.NEW:
            raise PermissionError(13, "no", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match="could not be written"):
        export(str(llama), gate_for(llama), to="checkpoint", out=old_export, force=True)
    assert listing(old_export) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "out"]


CHILD = """
import sys
from pathlib import Path
import torch
import truthheads as th

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024

gate = th.Gate(torch.full((4, 8), 0.5))
th.export(sys.argv[1], gate, to="adapter", out=sys.argv[2] + "-adapter")  # what is imported and built on first use
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of that
before = status("VmRSS")
th.export(sys.argv[1], gate, to="checkpoint", out=sys.argv[2])
print(before, status("VmHWM"))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    config = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 8}
    config |= {"num_key_value_heads": 8, "vocab_size": 8192, "model_type": "llama", "dtype": "float32"}
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    (source / "tokenizer.json").write_text("{}")
    names: dict[str, str] = {}
    largest, total = 0, 0
    for layer in range(4):
        attention = {f"self_attn.{part}_proj": (1024, 1024) for part in "qkvo"}
        mlp = {"mlp.gate_proj": (4096, 1024), "mlp.up_proj": (4096, 1024), "mlp.down_proj": (1024, 4096)}
        tensors = {
            f"model.layers.{layer}.{part}.weight": torch.full(size, 0.1) for part, size in (attention | mlp).items()
        }
        file = f"model-{layer + 1:05d}-of-00004.safetensors"
        save_file(tensors, source / file, {"format": "pt"})
        names |= dict.fromkeys(tensors, file)
        largest = max(largest, *(tensor.nbytes for tensor in tensors.values()))
        total += sum(tensor.nbytes for tensor in tensors.values())
    (source / INDEX).write_text(json.dumps({"weight_map": names}))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(tmp_path / "out")], check=True, capture_output=True, text=True
    )
    before, peak = map(int, done.stdout.split())
    assert total > 250e6 and largest == 4 * 4096 * 1024
    assert peak - before < 2 * largest, f"{(peak - before) / 1e6:.0f} MB"
    shards = Shards.open(tmp_path / "out")
    assert torch.equal(shards.read("model.layers.3.self_attn.o_proj.weight"), torch.full((1024, 1024), 0.05))
    assert torch.equal(shards.read("model.layers.3.mlp.down_proj.weight"), torch.full((1024, 4096), 0.1))


# --- the card, the command, the hub ----------------------------------------------------------------------------------


def test_the_card_says_what_it_is_made_from_and_how_sure_it_is(llama: Path, tmp_path: Path) -> None:
    meta = {
        "method": "learn",
        "schedule": {"rate": 0.05},
        "note": "a | b",
        "evidence": {"margin gained (dev)": {"value": 2.6, "low": 1.9, "high": 3.25}, "unknown": None},
    }
    gate = dataclasses.replace(gate_for(llama), meta=meta)
    card = (export(str(llama), gate, to="checkpoint", out=tmp_path / "gated-one") / "README.md").read_text()
    front, _, text = card.removeprefix("---\n").partition("\n---\n")
    assert "library_name: transformers" in front and "base_model" not in front and "- truthheads" in front
    assert text.lstrip().startswith("# gated-one\n") and str(tmp_path) not in card
    for line in (
        "| margin gained (dev) | 2.6 [1.9, 3.25] |",
        "| schedule.rate | 0.05 |",
        "| note | a \\| b |",
        f"| digest | {gate.digest} |",
        "| moved | 12 |",
        "vllm serve gated-one",
        "python -m sglang.launch_server --model-path gated-one",
        "AutoModelForCausalLM.from_pretrained('gated-one')",
    ):
        assert line in text, line
    bare = dataclasses.replace(gate, meta={})
    card = (export(str(llama), bare, to="adapter", out=tmp_path / "a") / "README.md").read_text()
    assert "None was measured" in card and "library_name: peft" in card and "PeftModel.from_pretrained" in card
    vision = save(BY_NAME["llava"], tmp_path / "vision")
    card = (export(str(vision), gate_for(vision), to="checkpoint", out=tmp_path / "v") / "README.md").read_text()
    assert "AutoModelForImageTextToText" in card and "pipeline_tag: image-text-to-text" in card


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_writes_what_loads_again(tmp_path: Path) -> None:
    shape = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    row = dataclasses.replace(BY_NAME["llama"], settings={**BY_NAME["llama"].settings, **shape})
    source = save(row, tmp_path / "model")
    gate = gate_for(source)
    gate.save(tmp_path / "gate.safetensors")
    common = (source, "--gate", tmp_path / "gate.safetensors")
    done = run("export", *common, "--to", "checkpoint", "--out", tmp_path / "out", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["gate"]["digest"] == gate.digest and found["to"] == "checkpoint" and found["pushed_to"] is None
    assert found["files"] == len(listing(tmp_path / "out"))
    model, plain = (th.load(str(folder), device="cpu", dtype="fp32") for folder in (tmp_path / "out", source))
    with gated(plain, gate):
        hook = logits_of(row, plain.network)
    torch.testing.assert_close(logits_of(row, model.network), hook, atol=1e-5 * float(hook.abs().max()), rtol=0)
    shown = run("export", *common, "--to", "adapter", "--out", tmp_path / "adapter")
    assert shown.exit_code == 0 and "27 of 3 x 9 heads scaled at site z" in shown.stdout
    again = run("export", *common, "--to", "adapter", "--out", tmp_path / "adapter")
    assert again.exit_code == 2 and again.stdout == "" and len(again.stderr.splitlines()) == 2
    assert "--force" in again.stderr
    assert run("export", *common, "--to", "adapter", "--out", tmp_path / "adapter", "--force").exit_code == 0


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs; keeps what it was sent."""

    sent: dict[str, list[bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.sent.setdefault(self.path, []).append(body)
        status, answer = 200, {}
        if self.path == "/api/repos/create":
            status = 409 if len(self.sent[self.path]) > 1 else 200
            answer = {"url": "https://huggingface.co/user/gated", "name": json.loads(body)["name"]}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            answer = {"commitUrl": "https://huggingface.co/user/gated/commit/0", "commitOid": "0" * 40, "success": True}
        self.reply(status, answer)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self.reply(200, [{"type": "file", "path": "old.safetensors", "oid": "0" * 40, "size": 1}])
        else:
            self.reply(404, {"error": "not here"})

    def reply(self, status: int, answer: Any) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[bytes]]]:
    handler = type("OwnHub", (Hub,), {"sent": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield handler.sent  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_whole_export_is_sent_to_the_hub(llama: Path, tmp_path: Path, hub: dict[str, list[bytes]]) -> None:
    out = export(str(llama), gate_for(llama), to="adapter", out=tmp_path / "out", push_to_hub="user/gated")
    assert json.loads(hub["/api/repos/create"][0])["name"] == "gated"
    commit = next(bodies[0] for path, bodies in hub.items() if "/commit/" in path)
    sent = {line["value"]["path"] for line in map(json.loads, commit.splitlines()) if line["key"] == "file"}
    assert sent == listing(out).keys() and "# gated" in (out / "README.md").read_text()
    with pytest.raises(ArtifactError, match="was not sent") as caught:
        export(str(llama), gate_for(llama), to="adapter", out=tmp_path / "two", push_to_hub="user/gated")
    assert "--force" in caught.value.fix and (tmp_path / "two" / "README.md").is_file()
    export(str(llama), gate_for(llama), to="adapter", out=tmp_path / "two", push_to_hub="user/gated", force=True)
    last = next(bodies[-1] for path, bodies in hub.items() if "/commit/" in path)
    gone = {line["value"]["path"] for line in map(json.loads, last.splitlines()) if line["key"] == "deletedFile"}
    assert gone == {"old.safetensors"}


def test_without_a_network_the_export_stays(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    gate = gate_for(llama)
    with pytest.raises(ArtifactError, match="was not sent to user/gated") as caught:
        export(str(llama), gate, to="checkpoint", out=tmp_path / "out", push_to_hub="user/gated")
    assert f"hf upload user/gated {tmp_path / 'out'}" in caught.value.fix
    assert torch.isfinite(logits_of(BY_NAME["llama"], network_of(BY_NAME["llama"], tmp_path / "out"))).all()
    with pytest.raises(ArtifactError, match="not a valid name for the hub"):
        export(str(llama), gate, to="checkpoint", out=tmp_path / "other", push_to_hub="a/b/c")
    assert not (tmp_path / "other").exists()


def test_a_card_names_what_the_gate_was_made_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    from ggufs import write_gguf as write_whole_gguf

    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "tiny-F32.gguf"
    write_whole_gguf(source)
    out = export(str(source), gate_for(source), to="adapter", out=tmp_path / "adapter")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])  # no hub id stands for these weights
    assert "made on the weights of the GGUF file tiny-F32.gguf, dequantised" in " ".join(card.split())
    settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "tiny-F32.gguf"  # not its conversion in this machine's cache
    found = find_adapter(str(out))
    assert found is not None and found.base == str(source)  # and the adapter finds it: it lies beside


def test_a_folder_in_the_hubs_cache_is_called_by_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--some-name" / "snapshots" / "0123abcd"
    save(BY_NAME["llama"], folder)
    out = export(str(folder), gate_for(folder), to="adapter", out=tmp_path / "adapter")
    settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "owner/some-name"
    assert yaml.safe_load((out / "README.md").read_text(encoding="utf-8").split("---\n")[1])["base_model"] == (
        "owner/some-name"
    )
