"""Models that are spread, offloaded or quantised: everything is as on the model that is loaded plainly, or says so."""

import copy
import dataclasses
import gc
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import truthheads as th
from planted import PLANTED_HEAD, planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.errors import GateError, ModelError
from truthheads.evaluation.predictions import NAME, read_predictions
from truthheads.models import load as models
from truthheads.models.answer_logprobs import pair_logprobs
from truthheads.models.devices import read_device_map, read_max_memory, spread_over
from truthheads.models.generate import answer
from truthheads.models.gradients import whole_gradients
from truthheads.models.hooks import intercepted
from truthheads.models.load import Model, load
from truthheads.models.neutral_text import measure_harm, neutral_ids
from truthheads.models.offload import fetched_again, is_offloaded
from truthheads.models.prompts import encode
from truthheads.models.quantised import PACKAGES
from truthheads.results.gate import Gate, gated
from truthheads.scoring.attribution import attribute
from truthheads.storage.files import read_json
from truthheads.tuning.learn import Schedule, learn
from zoo import MULTIMODAL, ROWS, ZooRow, build, save

BY_NAME = {row.name: row for row in ROWS}
MAPS: dict[str, Any] = {
    "some": {"": "cpu", "transformer.h.1": "disk"},
    "all": {"": "disk"},
}
QUESTIONS = planted_questions(40)
SAME = {"atol": 1e-6, "rtol": 0.0}
"""Weights read from a file may lie at another address, and kernels sum in an order that depends on it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("rows") / "rows.jsonl", QUESTIONS)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Model:
    return load(str(folder), device="cpu", dtype="fp32")


@pytest.fixture(scope="module", params=[*MAPS])
def spread(folder: Path, request: pytest.FixtureRequest) -> Model:
    model = load(str(folder), dtype="fp32", device_map=MAPS[request.param])
    assert is_offloaded(model.network)
    return model


@pytest.fixture(scope="module")
def offloaded(folder: Path) -> Model:
    return load(str(folder), dtype="fp32", device_map={"": "disk"})


def some_gate(model: Model, site: str = "z") -> Gate:
    generator = torch.Generator().manual_seed(0)
    return Gate(0.3 + 1.4 * torch.rand(model.layout.shape, generator=generator), site)  # type: ignore[arg-type]


def logits(model: Model) -> Tensor:
    ids = torch.tensor([encode(model, QUESTIONS[:1])[0].prefix], device=model.device)
    with torch.inference_mode():
        found: Tensor = model.network(ids).logits
    return found


def hooks_in(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


# --- what is loaded --------------------------------------------------------------------------------------------------


def test_an_offloaded_model_is_the_same_model(plain: Model, spread: Model) -> None:
    assert spread.fingerprint == plain.fingerprint
    assert (spread.device, spread.dtype, spread.layout) == (plain.device, plain.dtype, plain.layout)
    assert not any(parameter.requires_grad for parameter in spread.network.parameters())
    assert torch.allclose(logits(spread), logits(plain), **SAME)


@pytest.mark.parametrize("name", ["llama_gqa", "gemma3", "mixtral", "falcon_new", "opt"])
def test_families_are_offloaded(name: str, tmp_path: Path) -> None:
    """Tied embeddings, fused experts (which are written anew) and shards: one fingerprint, one answer."""
    row = BY_NAME[name]
    folder = str(save(row, tmp_path / "model", shards=2))
    layers = row.projection(0).split(".0.")[0]
    one = load(folder, device="cpu", dtype="fp32")
    ids = torch.arange(20, 31)[None]
    for device_map in ({"": "cpu", layers: "disk"}, {"": "disk"}, "auto", "balanced", "sequential"):
        other = load(folder, dtype="fp32", device_map=device_map)
        assert is_offloaded(other.network) is not isinstance(device_map, str)
        assert other.fingerprint == one.fingerprint
        with torch.inference_mode():
            assert torch.allclose(other.network(ids).logits, one.network(ids).logits, **SAME)


def test_a_model_that_sees_has_its_layers_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaVA-NeXT keeps a weight of its own beside its modules, which no hook would fetch: it stays."""
    monkeypatch.setattr(models, "read_processor", lambda *_: None)
    row = next(row for row in MULTIMODAL if row.name == "llava_next")
    folder = str(save(row, tmp_path / "model"))
    one = load(folder, device="cpu", dtype="fp32")
    layers = row.projection(0).split(".0.")[0]
    other = load(folder, dtype="fp32", device_map={"": "disk", "model.vision_tower": "cpu", layers: "disk"})
    assert other.network.model.image_newline.device.type == "cpu" and is_offloaded(other.network.get_decoder())
    assert other.fingerprint == one.fingerprint and other.device == one.device
    ids = torch.arange(20, 31)[None]
    with torch.inference_mode():
        assert torch.allclose(other.network(ids).logits, one.network(ids).logits, **SAME)


def test_memory_is_kept_to(folder: Path, plain: Model) -> None:
    model = load(str(folder), dtype="fp32", max_memory="cpu=900KB")
    held = sum(one.numel() * one.element_size() for one in model.network.parameters() if one.device.type != "meta")
    assert is_offloaded(model.network) and 0 < held <= 900_000
    assert model.fingerprint == plain.fingerprint
    assert torch.allclose(logits(model), logits(plain), **SAME)


def test_a_folder_of_its_own_lives_as_long_as_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts are fused while they are loaded: on disk, they have to be written somewhere."""
    folder = str(save(BY_NAME["mixtral"], tmp_path / "model"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    model = load(folder, dtype="fp32", device_map={"": "disk"})
    assert [*scratch.rglob("*.safetensors")]
    del model
    gc.collect()
    assert [*scratch.iterdir()] == []
    mine = tmp_path / "mine"
    load(folder, dtype="fp32", device_map={"": "disk"}, offload_folder=mine)
    gc.collect()
    assert [*mine.rglob("*.safetensors")] and [*scratch.iterdir()] == []


# --- reading and scaling ---------------------------------------------------------------------------------------------


def test_hooks_see_z_and_leave_nothing_behind(plain: Model, spread: Model) -> None:
    before, count = logits(spread), hooks_in(spread.network)
    read: dict[str, dict[int, Tensor]] = {"plain": {}, "spread": {}}
    with intercepted(plain, read["plain"].__setitem__):
        logits(plain)
    with intercepted(spread, read["spread"].__setitem__):
        assert torch.equal(logits(spread), before)
    for layer, z in read["plain"].items():
        assert torch.allclose(read["spread"][layer], z, **SAME)
    with pytest.raises(ZeroDivisionError), intercepted(spread, lambda _, z: z * (1 / 0)):
        logits(spread)
    assert hooks_in(spread.network) == count
    assert torch.equal(logits(spread), before)


@pytest.mark.parametrize("site", ["z", "output"])
def test_a_gate_is_the_same_gate(plain: Model, spread: Model, site: str) -> None:
    gate, before, count = some_gate(plain, site), logits(spread), hooks_in(spread.network)
    with gated(plain, gate):
        wanted = logits(plain)
    with gated(spread, gate):
        assert torch.allclose(logits(spread), wanted, **SAME)
        with pytest.raises(GateError), gated(spread, gate):
            pass
    assert (wanted - before).abs().max() > 1e-3
    assert torch.equal(logits(spread), before) and hooks_in(spread.network) == count
    assert spread.fingerprint == plain.fingerprint


# --- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["probe", "attribution", "evidence"])
def test_scores_are_the_same(plain: Model, offloaded: Model, method: Any) -> None:
    a, b = (th.score(model, QUESTIONS, method=method) for model in (plain, offloaded))
    # Probes are fitted to z: a difference in its last bits may turn a sample at the border.
    assert torch.allclose(a.values, b.values, atol=0.03 if method == "probe" else 1e-5, rtol=1e-4, equal_nan=True)
    assert a.meta["model"] == b.meta["model"]
    if method == "attribution":
        assert int(b.values.nan_to_num(-1).argmax()) == PLANTED_HEAD[0] * b.values.shape[1] + PLANTED_HEAD[1]


def test_a_learned_gate_takes_the_same_path(plain: Model, offloaded: Model) -> None:
    made = [
        th.tune(model, QUESTIONS[:24], guard=0.05, schedule=Schedule(epochs=1), batch_tokens=400)
        for model in (plain, offloaded)
    ]
    assert not bool((made[0].gate.gate == 1).all())
    # Adam divides by the size of a gradient: where it is nearly nothing, its last bits move a factor.
    assert torch.allclose(made[0].gate.gate, made[1].gate.gate, atol=1e-3, rtol=0)


def test_a_graph_keeps_no_weight_that_was_fetched(offloaded: Model, plain: Model, tmp_path: Path) -> None:
    """Without ``fetched_again`` a backward pass would hold every layer's weights at once."""
    encoded = encode(offloaded, QUESTIONS[:2])
    ids = torch.tensor([encoded[0].prefix])

    def held(model: Model, within: Any) -> tuple[int, Tensor]:
        gate = torch.ones(model.layout.shape, requires_grad=True)
        kept: dict[int, int] = {}

        def seen(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad and tensor.ndim == 2 and tensor.is_floating_point():
                kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        watched = torch.autograd.graph.saved_tensors_hooks(seen, lambda one: one)  # the innermost pair packs
        with watched, within(model.network), intercepted(model, lambda layer, z: z * gate[layer, :, None]):
            loss = model.network(ids).logits.square().mean()
        (gradient,) = torch.autograd.grad(loss, gate)
        return sum(kept.values()), gradient

    weights, wanted = held(offloaded, nullcontext)
    assert weights > 40_000
    kept, found = held(offloaded, fetched_again)
    assert kept == 0
    _, true = held(plain, nullcontext)
    assert torch.equal(found, wanted) and torch.allclose(found, true, atol=1e-8, rtol=1e-4)
    attribute(offloaded, encoded, QUESTIONS[:2], tmp_path / "a", identity="", batch_tokens=400).close()


def test_margins_and_harm_are_the_same(plain: Model, offloaded: Model) -> None:
    gate = some_gate(plain)
    encoded = encode(plain, QUESTIONS[:12])
    texts = neutral_ids(plain, QUESTIONS, texts=4)
    found = [pair_logprobs(one, encoded, batch_tokens=300, gate=gate) for one in (plain, offloaded)]
    assert np.allclose(*found, atol=1e-4)
    assert neutral_ids(offloaded, QUESTIONS, texts=4) == texts
    harm = [measure_harm(one, texts, gate) for one in (plain, offloaded)]
    assert np.allclose(harm[0].kl, harm[1].kl, atol=1e-5) and harm[0].kl.min() > 0


def test_answers_are_the_same(plain: Model, offloaded: Model, rows: Path, tmp_path: Path) -> None:
    """Pairs by likelihood, conflicts by greedy text: prefix, cache and one token after the other."""
    gate = some_gate(plain)
    for task in ("pairs", "conflict"):
        said = []
        for name, model in (("plain", plain), ("offloaded", offloaded)):
            out = tmp_path / f"{task}-{name}"
            asking = {"limit": 12, **({"new_tokens": 3} if task == "conflict" else {})}
            th.evaluate(model, task, rows, out=out, gates={"g": gate}, asking=asking, guard_texts=2)
            lines = read_predictions(out / NAME).lines
            said.append([(line["run"], line["id"], line.get("answer")) for line in lines])
        assert said[0] == said[1] and {line[0] for line in said[0]} == {"none", "g"}
    single = encode(plain, QUESTIONS[:3])
    words = [answer(model, single, words={"yes": [20], "no": [21]}).yes for model in (plain, offloaded)]
    assert words[0] is not None and np.allclose(*words, atol=1e-5)


def test_the_harness_asks_where_the_tokens_go(offloaded: Model, plain: Model, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from truthheads.evaluation.lm_eval import Harness

    harness = Harness(offloaded, "lm-eval:truthheads_halueval_qa", [], limit=1, batch=1, chat=False)
    assert harness.lm.device == plain.device != next(offloaded.network.parameters()).device


# --- the command line ------------------------------------------------------------------------------------------------


def run(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


FAST = ("--method", "attribution", "--limit", "10")


def scored(folder: Path, rows: Path, out: Path, *words: object) -> dict[str, Any]:
    result = run("score", folder, "--data", rows, "--out", out, "--dtype", "fp32", "--json", *words, *FAST)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.stderr == "".join(f"warning: {warning}\n" for warning in found["warnings"])
    return found


def test_the_command_line_takes_maps(folder: Path, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(MAPS["some"]))
    wanted = scored(folder, rows, tmp_path / "plain.safetensors")
    for at, given in enumerate((("--device-map", file), ("--device-map", "auto"), ("--max-memory", "cpu=900KB"))):
        found = scored(folder, rows, tmp_path / f"{at}.safetensors", *given)
        assert found["top"][0]["score"] == pytest.approx(wanted["top"][0]["score"], rel=1e-4)
        assert found["mean"]["value"] == pytest.approx(wanted["mean"]["value"], rel=1e-4)


def test_every_command_that_loads_a_model_says_how() -> None:
    import typer

    root: Any = typer.main.get_command(app)
    found = {**root.commands}
    found |= {
        f"{group} {name}": one for group in ("data", "tune") for name, one in root.commands[group].commands.items()
    }
    found["evaluate"] = root.commands["evaluate"].get_command(None, "pairs")
    loading = {"--device", "--dtype", "--device-map", "--max-memory", "--offload-folder", "--load-in"}
    for name in ("score", "trace", "tune learn", "tune grid", "evaluate", "ground", "reproduce", "data pairs"):
        assert loading <= {option for one in found[name].params for option in one.opts}, name
    for name in ("export", "inspect", "compare", "gate"):
        assert not {"--device-map", "--load-in"} & {option for one in found[name].params for option in one.opts}, name


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("somewhere", "device map cannot be used"),
        ("{broken", "device map cannot be used"),
        ("[1]", "device map cannot be used"),
        ({"": 7}, "accelerators on this machine"),
        ({"": "7"}, "accelerators on this machine"),
        ({"": "cuda:93"}, "cuda:93"),
        ({"": True}, "True"),
        ({"": "cpu", "transformer.x.0": "disk"}, "'transformer.x.0', which the model lacks"),
        ({"transformer": "cpu"}, "names no device for lm_head"),
    ],
)
def test_a_map_that_cannot_be_used(folder: Path, device_map: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(str(folder), device_map=device_map)


def test_a_device_beside_a_map(folder: Path, rows: Path) -> None:
    result = run("score", folder, "--data", rows, "--device", "cpu", "--device-map", "auto")
    assert result.exit_code == 2 and "--device or --device-map" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


@pytest.mark.parametrize("limits", ["cpu", "cpu=", "cpu=2XB", "disk=2GB", "0=-1", ""])
def test_limits_that_cannot_be_read(limits: str) -> None:
    with pytest.raises(ModelError, match="limits of memory"):
        read_max_memory(limits)


def test_limits_are_bytes() -> None:
    assert read_max_memory("cpu=2GiB, 0=1.5GB,1=7") == {"cpu": 2 * 2**30, 0: 1_500_000_000, 1: 7}
    assert read_max_memory({"cpu": "3MB", "1": "1KiB"}) == {"cpu": 3_000_000, 1: 1024}


def test_a_map_is_spread_over_modules_that_do_not_nest() -> None:
    """By hand: two of three layers, one projection in the third, and everything else."""
    network = build(BY_NAME["llama"])
    given = {"": "cpu", "model.layers": "disk", "model.layers.1": "cpu", "model.layers.2.self_attn.o_proj": "cpu"}
    found = spread_over(read_device_map(given) | {}, network)  # type: ignore[operator]
    assert found["model.layers.0"] == "disk" and found["model.layers.1"] == "cpu"
    assert found["model.layers.2.self_attn.o_proj"] == "cpu"
    assert found["model.layers.2.self_attn.q_proj"] == found["model.layers.2.mlp"] == "disk"
    assert found["lm_head"] == found["model.embed_tokens"] == found["model.norm"] == "cpu"
    assert not any(a != b and b.startswith(f"{a}.") for a in found for b in found)
    weights = {name for name, _ in network.named_parameters()}
    assert all(sum(name == at or name.startswith(f"{at}.") for at in found) == 1 for name in weights)


# --- eight and four bits -------------------------------------------------------------------------------------------

INSTALLED = {how: find_spec(package) is not None for how, package in PACKAGES.items()}


def case(how: str, packs: bool | None = None) -> Any:
    """Weights in ``how``; ``packs``: what bitsandbytes is told of the processor, where it makes a difference."""
    missing = pytest.mark.skipif(not INSTALLED[how], reason=f"{PACKAGES[how]} is not installed")
    name = how if packs is None else f"{how} on a processor {'with' if packs else 'without'} AVX-512 bf16"
    return pytest.param(how, packs, marks=missing, id=name)


quantised = pytest.mark.parametrize(
    ("how", "packs"), [case("8bit"), case("4bit", True), case("4bit", False), case("int8")]
)


@pytest.fixture
def packs() -> None:
    """For tests that aren't parametrised with it."""


@pytest.fixture(autouse=True)
def processor(packs: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bitsandbytes believe that the processor has, or hasn't, the AVX-512 bf16 for which it packs weights."""
    if packs is not None:
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: int(packs))


@pytest.mark.parametrize("how", [*PACKAGES])
def test_a_package_that_is_missing(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in PACKAGES.values() else there(name))
    with pytest.raises(ModelError, match=f"pip install {PACKAGES[how]}"):
        load(str(folder), load_in=how)


def test_a_number_of_bits_that_is_not_known(folder: Path, rows: Path) -> None:
    result = run("score", folder, "--data", rows, "--load-in", "3bit")
    assert result.exit_code == 2 and "8bit or 4bit or int8" in result.stderr


def test_weights_that_are_quantised_already(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    other = tmp_path / "gptq"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised already\n[^\n]*\n  got: gptq"):
        load(str(other), load_in="8bit")


Wide = Callable[[bool], Path]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Wide:
    """Make a Llama whose rows are as wide as a block of 64 weights, with or without biases."""
    row: ZooRow = BY_NAME["llama_gqa"]

    @cache
    def made(biased: bool) -> Path:
        wider = {"hidden_size": 128, "intermediate_size": 256, "attention_bias": biased, "mlp_bias": biased}
        settings: Mapping[str, Any] = {**row.settings, **wider}
        return save(dataclasses.replace(row, settings=settings), tmp_path_factory.mktemp("wide") / "model")

    return made


class Loaded(Protocol):
    def __call__(self, how: str, *, biased: bool = True) -> Model: ...


@pytest.fixture(scope="module")
def kept() -> dict[tuple[str, bool | None, bool], Model]:
    return {}


@pytest.fixture
def loaded(wide: Wide, packs: bool | None, kept: dict[tuple[str, bool | None, bool], Model]) -> Loaded:
    def one(how: str, *, biased: bool = True) -> Model:
        key = (how, packs, biased)
        if key not in kept:
            kept[key] = load(str(wide(biased)), device="cpu", dtype="fp32", load_in=how)
        return kept[key]

    return one


@quantised
def test_a_quantised_model_is_read_and_gated(loaded: Loaded, wide: Wide, how: str) -> None:
    model, whole = loaded(how), load(str(wide(True)), device="cpu", dtype="fp32")
    assert (model.layout.head_dim, model.layout) == (32, whole.layout)
    assert model.fingerprint == load(model.name, dtype="fp32", load_in=how).fingerprint != whole.fingerprint
    assert model.describe()["load_in"] == how and "load_in" not in whole.describe()
    ids = torch.arange(20, 31)[None]

    def through() -> Tensor:
        with torch.inference_mode():
            found: Tensor = model.network(ids).logits
        return found

    before, count = through(), hooks_in(model.network)
    read: dict[int, Tensor] = {}
    with intercepted(model, read.__setitem__):
        assert torch.equal(through(), before)
    assert {z.shape for z in read.values()} == {(1, 11, 4, 32)}
    for site in ("z", "output"):
        with gated(model, some_gate(model, site)):
            assert (through() - before).abs().max() > 1e-3
        assert torch.equal(through(), before) and hooks_in(model.network) == count
    factors = torch.ones(model.layout.shape)
    factors[1, 2] = 0.0
    muted: dict[int, Tensor] = {}
    with gated(model, Gate(factors)), intercepted(model, muted.__setitem__):
        through()
    assert not muted[1][:, :, 2].any() and torch.equal(muted[1][:, :, 3], read[1][:, :, 3])


@quantised
def test_stages_run_on_a_quantised_model(loaded: Loaded, how: str, tmp_path: Path) -> None:
    model = loaded(how)
    scores = th.score(model, QUESTIONS[:20])
    assert scores.meta["model"]["load_in"] == how
    assert bool(th.score(model, QUESTIONS[:8], method="attribution").values.isfinite().all())
    assert th.trace(model, QUESTIONS[:8]).meta["model"]["load_in"] == how
    tuning = th.tune(model, QUESTIONS[:16], guard=10.0, schedule=Schedule(epochs=1), batch_tokens=4000)
    assert bool(tuning.gate.gate.isfinite().all()) and tuning.result["model"]["load_in"] == how
    rows = write_questions(tmp_path / "rows.jsonl", QUESTIONS[:6])
    th.evaluate(model, "pairs", rows, out=tmp_path / "e", gates={"g": some_gate(model)}, guard_texts=2)
    assert read_json(tmp_path / "e" / "summary.json")["settings"]["model"]["load_in"] == how


@quantised
def test_a_quantised_model_is_exported_as_what_it_is(loaded: Loaded, how: str, tmp_path: Path) -> None:
    model = loaded(how)
    gate = some_gate(model)
    with pytest.raises(ModelError, match="of its unquantised weights"):
        th.export(model, gate, to="checkpoint", out=tmp_path / "whole")
    if how == "int8":
        with pytest.raises(ModelError, match="of its unquantised weights"):
            th.export(model, gate, to="adapter", out=tmp_path / "adapter")
        with pytest.raises(ModelError, match="cannot be exported"):
            th.ground(model.name, tmp_path / "rows.jsonl", out=tmp_path / "g", load_in=how)
        return
    from peft import PeftModel

    th.export(model, gate, to="adapter", out=tmp_path / "adapter")
    ids = torch.arange(20, 31)[None]
    with torch.inference_mode():
        with gated(model, gate):
            wanted = model.network(ids).logits
        fresh = load(model.name, device="cpu", dtype="fp32", load_in=how)
        assert torch.equal(PeftModel.from_pretrained(fresh.network, tmp_path / "adapter")(ids).logits, wanted)


@quantised
def test_quantised_layers_are_not_offloaded(wide: Wide, how: str) -> None:
    with pytest.raises(ModelError):
        load(str(wide(True)), load_in=how, device_map={"": "cpu", "model.layers.1": "disk"})


# --- gradients of eight and four bits --------------------------------------------------------------------------------

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BIASED = pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])


def dequantised(layer: nn.Module, how: str) -> Tensor:
    """Return the weights that a quantised layer stands for, by what the package itself says."""
    weight: Any = layer.weight
    if how == "int8":
        return weight.dequantize().detach()
    from bitsandbytes import functional

    if how == "4bit":
        return functional.dequantize_4bit(weight.data, weight.quant_state)
    scales = layer.state.SCB if weight.SCB is None else weight.SCB  # the first pass moves them
    return functional.int8_vectorwise_dequant(weight.data, scales)


def projections(model: Model) -> dict[str, nn.Module]:
    return {name: one for name, one in model.network.named_modules() if name.rpartition(".")[2] in PROJECTIONS}


def twin_of(model: Model, how: str) -> Model:
    """Return a model with plain fp32 layers of the same weights, rounded as the quantised ones are.

    ``8bit`` also rounds what goes into a layer, to 127 steps, and takes the gradient as if it did not: there the values
    are the quantised layer's, and the gradients the plain layer's.
    """
    twin = load(model.name, device="cpu", dtype="fp32")
    for name, layer in projections(model).items():
        plain: Any = twin.network.get_submodule(name)
        rounded = dequantised(layer, how)
        assert rounded.shape == plain.weight.shape and 0 < (rounded - plain.weight).abs().max() < 0.2
        plain.weight.data = rounded.clone()
        assert (plain.bias is None) == (layer.bias is None)
        if how == "8bit":
            plain.register_forward_hook(partial(valued_as, layer))
    return twin


def valued_as(layer: nn.Module, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    with torch.no_grad():
        values: Tensor = layer(*inputs)
    return values + (output - output.detach())


def pass_without_gradients(model: Model) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.network(torch.arange(20, 31)[None]).logits
    return found


@BIASED
@quantised
def test_every_projection_of_a_quantised_model_has_the_gradient_of_its_weights(
    loaded: Loaded, how: str, biased: bool
) -> None:
    """By hand: the gradient of sum(y * g) for y = x W' + b is g W, whatever x and b are."""
    model = loaded(how, biased=biased)
    pass_without_gradients(model)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for name, layer in projections(model).items():
        weight = dequantised(layer, how)
        x = torch.randn(2, 5, weight.shape[1], generator=generator).requires_grad_()
        g = torch.randn(2, 5, weight.shape[0], generator=generator)
        y = layer(x)
        expected = x.detach() @ weight.T + (layer.bias if biased else 0.0)
        assert (y - expected).norm() < (0.02 if how == "8bit" else 1e-5) * expected.norm()  # 8bit rounds x as well
        (found,) = torch.autograd.grad((y * g).sum(), x)
        assert (found - g @ weight).norm() < 1e-5 * (g @ weight).norm()
        seen.append(name.rpartition(".")[2])
    assert sorted(seen) == sorted(PROJECTIONS * model.layout.num_layers)


@BIASED
@quantised
def test_attribution_and_learned_gates_of_a_quantised_model_are_those_of_its_weights(
    loaded: Loaded, how: str, biased: bool
) -> None:
    model = loaded(how, biased=biased)
    th.score(model, QUESTIONS[:20])  # passes without gradients come first, as in one session of a user
    twin = twin_of(model, how)
    found, expected = (th.score(one, QUESTIONS[:6], method="attribution").values for one in (model, twin))
    assert (found - expected).norm() < 1e-4 * expected.norm() and expected.abs().min() > 0
    encoded, texts = encode(model, QUESTIONS[:6]), neutral_ids(twin, QUESTIONS, texts=4, length=16)
    gates = [learned(one, encoded, texts) for one in (model, twin)]
    # in 8 bits a difference of one rounding moves an input by a step: 5e-4 in the gate on a processor without AVX-512
    apart = 2e-3 if how == "8bit" else 1e-4
    assert (gates[1] - 1).abs().max() > 0.1 and torch.allclose(*gates, rtol=0, atol=apart)


def learned(model: Model, encoded: Any, texts: list[list[int]]) -> Tensor:
    schedule, ones = Schedule(epochs=2, texts=2), torch.ones(model.layout.shape)
    points = learn(model, encoded, texts, ones, site="z", temperature=1.0, schedule=schedule, batch_tokens=400, seed=0)
    return list(points)[-1].factors


@BIASED
@quantised
def test_a_quantised_model_computes_with_the_weights_that_were_loaded(loaded: Loaded, how: str, biased: bool) -> None:
    """However many passes came before, and whatever was read of it in between: its fingerprint reads all weights."""
    model = loaded(how, biased=biased)
    weights = {name: dequantised(layer, how).clone() for name, layer in projections(model).items()}
    first = pass_without_gradients(model)
    model.network.state_dict()
    assert torch.equal(pass_without_gradients(model), first)
    assert all(torch.equal(dequantised(layer, how), weights[name]) for name, layer in projections(model).items())
    expected = pass_without_gradients(twin_of(model, how))
    assert (first - expected).norm() < 1e-4 * expected.norm()


PACKING = pytest.mark.parametrize(("how", "packs"), [case("4bit", True)])
"""bitsandbytes packs, and reads again, in torch's own operations, on any processor; the packed product is another."""


@PACKING
def test_weights_that_are_stored_quantised_are_not_packed_either(loaded: Loaded, how: str, tmp_path: Path) -> None:
    model = loaded(how)
    model.network.save_pretrained(tmp_path / "stored")
    model.tokenizer.save_pretrained(tmp_path / "stored")
    stored = load(str(tmp_path / "stored"), device="cpu", dtype="fp32")
    assert stored.load_in == "bitsandbytes" and stored.fingerprint == model.fingerprint
    for _ in range(2):
        assert torch.equal(pass_without_gradients(stored), pass_without_gradients(model))
    assert stored.fingerprint == model.fingerprint == dataclasses.replace(stored).fingerprint


@PACKING
def test_a_quantised_network_that_was_packed_before_is_refused(loaded: Loaded, how: str) -> None:
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    network = copy.deepcopy(loaded(how).network)
    layer: Any = network.get_submodule("model.layers.1.mlp.up_proj")
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    with pytest.raises(ModelError, match=r"4-bit weights of model\.layers\.1\.mlp\.up_proj were rounded"):
        dataclasses.replace(loaded(how), network=network)


@PACKING
def test_a_quantised_layer_that_is_packed_has_no_gradient_and_says_so(loaded: Loaded, how: str) -> None:
    """Only where the processor has the instructions; elsewhere bitsandbytes has no such product."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes computes with packed weights on processors with AVX-512 bf16 alone")
    network = copy.deepcopy(loaded(how, biased=False).network)
    layer: Any = network.get_submodule("model.layers.1.mlp.up_proj")
    layer.support_avx512bf16_for_cpu = True
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer(x)
    x.requires_grad_()
    with pytest.raises(ModelError, match="gradients stop at a layer"), whole_gradients(network):
        torch.autograd.grad(layer(x).sum() + x.sum(), x)
