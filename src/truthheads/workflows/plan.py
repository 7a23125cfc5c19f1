"""Estimate what a recipe needs: steps, downloads, memory and time, from its own figures; nothing is loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from truthheads.workflows.recipe import DataPart, EvaluationPart, ModelPart, Recipe

BYTES = 2
"""Of a parameter in bf16 or fp16."""

OVERHEAD = 1.2
"""Weights, and a fifth for activations and cache at the default batch size."""

TFLOPS = 120.0
"""Sustained by one data-centre GPU in bf16 at these batch sizes; our assumption, to be scaled to what you have."""

LOADING = 60.0
"""Seconds to load a model."""

ASKED = 80
"""Tokens that a benchmark's instruction adds to a row."""


class Planned(NamedTuple):
    """One step.

    Attributes:
        name: ``scores vicuna-a``.
        what: In words.
        seconds: Estimated, on one GPU; loading included.
        memory: Bytes on the GPU.
    """

    name: str
    what: str
    seconds: float
    memory: float


class Needed(NamedTuple):
    """A model or a file that a recipe uses.

    Attributes:
        kind: ``model`` or ``data``.
        name: Hub id, or file.
        place: Where it was found below the given folders; None where it was not.
        bytes: Estimated size of a model; 0 for data.
        origin: Where it is had.
    """

    kind: str
    name: str
    place: Path | None
    bytes: float
    origin: str


def embedded(model: ModelPart) -> bool:
    """Return whether a model comes with the package."""
    return model.id.split(":")[0] == "smollm2"


def needs(recipe: Recipe, models_dir: Path | None, data_dir: Path | None) -> list[Needed]:
    """Return everything that a recipe uses and does not make, with where it lies."""
    found = []
    for model in recipe.models:
        if not embedded(model):
            place = model_place(model, models_dir)
            found.append(
                Needed("model", model.id, place, model.parameters * BYTES, f"https://huggingface.co/{model.id}")
            )
    for data in recipe.data:
        for name in filter(None, (data.file, data.images)):
            where = data_dir / name if data_dir is not None else None
            place = where if where is not None and where.exists() else None
            found.append(Needed("data", name, place, 0.0, data.url or data.origin))
    return list(dict.fromkeys(found))


def model_place(model: ModelPart, models_dir: Path | None) -> Path | None:
    """Return a model's folder: ``DIR/organisation/name`` or ``DIR/name``."""
    if models_dir is None:
        return None
    places = (models_dir / model.id, models_dir / model.id.rpartition("/")[2])
    return next((place for place in places if place.is_dir()), None)


def steps_of(recipe: Recipe, *, rows: int | None = None) -> list[Planned]:
    """Return a recipe's steps in order.

    Args:
        recipe: The recipe.
        rows: Rows of each file, at most; None: all that the recipe asks for.
    """
    models = {model.key: model for model in recipe.models}
    data = {one.key: one for one in recipe.data}
    return [*_scores(recipe, models, data, rows), *_rest(recipe, models, data, rows)]


def _scores(
    recipe: Recipe, models: dict[str, ModelPart], data: dict[str, DataPart], rows: int | None
) -> Iterator[Planned]:
    for one in recipe.scores:
        model, source = models[one.model], data[one.data]
        count = min(filter(None, (one.limit, rows, source.rows)))
        yield Planned(
            f"scores {one.name}",
            f"Truth Scores of {model.id} on {count:,} rows of {source.file or source.generate} ({one.probe} probes)",
            LOADING + _seconds(model, float(count * source.tokens)),
            _memory(model),
        )


def _rest(
    recipe: Recipe, models: dict[str, ModelPart], data: dict[str, DataPart], rows: int | None
) -> Iterator[Planned]:
    for pair in recipe.comparisons:
        what = "weights" if pair.weights else "scores"
        read = sum(models[key].parameters for key in (pair.a, pair.b)) * BYTES / 1e9 if pair.weights else 5.0
        yield Planned(f"comparison {pair.name}", f"{what} of {pair.a} and {pair.b}", read, 0.0)
    for gate in recipe.gates:
        told = f"{gate.norm}, strength {gate.strength:g}, at {gate.site}, from {gate.scores} for {gate.target}"
        yield Planned(f"gate {gate.name}", told, 1.0, 0.0)
    for test in recipe.evaluations:
        model = models[test.model]
        items = sum(min(rows or data[key].rows, data[key].rows) for key in test.data)
        runs = 1 + len(test.gates) * (1 + 2 * test.controls + (test.controls > 0))
        tokens = sum(data[key].tokens for key in test.data) / len(test.data) + ASKED + _written(test)
        yield Planned(
            f"evaluation {test.name}",
            f"{test.task} on {items:,} rows, {runs} runs ({len(test.gates)} gates, controls {test.controls})",
            LOADING + _seconds(model, float(items * runs * tokens)),
            _memory(model),
        )


def _written(test: EvaluationPart) -> int:
    """Weigh the tokens generated for an item by their cost: one at a time costs about ten times as much."""
    return 10 * max(test.options().new_tokens, 1)


def _seconds(model: ModelPart, tokens: float) -> float:
    return 2 * model.parameters * tokens / (TFLOPS * 1e12)


def _memory(model: ModelPart) -> float:
    return model.parameters * BYTES * OVERHEAD


def plan(recipe: Recipe, *, rows: int | None, models_dir: Path | None, data_dir: Path | None) -> dict[str, Any]:
    """Estimate what a recipe needs, for ``reproduce --plan``: steps, files present and missing, memory, time."""
    steps, needed = steps_of(recipe, rows=rows), needs(recipe, models_dir, data_dir)
    missing = [one for one in needed if one.place is None]
    return {
        "title": recipe.title,
        "source": recipe.source,
        "notes": recipe.notes,
        "steps": [step._asdict() for step in steps],
        "needs": [{**one._asdict(), "place": str(one.place) if one.place else None} for one in needed],
        "download_bytes": sum(one.bytes for one in missing),
        "gpu_bytes": max((step.memory for step in steps), default=0.0),
        "hours": sum(step.seconds for step in steps) / 3600,
        "assumption": f"one GPU at {TFLOPS:g} TFLOP/s sustained, {BYTES} bytes a parameter, batches by default",
    }
