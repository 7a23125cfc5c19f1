"""A head adapter is a PEFT LoRA: hook, PEFT and merged weights agree for every architecture; nothing stays behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import truthheads as th
from truthheads.errors import ArtifactError, GateError, ShapeError
from truthheads.models.head_modules import locate_places
from truthheads.models.hooks import LowRank
from truthheads.results.gate import Gate, gated
from truthheads.results.head_adapter import HeadAdapter, adapted
from zoo import MULTIMODAL, ROWS, ZooRow, runner, text_inputs

if TYPE_CHECKING:
    from truthheads.models.load import Model

EVERY = (*ROWS, *MULTIMODAL)
BY_NAME = {row.name: row for row in EVERY}
IDS = torch.randint(20, 270, (2, 9), generator=torch.Generator().manual_seed(0))
# PEFT leaves the adapter's configuration open and asks transformers for a deprecated name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]


def some_adapter(model: "Model", *, rank: int = 3, seed: int = 0, base: str = "base") -> HeadAdapter:
    """Return an adapter of the second head of every layer, with random numbers in the places that are its own."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [place for place in locate_places(model.network, model.layout) if place.head == 1]
    updates = {}
    for place in chosen:
        query, output = (model.network.get_submodule(span.module) for span in (place.query, place.output))
        parts = {}
        for name, module, span in (("q", query, place.query), ("o", output, place.output)):
            shape = module.weight.shape[::-1] if "Conv1D" in type(module).__name__ else module.weight.shape
            a = torch.randn(rank, shape[1], generator=generator) * 0.3
            b = torch.randn(shape[0], rank, generator=generator) * 0.3
            kept = torch.zeros_like(b[:, 0] if name == "q" else a[0])
            kept[span.start : span.start + span.width] = 1
            parts[span.module] = LowRank(a, b * kept[:, None]) if name == "q" else LowRank(a * kept, b)
        updates |= parts
    transposed = model.layout.layers[0].transposed
    return HeadAdapter(updates, base, tuple(chosen), transposed, {"shape": model.layout.shape})


def logits_of(row: ZooRow, network: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = network(input_ids=IDS, **text_inputs(row, torch.ones_like(IDS))).logits
    return found


@pytest.mark.parametrize("row", EVERY, ids=str)
def test_hook_peft_and_merged_weights_give_the_same_logits(
    row: ZooRow, model_of: "Callable[[ZooRow], Model]", tmp_path: Path
) -> None:
    from peft import PeftModel

    model = model_of(row)
    network = runner(row, model.network)
    whole = {name: value.clone() for name, value in model.network.state_dict().items()}
    plain = logits_of(row, network)
    adapter = some_adapter(model)
    with th.adapted(model, adapter):
        hook = logits_of(row, network)
    assert float((hook - plain).abs().max()) > 1e-3
    assert torch.equal(logits_of(row, network), plain)
    adapter.save(tmp_path / "adapter")
    read = HeadAdapter.load(tmp_path / "adapter")
    assert read.digest == adapter.digest and read.places == adapter.places and read.rank == adapter.rank
    wrapped: Any = PeftModel.from_pretrained(model.network, tmp_path / "adapter")
    close = {"atol": 1e-5 * max(1.0, float(plain.abs().max())), "rtol": 0}
    layers = [name for name, _ in wrapped.named_parameters() if name.endswith("lora_A.default.weight")]
    assert len(layers) == 2 * len(model.layout.layers)
    torch.testing.assert_close(logits_of(row, network), hook, **close)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits_of(row, runner(row, merged)), hook, **close)
    check_only_own_rows(model, whole, merged.state_dict())


def check_only_own_rows(model: "Model", before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """Check that weights differ in the columns of the second head of each output projection, and in one more module."""
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    outputs = {f"{head.path}.weight": head for head in model.layout.layers}
    assert outputs.keys() <= changed and len(changed) == 2 * len(outputs)
    for name, head in outputs.items():
        difference = (after[name] - before[name]) if head.transposed else (after[name] - before[name]).T
        rows = difference.any(1).nonzero().flatten().tolist()
        assert rows == list(range(head.head_dim, 2 * head.head_dim))


@pytest.mark.parametrize("row", EVERY, ids=str)
def test_the_query_rows_of_a_head_change_what_that_head_puts_out(
    row: ZooRow, model_of: "Callable[[ZooRow], Model]"
) -> None:
    """Other queries of one head change its own z in that layer and no other head's: what query rows are."""
    from truthheads.models.hooks import intercepted

    model = model_of(row)
    network = runner(row, model.network)
    first = model.layout.layers[0].index
    seen: dict[bool, Tensor] = {}
    places = [place for place in locate_places(model.network, model.layout) if place.layer == first]
    assert [place.head for place in places] == list(range(row.num_heads))
    for place in places:
        span = place.query
        module = model.network.get_submodule(span.module)
        wide = module.weight.shape[::-1] if "Conv1D" in type(module).__name__ else module.weight.shape
        b = torch.zeros(wide[0], 1)
        b[span.start : span.start + span.width] = torch.randn(span.width, 1, generator=torch.Generator().manual_seed(0))
        a = torch.randn(1, wide[1], generator=torch.Generator().manual_seed(1))
        adapter = HeadAdapter({span.module: LowRank(a, b)}, "base")
        for under in (False, True):

            def keep(layer: int, z: Tensor, under: bool = under) -> None:
                if layer == first:
                    seen[under] = z.clone()

            with intercepted(model, keep):
                if under:
                    with adapted(model, adapter):
                        logits_of(row, network)
                else:
                    logits_of(row, network)
        moved = (seen[True] - seen[False]).abs().amax((0, 1, 3))
        assert int(moved.argmax()) == place.head
        # OLMo 2 normalises the queries of all heads together, so that the others' lengths change a little.
        assert (moved > 1e-5).nonzero().flatten().tolist() == [place.head] or row.name == "olmo2"


# --- PEFT's own and a user's LoRA ------------------------------------------------------------------------------------


def some_lora(network: Any, folder: Path, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(network, LoraConfig(**{"r": 4, "lora_alpha": 12, **settings}))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    wrapped.save_pretrained(folder)
    return wrapped


USERS: dict[str, dict[str, Any]] = {
    "suffixes": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "a pattern": {"target_modules": r".*layers\.[12]\.self_attn\.(q|k)_proj"},
    "all": {"target_modules": "all-linear"},
    "patterns of rank": {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2},
                         "alpha_pattern": {"layers.1.self_attn.q_proj": 40}},
    "rslora": {"target_modules": ["q_proj", "o_proj"], "use_rslora": True},
}  # fmt: skip


@pytest.mark.parametrize("settings", USERS.values(), ids=USERS)
def test_a_users_own_lora_is_applied_as_peft_applies_it(
    settings: dict[str, Any], model_of: "Callable[[ZooRow], Model]", tmp_path: Path
) -> None:
    row = BY_NAME["llama_gqa"]
    wanted = logits_of(row, some_lora(model_of(row).network, tmp_path, **settings))
    model = model_of(row)
    adapter = HeadAdapter.load(tmp_path)
    with adapted(model, adapter):
        torch.testing.assert_close(logits_of(row, model.network), wanted, atol=1e-5, rtol=1e-5)
    assert adapter.heads == () and {"module", "size"} == set(adapter.table()[0])
    adapter.save(tmp_path / "again")
    from peft import PeftModel

    again = PeftModel.from_pretrained(model.network, tmp_path / "again")
    torch.testing.assert_close(logits_of(row, again), wanted, atol=1e-5, rtol=1e-5)


REFUSED: dict[str, dict[str, Any]] = {
    "dora": {"target_modules": ["q_proj"], "use_dora": True},
    "bias": {"target_modules": ["q_proj"], "bias": "lora_only"},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("settings", REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_is_more_than_a_plain_lora_is_refused(
    settings: dict[str, Any], model_of: "Callable[[ZooRow], Model]", tmp_path: Path
) -> None:
    some_lora(model_of(BY_NAME["llama_gqa"]).network, tmp_path, **settings)
    with pytest.raises(ArtifactError, match="is not a plain LoRA"):
        HeadAdapter.load(tmp_path)


def test_the_folder_is_a_lora_of_one_rank_that_servers_take(
    model_of: "Callable[[ZooRow], Model]", tmp_path: Path
) -> None:
    adapter = some_adapter(model_of(BY_NAME["qwen3"]), rank=9)
    adapter.save(tmp_path / "a")
    adapter.save(tmp_path / "b")
    assert {file.name for file in (tmp_path / "a").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 16, 16)
    assert not settings["modules_to_save"] and not settings["rank_pattern"] and settings["bias"] == "none"
    assert settings["target_modules"] == list(adapter.updates) and settings["base_model_name_or_path"] == "base"
    stored = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {value.shape[0] for name, value in stored.items() if "lora_A" in name} == {16}
    assert {value.shape[1] for name, value in stored.items() if "lora_B" in name} == {16}
    assert HeadAdapter.load(tmp_path / "a").rank == 9


def test_the_table_has_the_sizes_of_the_updates_of_each_head(model_of: "Callable[[ZooRow], Model]") -> None:
    adapter = some_adapter(model_of(BY_NAME["phi3"]))
    assert adapter.heads == ((0, 1), (1, 1), (2, 1))
    for change in adapter.table():
        place = next(place for place in adapter.places if place.name == change["head"])  # type: ignore[typeddict-item]
        for part, span in (("query", place.query), ("output", place.output)):
            update = adapter.updates[span.module]
            whole = (update.b @ update.a).norm()  # the rest is 0
            assert change[part] == pytest.approx(float(whole), rel=1e-4)  # type: ignore[literal-required]
    assert len(adapter.table(1)) == 1 and list(adapter.to_pandas().columns) == ["head", "query", "output"]
    # rank 3, 3 layers: query rows 8 + all 32 inputs, all 32 outputs + output columns 8
    assert adapter.describe()["parameters"] == 3 * 3 * (8 + 32 + 32 + 8)
    assert "3 heads" in repr(adapter) and len(repr(adapter)) < 100
    assert "vega" in adapter._repr_html_()


def test_scaled_multiplies_the_update(model_of: "Callable[[ZooRow], Model]") -> None:
    adapter = some_adapter(model_of(BY_NAME["llama"]))
    half = adapter.scaled(0.5)
    for name, update in adapter.updates.items():
        torch.testing.assert_close(half.updates[name].b @ half.updates[name].a, 0.5 * (update.b @ update.a))
    assert half.meta["share"] == 0.5 and half.scaled(0.5).meta["share"] == 0.25
    model = model_of(BY_NAME["llama"])
    with adapted(model, adapter.scaled(0)):
        nothing = logits_of(BY_NAME["llama"], model.network)
    assert torch.equal(nothing, logits_of(BY_NAME["llama"], model.network))


# --- applying it -----------------------------------------------------------------------------------------------------


def test_an_adapter_of_a_language_model_works_in_its_multimodal_descendant(
    model_of: "Callable[[ZooRow], Model]",
) -> None:
    base, descendant = model_of(BY_NAME["llama_gqa"]), model_of(BY_NAME["llava"])
    adapter = some_adapter(base)
    own = {
        name.replace("model.layers", "model.language_model.layers"): update for name, update in adapter.updates.items()
    }
    with adapted(descendant, adapter):
        through = logits_of(BY_NAME["llava"], descendant.network)
    with adapted(descendant, HeadAdapter(own, "base")):
        wanted = logits_of(BY_NAME["llava"], descendant.network)
    assert torch.equal(through, wanted)
    assert not torch.equal(through, logits_of(BY_NAME["llava"], descendant.network))


def test_an_adapter_of_another_shape_is_refused_and_nothing_stays(model_of: "Callable[[ZooRow], Model]") -> None:
    adapter = some_adapter(model_of(BY_NAME["llama"]))
    for other in ("qwen2_5", "gpt2"):
        model = model_of(BY_NAME[other])
        with pytest.raises(ShapeError, match="does not fit"):
            adapter.apply(model)
        assert not any(module._forward_hooks for module in model.network.modules())


def test_adapters_and_gates_do_not_nest(model_of: "Callable[[ZooRow], Model]") -> None:
    model = model_of(BY_NAME["llama"])
    adapter, gate = some_adapter(model), Gate(torch.full(model.layout.shape, 0.5))
    plain = logits_of(BY_NAME["llama"], model.network)
    with adapted(model, adapter):
        for second in (lambda: adapted(model, adapter), lambda: gated(model, gate)):
            with pytest.raises(GateError, match="under an adapter already"), second():
                pass
    with gated(model, gate), pytest.raises(GateError, match="under a gate already"), adapted(model, adapter):
        pass
    with pytest.raises(KeyboardInterrupt), adapted(model, adapter):
        raise KeyboardInterrupt
    assert torch.equal(logits_of(BY_NAME["llama"], model.network), plain)


# --- damaged, foreign and in the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["no settings", "no weights", "cut", "no r", "metadata", "infinite", "IA3"])
def test_a_damaged_adapter_is_refused_in_words(
    damage: str, model_of: "Callable[[ZooRow], Model]", tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    some_adapter(model_of(BY_NAME["llama"])).save(folder)
    settings, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if damage == "no settings":
        settings.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage in ("no r", "IA3"):
        changed = json.loads(settings.read_text()) | ({"r": 0} if damage == "no r" else {"peft_type": "IA3"})
        settings.write_text(json.dumps(changed))
    elif damage == "metadata":
        save_file(load_file(weights), weights, {"truthheads": '{"places": [[1]]}'})
    else:
        save_file({name: value * torch.inf for name, value in load_file(weights).items()}, weights)
    with pytest.raises((ArtifactError, GateError)) as raised:
        HeadAdapter.load(folder)
    assert all((raised.value.problem, raised.value.expected, raised.value.got, raised.value.fix))


def test_save_replaces_an_adapter_and_nothing_else(model_of: "Callable[[ZooRow], Model]", tmp_path: Path) -> None:
    adapter = some_adapter(model_of(BY_NAME["llama"]))
    adapter.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "tuning.json").write_text("of the one before")
    adapter.scaled(2).save(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "tuning.json").exists()
    assert HeadAdapter.load(tmp_path / "adapter").digest == adapter.scaled(2).digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    shutil.copytree(tmp_path / "adapter", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    for name in ("mine", "model"):
        with pytest.raises(ArtifactError, match="is not replaced"):
            adapter.save(tmp_path / name)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
