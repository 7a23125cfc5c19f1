"""Run a recipe: a published experiment, whose figures are put beside the published ones, or the demo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truthheads.models.forward import Progress
from truthheads.results.comparison import ComparisonResult
from truthheads.results.evaluation import SUMMARY, EvaluationResult
from truthheads.results.reproduction import RESULT, DemoResult, ReproducedFigure, Reproduction
from truthheads.results.scores import Scores
from truthheads.stats.figures import FigureJson
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import read_json, write_json
from truthheads.storage.output_lock import locked_folder
from truthheads.workflows.recipe import ComparisonPart, EvaluationPart, Recipe
from truthheads.workflows.runner import RecipeRunner, ReproduceOptions, check_recipe
from truthheads.workflows.steps import Tell


def compared(pair: ComparisonPart, path: Path) -> list[ReproducedFigure]:
    """Return the figures of a comparison, from its ``comparison.json``, each beside what was published."""
    usual = ["pearson", "pearson_within_layer"] if pair.by_scores else []
    usual += ["drift.q", "drift.k", "drift.v", "drift.o"] if pair.by_weights else []
    figures: list[ReproducedFigure] = []
    result: ComparisonResult = read_json(path)
    for found in result["pairs"]:
        run = f"{found['a']} and {found['b']}" if len(pair.called) > 2 else ""
        for name in dict.fromkeys((*usual, *pair.paper)):
            ours: Any = found
            for part in name.split("."):
                ours = ours.get(part) if isinstance(ours, Mapping) else None
            if isinstance(ours, float):  # a p value, a noise ceiling: measured without an interval
                ours = {"value": ours, "low": None, "high": None}
            figures.append(_figure(f"comparison {pair.name}", run, name, ours, pair.paper.get(name)))
    return figures


def tested(test: EvaluationPart, folder: Path) -> list[ReproducedFigure]:
    """Return the main figure of every run and all that was published, ungated first."""
    summary: EvaluationResult = read_json(folder / SUMMARY)
    figures: list[ReproducedFigure] = []
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


def _figure(step: str, run: str, name: str, ours: FigureJson | None, paper: float | None) -> ReproducedFigure:
    inside = None
    if ours is not None and paper is not None and ours["low"] is not None and ours["high"] is not None:
        inside = ours["low"] <= paper <= ours["high"]
    return {"step": step, "run": run, "figure": name, "ours": ours, "paper": paper, "paper_inside_ours": inside}


def reproduce(
    recipe: Recipe, places: ReproduceOptions, *, tell: Tell | None = None, progress: Progress | None = None
) -> Reproduction:
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
    check_recipe(recipe, places)
    with locked_folder(places.out):
        return _reproduced(RecipeRunner(recipe, places, tell, progress))


def _reproduced(runner: RecipeRunner) -> Reproduction:
    runner.run()
    recipe, places = runner.recipe, runner.places
    figures = [figure for pair in recipe.comparisons for figure in compared(pair, runner.artefact(pair))]
    figures += [figure for test in recipe.evaluations for figure in tested(test, runner.place(test))]
    result: Reproduction = {
        "title": recipe.title,
        "source": recipe.source,
        "notes": recipe.notes,
        "rows": places.rows,
        "figures": figures,
        **provenance(),
    }
    write_json(places.out / RESULT, result)
    return result


def run_demo(recipe: Recipe, folder: Path, *, tell: Tell | None = None, progress: Progress | None = None) -> DemoResult:
    """Run the recipe ``demo``; no figures are put beside published ones, for there are none.

    Args:
        recipe: The recipe, of any size.
        folder: Folder for everything that is made; a run that was killed goes on from it.
        tell: Called with each step.
        progress: Called with the work done and the total, within a step.

    Returns:
        ``scores`` (the first of the recipe), ``comparison`` and the ``evaluations``, as their files hold them.

    Raises:
        ModelError: SmolLM2 is neither installed nor reachable.
        ArtifactError: The folder cannot be written to.
    """
    with locked_folder(folder):
        runner = RecipeRunner(recipe, ReproduceOptions(folder), tell, progress)
        runner.run()
        evaluations = [runner.place(test) for test in recipe.evaluations]
        return {
            "scores": Scores.load(runner.artefact(recipe.scores[0])),
            "comparison": read_json(runner.artefact(recipe.comparisons[0])),
            "evaluations": {out.name: read_json(out / SUMMARY) for out in evaluations},
        }
