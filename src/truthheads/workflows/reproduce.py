"""Run a published experiment again, step by step, and put its figures beside the published ones."""

import shutil
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from truthheads.benchmarks.registry import benchmark
from truthheads.data.questions import write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import DataError
from truthheads.evaluation.evaluate import GUARD_TEXTS, evaluate
from truthheads.lineage.compare import compare
from truthheads.models.forward import Progress
from truthheads.models.load import Loading, Model, load
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.scoring.score import score
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import read_json, replaced, write_json
from truthheads.storage.output_lock import locked_folder
from truthheads.synthetic.scenes import make_scenes
from truthheads.synthetic.text import make_text
from truthheads.workflows.plan import embedded, model_place, needs
from truthheads.workflows.recipe import ComparisonPart, DataPart, EvaluationPart, GatePart, Recipe, ScoresPart
from truthheads.workflows.steps import Steps, Tell


def compared(pair: ComparisonPart, path: Path) -> list[dict[str, Any]]:
    """Return the figures of a comparison, from its ``comparison.json``, each beside what was published."""
    (found,) = read_json(path)["pairs"]
    usual = ("drift.q", "drift.k", "drift.v", "drift.o") if pair.weights else ("pearson", "pearson_within_layer")
    figures = []
    for name in dict.fromkeys((*usual, *pair.paper)):
        ours: Any = found
        for part in name.split("."):
            ours = ours.get(part) if isinstance(ours, Mapping) else None
        figures.append(_figure(f"comparison {pair.name}", "", name, ours, pair.paper.get(name)))
    return figures


def tested(test: EvaluationPart, folder: Path) -> list[dict[str, Any]]:
    """Return the main figure of every run and all that was published, ungated first."""
    summary = read_json(folder / "summary.json")
    figures = []
    for run in summary["runs"]:
        if run["name"] not in ("none", *test.gates):
            continue
        published = test.paper.get(run["name"], {})
        for name in dict.fromkeys((summary["primary"], *published)):
            figure = _figure(
                f"evaluation {test.name}", run["name"], name, run["metrics"].get(name), published.get(name)
            )
            figures.append({**figure, "change": run["effect"].get(name), "verdict": run["verdict"]})
    return figures


def _figure(step: str, run: str, name: str, ours: Mapping[str, Any] | None, paper: float | None) -> dict[str, Any]:
    inside = None
    if ours is not None and paper is not None and ours.get("low") is not None:
        inside = bool(ours["low"] <= paper <= ours["high"])
    return {"step": step, "run": run, "figure": name, "ours": ours, "paper": paper, "paper_inside_ours": inside}


RESULT = "reproduction.json"


@dataclass(frozen=True)
class ReproduceOptions:
    """Where a reproduction reads and writes.

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


def reproduce(
    recipe: Recipe, places: ReproduceOptions, *, tell: Tell | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run a recipe; finished steps are not repeated.

    Args:
        recipe: From :func:`truthheads.workflows.recipe.read_recipe`.
        places: Where to read and write.
        tell: Called with each step.
        progress: Called with the work done and the total, within a step.

    Returns:
        What ``reproduction.json`` holds: ``figures``, each with ``ours`` (value, low, high) and ``paper`` (or None).

    Raises:
        DataError: Models or data are missing; all of them are named at once.
        ModelError: A model cannot be loaded.
        ShapeError: A model is not of the shape that the recipe says.
    """
    _check(recipe, places)
    with locked_folder(places.out):
        return _reproduced(recipe, places, tell, progress)


def _reproduced(
    recipe: Recipe, places: ReproduceOptions, tell: Tell | None, progress: Progress | None
) -> dict[str, Any]:
    chain = _Chain(recipe, places, Steps(places.out, tell), progress)
    for one in recipe.scores:
        chain.score(one)
    for pair in recipe.comparisons:
        chain.compare(pair)
    for gate in recipe.gates:
        chain.gate(gate)
    for test in recipe.evaluations:
        chain.evaluate(test)
    figures = [figure for pair in recipe.comparisons for figure in compared(pair, chain.comparison(pair))]
    figures += [figure for test in recipe.evaluations for figure in tested(test, chain.folder("evaluation", test.name))]
    result = {
        "title": recipe.title,
        "source": recipe.source,
        "notes": recipe.notes,
        "rows": places.rows,
        "figures": figures,
        **provenance(),
    }
    write_json(places.out / RESULT, result)
    return result


def _check(recipe: Recipe, places: ReproduceOptions) -> None:
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


def _fetchable(one: Any) -> bool:
    return str(one.origin).startswith("https://") and not str(one.origin).endswith("/")


class _Chain:
    def __init__(self, recipe: Recipe, places: ReproduceOptions, steps: Steps, progress: Progress | None) -> None:
        self.places, self.steps, self.progress = places, steps, progress
        self.models = {model.key: model for model in recipe.models}
        self.data = {one.key: one for one in recipe.data}
        self.scores = {one.name: one for one in recipe.scores}
        self._loaded: tuple[str, Model] | None = None

    def folder(self, kind: str, name: str) -> Path:
        return self.places.out / kind / name

    def scores_file(self, name: str) -> Path:
        return self.folder("scores", f"{name}.safetensors")

    def comparison(self, pair: ComparisonPart) -> Path:
        return self.folder("comparison", pair.name) / "comparison.json"

    def gate_file(self, name: str) -> Path:
        return self.folder("gates", f"{name}.safetensors")

    def name_of(self, key: str) -> str:
        """Find the name or folder of a model that ``load`` takes."""
        model = self.models[key]
        place = None if embedded(model) else model_place(model, self.places.models_dir)
        return str(place or model.id)

    def model(self, key: str) -> Model:
        """Return a model; one at a time is held."""
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = key, load(self.name_of(key), **self.places.loading)
        return self._loaded[1]

    def source(self, key: str) -> Path:
        """Return a data file, generated, fetched or given a black square where the recipe says so."""
        data = self.data[key]
        if data.generate is not None:
            return self._generated(data)
        path = self.places.data_dir / data.file if self.places.data_dir is not None else None
        if path is None or not path.exists():
            path = self.places.out / "data" / data.file
            self.steps.run(f"fetch {data.key}", {"url": data.url}, [path], partial(_fetch, data.url, path))
        if not data.black:
            return path
        blackened = self.places.out / "data" / f"{data.key}-black.jsonl"
        square = blackened.with_suffix(".png")
        self.steps.run(
            f"blacken {data.key}",
            {"file": path, "black": data.black},
            [blackened, square],
            partial(_blacken, path, blackened, square, data.black),
        )
        return blackened

    def _generated(self, data: DataPart) -> Path:
        rows = min(filter(None, (data.rows, self.places.rows)))
        folder = self.places.out / "data" / data.key
        questions = folder / "questions.jsonl"
        work: Callable[[], Any] = (
            (lambda: write_questions(questions, make_text(rows, seed=data.seed)))
            if data.generate == "text"
            else (lambda: make_scenes(rows, seed=data.seed, out=folder))
        )
        self.steps.run(f"generate {data.key}", {"rows": rows, "seed": data.seed}, [folder], work)
        return questions

    def images(self, key: str) -> Path | None:
        folder = self.data[key].images
        return self.places.data_dir / folder if folder and self.places.data_dir is not None else None

    def score(self, one: ScoresPart) -> None:
        source, out = self.source(one.data), self.scores_file(one.name)
        limit = min(filter(None, (one.limit, self.places.rows, self.data[one.data].rows)))
        given = {"model": self.name_of(one.model), "data": source, "limit": limit, **one.model_dump()}
        partial_folder = out.with_name(f"{out.name}.partial")

        def work() -> None:
            rows = read_questions(source, limit=limit, images=self.images(one.data))
            score(
                self.model(one.model),
                rows,
                probe=one.probe,
                chat=one.chat,
                seed=one.seed,
                truncate=True,
                work_dir=partial_folder,
                progress=self.progress,
            ).save(out)
            shutil.rmtree(partial_folder, ignore_errors=True)

        self.steps.run(f"scores {one.name}", given, [out], work)

    def compare(self, pair: ComparisonPart) -> None:
        out = self.comparison(pair)
        names = (pair.a, pair.b)
        if pair.weights:
            weights = [self.name_of(key) for key in names]
            given: dict[str, Any] = {"weights": weights}
            work = partial(compare, weights=weights, names=names, progress=self.progress)
        else:
            files = [self.scores_file(name) for name in names]
            given = dict(zip(("a", "b"), files, strict=True))
            work = partial(compare, *files, names=names)
        self.steps.run(f"comparison {pair.name}", given, [out.parent], lambda: work().save(out))

    def gate(self, one: GatePart) -> None:
        source, out = self.scores_file(one.scores), self.gate_file(one.name)
        given = {"scores": source, **one.model_dump()}

        def work() -> None:
            made = Gate.from_scores(
                Scores.load(source), strength=one.strength, norm=one.norm, site=one.site, floor=None
            )
            made.save(out)

        self.steps.run(f"gate {one.name}", given, [out], work)

    def evaluate(self, test: EvaluationPart) -> None:
        out = self.folder("evaluation", test.name)
        files = [file for key in test.data for file in self._benchmark(test, key)]
        gates = {name: self.gate_file(name) for name in test.gates}
        given = {"model": self.name_of(test.model), **{str(at): path for at, path in enumerate(files)}, **gates}
        asking = test.options(images=self.images(test.data[0]), limit=self.places.rows)

        rows = self.places.rows
        guard_texts = GUARD_TEXTS if rows is None else max(4, min(GUARD_TEXTS, rows // 2))  # a trial is to be short

        def work() -> None:
            made = {name: Gate.load(path) for name, path in gates.items()}
            evaluate(
                self.model(test.model),
                test.task,
                files,
                out=out,
                gates=made,
                controls=test.controls,
                asking=asking,
                guard_texts=guard_texts,
                progress=self.progress,
            )

        settings = {**test.model_dump(exclude={"paper"}), "rows": self.places.rows}
        self.steps.run(f"evaluation {test.name}", {**given, "settings": settings}, [out], work)

    def _benchmark(self, test: EvaluationPart, key: str) -> list[Path]:
        source = self.source(key)
        if self.data[key].generate != "scenes":
            return [source]
        return [source.parent / name for name in benchmark(test.task).scene_files]


def _fetch(url: str, path: Path) -> None:
    try:
        with replaced(path) as temporary, urllib.request.urlopen(url) as given, temporary.open("wb") as written:
            shutil.copyfileobj(given, written)
    except (urllib.error.URLError, TimeoutError) as error:
        raise DataError(
            f"{url} could not be fetched", expected="a network", got=str(error), fix="put the file into --data-dir"
        ) from error


def _blacken(path: Path, out: Path, square: Path, edge: int) -> None:
    """Write the rows with a black square before each (the paper's set b)."""
    square.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (edge, edge)).save(square)
    write_questions(out, [replace(row, image=str(square)) for row in read_questions(path)])
