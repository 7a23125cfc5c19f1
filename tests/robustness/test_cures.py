"""Errors that no other test raises are raised here, and what each advises is looked at; see ``provoked``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import pytest
import torch

import provoked
from planted import planted_model, planted_questions
from truthheads.benchmarks.coco_objects import read_vocabulary
from truthheads.errors import TruthHeadsError
from truthheads.evaluation.evaluate import evaluate
from truthheads.exporting.export import export
from truthheads.lineage.compare import compare
from truthheads.models.architectures import locate_heads
from truthheads.models.devices import read_device_map, read_max_memory
from truthheads.models.load import Model, load
from truthheads.models.neutral_text import read_neutral
from truthheads.models.quantised import check_stays_quantised, quantisation
from truthheads.models.sources import resolve
from truthheads.results.comparison import Comparison
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.scoring.score import score
from truthheads.stats.figures import pearson
from truthheads.tuning.learn import Schedule
from truthheads.tuning.tune import tune
from truthheads.workflows.recipe import read_recipe


class Case(NamedTuple):
    """What goes wrong in a folder, and what the error says and advises."""

    provoke: Callable[[Path], object]
    problem: str
    fix: str


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


def asked(folder: Path, gates: dict[str, Gate]) -> object:
    data = written(folder / "rows.jsonl", "{}\n")
    return evaluate(planted(), "pairs", data=data, out=folder / "out", gates=gates)


def offloaded(load_in: str) -> None:
    network = planted_model().network
    network.hf_device_map = {"a": 0, "b": "disk"}
    check_stays_quantised(network, load_in)


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
    "method": Case(lambda _: tuned(method="guess"), "unknown method", "choose one of the two"),
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
    "format": Case(
        lambda at: export("model", Gate(torch.ones(2, 3)), to="onnx", out=at / "o"),  # type: ignore[arg-type]
        "unknown format",
        "choose one of the three",
    ),
    "gate's name": Case(
        lambda at: asked(at, {"a/b": Gate(torch.ones(2, 3))}), "a gate cannot be called 'a/b'", "rename the file"
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
