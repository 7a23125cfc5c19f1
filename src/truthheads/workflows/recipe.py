"""Recipes: what a published result was measured on, step by step, with the figures that were published.

A recipe is a TOML file: models, data, then scores, comparisons, gates and evaluations that name each other.
"""

import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from truthheads.benchmarks.base import AskOptions
from truthheads.benchmarks.registry import benchmark
from truthheads.choices import Generated, Norm, Probe, Site
from truthheads.errors import DataError, TruthHeadsError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Part):
    """A model: its hub id (or ``smollm2…``), parameters, and shape for the estimates."""

    key: str
    id: str
    role: Literal["base", "instruct", "multimodal", "stranger", "descendant"]
    parameters: float = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)


class DataPart(_Part):
    """A file below ``--data-dir``, or what is generated.

    ``images`` is a folder below ``--data-dir``; ``black`` puts a black square of so many pixels before every row;
    ``tokens`` is the mean length of a row, for the estimate; ``origin`` says where the file is had.
    """

    key: str
    file: str = ""
    url: str = ""
    origin: str = ""
    generate: Generated | None = None
    seed: int = 0
    rows: int = Field(gt=0)
    tokens: int = Field(gt=0)
    images: str = ""
    black: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> "DataPart":
        if bool(self.file) == bool(self.generate):
            raise ValueError("either file or generate")
        return self


class ScoresPart(_Part):
    """Truth Scores of one model on one set of rows."""

    name: str
    model: str
    data: str
    limit: int | None = None
    probe: Probe = "paper"
    chat: bool = False
    seed: int = 42


class ComparisonPart(_Part):
    """Two scores, or the weights of two models, and what was published of them."""

    name: str
    a: str
    b: str
    weights: bool = False
    paper: dict[str, float] = Field(default_factory=dict)


class GatePart(_Part):
    """A gate from scores, for a model of the same shape."""

    name: str
    scores: str
    target: str
    strength: float
    norm: Norm
    site: Site = "z"


class EvaluationPart(_Part):
    """A benchmark; ``paper`` gives figures by run (``none`` or a gate) and name."""

    name: str
    model: str
    task: str
    data: list[str] = Field(min_length=1)
    gates: list[str] = Field(default_factory=list)
    controls: int = 3
    instruction: str | None = None
    new_tokens: int | None = None
    caps: list[int] = Field(default_factory=lambda: [64])
    chat: bool = False
    paper: dict[str, dict[str, float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_asked(self) -> "EvaluationPart":
        try:
            record = benchmark(self.task)
            self.options()
        except TruthHeadsError as error:
            raise ValueError(f"evaluation {self.name}: {error.problem}; expected {error.expected}") from error
        if record.asks == "harness":
            raise ValueError(f"evaluation {self.name}: {self.task} is run by its harness, not from a recipe")
        return self

    def options(self, *, images: Path | None = None, limit: int | None = None) -> AskOptions:
        """Return how the benchmark is asked: what this part says, else the benchmark's own defaults."""
        record = benchmark(self.task)
        known = {one.name for one in fields(record.options)}
        told = {name: getattr(self, name) for name in ("instruction", "new_tokens", "caps", "chat")}
        given = {name: told[name] for name in told if name in self.model_fields_set and told[name] is not None}
        given |= {"caps": tuple(self.caps)} if "caps" in known | given.keys() else {}
        given |= {"images": images} if "images" in known else {}  # a folder is the data's: not every benchmark looks
        return record.ask_options({**given, "limit": limit})


class Recipe(_Part):
    """One lineage, or one table: see the TOML files beside this one.

    Raises:
        ValueError: A part names one that is not there, two share a name, or shapes of a gate's two models differ.
    """

    title: str
    source: str
    notes: list[str] = Field(default_factory=list)
    models: list[ModelPart] = Field(min_length=1)
    data: list[DataPart] = Field(min_length=1)
    scores: list[ScoresPart] = Field(default_factory=list)
    comparisons: list[ComparisonPart] = Field(default_factory=list)
    gates: list[GatePart] = Field(default_factory=list)
    evaluations: list[EvaluationPart] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_meet(self) -> "Recipe":
        models, data = _named("model", self.models, "key"), _named("data", self.data, "key")
        scores, gates = _named("scores", self.scores, "name"), _named("gate", self.gates, "name")
        _named("comparison", self.comparisons, "name")
        _named("evaluation", self.evaluations, "name")
        for one in self.scores:
            _known(one.name, {one.model: models, one.data: data})
        for pair in self.comparisons:
            _known(pair.name, dict.fromkeys((pair.a, pair.b), models if pair.weights else scores))
        for gate in self.gates:
            _known(gate.name, {gate.scores: scores, gate.target: models})
            made, target = models[scores[gate.scores].model], models[gate.target]
            if (made.layers, made.heads) != (target.layers, target.heads):
                raise ValueError(f"gate {gate.name}: {made.key} and {target.key} differ in shape")
        for test in self.evaluations:
            _known(
                test.name, {test.model: models, **dict.fromkeys(test.data, data), **dict.fromkeys(test.gates, gates)}
            )
            strange = set(test.paper) - {"none", *test.gates}
            if strange:
                raise ValueError(f"evaluation {test.name}: figures of {sorted(strange)}, which it does not run")
        return self


def _named(kind: str, parts: list[Any], field: str) -> dict[str, Any]:
    found = {getattr(part, field): part for part in parts}
    if len(found) < len(parts):
        raise ValueError(f"two of one name among {kind}")
    return found


def _known(owner: str, wanted: dict[str, Any]) -> None:
    for name, there in wanted.items():
        if name not in there:
            raise ValueError(f"{owner}: no {name!r} among {', '.join(there) or 'nothing'}")


def shipped() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("truthheads.workflows") / "recipes"
    return sorted(one.name.removesuffix(".toml") for one in folder.iterdir() if one.name.endswith(".toml"))


def read_recipe(name: str | Path) -> Recipe:
    """Return a recipe by the name of a shipped one, or from a TOML file.

    Raises:
        DataError: There is none, or it is not a recipe.
    """
    path = Path(name)
    try:
        if str(name) in shipped():
            text = (resources.files("truthheads.workflows") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        else:
            text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: no such recipe",
            expected=f"a TOML file, or one of {', '.join(shipped())}",
            got=type(error).__name__,
            fix="see `truthheads reproduce --list`",
        ) from error
    try:
        return Recipe.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{name} is not TOML", expected="a recipe", got=str(error), fix="correct the file") from error
    except (ValueError, RecursionError) as error:
        told = error.errors() if isinstance(error, ValidationError) else []
        first = f"{'.'.join(map(str, told[0]['loc']))}: {told[0]['msg']}" if told else str(error)
        raise DataError(
            f"{name} is not a recipe",
            expected="models, data, scores, comparisons, gates and evaluations",
            got=first,
            fix="compare it with a shipped one",
        ) from error
