"""Errors that no other test raises are raised here, and what each advises is looked at; see ``provoked``."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import pytest
import torch
from gguf import GGUFReader

import provoked
from ggufs import write_gguf
from planted import planted_model, planted_questions
from truthheads.benchmarks.coco_objects import read_vocabulary
from truthheads.data.hub import hub_rows
from truthheads.data.questions import Question, write_questions
from truthheads.data.readers import read_questions
from truthheads.data.tables import LARGEST_ARRAY
from truthheads.errors import TruthHeadsError
from truthheads.evaluation.ask import ask_texts
from truthheads.evaluation.evaluate import evaluate
from truthheads.exporting.export import export
from truthheads.lineage.compare import compare
from truthheads.models.answer_logprobs import pair_logprobs
from truthheads.models.architectures import locate_heads
from truthheads.models.devices import read_device_map, read_max_memory
from truthheads.models.gguf_header import read_header
from truthheads.models.head_weights import open_checkpoint
from truthheads.models.inspection import inspect
from truthheads.models.load import Model, load
from truthheads.models.neutral_text import read_neutral
from truthheads.models.prompts import encode
from truthheads.models.quantised import check_stays_quantised, quantisation
from truthheads.models.sources import resolve
from truthheads.models.whole_weights import check_loaded
from truthheads.results.comparison import Comparison
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.scoring import activations
from truthheads.scoring.score import score
from truthheads.stats.figures import pearson
from truthheads.tracing.pictures import draw
from truthheads.tracing.trace import trace
from truthheads.tuning.learn import Schedule, learn
from truthheads.tuning.tune import tune
from truthheads.workflows import runner
from truthheads.workflows.ground import ground
from truthheads.workflows.make_pairs import make_pairs
from truthheads.workflows.recipe import read_recipe
from zoo import ROWS, save


class Case(NamedTuple):
    """What goes wrong in a folder, and what the error says and advises."""

    provoke: Callable[[Path], object]
    problem: str
    fix: str


LLAMA = next(row for row in ROWS if row.name == "llama_gqa")


def scores(layers: int = 2, heads: int = 3) -> Scores:
    return Scores.of("probe", torch.rand(layers, heads), meta={})


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def planted() -> Model:
    made = planted_model()
    return Model(made.network, made.tokenizer, None, locate_heads(made.network), "planted")


def tuned(**given: Any) -> object:
    return tune(planted(), planted_questions(8), **given)


def asked(folder: Path, gates: dict[str, Gate], rows: Sequence[Question]) -> object:
    write_questions(data := folder / "rows.jsonl", rows)
    return evaluate(planted(), "pairs", data=data, out=folder / "out", gates=gates)


def offloaded(load_in: str) -> None:
    network = planted_model().network
    network.hf_device_map = {"a": 0, "b": "disk"}
    check_stays_quantised(network, load_in)


def damaged() -> Model:
    made = planted()
    made.network.transformer.h[0].attn.c_attn.weight.data[0] = float("nan")
    return made


def learned(model: Model) -> object:
    encoded = encode(model, planted_questions(4))
    path = learn(
        model, encoded, [[1, 2, 3]], torch.ones(2, 4), site="z", temperature=1.0, schedule=Schedule(), batch_tokens=400,
        seed=0,
    )  # fmt: skip
    return next(path)


def exported(folder: Path, dtype: torch.dtype, progress: Callable[[int, int], None] | None = None) -> object:
    source = save(LLAMA, folder / "model", dtype=dtype)
    layout = inspect(str(source)).layout
    gate = Gate(torch.full(layout.shape, 1e9))
    return export(str(source), gate, to="checkpoint", out=folder / "gated", progress=progress)


def cut_while_it_is_read(folder: Path) -> object:
    """Export a checkpoint whose file another program makes shorter after the first tensor was written."""

    told: list[int] = []

    def cut(done: int, _: int) -> None:
        told.append(done)
        if len(told) == 2:  # what lies before the tensor, and the tensor
            os.truncate(folder / "model" / "model.safetensors", done)

    return exported(folder, torch.float32, cut)


def large(path: Path) -> Path:
    written(path, "[\n{},\n")
    os.truncate(path, LARGEST_ARRAY + 1)  # takes no room on the disk
    return path


def without(package: str, action: Callable[[], object]) -> object:
    with pytest.MonkeyPatch.context() as changed:
        changed.setitem(sys.modules, package, None)
        return action()


def without_template() -> Model:
    made = planted()
    made.tokenizer.chat_template = None
    return made


def shouting() -> Model:
    made = planted()
    made.tokenizer.chat_template = "{{ messages[0].content | upper }}"
    return made


def llama(folder: Path) -> str:
    return str(save(LLAMA, folder))


def adapter(folder: Path) -> str:
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": llama(folder.with_name("base"))}
    written(folder / "adapter_config.json", json.dumps(settings))
    written(folder / "adapter_model.safetensors", "")
    return str(folder)


def repeated(folder: Path) -> Path:
    """Return a split model whose second part holds a tensor of the first under the same name."""
    first, second, *_ = write_gguf(folder / "m.gguf", most=12)
    names = [[one.name.encode() for one in read_header(part).tensors] for part in (first, second)]
    new, old = next((a, b) for b in names[1] for a in names[0] if len(a) == len(b))
    second.write_bytes(second.read_bytes().replace(old, new, 1))
    return first


def of_new_type(folder: Path) -> Path:
    (path,) = write_gguf(folder / "m.gguf")
    reader = GGUFReader(str(path), "r+")
    reader.tensors[0].field.parts[4][0] = 250
    reader.data.flush()
    return path


def packed() -> None:
    """Make a Model of a network that bitsandbytes has packed, as its layers say it."""
    made = planted_model()
    state = SimpleNamespace(packing_format_for_cpu=True)
    made.network.lm_head.weight.quant_state = state
    Model(made.network, made.tokenizer, None, locate_heads(made.network), "packed")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Leave wrong shapes and types to the package's own checks, as where no test watches."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


CASES = {
    "name too long": Case(lambda _: resolve("x" * 300), "a model's name is too long", "check the name"),
    "no such quantisation": Case(
        lambda _: quantisation("3bit", torch.float32), "cannot be loaded in '3bit'", "choose one"
    ),
    "offloaded 8bit": Case(lambda _: offloaded("8bit"), "weights in 8bit cannot be offloaded", "use --load-in 4bit"),
    "offloaded 4bit": Case(
        lambda _: offloaded("4bit"), "weights in 4bit cannot be offloaded", "give a larger --max-memory"
    ),
    "device map": Case(
        lambda _: read_device_map("[1]"), "the device map cannot be used", 'try --device-map auto, or {"": "cpu"}'
    ),
    "memory": Case(lambda _: read_max_memory("much"), "the limits of memory cannot be read", "correct --max-memory"),
    "both devices": Case(
        lambda _: load("x", device="cpu", device_map="auto"),
        "--device and --device-map exclude",
        "leave one of them out",
    ),
    "no questions": Case(lambda _: score(planted(), []), "no questions", "check --limit and the file"),
    "unlike arrays": Case(lambda _: pearson(np.ones(2), np.ones(3)), "to be correlated differ", "the same heads"),
    "method": Case(lambda _: tuned(method="guess"), "unknown method", "choose one of them"),
    "grid without scores": Case(
        lambda _: tuned(method="grid"), "a grid is made from scores", "run `truthheads score` first"
    ),
    "bounds": Case(
        lambda _: tuned(method="learn", schedule=Schedule(low=1.5, high=2.0)), "must include 1", "try 0 and 2"
    ),
    "guard": Case(lambda _: tuned(method="learn", guard=-1.0), "the guard must be above 0 (got -1)", "try 0.02"),
    "names": Case(lambda _: compare(scores(), scores(), names=["a"]), "names and models differ in number", "name each"),
    "one model": Case(
        lambda _: compare(scores()), "there are no pairs to compare", "truthheads compare base.safetensors"
    ),
    "no comparison": Case(
        lambda at: Comparison.load(written(at / "c.json", "[]")),
        "is not a comparison",
        "write it again with `truthheads compare`",
    ),
    "recipe": Case(lambda _: read_recipe("none-such"), "no such recipe", "see `truthheads reproduce --list`"),
    "no toml": Case(lambda at: read_recipe(str(written(at / "r.toml", "a = = 1"))), "is not TOML", "correct the file"),
    "no recipe": Case(
        lambda at: read_recipe(str(written(at / "r.toml", "a = 1"))), "is not a recipe", "compare it with a shipped"
    ),
    "neutral text": Case(
        lambda at: read_neutral(written(at / "n.txt", "one text")), "holds too little neutral text", "by an empty line"
    ),
    "words": Case(lambda at: read_vocabulary(written(at / "w.txt", "\n")), "has no category", "check the file"),
    "a share for dev": Case(
        lambda _: tuned(method="learn", dev_share=1.5), "into dev and train", "0.25 is a good start"
    ),
    "one group": Case(
        lambda _: tune(planted(), [replace(one, group="one") for one in planted_questions(4)], method="learn"),
        "into dev and train",
        "give more questions: rows of one group",
    ),
    "a rate that is none": Case(
        lambda _: tuned(method="learn", schedule=Schedule(rate=float("nan"))), "the schedule's rate", "leave it out"
    ),
    "a gate too strong": Case(
        lambda at: asked(at, {"g": Gate(torch.full((2, 4), 1e38))}, planted_questions(4)),
        "rows 0 to 3: a logit cannot be used",
        "the gate is too strong or the weights are damaged",
    ),
    "a gate too strong for pairs": Case(
        lambda _: pair_logprobs(
            planted(),
            encode(planted(), planted_questions(4)),
            batch_tokens=400,
            gate=Gate(torch.full((2, 4), 1e38)),
        ),
        "log-probability is not finite",
        "the gate is too strong or the weights are damaged",
    ),
    "an answer of damaged weights": Case(
        lambda _: make_pairs(planted_questions(4), damaged(), strategy="closed-book"),
        "a logit cannot be used",
        "the weights are damaged",
    ),
    "attention of damaged weights": Case(
        lambda _: trace(damaged(), planted_questions(4)),
        "attention is not finite",
        "the weights or the row are damaged",
    ),
    "a gradient of damaged weights": Case(
        lambda _: learned(damaged()), "the gradient of the gate is not finite", "the weights or a row are damaged"
    ),
    "activations cut short": Case(
        lambda at: activations._read(written(at / "z.bin", "abc"), 0, [torch.zeros(2)]),
        "is shorter than it was",
        "let no other program write there",
    ),
    "weights cut short": Case(cut_while_it_is_read, "became shorter while it was read", "let no other program write"),
    "a gate too strong for fp16": Case(
        lambda at: exported(at, torch.float16), "o_proj.weight of", "convert them to bf16 first"
    ),
    "a large array": Case(
        lambda at: read_questions(large(at / "rows.json")), "too large to be read as one JSON value", ".jsonl"
    ),
    "a number without end": Case(
        lambda at: read_questions(written(at / "rows.json", '[{"label": ' + "1" * 5000 + "}]")),
        "is not JSON",
        "correct the file",
    ),
    "brackets without end": Case(
        lambda at: read_questions(written(at / "rows.json", "[\n" * 100_000)), "is not JSON", "correct the file"
    ),
    "no file": Case(
        lambda at: evaluate(planted(), "pairs", data=[], out=at / "out"), "pairs takes one --data", "give --data"
    ),
    "two files": Case(
        lambda at: evaluate(planted(), "pairs", data=[at / "a", at / "b"], out=at / "out"),
        "pairs takes one --data",
        "give one at a time",
    ),
    "prompts without a template": Case(
        lambda _: ask_texts(without_template(), ["Yes ?"], chat=True), "has no chat template", "leave --chat out"
    ),
    "no pandas": Case(lambda _: without("pandas", Gate(torch.ones(2, 3)).to_pandas), "no pandas", "or use table()"),
    "no datasets": Case(
        lambda _: without("datasets", lambda: next(hub_rows("hf://datasets/me/rows"))),
        "hf://datasets/me/rows cannot be read",
        "pip install 'truthheads[hub]'",
    ),
    "no harness": Case(
        lambda at: without("lm_eval.models.huggingface", lambda: evaluate(planted(), "lm-eval:x", [], out=at / "o")),
        "lm-eval is not installed",
        "pip install 'truthheads[lm-eval]'",
    ),
    "a gate for weights in 4 bits": Case(
        lambda at: export(replace(planted(), load_in="4bit"), Gate(torch.ones(2, 4)), to="checkpoint", out=at / "o"),
        "a checkpoint would be made of its unquantised weights",
        'or to="adapter"',
    ),
    "no GGUF file": Case(
        lambda at: export(str(at / "none.gguf"), Gate(torch.ones(2, 4)), to="gguf", out=at / "o.gguf"),
        "none.gguf is not there",
        "check the path",
    ),
    "no GGUF model": Case(lambda at: load(str(at / "none.gguf")), "none.gguf is not there", "check the path"),
    "no such weights": Case(lambda _: open_checkpoint("nobody/nothing"), "could not be loaded", "the network"),
    "scores of other models": Case(
        lambda at: compare(scores(), scores(), weights=[llama(at / "a"), llama(at / "b")]),
        "not of the same models",
        "in the order of their score files",
    ),
    "weights of an adapter": Case(
        lambda at: compare(weights=[adapter(at / "a"), llama(at / "b")]),
        "are a base and an adapter",
        "merge_and_unload",
    ),
    "ground on an adapter": Case(
        lambda at: ground(adapter(at / "a"), planted_questions(4), out=at / "o"),
        "cannot be exported",
        "merge_and_unload",
    ),
    "ground in int8": Case(
        lambda at: ground(llama(at / "m"), planted_questions(4), out=at / "o", load_in="int8"),
        "a gate that is tested in int8 cannot be exported",
        "use --load-in 8bit, or none",
    ),
    "a tensor in two parts": Case(
        lambda at: inspect(str(repeated(at))), "lies in two parts of a split model", "download all parts again"
    ),
    "a tensor of a new type": Case(
        lambda at: inspect(str(of_new_type(at))), "cannot be read", "pip install --upgrade gguf"
    ),
    "what transformers says": Case(
        lambda _: check_loaded("m", planted().network, {"error_msgs": ["a size"]}), "m could not be loaded", "again"
    ),
    "packed weights": Case(
        lambda _: packed(), "the 4-bit weights of lm_head were rounded", "make the Model before the first forward pass"
    ),
    "pictures of other rows": Case(
        lambda _: draw(planted(), planted_questions(1), trace(planted(), planted_questions(4))),
        "there are no rows to draw",
        "leave --pictures to the same command",
    ),
    "a template that changes the text": Case(
        lambda _: trace(shouting(), planted_questions(2), chat=True),
        "the context does not stand in the prompt",
        "leave --chat out",
    ),
    "no network for a recipe": Case(
        lambda at: runner._fetch("https://127.0.0.1:1/rows.jsonl", at / "rows.jsonl"),
        "could not be fetched",
        "put the file into --data-dir",
    ),
    "format": Case(
        lambda at: export("model", Gate(torch.ones(2, 3)), to="onnx", out=at / "o"),  # type: ignore[arg-type]
        "unknown format",
        "choose one of the three",
    ),
    "gate's name": Case(
        lambda at: asked(at, {"a/b": Gate(torch.ones(2, 3))}, []), "a gate cannot be called 'a/b'", "rename the file"
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CASES)
def test_an_error_says_what_cures_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(TruthHeadsError) as raised:
        case.provoke(tmp_path)
    assert case.problem in raised.value.problem
    assert case.fix in raised.value.fix
    assert raised.value.expected and raised.value.got


def test_what_is_too_strong_in_fp16_is_exported_in_bf16(tmp_path: Path) -> None:
    exported(tmp_path, torch.bfloat16)
    assert (tmp_path / "gated" / "model.safetensors").is_file()


def test_weights_in_4_bits_are_not_told_to_be_loaded_in_4_bits() -> None:
    with pytest.raises(TruthHeadsError) as raised:
        offloaded("4bit")
    assert "--load-in 4bit" not in raised.value.fix


def test_an_error_that_nothing_raised_is_found(tmp_path: Path) -> None:
    every = provoked.sites()
    site = next(one for one in every if one.file == "models/sources.py" and "too long" in one.text)
    assert site in provoked.missing(every, [])
    assert site not in provoked.missing(every, [f"{site.file}:{site.first}"])
    assert all("fix=" in one.text for one in every) and len(every) > 250
    record = tmp_path / "record"
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv(provoked.RECORD, str(record))
        with provoked.recorded(), pytest.raises(TruthHeadsError):
            resolve("x" * 300)
    assert site not in provoked.missing(every, record.read_text().splitlines())
    assert json.dumps([one.file for one in every])  # below the package, so the same on every machine
