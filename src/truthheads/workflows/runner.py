"""Run the parts of a recipe in one folder, step by step; a step that is finished is not repeated."""

import shutil
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from itertools import groupby
from pathlib import Path

from PIL import Image

from truthheads.benchmarks.registry import benchmark
from truthheads.data.questions import write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import DataError, ShapeError
from truthheads.evaluation.evaluate import GUARD_TEXTS, evaluate
from truthheads.exporting.export import export
from truthheads.lineage.compare import compare
from truthheads.models.forward import Progress
from truthheads.models.load import Loading, Model, load
from truthheads.plots.charts import save_chart
from truthheads.reporting.report import write_report
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.scoring.score import score
from truthheads.storage.files import replaced
from truthheads.synthetic.scenes import make_scenes
from truthheads.synthetic.text import make_text
from truthheads.tracing.pictures import draw, write_pictures
from truthheads.tracing.trace import trace
from truthheads.tuning.tune import tune
from truthheads.workflows.plan import Needed, embedded, model_place, needs
from truthheads.workflows.recipe import (
    ComparisonPart,
    DataPart,
    EvaluationPart,
    ExportPart,
    GatePart,
    MadePart,
    Recipe,
    ScoresPart,
    TracePart,
    TuningPart,
)
from truthheads.workflows.steps import Steps, Tell


@dataclass(frozen=True)
class ReproduceOptions:
    """Where a recipe reads and writes.

    Attributes:
        out: Folder for everything that is made.
        models_dir: Models as ``DIR/organisation/name`` or ``DIR/name``; None: the hub.
        data_dir: Data files; None: they are fetched where a recipe has an address.
        rows: Rows of each file, at most; None: all that the recipe asks for.
        loading: How models are loaded: keyword arguments of ``load``.
    """

    out: Path
    models_dir: Path | None = None
    data_dir: Path | None = None
    rows: int | None = None
    loading: Loading = field(default_factory=Loading)


@dataclass(frozen=True)
class Job:
    """How one part is made.

    Attributes:
        given: Everything that the result depends on; a Path counts as what it holds.
        work: Makes it.
    """

    given: Mapping[str, object]
    work: Callable[[], object]


class RecipeRunner:
    """Make everything that a recipe asks for; one model at a time is held, and loaded when it is first needed.

    Args:
        recipe: From :func:`truthheads.workflows.recipe.read_recipe`.
        places: Where to read and write.
        tell: Called with each step.
        progress: Called with the work done and the total, within a step.
    """

    def __init__(self, recipe: Recipe, places: ReproduceOptions, tell: Tell | None, progress: Progress | None) -> None:
        self.recipe, self.places, self.progress = recipe, places, progress
        self.steps = Steps(places.out, tell)
        self._models = {model.key: model for model in recipe.models}
        self._data = {one.name: one for one in recipe.data}
        self._scores = {one.name: one for one in recipe.scores}
        self._gates: dict[str, MadePart] = {one.name: one for one in (*recipe.gates, *recipe.tunings)}
        self._loaded: tuple[str, Model] | None = None

    def run(self) -> None:
        """Make everything that is not there already, then the charts and the report.

        Raises:
            ModelError: A model cannot be loaded.
            ShapeError: A model is not of the shape that the recipe says.
            ArtifactError: The folder cannot be written to.
        """
        for title, parts in groupby(self.recipe.made(), key=lambda part: part.title):
            self._step(title, list(parts))
        for one in self.recipe.charts:
            chart = Scores.load(self.artefact(self._scores[one.scores])).chart()
            for suffix in ("html", "png"):
                save_chart(chart, self.places.out / f"{one.name}.{suffix}")
        if self.recipe.report:
            write_report(self.places.out, self.places.out / self.recipe.report)

    def place(self, part: MadePart) -> Path:
        """Return the file or folder that the step of a part writes."""
        return self.places.out / part.place

    def artefact(self, part: MadePart) -> Path:
        """Return the file of a part that others read."""
        return self.places.out / part.artefact

    def _step(self, title: str, parts: Sequence[MadePart]) -> None:
        jobs = [self._job(part) for part in parts]
        several = {
            f"{part.place}: {key}": value
            for part, job in zip(parts, jobs, strict=True)
            for key, value in job.given.items()
        }
        given = jobs[0].given if len(jobs) == 1 else several

        def work() -> None:
            for job in jobs:
                job.work()

        self.steps.run(title, given, [self.place(part) for part in parts], work)

    def _job(self, part: MadePart) -> Job:
        match part:
            case DataPart():
                return self._generate(part)
            case ScoresPart():
                return self._score(part)
            case ComparisonPart():
                return self._compare(part)
            case TracePart():
                return self._trace(part)
            case GatePart():
                return self._gate(part)
            case TuningPart():
                return self._tune(part)
            case EvaluationPart():
                return self._evaluate(part)
            case ExportPart():
                return self._export(part)
        raise TypeError(f"no way to make a {part.kind}")

    def _name(self, key: str) -> str:
        """Find the name or folder of a model that ``load`` takes."""
        model = self._models[key]
        place = None if embedded(model) else model_place(model, self.places.models_dir)
        return str(place or model.id)

    def _model(self, key: str) -> Model:
        """Load a model, unless it is the one that is held."""
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            loaded, said = load(self._name(key), **self.places.loading), self._models[key]
            layout = loaded.layout
            if (layout.num_layers, layout.num_heads) != (said.layers, said.heads):
                raise ShapeError(
                    f"{said.id} is not of the shape that the recipe says",
                    expected=f"{said.layers} layers of {said.heads} heads",
                    got=f"{layout.num_layers} layers of {layout.num_heads} heads",
                    fix="correct the recipe, or check which model lies there",
                )
            self._loaded = key, loaded
        return self._loaded[1]

    def _source(self, key: str) -> Path:
        """Return a data file, generated, fetched or given a black square where the recipe says so."""
        data = self._data[key]
        if data.generate is not None:
            return self.artefact(data)
        path = self.places.data_dir / data.file if self.places.data_dir is not None else None
        if path is None or not path.exists():
            path = self.places.out / "data" / data.file
            self.steps.run(f"fetch {key}", {"url": data.url}, [path], partial(_fetch, data.url, path))
        if not data.black:
            return path
        blackened = self.places.out / "data" / f"{key}-black.jsonl"
        square = blackened.with_suffix(".png")
        self.steps.run(
            f"blacken {key}",
            {"file": path, "black": data.black},
            [blackened, square],
            partial(_blacken, path, blackened, square, data.black),
        )
        return blackened

    def _images(self, key: str) -> Path | None:
        folder = self._data[key].images
        return self.places.data_dir / folder if folder and self.places.data_dir is not None else None

    def _limit(self, part: ScoresPart | TracePart | TuningPart) -> int:
        """Return the number of rows that a part reads at most."""
        return min(filter(None, (part.limit, self.places.rows, self._data[part.data].rows)))

    def _generate(self, data: DataPart) -> Job:
        rows, out = min(filter(None, (data.rows, self.places.rows))), self.place(data)

        def work() -> None:
            if data.generate == "text":
                write_questions(out, make_text(rows, seed=data.seed, split=data.split))
            else:
                make_scenes(rows, seed=data.seed, out=out, split=data.split)

        return Job({"generate": data.generate, "rows": rows, "seed": data.seed, "split": data.split}, work)

    def _score(self, one: ScoresPart) -> Job:
        source, out, limit = self._source(one.data), self.place(one), self._limit(one)
        partial_folder = out.with_name(f"{out.name}.partial")

        def work() -> None:
            rows = read_questions(source, limit=limit, images=self._images(one.data))
            score(
                self._model(one.model),
                rows,
                probe=one.probe,
                chat=one.chat,
                seed=one.seed,
                truncate=one.truncate,
                work_dir=partial_folder,
                progress=self.progress,
            ).save(out)
            shutil.rmtree(partial_folder, ignore_errors=True)

        return Job({**one.settings(), "model": self._name(one.model), "data": source, "limit": limit}, work)

    def _compare(self, one: ComparisonPart) -> Job:
        files = [self.artefact(self._scores[name]) for name in one.by_scores]
        weights = [self._name(key) for key in one.by_weights]

        def work() -> None:
            found = compare(*files, weights=weights, names=one.called, seed=one.seed, progress=self.progress)
            found.save(self.artefact(one))

        given = {f"scores {at}": path for at, path in enumerate(files)}
        return Job({"names": one.called, "weights": weights, "seed": one.seed, **given}, work)

    def _trace(self, one: TracePart) -> Job:
        source, scores, out = self._source(one.data), self.artefact(self._scores[one.scores]), self.artefact(one)
        partial_folder, limit = self.places.out / f"{out.stem}.partial", self._limit(one)

        def work() -> None:
            rows = read_questions(source, limit=limit, images=self._images(one.data))
            found = trace(
                self._model(one.model),
                rows,
                scores=Scores.load(scores),
                chat=one.chat,
                seed=one.seed,
                work_dir=partial_folder,
                progress=self.progress,
            )
            found.save(out)
            if one.pictures:
                drawn = draw(self._model(one.model), rows, found, rows=one.pictures, chat=one.chat)
                write_pictures(out.with_suffix(".html"), drawn)
            shutil.rmtree(partial_folder, ignore_errors=True)

        told = {"model": self._name(one.model), "data": source, "scores": scores, "limit": limit}
        return Job({**one.settings(), **told}, work)

    def _gate(self, one: GatePart) -> Job:
        source, out = self.artefact(self._scores[one.scores]), self.place(one)

        def work() -> None:
            scores = Scores.load(source)
            Gate.from_scores(scores, strength=one.strength, norm=one.norm, site=one.site, floor=one.floor).save(out)

        return Job({**one.settings(), "scores": source}, work)

    def _tune(self, one: TuningPart) -> Job:
        source, out, limit = self._source(one.data), self.artefact(one), self._limit(one)
        partial_folder = out.with_name(f"{out.name}.partial")

        def work() -> None:
            rows = read_questions(source, limit=limit, images=self._images(one.data))
            tune(
                self._model(one.model),
                rows,
                chat=one.chat,
                seed=one.seed,
                work_dir=partial_folder,
                progress=self.progress,
            ).save(out)
            shutil.rmtree(partial_folder, ignore_errors=True)

        return Job({**one.settings(), "model": self._name(one.model), "data": source, "limit": limit}, work)

    def _evaluate(self, test: EvaluationPart) -> Job:
        out, rows = self.place(test), self.places.rows
        files = [file for key in test.data for file in self._benchmark(test, key)]
        gates = {name: self.artefact(self._gates[gate]) for name, gate in test.gates.items()}
        asking = test.options(images=self._images(test.data[0]), limit=rows)
        guard_texts = GUARD_TEXTS if test.guard_texts is None else test.guard_texts
        guard_texts = guard_texts if rows is None else min(guard_texts, max(4, rows // 2))  # a trial is to be short

        def work() -> None:
            evaluate(
                self._model(test.model),
                test.task,
                files,
                out=out,
                gates={name: Gate.load(path) for name, path in gates.items()},
                controls=test.controls,
                asking=asking,
                guard_texts=guard_texts,
                seed=test.seed,
                progress=self.progress,
            )

        told = {f"data {at}": path for at, path in enumerate(files)}
        told |= {f"gate {name}": path for name, path in gates.items()}
        return Job({**test.settings(), "model": self._name(test.model), "rows": rows, **told}, work)

    def _benchmark(self, test: EvaluationPart, key: str) -> list[Path]:
        source = self._source(key)
        if self._data[key].generate != "scenes":
            return [source]
        return [source.parent / name for name in benchmark(test.task).scene_files]

    def _export(self, one: ExportPart) -> Job:
        gate, name = self.artefact(self._gates[one.gate]), self._name(one.model)
        remote = self.places.loading.get("trust_remote_code", False)

        def work() -> None:
            out = self.place(one)
            export(name, gate, to=one.to, out=out, force=True, trust_remote_code=remote, progress=self.progress)

        return Job({**one.settings(), "model": name, "gate": gate}, work)


def check_recipe(recipe: Recipe, places: ReproduceOptions) -> None:
    """Raise DataError that names everything missing, before anything is computed."""
    missing = [
        one
        for one in needs(recipe, places.models_dir, places.data_dir)
        if one.place is None
        and ((one.kind == "model" and places.models_dir is not None) or (one.kind == "data" and not _fetchable(one)))
    ]
    if missing:
        names = "; ".join(f"{one.kind} {one.name} ({one.origin})" for one in missing)
        raise DataError(
            f"{len(missing)} things that the recipe uses are missing",
            expected="models below --models-dir (or none given: from the hub), data below --data-dir",
            got=f"no {names}",
            fix="put them there, or see `truthheads reproduce RECIPE --plan`",
        )


def _fetchable(one: Needed) -> bool:
    return one.origin.startswith("https://") and not one.origin.endswith("/")


def _fetch(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url) as given:
            content = given.read()
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{url} could not be fetched", expected="a network", got=str(error), fix="put the file into --data-dir"
        ) from error
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def _blacken(path: Path, out: Path, square: Path, edge: int) -> None:
    """Write the rows with a black square before each (the paper's set b)."""
    square.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (edge, edge)).save(square)
    write_questions(out, [replace(row, image=str(square)) for row in read_questions(path)])
