"""Heads are found where the zoo's hand-written rows say, from a network and from a configuration alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from truthheads.errors import ArchitectureError
from truthheads.models.architectures import HeadLayer, HeadLayout, locate_heads
from truthheads.models.inspection import inspect
from truthheads.models.load import load
from zoo import MULTIMODAL, ROWS, ZooRow, build

EVERY = (*ROWS, *MULTIMODAL)
every_row = pytest.mark.parametrize("row", EVERY, ids=str)


def check_layout(layout: HeadLayout, row: ZooRow) -> None:
    assert layout.shape == (row.num_layers, row.num_heads)
    assert (layout.num_layers, layout.num_heads) == (row.num_layers, row.num_heads)
    assert (layout.head_dim, layout.num_kv_heads) == (row.head_dim, row.num_kv_heads)
    assert layout.layers == tuple(
        HeadLayer(layer, row.projection(layer), row.num_heads, row.head_dim, row.num_kv_heads, row.transposed)
        for layer in row.attending
    )
    assert sorted(layout.skipped) == [*row.without_attention]
    assert all(layout.skipped.values())
    before, after = row.out_proj.rsplit(f".{row.attending[0]}.", 1)
    assert layout.projection == f"{before}.*.{after}"


@every_row
def test_heads_are_where_the_row_says(row: ZooRow, tmp_path: Path) -> None:
    network = build(row)
    layout = locate_heads(network)
    check_layout(layout, row)
    assert layout.architecture == row.model_class

    config = row.config()
    config.architectures = [row.model_class]
    config.save_pretrained(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
    found = inspect(str(tmp_path))
    # Of an omni model the thinker is taken, and only that: its paths are seen from there.
    expected = replace(row, out_proj=row.out_proj.removeprefix(f"{row.runner}."))
    check_layout(found.layout, expected)
    real = network.get_submodule(row.runner)
    assert found.layout.architecture == type(real).__name__
    assert found.layout.max_positions == layout.max_positions
    assert found.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert found.image == (row in MULTIMODAL)
    assert found.json()["num_layers"] == row.num_layers


@pytest.mark.parametrize(
    ("name", "limit"),
    [("llama", 512), ("gpt2", 512), ("opt", 512), ("mpt", None), ("bloom", None), ("falcon_alibi", None)],
)
def test_longest_sequence(name: str, limit: int | None) -> None:
    row = next(row for row in ROWS if row.name == name)
    assert locate_heads(build(row)).max_positions == limit


def test_the_skipped_layers_are_named() -> None:
    kinds = {row.name: locate_heads(build(row)).skipped for row in EVERY if row.without_attention}
    assert kinds["qwen3_next"] == {0: "linear_attention", 2: "linear_attention"}
    assert kinds["lfm2"] == {0: "conv", 2: "conv"}
    # transformers calls Mamba layers so
    assert kinds["bamba"] == kinds["jamba"] == {0: "linear_attention", 2: "linear_attention"}
    assert "cross_attn" in kinds["mllama"][1]


class OddConfig(PreTrainedConfig):
    model_type = "odd_one"


class OddLook(nn.Module):
    """Attention under names that no table knows: ``mixer`` leads out."""

    def __init__(self, names: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (wide, out) in names.items():
            self.add_module(name, nn.Linear(wide, out))


class OddStep(nn.Module):
    def __init__(self, child: str, names: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.add_module(child, OddLook(names))
        self.digest = nn.Linear(32, 32)


class OddModel(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config: OddConfig, child: str, names: dict[str, tuple[int, int]], steps: int = 2) -> None:
        super().__init__(config)
        self.floors = nn.ModuleList(OddStep(child, names) for _ in range(steps))
        self.post_init()

    def forward(self, input_ids: Tensor) -> Any:
        raise NotImplementedError


NAMES = {"q_lin": (32, 48), "k_lin": (32, 24), "v_lin": (32, 24), "mixer": (48, 32)}


def odd(child: str = "peek_attn", names: dict[str, tuple[int, int]] = NAMES, *, steps: int = 2) -> OddModel:
    config = OddConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    with torch.random.fork_rng(devices=[]):
        return OddModel(config, child, names, steps)


@pytest.mark.parametrize(
    "names",
    [NAMES, {"Wqkv": (32, 96), "mixer": (48, 32)}, {"query_key_value": (32, 96), "dense": (48, 32)}],
    ids=["separate", "fused", "bloom's names"],
)
def test_an_unknown_architecture_is_discovered(names: dict[str, tuple[int, int]]) -> None:
    layout = locate_heads(odd(names=names))
    last = [*names][-1]
    # 48 columns for 4 heads: 12 each
    assert layout.layers == tuple(HeadLayer(i, f"floors.{i}.peek_attn.{last}", 4, 12, 2, False) for i in (0, 1))
    assert (layout.architecture, layout.shape, layout.skipped) == ("OddModel", (2, 4), {})


@pytest.mark.parametrize(
    ("network", "expected", "got"),
    [
        (odd("peek"), "in each layer self_attn.o_proj, or one projection back to the model's width", "peek, digest"),
        (
            odd(names={**NAMES, "second": (48, 32)}),
            "one projection back to the model's width inside",
            "peek_attn, digest",
        ),
        (odd(steps=3), "at 'layers' of OddModel, or one list of 2 layers below it", "0 lists of 2 layers"),
        (odd(names={"mixer": (30, 32)}), "floors.0.peek_attn.mixer to be linear", "widths (30, 32)"),
    ],
    ids=["no attention", "two projections", "no list of layers", "width no multiple"],
)
def test_what_cannot_be_understood_is_an_error_that_says_what_was_looked_for(
    network: OddModel, expected: str, got: str
) -> None:
    with pytest.raises(ArchitectureError) as raised:
        locate_heads(network)
    error = raised.value
    assert error.problem == "the attention heads of OddModel could not be located"
    assert expected in error.expected
    assert got in error.got
    assert "ArchitectureRow" in error.fix
    assert all(part in str(error) for part in (error.problem, error.expected, error.got, error.fix))


OUTSIDE: list[tuple[str, dict[str, Any], str]] = [
    (
        "T5ForConditionalGeneration",
        {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 4},
        "an encoder-decoder: its context is in the encoder",
    ),
    ("MambaForCausalLM", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}, "mamba, which has no softmax"),
    ("Mamba2ForCausalLM", {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "num_hidden_layers": 2}, "mamba2, which"),
    ("RwkvForCausalLM", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}, "rwkv, which has no softmax"),
    (
        "RecurrentGemmaForCausalLM",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32},
        "recurrent_gemma, whose recurrent state takes in padding",
    ),
]


@pytest.mark.parametrize(("name", "settings", "got"), OUTSIDE, ids=[name for name, _, _ in OUTSIDE])
def test_what_is_out_of_scope_is_named_so(name: str, settings: dict[str, Any], got: str, tmp_path: Path) -> None:
    network_class = getattr(transformers, name)
    config = network_class.config_class(**settings)
    config.architectures = [name]
    with torch.device("meta"):
        network = network_class(config)
    config.save_pretrained(tmp_path)  # no weights: it is refused before any are read
    for attempt in (lambda: locate_heads(network), lambda: inspect(str(tmp_path)), lambda: load(str(tmp_path))):
        with pytest.raises(ArchitectureError) as raised:
            attempt()
        assert "is out of scope: truthheads measures attention heads of decoder-only models" in raised.value.problem
        assert raised.value.got.startswith(got)
        assert raised.value.fix == "choose another model; no setting and no table row makes this one work"


@pytest.mark.parametrize("name", ["Zamba", "Zamba2"])
def test_layers_that_share_their_attention_are_refused(name: str) -> None:
    own = {
        "Zamba": {"mamba_dt_rank": 4, "n_mamba_heads": 2},
        "Zamba2": {"mamba_headdim": 16, "n_mamba_heads": 4, "mamba_ngroups": 1, "num_mem_blocks": 1},
    }[name]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, mamba_d_state=8, layers_block_type=["mamba", "hybrid"] * 2, **sizes, **own
    )
    with torch.random.fork_rng(devices=[]):
        network = getattr(transformers, f"{name}ForCausalLM")(config)
    with pytest.raises(ArchitectureError) as raised:
        locate_heads(network)
    assert "its layers share one attention block's weights" in raised.value.problem
    assert all(f"layers.{layer}." in raised.value.got for layer in (1, 3))
    assert (
        raised.value.fix
        == "choose a model whose layers have attention of their own; no setting changes that of this one"
    )
    if name == "Zamba2":  # with one place for it nothing is shared, and its heads are found (Zamba cannot be built so)
        config.layers_block_type, config.hybrid_layer_ids = ["mamba", "hybrid", "mamba", "mamba"], [1]
        with torch.random.fork_rng(devices=[]):
            assert [head.index for head in locate_heads(transformers.Zamba2ForCausalLM(config)).layers] == [1]


def test_a_hybrid_without_an_attention_layer_is_not_told_to_add_a_row() -> None:
    row = next(row for row in ROWS if row.name == "bamba")
    config = row.config()
    config.attn_layer_indices = []
    with torch.device("meta"):
        network = transformers.BambaForCausalLM(config)
    with pytest.raises(ArchitectureError) as raised:
        locate_heads(network)
    assert "no layer of this BambaForCausalLM has softmax attention" in raised.value.problem
    assert raised.value.got == "3 layers of the kinds linear_attention"
    assert "choose a model of this family that has attention layers" in raised.value.fix
