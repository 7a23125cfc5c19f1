"""Find every artefact in a folder for a report; other files are ignored."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from truthheads.errors import ArtifactError, TruthHeadsError
from truthheads.results.comparison import ComparisonResult
from truthheads.results.detector import Detector
from truthheads.results.drift import Drift
from truthheads.results.evaluation import EvaluationResult
from truthheads.results.gate import Gate
from truthheads.results.grounding import GroundResult
from truthheads.results.pictures import SUFFIX, AttentionPictures
from truthheads.results.scores import Scores, open_array
from truthheads.results.trace import Trace
from truthheads.results.tuning import TuningResult
from truthheads.storage.artifacts import KEY
from truthheads.storage.files import read_json

T = TypeVar("T")

Heads = Float[np.ndarray, "num_layers num_heads"]

MOST_SAMPLED = 40_000_000
"""Samples times heads up to which intervals are made; beyond, the page shows values alone."""

LARGEST_JSON = 64 * 2**20
"""Bytes; a JSON file beyond is none of ours and is not opened."""

SHAPES: dict[str, frozenset[str]] = {
    "comparison": ComparisonResult.__required_keys__ - {"triples", "reference"},
    "tuning": frozenset({"path", "frontier", "chosen", "guard"}),
    "evaluation": EvaluationResult.__required_keys__ - {"settings", "notes"},
    "grounding": frozenset({"better", "anyway", "exported", "verdict", "test_rows"}),
    "pictures": frozenset({"title", "pictures", "version"}),
}
"""Keys by which a JSON result is known: those of its type, less what older files lack."""

LOADERS: dict[str, Callable[[Path], Any]] = {
    "scores": Scores.load,
    "gate": Gate.load,
    "trace": Trace.load,
    "drift": Drift.load,
    "detector": Detector.load,
    "pictures": AttentionPictures.load,
}

LOOKED_FOR = (
    "scores, gates, traces, detectors and drifts (.safetensors), comparison.json, tuning.json, summary.json, "
    "the .pictures.json of `truthheads trace --pictures`"
)


@dataclass(frozen=True, eq=False)
class Named(Generic[T]):
    """An artefact and what it is called on the page.

    Attributes:
        name: The file's name without its ending, or its path where two files have one name.
        path: Relative to the folder, with forward slashes.
        item: What was read.
    """

    name: str
    path: str
    item: T

    @cached_property
    def ends(self) -> tuple[Heads, Heads] | None:
        """Each head's 95 % interval, of scores or of a trace's AUROC; None without samples, or with too many."""
        if isinstance(self.item, Scores) and 0 < self.item.sample.numel() <= MOST_SAMPLED:
            return self.item.intervals()
        if isinstance(self.item, Trace) and self.item.sample[:, 0, 0].numel() <= MOST_SAMPLED:
            return self.item.intervals("auroc")
        return None


@dataclass(frozen=True, slots=True)
class Artefacts:
    """Everything that a folder holds for a report, in the order of its paths.

    Attributes:
        scores: Truth Scores; ``.npy`` and ``.csv`` arrays among them.
        comparisons: Objects as in ``comparison.json``.
        drifts: Weight drift of pairs of models.
        traces: Evidence traces.
        gates: Gates.
        tunings: Objects as in ``tuning.json``.
        evaluations: Objects as in ``summary.json``.
        detectors: Detectors of answers that their context does not support.
        groundings: Objects as in ``ground.json``.
        pictures: What ``truthheads trace --pictures`` drew.
        warnings: Sentences on files that could not be used.
    """

    scores: list[Named[Scores]] = field(default_factory=list)
    comparisons: list[Named[ComparisonResult]] = field(default_factory=list)
    drifts: list[Named[Drift]] = field(default_factory=list)
    traces: list[Named[Trace]] = field(default_factory=list)
    gates: list[Named[Gate]] = field(default_factory=list)
    tunings: list[Named[TuningResult]] = field(default_factory=list)
    evaluations: list[Named[EvaluationResult]] = field(default_factory=list)
    detectors: list[Named[Detector]] = field(default_factory=list)
    groundings: list[Named[GroundResult]] = field(default_factory=list)
    pictures: list[Named[AttentionPictures]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Named[Any]]:
        """Return the list of a kind."""
        found: list[Named[Any]] = getattr(self, _HOMES[kind])
        return found

    @property
    def every(self) -> Iterator[tuple[str, Named[Any]]]:
        """Kind and artefact of everything that was found."""
        for kind in _HOMES:
            for one in self.of(kind):
                yield kind, one


_HOMES = {
    "scores": "scores",
    "comparison": "comparisons",
    "drift": "drifts",
    "trace": "traces",
    "gate": "gates",
    "tuning": "tunings",
    "evaluation": "evaluations",
    "detector": "detectors",
    "grounding": "groundings",
    "pictures": "pictures",
}


def find(folder: Path) -> Artefacts:
    """Return every artefact in a folder and the folders in it; links and hidden names are not followed.

    Args:
        folder: Where to look. What is no artefact of truthheads is ignored; what is one and cannot be read is named
            in ``warnings``.

    Raises:
        ArtifactError: The folder is missing, or holds nothing that can be shown.
    """
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} is not a folder", expected="a folder with artefacts", got="no folder", fix="check the path"
        )
    found: list[tuple[str, str, Any]] = []
    warnings: list[str] = []
    for path in _files(folder):
        place = path.relative_to(folder).as_posix()
        try:
            kind = _kind(path)
            if kind is not None:
                found.append((kind, place, _read(path, kind)))
        except TruthHeadsError as error:
            warnings.append(f"{place} was left out: expected {error.expected}; got {error.got}")
        except (OSError, EOFError, ValueError, LookupError, TypeError, RuntimeError) as error:
            warnings.append(f"{place} was left out: it is damaged ({type(error).__name__}: {error})")
    if not found:
        raise nothing_found("; ".join(warnings))
    result = Artefacts(warnings=[" ".join(warning.split()) for warning in warnings])
    for kind, place, item in found:
        stem = _stem(place, kind)
        alone = sum(other == kind and _stem(at, kind) == stem for other, at, _ in found) == 1
        name = stem if alone else place.rsplit(".", 1)[0]
        result.of(kind).append(Named(name, place, item))
    return result


def nothing_found(why: str) -> ArtifactError:
    """Return the error for a folder that holds nothing to be shown, with what was wrong with its files."""
    return ArtifactError(
        "there is nothing to report",
        expected=f"a folder with {LOOKED_FOR}",
        got=why or "a folder without any of these",
        fix="run `truthheads score`, `compare`, `trace`, `gate`, `tune` or `evaluate` with --out in this folder",
    )


def _stem(place: str, kind: str) -> str:
    """Return the file's own name, or its folder's where every such file has one name."""
    path = Path(place)
    fixed = kind in ("evaluation", "tuning") and path.stem in ("summary", "tuning") and path.parent.name
    return path.parent.name if fixed else path.stem


def _files(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(at) / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _kind(path: Path) -> str | None:
    """Name the kind of artefact that a file is; None where it is none.

    Raises:
        ArtifactError: It bears a mark of ours, or the ending of tensors, and cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _kind_of_tensors(path)
    if suffix == ".json":
        return _kind_of_json(path)
    if suffix == ".csv":
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            columns = {column.strip() for column in lines.readline(400).split(",")}
        return "scores" if {"layer", "head", "accuracy"} <= columns else None
    if suffix == ".npy":
        return _kind_of_array(path)
    return None


def _kind_of_tensors(path: Path) -> str | None:
    if (path.parent / "config.json").is_file() or (path.parent / "adapter_config.json").is_file():
        return None
    try:
        with safe_open(path, framework="np") as opened:
            header = (opened.metadata() or {}).get(KEY)
        meta = json.loads(header) if header is not None else {}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} cannot be read", expected="a whole safetensors file", got=f"{error}", fix="write it again"
        ) from error
    kind = meta.get("kind") if isinstance(meta, dict) else None
    return kind if kind in LOADERS else None


def _kind_of_array(path: Path) -> str | None:
    with path.open("rb") as opened:
        start = opened.read(256)
    if b"'descr': '|O'" in start:
        return None
    array = open_array(path)
    return "scores" if array.ndim == 2 and array.dtype.kind in "fiu" else None


def _kind_of_json(path: Path) -> str | None:
    if path.stat().st_size > LARGEST_JSON:
        return None
    try:
        value = read_json(path)
    except ArtifactError:
        ours = path.name in ("comparison.json", "tuning.json", "summary.json") or path.name.endswith(SUFFIX)
        if ours or b'"truthheads ' in path.read_bytes():
            raise
        return None
    keys = set(value) if isinstance(value, Mapping) else set()
    return next((kind for kind, wanted in SHAPES.items() if wanted <= keys), None)


def _read(path: Path, kind: str) -> Any:
    return LOADERS[kind](path) if kind in LOADERS else read_json(path)
