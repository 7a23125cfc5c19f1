"""Recipes: what a published result was measured on, step by step, with the figures that were published.

A recipe is a TOML file: models, data, then scores, comparisons, traces, gates, tunings, evaluations, exports and charts
that name each other.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from importlib import resources
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from truthheads.benchmarks.base import AskOptions
from truthheads.benchmarks.registry import benchmark
from truthheads.choices import GateFormat, Generated, Norm, Probe, Site, Split
from truthheads.errors import DataError, TruthHeadsError


def _below(path: str) -> str:
    """Refuse a path that leads out of the folder that it is put below: steps remove what they have made."""
    parts = PurePosixPath(path).parts
    if PurePosixPath(path).is_absolute() or ".." in parts or (path and not parts):
        raise ValueError(f"{path!r} must be a path below the folder of results")
    return path


def _by_name(gates: Any) -> Any:
    """Read a list of gates as gates under their own names."""
    listed = isinstance(gates, list) and all(isinstance(name, str) for name in gates)
    return {name: name for name in gates} if listed else gates


Below = Annotated[str, AfterValidator(_below)]

Name = Annotated[str, Field(min_length=1), AfterValidator(_below)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


P = TypeVar("P", bound=_Part)


class MadePart(_Part):
    """Something that a recipe makes.

    ``out`` is its file or folder below the folder of results, ``step`` the name of the step that makes it; both have
    a usual value. Parts of one kind that follow each other under one ``step`` are made in one. ``what`` says in words
    what the step does.
    """

    kind: ClassVar[str]
    usual: ClassVar[str]

    name: Name
    step: str = ""
    what: str = ""
    out: Below = ""

    @property
    def title(self) -> str:
        """The name of the step that makes it."""
        return self.step or f"{self.kind} {self.name}"

    @property
    def place(self) -> str:
        """The file or folder that its step writes, below the folder of results."""
        return self.out or self.usual.format(self.name)

    @property
    def artefact(self) -> str:
        """The file that later parts read: what is at its place, or in the folder there."""
        return self.place

    def settings(self) -> dict[str, object]:
        """Return everything but names and places that differs from its default."""
        return self.model_dump(exclude={"name", "step", "what", "out", "paper"}, exclude_defaults=True)


class ModelPart(_Part):
    """A model: its hub id (or ``smollm2…``), parameters, and shape for the estimates."""

    key: str
    id: str
    role: Literal["base", "instruct", "multimodal", "stranger", "descendant"]
    parameters: float = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)


class DataPart(MadePart):
    """A file below ``--data-dir``, or what is generated, of one ``split`` of the generators' names and facts.

    ``images`` is a folder below ``--data-dir``; ``black`` puts a black square of so many pixels before every row;
    ``tokens`` is the mean length of a row, for the estimate; ``origin`` says where the file is had.
    """

    kind: ClassVar[str] = "generate"

    name: Name = Field(alias="key")
    file: str = ""
    url: str = ""
    origin: str = ""
    generate: Generated | None = None
    split: Split = "test"
    seed: int = 0
    rows: int = Field(gt=0)
    tokens: int = Field(gt=0)
    images: str = ""
    black: int = 0

    @property
    def place(self) -> str:
        """The file of generated questions, or the folder of generated scenes."""
        usual = f"data/{self.name}" if self.generate == "scenes" else f"data/{self.name}/questions.jsonl"
        return self.out or usual

    @property
    def artefact(self) -> str:
        """The generated questions."""
        return f"{self.place}/questions.jsonl" if self.generate == "scenes" else self.place

    @model_validator(mode="after")
    def _one_source(self) -> "DataPart":
        if bool(self.file) == bool(self.generate):
            raise ValueError("either file or generate")
        return self


class ScoresPart(MadePart):
    """Truth Scores of one model on one set of rows."""

    kind: ClassVar[str] = "scores"
    usual: ClassVar[str] = "scores/{}.safetensors"

    model: str
    data: str
    limit: int | None = None
    probe: Probe = "paper"
    chat: bool = False
    truncate: bool = True
    seed: int = 42


class ComparisonPart(MadePart):
    """Two or more models by their ``scores``, by the weights of ``models``, or by both, and what was published of two.

    ``a`` and ``b`` is a shorter way to name two scores; with ``weights``, two models.
    """

    kind: ClassVar[str] = "comparison"
    usual: ClassVar[str] = "comparison/{}"

    a: str = ""
    b: str = ""
    weights: bool = False
    scores: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    seed: int = 0
    paper: dict[str, float] = Field(default_factory=dict)

    @property
    def artefact(self) -> str:
        """The comparison's file."""
        return f"{self.place}/comparison.json"

    @property
    def by_scores(self) -> list[str]:
        """Names of the scores that are compared; none where only weights are."""
        return self.scores if self.lists else [] if self.weights else [self.a, self.b]

    @property
    def by_weights(self) -> list[str]:
        """Keys of the models whose weights are compared; none where only scores are."""
        return self.models if self.lists else [self.a, self.b] if self.weights else []

    @property
    def called(self) -> list[str]:
        """What the result calls its sides: models by their keys, else scores by their names."""
        return self.by_weights or self.by_scores

    @property
    def lists(self) -> bool:
        """Whether its sides are given as lists, not as ``a`` and ``b``."""
        return bool(self.scores or self.models)

    @model_validator(mode="after")
    def _sides_meet(self) -> "ComparisonPart":
        if bool(self.a and self.b) == self.lists or (self.lists and (self.a or self.b or self.weights)):
            raise ValueError(f"comparison {self.name}: either a and b, or scores and models")
        if len(self.called) < 2 or (self.scores and self.models and len(self.scores) != len(self.models)):
            raise ValueError(f"comparison {self.name}: two or more, and as many scores as models where both are given")
        if self.paper and len(self.called) > 2:
            raise ValueError(f"comparison {self.name}: published figures are of two, and it compares more")
        return self


class TracePart(MadePart):
    """Where the heads of one model look, with pages of so many ``pictures``."""

    kind: ClassVar[str] = "trace"
    usual: ClassVar[str] = "trace-{}"

    model: str
    data: str
    scores: str
    limit: int | None = None
    pictures: int = Field(2, ge=0)
    chat: bool = False
    seed: int = 0

    @property
    def artefact(self) -> str:
        """The trace's file."""
        return f"{self.place}/{PurePosixPath(self.place).name}.safetensors"


class GatePart(MadePart):
    """A gate from scores, for a model of the same shape; without ``floor`` factors may fall below 0."""

    kind: ClassVar[str] = "gate"
    usual: ClassVar[str] = "gates/{}.safetensors"

    scores: str
    target: str
    strength: float
    norm: Norm
    site: Site = "z"
    floor: float | None = None


class TuningPart(MadePart):
    """A gate that is learned from pairs."""

    kind: ClassVar[str] = "tuning"
    usual: ClassVar[str] = "gates/{}"

    model: str
    data: str
    limit: int | None = None
    chat: bool = False
    seed: int = 0

    @property
    def artefact(self) -> str:
        """The learned gate."""
        return f"{self.place}/{PurePosixPath(self.place).name}.safetensors"


class EvaluationPart(MadePart):
    """A benchmark; ``paper`` gives figures by run (``none`` or a gate) and name.

    ``gates`` lists gates, or names each for this evaluation alone; ``guard_texts`` is as in :func:`evaluate`.
    """

    kind: ClassVar[str] = "evaluation"
    usual: ClassVar[str] = "evaluation/{}"

    model: str
    task: str
    data: list[str] = Field(min_length=1)
    gates: Annotated[dict[str, str], BeforeValidator(_by_name)] = Field(default_factory=dict)
    controls: int = 3
    guard_texts: int | None = Field(None, ge=0)
    instruction: str | None = None
    new_tokens: int | None = None
    caps: list[int] = Field(default_factory=lambda: [64])
    chat: bool = False
    seed: int = 0
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
        return record.ask_options({**given, "limit": limit}, seed=self.seed)


class ExportPart(MadePart):
    """A model with its gate, in a standard format; ``name`` names the folder or file, too."""

    kind: ClassVar[str] = "export"
    usual: ClassVar[str] = "{}"

    model: str
    gate: str
    to: GateFormat = "checkpoint"


class ChartPart(_Part):
    """A heat map of scores, as ``NAME.html`` and ``NAME.png``."""

    name: Name
    scores: str


class Recipe(_Part):
    """One lineage, one table, or the demo: see the TOML files beside this one.

    ``report`` is the file of a report on everything that was made.

    Raises:
        ValueError: A part names one that is not there, two share a name, a step or a place, or shapes of a gate and a
            model differ.
    """

    title: str
    source: str
    notes: list[str] = Field(default_factory=list)
    models: list[ModelPart] = Field(min_length=1)
    data: list[DataPart] = Field(min_length=1)
    scores: list[ScoresPart] = Field(default_factory=list)
    comparisons: list[ComparisonPart] = Field(default_factory=list)
    traces: list[TracePart] = Field(default_factory=list)
    gates: list[GatePart] = Field(default_factory=list)
    tunings: list[TuningPart] = Field(default_factory=list)
    evaluations: list[EvaluationPart] = Field(default_factory=list)
    exports: list[ExportPart] = Field(default_factory=list)
    charts: list[ChartPart] = Field(default_factory=list)
    report: Below = ""

    def made(self) -> Iterator[MadePart]:
        """Yield everything that is made, in the order of making it."""
        yield from (one for one in self.data if one.generate is not None)
        yield from self.scores
        yield from self.comparisons
        yield from self.traces
        yield from self.gates
        yield from self.tunings
        yield from self.evaluations
        yield from self.exports

    def resized(self, rows: int, *, seed: int) -> "Recipe":
        """Return the recipe with other numbers of generated rows, in the same proportions, and one seed throughout.

        Args:
            rows: Rows of the largest generated data set.
            seed: Random seed of every part that has one.
        """
        generated = {one.name: one.rows for one in self.data if one.generate is not None}
        largest = max(generated.values(), default=rows)

        def counts(part: Any) -> dict[str, int]:
            of_data = isinstance(part, DataPart)
            field = "rows" if of_data else "limit"
            count, source = getattr(part, field, None), part.name if of_data else getattr(part, "data", "")
            if count is None or source not in generated:
                return {}
            return {field: max(1, round(rows * count / largest))}

        seeded = ("data", "scores", "comparisons", "traces", "tunings", "evaluations")
        return self.model_copy(
            update={
                name: [part.model_copy(update={"seed": seed, **counts(part)}) for part in getattr(self, name)]
                for name in seeded
            }
        )

    @model_validator(mode="after")
    def _names_meet(self) -> "Recipe":
        models, data = _named("model", self.models, "key"), _named("data", self.data, "name")
        scores, gates = _named("scores", self.scores), _named("gate", [*self.gates, *self.tunings])
        for kind, parts in (
            ("comparison", self.comparisons),
            ("trace", self.traces),
            ("evaluation", self.evaluations),
            ("export", self.exports),
            ("chart", self.charts),
        ):
            _named(kind, parts)
        for one in self.scores:
            _known(one.name, [(one.model, models), (one.data, data)])
        for compared in self.comparisons:
            sides: list[tuple[str, Mapping[str, object]]] = [
                *((name, scores) for name in compared.by_scores),
                *((key, models) for key in compared.by_weights),
            ]
            _known(compared.name, sides)
            for name, key in zip(compared.by_scores, compared.by_weights, strict=False):
                if scores[name].model != key:
                    raise ValueError(f"comparison {compared.name}: {name} are not the scores of {key}")
        for traced in self.traces:
            _known(traced.name, [(traced.model, models), (traced.data, data), (traced.scores, scores)])
            _same_shape(f"trace {traced.name}", models[scores[traced.scores].model], models[traced.model])
        for gate in self.gates:
            _known(gate.name, [(gate.scores, scores), (gate.target, models)])
            _same_shape(f"gate {gate.name}", models[scores[gate.scores].model], models[gate.target])
        for tuning in self.tunings:
            _known(tuning.name, [(tuning.model, models), (tuning.data, data)])
        shaped = {gate.name: models[gate.target] for gate in self.gates}
        shaped |= {tuning.name: models[tuning.model] for tuning in self.tunings}
        for test in self.evaluations:
            _known(test.name, [(test.model, models), *((key, data) for key in test.data)])
            _known(test.name, [(used, gates) for used in test.gates.values()])
            for used in test.gates.values():
                _same_shape(f"evaluation {test.name}", shaped[used], models[test.model])
            strange = set(test.paper) - {"none", *test.gates}
            if strange:
                raise ValueError(f"evaluation {test.name}: figures of {sorted(strange)}, which it does not run")
        for export in self.exports:
            _known(export.name, [(export.model, models), (export.gate, gates)])
            _same_shape(f"export {export.name}", shaped[export.gate], models[export.model])
        for chart in self.charts:
            _known(chart.name, [(chart.scores, scores)])
        return self

    @model_validator(mode="after")
    def _steps_and_places_are_apart(self) -> "Recipe":
        steps = [title for (_, title), _ in groupby(self.made(), key=lambda part: (type(part), part.title))]
        twice = next((title for title in steps if steps.count(title) > 1), None)
        if twice is not None:
            raise ValueError(f"step {twice!r}: parts of one step follow each other and are of one kind")
        files = [f"{chart.name}.{suffix}" for chart in self.charts for suffix in ("html", "png")]
        files += [name for name in (self.report,) if name]
        places = sorted(PurePosixPath(place).parts for place in (*files, *(part.place for part in self.made())))
        for outer, inner in pairwise(places):
            if inner[: len(outer)] == outer:
                raise ValueError(f"{'/'.join(inner)} and {'/'.join(outer) or '.'} are made in one place")
        return self


def _named(kind: str, parts: Iterable[P], field: str = "name") -> dict[str, P]:
    listed = list(parts)
    found = {getattr(part, field): part for part in listed}
    if len(found) < len(listed):
        raise ValueError(f"two of one name among {kind}")
    return found


def _known(owner: str, wanted: Iterable[tuple[str, Mapping[str, object]]]) -> None:
    for name, there in wanted:
        if name not in there:
            raise ValueError(f"{owner}: no {name!r} among {', '.join(there) or 'nothing'}")


def _same_shape(owner: str, made: ModelPart, target: ModelPart) -> None:
    if (made.layers, made.heads) != (target.layers, target.heads):
        raise ValueError(f"{owner}: {made.key} and {target.key} differ in shape")


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
            expected="models, data, and the parts that are made of them",
            got=first,
            fix="compare it with a shipped one",
        ) from error
