"""Model folders that bring code: it is not run by any command, unless asked for; counts and templates are no traps."""

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from truthheads.cli import app
from truthheads.errors import ModelError
from truthheads.exporting.export import export
from truthheads.exporting.gguf import export_gguf
from truthheads.models.inspection import inspect
from truthheads.models.load import load
from truthheads.models.sources import convert_gguf
from truthheads.models.weight_files import INDEX, SINGLE, Shards
from truthheads.results.gate import Gate
from zoo import ROWS, save

CODE = """
from pathlib import Path
Path({canary!r}).write_text("run")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, ProcessorMixin


class RemoteConfig(LlamaConfig):
    model_type = "remote"


class RemoteModel(LlamaForCausalLM):
    config_class = RemoteConfig


class RemoteTokenizer(PreTrainedTokenizerFast):
    pass


class RemoteProcessor(ProcessorMixin):
    pass


def generate(model, *args, **kwargs):
    raise RuntimeError
"""
OWN = {
    "AutoConfig": "remote.RemoteConfig",
    "AutoModelForCausalLM": "remote.RemoteModel",
    "AutoTokenizer": ["remote.RemoteTokenizer", "remote.RemoteTokenizer"],
    "AutoProcessor": "remote.RemoteProcessor",
}
ROW = next(row for row in ROWS if row.name == "llama")
PAIRS = [
    {
        "context": f"The cat number {at} sat.",
        "question": f"Who sat at {at}?",
        "truthful": "a cat",
        "untruthful": "a dog",
    }
    for at in range(12)
]


def hostile(folder: Path, canary: Path, *, model_type: str) -> Path:
    """Write a tiny model with code of its own in every place where libraries look for code."""
    save(ROW, folder)
    code = CODE.format(canary=str(canary))
    for name in ("remote.py", "modeling.py", "tokenization.py", "configuration.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    (folder / "custom_generate" / "requirements.txt").write_text("nothing-of-this-name\n")
    for name, more in (
        ("config.json", {"model_type": model_type}),
        ("tokenizer_config.json", {}),
        ("generation_config.json", {"custom_generate": str(folder)}),
        ("processor_config.json", {"processor_class": "RemoteProcessor"}),
        ("preprocessor_config.json", {"image_processor_type": "Remote"}),
    ):
        path = folder / name
        told = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(told | more | {"auto_map": OWN}))
    return folder


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Return the files that commands take beside a model."""
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    halves = tmp_path / "half.jsonl"
    halves.write_text("".join(json.dumps({key: row[key] for key in list(row)[:3]}) + "\n" for row in PAIRS))
    Gate(torch.full((ROW.num_layers, ROW.num_heads), 1.5)).save(tmp_path / "gate.safetensors")
    lines = "layer,head,accuracy\n" + "".join(
        f"{layer},{head},0.{5 + head}\n" for layer in range(ROW.num_layers) for head in range(ROW.num_heads)
    )
    (tmp_path / "scores.csv").write_text(lines)
    return {
        "q": str(questions),
        "half": str(halves),
        "gate": str(tmp_path / "gate.safetensors"),
        "scores": str(tmp_path / "scores.csv"),
    }


def commands(model: str, files: dict[str, str], out: Path) -> list[list[str]]:
    """Return one call of every command that takes a model."""
    return [
        ["inspect", model],
        ["score", model, "--data", files["q"], "--out", str(out / "s.safetensors")],
        ["trace", model, "--data", files["q"], "--out", str(out / "t.safetensors")],
        ["tune", "learn", model, "--data", files["q"], "--out", str(out / "g.safetensors")],
        ["evaluate", "conflict", model, "--data", files["q"], "--out", str(out / "e")],
        ["ground", model, "--data", files["half"], "--out", str(out / "ground")],
        ["export", model, "--gate", files["gate"], "--to", "adapter", "--out", str(out / "a")],
        ["export", model, "--gate", files["gate"], "--to", "checkpoint", "--out", str(out / "c")],
        ["compare", "--weights", model, model, "--out", str(out / "comparison.json")],
        ["data", "pairs", files["half"], "--model", model, "--out", str(out / "p.jsonl")],
        ["gate", files["scores"], "--for", model, "--out", str(out / "made.safetensors")],
    ]


def test_no_command_runs_code_that_comes_with_a_model(tmp_path: Path, canary: Path, files: dict[str, str]) -> None:
    folder = hostile(tmp_path / "model", canary, model_type="remote")
    for command in commands(str(folder), files, tmp_path):
        result = CliRunner().invoke(app, command, input="y\n" * 9)  # a question whether to run it must not be asked
        assert result.exit_code == 2, (command, result.output, result.exception)
        assert "a model that brings its own code" in " ".join(result.output.split()), (command, result.output)
        assert not canary.exists(), command


def test_a_known_architecture_runs_by_its_own_class_beside_such_code(
    tmp_path: Path, canary: Path, files: dict[str, str]
) -> None:
    folder = hostile(tmp_path / "model", canary, model_type="llama")
    done = [commands(str(folder), files, tmp_path)[at] for at in (0, 1, 4, 7)]
    for command in [
        *done,
        ["evaluate", "pairs", str(folder), "--data", files["q"], "--out", str(tmp_path / "b")],
    ]:
        result = CliRunner().invoke(app, command, input="y\n" * 9)
        assert not canary.exists(), command
        assert result.exit_code == 0, (command, result.output, result.exception)


def test_the_canary_sings_where_code_is_asked_for(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hostile(tmp_path / "model", canary, model_type="remote")
    (folder / "tokenizer_config.json").write_text("{}")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "cache")
    inspect(str(folder), trust_remote_code=True)
    assert canary.exists()


class Trap:
    """What runs code where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_pickled_weights_are_not_run(tmp_path: Path, canary: Path) -> None:
    folder = save(ROW, tmp_path / "model")
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap(canary)}))
    for act in (
        lambda: load(str(folder)),
        lambda: Shards.open(folder),
        lambda: export(
            str(folder), Gate(torch.ones(ROW.num_layers, ROW.num_heads)), to="checkpoint", out=tmp_path / "o"
        ),
    ):
        with pytest.raises(ModelError):
            act()
    assert not canary.exists()
    pickle.loads(pickle.dumps(Trap(canary)))
    assert canary.exists(), "the trap works"


@pytest.mark.parametrize(
    "template",
    [
        "{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}",
        "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
        "{{{{ raise_exception.__globals__['__builtins__'].open('{canary}', 'w') }}}}",
        "{{% for i in range(999999999) %}}x{{% endfor %}}",
        "{{% for",
    ],
)
def test_a_chat_template_runs_in_a_sandbox(tmp_path: Path, canary: Path, files: dict[str, str], template: str) -> None:
    folder = save(ROW, tmp_path / "model")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    text = template.format(canary=canary)
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"chat_template": text}))
    command = ["score", str(folder), "--data", files["q"], "--chat", "--out", str(tmp_path / "s.safetensors")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "the chat template of" in " ".join(result.output.split()), (
        result.output,
        result.exception,
    )
    assert not canary.exists()


def test_a_gguf_file_beside_code_does_not_run_it(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    folder = hostile(tmp_path / "model", canary, model_type="remote")
    (folder / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(32))
    with pytest.raises(ModelError):
        convert_gguf(folder / "m.gguf")
    assert not canary.exists()


# --- counts and lengths that cannot be


@pytest.mark.parametrize(
    "told",
    [
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 10**12, "hidden_size": 10**12},
        {"num_labels": 10**9},
        {"num_key_value_heads": -(10**9)},
        {"quantization_config": {"num_experts": 1e300}},
    ],
)
def test_a_configuration_that_counts_beyond_reason_is_refused(tmp_path: Path, told: dict[str, Any]) -> None:
    folder = save(ROW, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | told))
    with pytest.raises(ModelError, match="too large to be true"):
        inspect(str(folder))


def gguf(*entries: bytes, tensors: int = 0, keys: int | None = None) -> bytes:
    count = len(entries) if keys is None else keys
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + b"".join(entries) + bytes(64)


def entry(kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    "data",
    [
        gguf(entry(9, struct.pack("<IQ", 4, 2**60))),  # an array that the gguf library would count through
        gguf(entry(9, struct.pack("<IQ", 8, 2**40))),
        gguf(entry(9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1))),
        gguf(entry(8, struct.pack("<Q", 2**63))),
        gguf(struct.pack("<Q", 2**62) + b"k"),
        gguf(entry(99, b"")),
        gguf(keys=2**62),
        gguf(tensors=2**62),
        gguf(struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31), tensors=1, keys=0),
        b"GGUF",
        b"",
    ],
)
def test_a_gguf_header_that_promises_too_much_is_refused_at_once(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    gate = Gate(torch.ones(2, 3))
    for act in (lambda: export_gguf(path, gate, tmp_path / "out.gguf"), lambda: convert_gguf(path)):
        with pytest.raises(ModelError, match="cannot be read as GGUF"):
            act()


# --- links, pipes and devices among the files of a model


def shards(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, folder / "model-1.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    return folder


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "{outside}", "fifo"])
@pytest.mark.parametrize("name", ["model-1.safetensors", INDEX, SINGLE])
def test_links_that_leave_the_folder_and_pipes_are_refused(tmp_path: Path, target: str, name: str) -> None:
    folder = shards(tmp_path / "model")
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    (folder / name).unlink(missing_ok=True)
    if target == "fifo":
        os.mkfifo(folder / name)
        if name == SINGLE:  # no file of weights at all: the index is read
            assert set(Shards.open(folder).entries) == {"a"}
            return
    else:
        (folder / name).symlink_to(target.format(outside=tmp_path / "outside.safetensors"))
    with pytest.raises(ModelError):
        Shards.open(folder)


def test_links_inside_a_folder_and_in_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    (folder / "model-1.safetensors").rename(folder / "blob")
    (folder / "model-1.safetensors").symlink_to("blob")
    assert set(Shards.open(folder).entries) == {"a"}
    cache = tmp_path / "hub" / "models--a--b"
    snapshot = shards(cache / "snapshots" / "0123")
    (cache / "blobs").mkdir()
    (snapshot / "model-1.safetensors").rename(cache / "blobs" / "ab")
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/ab")
    assert Shards.open(snapshot).read("a").tolist() == [1, 1]


def test_an_export_does_not_carry_off_what_links_lead_to(tmp_path: Path) -> None:
    folder = save(ROW, tmp_path / "model")
    (tmp_path / "secret").write_text("a secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    (folder / "own.txt").write_text("kept")
    (folder / "also.txt").symlink_to("own.txt")
    os.mkfifo(folder / "extra.safetensors")
    out = tmp_path / "out"
    export(str(folder), Gate(torch.full((ROW.num_layers, ROW.num_heads), 1.5)), to="checkpoint", out=out)
    assert not (out / "notes.txt").exists() and (out / "also.txt").read_text() == "kept"
    assert load_file(out / SINGLE)


def header(items: Any, *, length: int | None = None, rest: int = 32) -> bytes:
    text = items if isinstance(items, bytes) else json.dumps(items).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(rest)


ITEM = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
LAST = {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]}
HEADERS = {
    "longer than the file": header({"a": ITEM}, length=10**6),
    "a length of 2^63": header({"a": ITEM}, length=2**63),
    "no header": b"",
    "not UTF-8": header(b'{"a\xff": 1}'),
    "deep": header(b'{"a":' * 50_000),
    "no object": header([1]),
    "metadata that is no text": header({"__metadata__": {"a": [1]}, "a": ITEM, "b": LAST}),
    "overlap": header({"a": ITEM, "b": {**LAST, "data_offsets": [16, 24]}}, rest=24),
    "a hole": header({"a": ITEM, "b": {**LAST, "data_offsets": [28, 36]}}, rest=36),
    "negative": header({"a": {**ITEM, "data_offsets": [-8, 16]}, "b": LAST}),
    "backwards": header({"a": {**ITEM, "data_offsets": [24, 0]}, "b": LAST}),
    "beyond the file": header({"a": ITEM, "b": {**LAST, "shape": [2**30], "data_offsets": [24, 24 + 2**32]}}),
    "a shape that overflows": header({"a": {**ITEM, "shape": [2**62, 2**62]}, "b": LAST}),
    "a shape that wraps to the right size": header({"a": {**ITEM, "shape": [2**63, 2, 6]}, "b": LAST}),
    "an unknown type": header({"a": {**ITEM, "dtype": "F31"}, "b": LAST}),
    "another type": header({"a": {**ITEM, "dtype": "F64"}, "b": LAST}),
    "a name twice": header(b'{"a":%s,"a":%s}' % ((json.dumps(ITEM).encode(),) * 2), rest=24),
    "bytes behind the tensors": header({"a": ITEM, "b": LAST}, rest=64),
}


@pytest.mark.parametrize("wrong", HEADERS)
def test_a_header_that_is_wrong_is_refused_by_every_reader(tmp_path: Path, wrong: str) -> None:
    from truthheads.errors import ArtifactError

    folder = save(ROW, tmp_path / "model")
    (folder / SINGLE).write_bytes(HEADERS[wrong])
    gate = Gate(torch.full((ROW.num_layers, ROW.num_heads), 1.5))
    for act in (
        lambda: Shards.open(folder),
        lambda: load(str(folder)),
        lambda: export(str(folder), gate, to="checkpoint", out=tmp_path / "out"),
    ):
        with pytest.raises(ModelError):
            act()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError):
        Gate.load(folder / SINGLE)
