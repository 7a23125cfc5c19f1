"""An adapter in a checkpoint, a PEFT folder, a GGUF file and llama.cpp's LoRA file is the adapter under the hook."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, quants
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

import ggufs
import small_gguf
import truthheads as th
from exported import IDS, header_of, logits_of, network_of, raw_tensors, with_config
from truthheads.cli import app
from truthheads.errors import ArchitectureError, ArtifactError, GateError, ModelError, ShapeError
from truthheads.exporting.export import export, write_export
from truthheads.exporting.gguf_adapter import merge_gguf
from truthheads.exporting.gguf_names import GgufNames
from truthheads.exporting.rounding import rounding_cost
from truthheads.models.architectures import locate_heads, widths
from truthheads.models.head_modules import locate_places
from truthheads.models.hooks import LowRank
from truthheads.models.weight_files import SINGLE
from truthheads.results.gate import Gate
from truthheads.results.head_adapter import HeadAdapter, adapted
from truthheads.storage.artifacts import KEY
from zoo import MULTIMODAL, ROWS, ZooRow, save

EVERY = (*ROWS, *MULTIMODAL)
BY_NAME = {row.name: row for row in EVERY}
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]


def lora_of(network: Any, names: list[str], *, rank: int = 3, size: float = 0.2, base: str = "base") -> HeadAdapter:
    """Return a LoRA of whole modules with random numbers."""
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for name in names:
        wide = widths(network.get_submodule(name))
        assert wide is not None
        a = size * torch.randn(rank, wide[0], generator=generator)
        updates[name] = LowRank(a, size * torch.randn(wide[1], rank, generator=generator))
    return HeadAdapter(updates, base)


def head_adapter_of(network: Any, *, rank: int = 3) -> HeadAdapter:
    """Return an adapter of the second head of every layer that has one."""
    chosen = [place for place in locate_places(network, locate_heads(network)) if place.head == 1]
    whole = lora_of(network, [span.module for place in chosen for span in (place.query, place.output)], rank=rank)
    updates = {}
    for place in chosen:
        query, output = whole.updates[place.query.module], whole.updates[place.output.module]
        rows, columns = torch.zeros(query.b.shape[0], 1), torch.zeros(output.a.shape[1])
        rows[place.query.start : place.query.start + place.query.width] = 1
        columns[place.output.start : place.output.start + place.output.width] = 1
        updates[place.query.module] = LowRank(query.a, query.b * rows)
        updates[place.output.module] = LowRank(output.a * columns, output.b)
    return HeadAdapter(updates, "base", tuple(chosen))


def values_of(path: Path) -> dict[str, np.ndarray]:
    return {
        tensor.name: quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in GGUFReader(str(path)).tensors
    }


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(str(path)).tensors}


def bytes_of(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(str(path)).tensors}


# --- checkpoint and PEFT folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", EVERY, ids=str)
def test_hook_peft_folder_and_checkpoint_give_the_same_logits_and_only_their_heads_change(
    row: ZooRow, tmp_path: Path
) -> None:
    from peft import PeftModel

    source = save(row, tmp_path / "model")
    network = network_of(row, source)
    adapter = head_adapter_of(network)
    plain = logits_of(row, network)
    with adapted(network, adapter):
        hook = logits_of(row, network)
    assert float((hook - plain).abs().max()) > 1e-3
    close = {"atol": 1e-5 * max(1.0, float(hook.abs().max())), "rtol": 0}
    checkpoint = export(str(source), adapter=adapter, to="checkpoint", out=tmp_path / "checkpoint")
    torch.testing.assert_close(logits_of(row, network_of(row, checkpoint)), hook, **close)

    before, after = raw_tensors(source), raw_tensors(checkpoint)
    changed = [name for name in before if before[name] != after[name]]
    assert list(before) == list(after) and len(changed) == len(adapter.updates)
    old, new = network.state_dict(), network_of(row, checkpoint).state_dict()
    for place in adapter.places:
        for span, axis in ((place.query, 0), (place.output, 1)):
            name = f"{span.module}.weight"
            axis = 1 - axis if isinstance(network.get_submodule(span.module), Conv1D) else axis
            differs = (old[name] != new[name]).any(1 - axis).nonzero().flatten().tolist()
            assert differs == list(range(span.start, span.start + span.width))

    folder = export(str(source), adapter=adapter, to="adapter", out=tmp_path / "adapter")
    wrapped = PeftModel.from_pretrained(network, folder)
    torch.testing.assert_close(logits_of(row, wrapped), hook, **close)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(BY_NAME["llama"], tmp_path / "model")


def user_lora(source: Path, out: Path, **settings: Any) -> tuple[Any, Path]:
    """Save a LoRA as a user's own training would, and return the network that PEFT merges it into."""
    from peft import LoraConfig, get_peft_model

    network = network_of(BY_NAME["llama"], source)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        wrapped = get_peft_model(network, LoraConfig(**settings))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.1)
    wrapped.save_pretrained(str(out))
    return wrapped.merge_and_unload(), out


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 32, "target_modules": ["gate_proj", "down_proj", "v_proj"]},
        {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
        {
            "r": 8,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 40},
        },
    ],
    ids=["alpha is not r", "rslora", "patterns"],
)
def test_a_lora_of_a_users_own_is_exported_as_peft_merges_it(
    settings: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    merged, folder = user_lora(llama, tmp_path / "lora", **settings)
    wanted = merged.state_dict()
    out = export(str(llama), adapter=folder, to="checkpoint", out=tmp_path / "out")
    found, plain = load_file(out / SINGLE), load_file(llama / SINGLE)
    assert any(not torch.equal(found[name], plain[name]) for name in found)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=1e-5)

    served = export(str(llama), adapter=folder, to="adapter", out=tmp_path / "served")
    config = json.loads((served / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] in (8, 16) and not config["rank_pattern"]
    assert not config["use_rslora"] and config["modules_to_save"] is None
    assert config["base_model_name_or_path"] == llama.name
    tensors = load_file(served / "adapter_model.safetensors")
    assert {value.shape[0] for name, value in tensors.items() if "lora_A" in name} == {config["r"]}
    for name, value in th.HeadAdapter.load(served).updates.items():
        change = wanted[f"{name}.weight"] - plain[f"{name}.weight"]
        torch.testing.assert_close(value.b @ value.a, change, atol=2e-6, rtol=1e-5)


def test_the_checkpoint_says_what_is_inside_and_takes_no_second_adapter(llama: Path, tmp_path: Path) -> None:
    adapter = head_adapter_of(network_of(BY_NAME["llama"], llama))
    out = export(str(llama), adapter=adapter, to="checkpoint", out=tmp_path / "out")
    note = json.loads(header_of(out / SINGLE)["__metadata__"][KEY])
    assert note["adapter"] == adapter.digest and note["kind"] == "adapted"
    assert note["heads"] == [[0, 1], [1, 1], [2, 1]] and note["modules"] == list(adapter.updates)
    card = (out / "README.md").read_text()
    assert "rank 3 of the queries and outputs of 3 of its attention heads" in card and str(llama) not in card
    for again in ({"adapter": adapter}, {"gate": Gate(torch.full((3, 4), 0.5))}):
        with pytest.raises(ModelError, match=adapter.digest):
            export(str(out), to="checkpoint", out=tmp_path / "twice", **again)  # type: ignore[arg-type]


def test_a_checkpoint_of_several_shards_in_bf16_is_rounded_once(tmp_path: Path) -> None:
    source = save(BY_NAME["llama"], tmp_path / "model", shards=3, dtype=torch.bfloat16)
    network = network_of(BY_NAME["llama"], source)
    name = "model.layers.2.mlp.down_proj"
    adapter = lora_of(network, [name])
    out = export(str(source), adapter=adapter, to="checkpoint", out=tmp_path / "out")
    update = adapter.updates[name]
    wanted = (network.state_dict()[f"{name}.weight"] + update.b @ update.a).bfloat16()
    found = {key: value for file in out.glob("*.safetensors") for key, value in load_file(file).items()}
    torch.testing.assert_close(found[f"{name}.weight"], wanted, atol=0, rtol=2**-8)
    before, after = raw_tensors(source), raw_tensors(out)
    assert [key for key in before if before[key] != after[key]] == [f"{name}.weight"]


def test_quantised_weights_keep_their_adapter_apart(llama: Path, tmp_path: Path) -> None:
    adapter = head_adapter_of(network_of(BY_NAME["llama"], llama))
    with_config(llama, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ModelError, match="quantised") as caught:
        export(str(llama), adapter=adapter, to="checkpoint", out=tmp_path / "out")
    assert "--to adapter" in caught.value.fix and "unquantised" in caught.value.fix
    assert (
        export(str(llama), adapter=adapter, to="adapter", out=tmp_path / "a") / "adapter_model.safetensors"
    ).is_file()
    assert export(str(llama), adapter=adapter, to="gguf-lora", out=tmp_path / "a.gguf").is_file()


def test_an_output_head_that_is_the_embedding_is_not_changed(tmp_path: Path) -> None:
    source = save(BY_NAME["llama"], tmp_path / "model")
    network = network_of(BY_NAME["llama"], source)
    adapter = lora_of(network, ["lm_head"])
    untied = export(str(source), adapter=adapter, to="checkpoint", out=tmp_path / "untied")
    assert raw_tensors(untied)["lm_head.weight"] != raw_tensors(source)["lm_head.weight"]
    tensors = load_file(source / SINGLE)
    save_file(
        {key: value for key, value in tensors.items() if key != "lm_head.weight"}, source / SINGLE, {"format": "pt"}
    )
    with_config(source, tie_word_embeddings=True)
    with pytest.raises(ArchitectureError, match="no weight of its own") as caught:
        export(str(source), adapter=adapter, to="checkpoint", out=tmp_path / "out")
    assert "--to adapter" in caught.value.fix


def test_what_does_not_fit_is_one_clear_error(llama: Path, tmp_path: Path) -> None:
    network = network_of(BY_NAME["llama"], llama)
    good = head_adapter_of(network)
    name = "model.layers.0.self_attn.q_proj"
    narrow = HeadAdapter({name: LowRank(torch.ones(2, 7), torch.ones(32, 2))}, "base")
    gone = HeadAdapter({"model.layers.9.self_attn.q_proj": LowRank(torch.ones(2, 32), torch.ones(32, 2))}, "base")
    for adapter in (narrow, gone):
        for to in ("adapter", "checkpoint", "gguf-lora"):
            with pytest.raises(ShapeError, match="does not fit"):
                export(str(llama), adapter=adapter, to=to, out=tmp_path / "out.gguf")  # type: ignore[arg-type]
    gate = Gate(torch.ones(3, 4))
    with pytest.raises(GateError, match="needs a gate or an adapter"):
        export(str(llama), to="checkpoint", out=tmp_path / "out")
    with pytest.raises(GateError, match="both"):
        export(str(llama), gate, adapter=good, to="checkpoint", out=tmp_path / "out")
    with pytest.raises(GateError, match="a gate has no LoRA file"):
        export(str(llama), gate, to="gguf-lora", out=tmp_path / "out.gguf")
    with pytest.raises(ModelError, match="convert_hf_to_gguf"):
        export(str(llama), adapter=good, to="gguf", out=tmp_path / "out.gguf")
    with pytest.raises(ArtifactError, match=r"must end in \.gguf"):
        export(str(llama), adapter=good, to="gguf-lora", out=tmp_path / "out")
    with pytest.raises(ArtifactError, match="not an adapter"):
        export(str(llama), adapter=llama, to="checkpoint", out=tmp_path / "out")
    opt = save(BY_NAME["opt"], tmp_path / "opt")
    with pytest.raises(ModelError, match="order of heads") as caught:
        other = head_adapter_of(network_of(BY_NAME["opt"], opt))
        export(str(opt), adapter=other, to="gguf-lora", out=tmp_path / "out.gguf")
    assert "convert_lora_to_gguf" in caught.value.fix
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model", "opt"]


# --- GGUF ------------------------------------------------------------------------------------------------------------


LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
MODULES = [f"model.layers.{layer}.{name}" for layer in (0, 2) for name in LINEAR]
INNER = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "down_proj": "ffn_down"}


def changed_names(modules: list[str]) -> set[str]:
    return {f"blk.{name.split('.')[2]}.{INNER[name.rpartition('.')[2]]}.weight" for name in modules}


@pytest.mark.parametrize("split", [0, 4], ids=["whole", "split"])
def test_a_gguf_model_with_the_adapter_inside_is_the_model_under_the_hook(split: int, tmp_path: Path) -> None:
    source = ggufs.write_gguf(tmp_path / "model.gguf", most=split)[0]
    model = th.load(str(source), dtype="fp32")
    adapter = lora_of(model.network, MODULES)
    with torch.inference_mode():
        plain = model.network(IDS).logits
        with adapted(model, adapter):
            hook = model.network(IDS).logits
    out = export(str(source), adapter=adapter, to="gguf", out=tmp_path / "adapted.gguf")
    with torch.inference_mode():
        found = th.load(str(out), dtype="fp32").network(IDS).logits
    assert float((hook - plain).abs().max()) > 0.01
    torch.testing.assert_close(found, hook, atol=1e-5, rtol=1e-5)
    if not split:
        before, after = bytes_of(source), bytes_of(out)
        assert list(before) == list(after)
        assert {name for name in before if before[name] != after[name]} == changed_names(MODULES)
        old, new = (GGUFReader(str(path)).fields for path in (source, out))
        assert sorted(set(new) - set(old)) == ["truthheads.adapter", "truthheads.adapter.digest"]
        assert all(old[key].contents() == new[key].contents() for key in old if key != "GGUF.kv_count")
    with pytest.raises(GateError, match="adapted already"):
        export(str(out), adapter=adapter, to="gguf", out=tmp_path / "twice.gguf")


def write_kind(path: Path, kind: Type) -> Path:
    """Write a small Llama whose output projections are of a type, also of one that the library cannot write."""
    if kind in (Type.Q4_K, Type.Q6_K):
        small_gguf.write(path, Type.F32)
        return rewritten_as(path, kind)
    return small_gguf.write(path, kind)


def rewritten_as(path: Path, kind: Type) -> Path:
    """Write the file again with blocks of a K-quant for its output projections: any bits are one, with sane scales."""
    reader = GGUFReader(str(path))
    writer = gguf.GGUFWriter(str(path.with_suffix(".new")), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    for tensor in reader.tensors:
        data: Any = tensor.data
        if not tensor.name.endswith("attn_output.weight"):
            writer.add_tensor(tensor.name, data)
            continue
        blocks = random.integers(0, 256, (data.shape[0], data.shape[1] // block, size), dtype=np.uint8)
        at = slice(0, 4) if kind is Type.Q4_K else slice(size - 2, size)  # the scales of a block, in fp16
        blocks[..., at] = np.full(2 if kind is Type.Q4_K else 1, 2e-4, np.float16).view(np.uint8)
        writer.add_tensor(tensor.name, blocks.reshape(data.shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").rename(path)
    return path


BITS = {Type.F32: 23, Type.F16: 10, Type.BF16: 7, Type.Q8_0: 7, Type.Q5_0: 4, Type.Q5_1: 4.9, Type.Q4_0: 3,
        Type.Q4_1: 3.9, Type.Q4_K: 7, Type.Q6_K: 7}  # fmt: skip


@pytest.mark.parametrize("kind", BITS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("strength", [1.0, 0.03], ids=["strong", "weak"])
def test_a_changed_tensor_keeps_its_type_where_that_can_hold_the_update_and_becomes_q8_0_where_not(
    kind: Type, strength: float, tmp_path: Path
) -> None:
    source = write_kind(tmp_path / "model.gguf", kind)
    network = small_gguf.small_llama()
    module, name = "model.layers.1.self_attn.o_proj", "blk.1.attn_output.weight"
    adapter = head_adapter_of(network)
    adapter = HeadAdapter({module: adapter.updates[module]}, "base").scaled(strength)
    done = write_export(str(source), adapter=adapter, to="gguf", out=tmp_path / "out.gguf", measure=False)
    few = kind in (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)
    after = "Q8_0" if kind in (Type.Q4_K, Type.Q6_K) or (few and strength < 1) else kind.name
    assert done.tensors == ({"tensor": name, "before": kind.name, "after": after},) and done.rounding is None
    assert types_of(done.out) == types_of(source) | {name: after}
    old, new = values_of(source)[name], values_of(done.out)[name]
    update = adapter.updates[module]
    wanted = old + (update.b @ update.a).numpy()
    room = 0.51 * np.abs(wanted).max() * 2.0 ** (-(7 if after == "Q8_0" else BITS[kind]) + 1)
    assert np.abs(new - wanted).max() <= room < (0.25 if strength == 1 else 0.6) * np.abs(wanted - old).max()
    before, written = bytes_of(source), bytes_of(done.out)
    assert [one for one in before if before[one] != written[one]] == [name]
    if after == kind.name:  # one head of 64 columns is changed: two blocks of 32, and no other
        assert (np.flatnonzero((old != new).any(0)) // 64 == 1).all()
        rows = old.shape[0]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        parts = [np.frombuffer(data[name], np.uint8).reshape(rows, -1, size) for data in (before, written)]
        differs = np.flatnonzero((parts[0] != parts[1]).any((0, 2))) * block
        assert set(differs // 64) == {1}


def test_a_lora_file_is_what_is_merged(tmp_path: Path) -> None:
    (source,) = ggufs.write_gguf(tmp_path / "model.gguf")
    model = th.load(str(source), dtype="fp32")
    whole, thin = lora_of(model.network, MODULES[:7], rank=4), lora_of(model.network, MODULES[7:], rank=2)
    adapter = HeadAdapter({**whole.updates, **thin.updates}, "base")
    merged = export(str(source), adapter=adapter, to="gguf", out=tmp_path / "merged.gguf", measure=False)
    lora = export(str(source), adapter=adapter, to="gguf-lora", out=tmp_path / "lora.gguf")
    fields, parts, base = GGUFReader(str(lora)).fields, values_of(lora), values_of(source)
    assert fields["general.type"].contents() == "adapter" and fields["adapter.type"].contents() == "lora"
    assert fields["general.architecture"].contents() == "llama"
    names = {name.rpartition(".")[0] for name in parts}
    assert names == changed_names(MODULES) and len(parts) == 2 * len(names)
    alpha = fields["adapter.lora.alpha"].contents()
    for name, value in values_of(merged).items():
        if name in names:
            a, b = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
            np.testing.assert_allclose(base[name] + alpha / len(a) * (b @ a), value, atol=1e-6)
    assert (
        export(str(source), adapter=adapter, to="gguf-lora", out=tmp_path / "two.gguf").read_bytes()
        == lora.read_bytes()
    )


def test_a_transformers_folder_gives_the_lora_file_of_its_gguf_model(tmp_path: Path) -> None:
    (source,) = ggufs.write_gguf(tmp_path / "model.gguf")
    model = th.load(str(source), dtype="fp32")
    model.network.save_pretrained(tmp_path / "folder")
    model.tokenizer.save_pretrained(tmp_path / "folder")
    adapter = lora_of(model.network, MODULES)
    files = [
        export(str(name), adapter=adapter, to="gguf-lora", out=tmp_path / f"{at}.gguf")
        for at, name in enumerate((source, tmp_path / "folder"))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_neox", "bloom", "falcon_new", "falcon_multi_query", "phi3", "gemma3", "qwen2", "mpt"]
)
def test_lora_files_of_other_architectures_put_rows_where_llama_cpp_looks_for_them(name: str, tmp_path: Path) -> None:
    row = BY_NAME[name]
    source = save(row, tmp_path / "model")
    network = network_of(row, source)
    adapter = head_adapter_of(network)
    parts = values_of(export(str(source), adapter=adapter, to="gguf-lora", out=tmp_path / "lora.gguf"))
    heads, kv = row.num_heads, row.num_kv_heads
    for place in adapter.places:
        fused = "q_proj" not in place.query.module
        found = parts[f"blk.{place.layer}.{'attn_qkv' if fused else 'attn_q'}.weight.lora_b"]
        width = place.query.width
        rows = np.flatnonzero(found.any(1)).tolist()
        assert rows == list(range(width, 2 * width))  # the second head's queries: all queries come first there
        own = adapter.updates[place.query.module].b.numpy()
        np.testing.assert_array_equal(found[rows], own[place.query.start : place.query.start + width])
        assert len(found) == (heads + 2 * kv if fused else heads) * width
        columns = np.flatnonzero(parts[f"blk.{place.layer}.attn_output.weight.lora_a"].any(0)).tolist()
        assert columns == list(range(place.output.start, place.output.start + place.output.width))


def test_grouped_rows_are_ordered_as_llama_cpp_converts_them() -> None:
    heads, kv, width = 6, 2, 4
    rows = (heads + 2 * kv) * width
    weight = torch.arange(rows)[:, None].expand(rows, 3)
    cut = weight.view(kv, heads // kv + 2, width, 3)  # falcon.py and gptneox.py of llama.cpp's converter
    wanted = torch.cat([cut[:, :-2].reshape(-1, 3), cut[:, [-2]].reshape(-1, 3), cut[:, [-1]].reshape(-1, 3)])
    order = GgufNames("falcon", 1, heads, kv).order("blk.0.attn_qkv.weight", rows)
    assert order is not None and order.tolist() == wanted[:, 0].tolist()
    paired = GgufNames("llama", 1, heads, kv).order("blk.0.attn_k.weight", kv * width)
    swapped = torch.arange(kv * width).reshape(kv, 2, width // 2).swapaxes(1, 2).flatten()  # LlamaModel.permute
    assert paired is not None and paired.tolist() == swapped.tolist()
    assert GgufNames("qwen2", 1, heads, kv).order("blk.0.attn_k.weight", kv * width) is None
    with pytest.raises(ModelError, match="in llama"):
        GgufNames("llama", 1, 5, 5).order("blk.0.attn_q.weight", 16)


def quantised(tensors: Mapping[str, np.ndarray], kind: Type, path: Path) -> Path:
    """Write the small Llama of ``ggufs`` with its matrices in a type."""
    (plain,) = ggufs.write_gguf(path.with_suffix(".f32.gguf"), tensors)
    reader = GGUFReader(str(plain))
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if data.ndim == 2 and tensor.name.startswith("blk."):
            writer.add_tensor(tensor.name, quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_cost_of_rounding_is_that_of_the_file_and_nothing_where_nothing_is_rounded(tmp_path: Path) -> None:
    network = ggufs.small_llama()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    tensors = ggufs.tensors_of(network)
    costs = {}
    for kind in (Type.F32, Type.Q8_0, Type.Q4_0):
        source = quantised(tensors, kind, tmp_path / f"{kind.name}.gguf")
        adapter = lora_of(network, MODULES, size=0.3)
        done = write_export(str(source), adapter=adapter, to="gguf", out=tmp_path / f"{kind.name}-out.gguf")
        assert done.rounding is not None
        costs[kind] = done.rounding
        if kind is Type.Q4_0:  # the same by another way: both models loaded, the texts drawn again
            from truthheads.models.neutral_text import measure_harm, neutral_ids

            model, other = (th.load(str(path), dtype="fp32") for path in (source, done.out))
            rows = neutral_ids(model, [], texts=24, seed=0)
            kl = []
            for ids in rows:
                with torch.inference_mode(), adapted(model, adapter):
                    exact = model.network(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
                with torch.inference_mode():
                    file = other.network(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
                kl.append(float((exact.exp() * (exact - file)).sum(-1).mean()))
            assert costs[kind].value == pytest.approx(np.mean(kl), rel=0.01)
            assert measure_harm(model, rows, adapter).figures(seed=0)["kl"].value > costs[kind].value
            assert rounding_cost(str(source), adapter, done.out, seed=0) == costs[kind]
    assert abs(costs[Type.F32].value) < 1e-6 < costs[Type.Q8_0].value < 0.2 * costs[Type.Q4_0].value


def test_damaged_and_strange_gguf_models_are_one_clear_error(tmp_path: Path) -> None:
    network = small_gguf.small_llama()
    adapter = lora_of(network, ["model.layers.1.self_attn.o_proj"])
    source = small_gguf.write(tmp_path / "model.gguf", Type.F16)
    other = small_gguf.write(tmp_path / "other.gguf", Type.F16, architecture="mamba")
    with pytest.raises(ModelError, match="order of heads is not known"):
        merge_gguf(other, adapter, tmp_path / "out.gguf")
    for name in ("model.layers.7.self_attn.o_proj", "model.vision.layers.0.proj"):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            merge_gguf(source, HeadAdapter({name: LowRank(torch.ones(1, 4), torch.ones(4, 1))}, "base"), tmp_path / "o")
    with pytest.raises(ShapeError, match="does not fit the model"):
        wide = LowRank(torch.ones(1, 9), torch.ones(4, 1))
        merge_gguf(source, HeadAdapter({"model.layers.1.self_attn.o_proj": wide}, "base"), tmp_path / "o")
    with pytest.raises(ModelError, match="finite numbers in F16"):
        merge_gguf(source, lora_of(network, ["model.layers.1.self_attn.o_proj"], size=1e4), tmp_path / "o")
    whole = source.read_bytes()
    for content in (whole[: len(whole) // 2], b"GGUF", b""):
        source.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as GGUF"):
            merge_gguf(source, adapter, tmp_path / "o")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_which_type_each_tensor_got_and_what_it_cost(tmp_path: Path) -> None:
    network = ggufs.small_llama()
    source = quantised(ggufs.tensors_of(network), Type.Q4_0, tmp_path / "model.gguf")
    lora_of(network, MODULES).save(tmp_path / "adapter")
    arguments = ["export", str(source), "--adapter", str(tmp_path / "adapter"), "--to", "gguf"]
    run = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "a.gguf")])
    assert run.exit_code == 0, run.output
    assert "10 modules" in run.stdout and "nats a token" in run.stdout
    assert any(line.split() == ["Q4_0", "Q4_0", "10"] for line in run.stdout.splitlines())
    run = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b.gguf"), "--json"])
    result = json.loads(run.stdout)
    assert {one["tensor"] for one in result["tensors"]} == changed_names(MODULES)
    assert {(one["before"], one["after"]) for one in result["tensors"]} == {("Q4_0", "Q4_0")}
    assert 0 < result["rounding"]["low"] <= result["rounding"]["value"] <= result["rounding"]["high"]
    assert result["adapter"]["modules"] == 10 and result["bytes"] == (tmp_path / "b.gguf").stat().st_size
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    run = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "c.gguf"), "--json", "--no-measure"])
    assert json.loads(run.stdout)["rounding"] is None
    run = CliRunner().invoke(app, ["export", str(source), "--to", "gguf", "--out", str(tmp_path / "d.gguf")])
    assert run.exit_code == 2 and "one of --gate and --adapter" in run.stderr


def test_an_ia3_adapter_of_a_gguf_model_names_the_users_file_and_its_card_runs(tmp_path: Path) -> None:
    (source,) = ggufs.write_gguf(tmp_path / "model.gguf")
    gate = Gate(torch.full((ggufs.LAYERS, ggufs.HEADS), 0.5))
    out = export(str(source), gate, to="adapter", out=tmp_path / "adapter")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "model.gguf"
    card = (out / "README.md").read_text()
    assert "from_pretrained(\".\", gguf_file='model.gguf')" in card and str(tmp_path) not in card
    with torch.inference_mode():
        plain = th.load(str(source), dtype="fp32")
        with th.gated(plain, gate):
            hook = plain.network(IDS).logits
        torch.testing.assert_close(th.load(str(out), dtype="fp32").network(IDS).logits, hook, atol=1e-5, rtol=0)


def test_the_embedded_family_is_named_as_a_member_of_it(llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from truthheads.models import sources

    class Point:
        name = "smollm2"

        def load(self) -> Any:
            return lambda member: str(llama)

    monkeypatch.setattr(sources, "entry_points", lambda group: [Point()])
    adapter = head_adapter_of(network_of(BY_NAME["llama"], llama))
    out = export("smollm2:reader", adapter=adapter, to="adapter", out=tmp_path / "adapter")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2:reader"
    assert 'th.load("smollm2:reader")' in (out / "README.md").read_text().replace("'", '"')


def test_hook_and_merged_tensors_agree_for_a_decoder_inside_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """A base's adapter in a descendant that keeps its decoder deeper: its names in file and network differ."""
    row = BY_NAME["llava"]
    source = save(row, tmp_path / "model")
    network = network_of(row, source)
    inner = head_adapter_of(network)
    first = network_of(row, source)
    layout = locate_heads(first)
    prefix = layout.layers[0].path.partition(".layers.")[0]
    bare = HeadAdapter({f"model{name.removeprefix(prefix)}": update for name, update in inner.updates.items()}, "base")
    with adapted(network, inner):
        hook = logits_of(row, network)
    out = export(str(source), adapter=bare, to="checkpoint", out=tmp_path / "out")
    torch.testing.assert_close(logits_of(row, network_of(row, out)), hook, atol=1e-5, rtol=1e-5)
