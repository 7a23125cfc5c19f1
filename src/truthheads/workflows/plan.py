"""Estimate what a recipe needs: steps, downloads, memory and time, from its own figures; nothing is loaded."""

import math
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from truthheads.results.reproduction import NeededFile, PlannedStep, RecipePlan
from truthheads.workflows.recipe import (
    ComparisonPart,
    DataPart,
    EvaluationPart,
    ExportPart,
    GatePart,
    MadePart,
    ModelPart,
    Recipe,
    ScoresPart,
    TracePart,
    TuningPart,
)

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

LEARNING = 15
"""What learning a gate costs, in passes that only read: five epochs, whose way back costs twice the way forward."""


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

    def json(self) -> PlannedStep:
        """Return the step as the plan's JSON holds it."""
        return {"name": self.name, "what": self.what, "seconds": self.seconds, "memory": self.memory}


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

    def json(self) -> NeededFile:
        """Return the model or file as the plan's JSON holds it."""
        place = None if self.place is None else str(self.place)
        return {"kind": self.kind, "name": self.name, "place": place, "bytes": self.bytes, "origin": self.origin}


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
    data = {one.name: one for one in recipe.data}
    steps = []
    for title, group in groupby(recipe.made(), key=lambda part: part.title):
        parts = list(group)
        planned = [_planned(part, models, data, rows) for part in parts]
        told = [part.what for part in parts if part.what] or [step.what for step in planned]
        seconds, memory = sum(step.seconds for step in planned), max(step.memory for step in planned)
        steps.append(Planned(title, "; ".join(dict.fromkeys(told)), seconds, memory))
    return steps


def _planned(part: MadePart, models: dict[str, ModelPart], data: dict[str, DataPart], rows: int | None) -> Planned:
    """Plan one part as if it were a step of its own."""
    what, seconds, memory = "", 1.0, 0.0
    match part:
        case DataPart():
            what = f"{min(rows or part.rows, part.rows):,} rows of generated {part.generate}"
        case ScoresPart():
            model, source, count = models[part.model], data[part.data], _count(part, data, rows)
            what = f"Truth Scores of {model.id} on {count:,} rows of {_source(source)} ({part.probe} probes)"
            seconds, memory = LOADING + _seconds(model, float(count * source.tokens)), _memory(model)
        case ComparisonPart():
            sides = [*(["scores"] if part.by_scores else []), *(["weights"] if part.by_weights else [])]
            what = f"{' and '.join(sides)} of {', '.join(part.called[:-1])} and {part.called[-1]}"
            pairs = math.comb(len(part.called), 2)
            others = len(part.called) - 1  # each model's weights are read once for every other
            read = others * sum(models[key].parameters for key in part.by_weights) * BYTES / 1e9
            seconds = read + (5.0 * pairs if part.by_scores else 0.0)
        case TracePart():
            model, source, count = models[part.model], data[part.data], _count(part, data, rows)
            what = f"attention of {model.id} on the evidence in {count:,} rows of {_source(source)}"
            seconds, memory = LOADING + _seconds(model, float(count * source.tokens)), _memory(model)
        case GatePart():
            what = f"{part.norm}, strength {part.strength:g}, at {part.site}, from {part.scores} for {part.target}"
        case TuningPart():
            model, source, count = models[part.model], data[part.data], _count(part, data, rows)
            what = f"a gate for {model.id} is learned from {count:,} rows of {_source(source)}"
            seconds, memory = LOADING + _seconds(model, float(LEARNING * count * source.tokens)), _memory(model)
        case EvaluationPart():
            model = models[part.model]
            items = sum(min(rows or data[key].rows, data[key].rows) for key in part.data)
            runs = 1 + len(part.gates) * (1 + 2 * part.controls + (part.controls > 0))
            tokens = sum(data[key].tokens for key in part.data) / len(part.data) + ASKED + _written(part)
            what = f"{part.task} on {items:,} rows, {runs} runs ({len(part.gates)} gates, controls {part.controls})"
            seconds, memory = LOADING + _seconds(model, float(items * runs * tokens)), _memory(model)
        case ExportPart():
            what = f"{models[part.model].id} with gate {part.gate} as {part.to}"
            seconds = 2 * models[part.model].parameters * BYTES / 1e9
    return Planned(part.title, what, seconds, memory)


def _count(part: ScoresPart | TracePart | TuningPart, data: dict[str, DataPart], rows: int | None) -> int:
    """Count the rows that a part reads."""
    return min(filter(None, (part.limit, rows, data[part.data].rows)))


def _source(data: DataPart) -> str:
    return data.file or f"generated {data.generate}"


def _written(test: EvaluationPart) -> int:
    """Weigh the tokens generated for an item by their cost: one at a time costs about ten times as much."""
    return 10 * max(test.options().new_tokens, 1)


def _seconds(model: ModelPart, tokens: float) -> float:
    return 2 * model.parameters * tokens / (TFLOPS * 1e12)


def _memory(model: ModelPart) -> float:
    return model.parameters * BYTES * OVERHEAD


def plan(recipe: Recipe, *, rows: int | None, models_dir: Path | None, data_dir: Path | None) -> RecipePlan:
    """Estimate what a recipe needs, for ``reproduce --plan``: steps, files present and missing, memory, time."""
    steps, needed = steps_of(recipe, rows=rows), needs(recipe, models_dir, data_dir)
    missing = [one for one in needed if one.place is None]
    return {
        "title": recipe.title,
        "source": recipe.source,
        "notes": recipe.notes,
        "steps": [step.json() for step in steps],
        "needs": [one.json() for one in needed],
        "download_bytes": sum((one.bytes for one in missing), 0.0),
        "gpu_bytes": max((step.memory for step in steps), default=0.0),
        "hours": sum(step.seconds for step in steps) / 3600,
        "assumption": f"one GPU at {TFLOPS:g} TFLOP/s sustained, {BYTES} bytes a parameter, batches by default",
    }
