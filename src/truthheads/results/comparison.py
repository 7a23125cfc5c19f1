"""The comparison artefact: what scores and weights say of each pair of models."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from truthheads.errors import ArtifactError, DataError
from truthheads.plots.charts import chart_html, matrix_chart, pair_chart
from truthheads.plots.views import Shown, data_frame, table_html
from truthheads.results.drift import Drift
from truthheads.stats.figures import FigureJson
from truthheads.storage.files import as_path, distinct_names, dumps, read_json, replaced


class OverlapResult(TypedDict):
    """Share of one model's best heads that are the other's best, too, and what heads in random order give."""

    share: float
    overlap: float
    chance: float


class Agreement(TypedDict, total=False):
    """How the scores of two models agree; None where it is not known. What each is: ``lineage.agreement.Relation``."""

    pearson: FigureJson | None
    spearman: FigureJson | None
    pearson_within_layer: FigureJson | None
    p_permutation: float | None
    noise_ceiling: float | None
    noise_ceiling_within_layer: float | None
    disjoint: FigureJson | None
    disjoint_within: FigureJson | None
    corrected: FigureJson | None
    corrected_within: FigureJson | None
    depth_only: float
    overlaps: list[OverlapResult]
    shared_questions: int
    basis: str


class ReferenceResult(Agreement):
    """How well the model ``of`` agrees with itself on other data."""

    of: str


class FitResult(TypedDict):
    """The quality of an alignment beside that of unrelated models."""

    before: float
    after: float
    chance: FigureJson
    p: float


class AlignmentResult(TypedDict):
    """How well the heads of two models can be aligned. What each is: ``lineage.alignment.Alignment``."""

    rotated: FitResult
    held_out: FitResult
    matched: FitResult
    matched_held_out: FitResult | None
    basis: str
    layers: list[int]
    heads: list[list[int]]
    moved: int


class DriftEffect(TypedDict):
    """Rank correlation of drift with the change of score, over all heads and within layers."""

    raw: FigureJson
    within_layer: FigureJson
    p_permutation: float


class PairFigures(Agreement, total=False):
    """What scores say of a pair of models, what weights say, and the verdict."""

    notes: list[str]
    verdict: str
    evidence: str
    depth_profile: float
    alignment: AlignmentResult
    alignment_in_words: str
    drift: dict[str, FigureJson]
    kinship: dict[str, FigureJson]
    weights_verdict: str
    weights_evidence: str
    drift_foretells_change: dict[str, DriftEffect]
    drift_file: str


class PairResult(PairFigures):
    """A pair of models, by their names, and its figures."""

    a: str
    b: str


class PairRow(TypedDict):
    """One row of a table of pairs."""

    a: str
    b: str
    pearson: FigureJson | None
    pearson_within_layer: FigureJson | None
    p_permutation: float | None
    noise_ceiling: float | None
    verdict: str | None


class ComparedModel(TypedDict):
    """A compared model, and its scores where they were compared."""

    name: str
    model: NotRequired[str | None]
    rows: NotRequired[int | None]
    data_sha256: NotRequired[str | None]
    unit: NotRequired[str]
    values: NotRequired[list[list[float]]]


class TripleResult(TypedDict):
    """Three models, and the one in the middle; None where the evidence does not say."""

    models: list[str]
    cosines: dict[str, FigureJson]
    middle: str | None
    in_words: str


class ComparisonMeta(TypedDict):
    """How a comparison was made."""

    seed: int
    packages: dict[str, str]
    command: str | None


class ComparisonResult(TypedDict):
    """The JSON result of ``truthheads compare``."""

    pairs: list[PairResult]
    models: list[ComparedModel]
    triples: list[TripleResult]
    reference: ReferenceResult | None
    meta: ComparisonMeta


NOTHING: PairFigures = {
    "pearson": None,
    "spearman": None,
    "pearson_within_layer": None,
    "p_permutation": None,
    "noise_ceiling": None,
}
"""The figures of scores, where none were compared."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Figure(_Part):
    value: float | None
    low: float | None = None
    high: float | None = None


class _Pair(_Part):
    a: str
    b: str
    pearson: _Figure | None = None
    spearman: _Figure | None = None
    pearson_within_layer: _Figure | None = None
    p_permutation: float | None = None
    noise_ceiling: float | None = None
    verdict: str | None = None
    drift_file: str = Field("x", pattern=r"^[^/\\\x00]+$")


class _Model(_Part):
    name: str
    values: list[list[float | None]] | None = None
    unit: str | None = None

    @model_validator(mode="after")
    def _rectangular(self) -> "_Model":
        if self.values is not None and (not self.values or len({len(row) for row in self.values}) != 1):
            raise ValueError("values that are not [layers, heads]")
        return self


class _Told(_Part):
    """The fields of a comparison file that are checked; all others are kept as they are."""

    pairs: list[_Pair]
    models: list[_Model]
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison(Shown):
    """Models side by side.

    Attributes:
        result: The JSON result, ``comparison.json``: ``pairs``, ``models`` with their scores, ``triples``, ``meta``.
        drifts: Weight drift of each pair that was compared by weights; saved beside the JSON.
    """

    result: ComparisonResult
    drifts: dict[tuple[str, str], Drift] = field(default_factory=dict)

    @property
    def pairs(self) -> list[PairResult]:
        """Every pair of models."""
        return self.result["pairs"]

    def save(self, path: str | Path) -> None:
        """Write ``comparison.json``, and each pair's drift per head to ``drift-A-B.safetensors`` beside it.

        Raises:
            ArtifactError: A file could not be written.
        """
        path = as_path(path)
        files = drift_files([model["name"] for model in self.result["models"]])
        files |= {(pair["a"], pair["b"]): pair["drift_file"] for pair in self.pairs if "drift_file" in pair}
        with replaced(path) as told, ExitStack() as beside:  # there is room for all, or none changes
            told.write_text(dumps(self.result, indent=2) + "\n", encoding="utf-8")
            for (a, b), drift in self.drifts.items():
                drift.save(beside.enter_context(replaced(path.with_name(files[a, b]))))
            path.unlink(missing_ok=True)  # it must not stand beside drifts that it does not tell of, after a kill

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read what :meth:`save` wrote; drifts from the files beside it, where they are.

        Raises:
            ArtifactError: The file is missing or is not a comparison.
        """
        path = as_path(path)
        result = read_json(path)
        if not isinstance(result, dict) or not {"pairs", "models", "meta"} <= set(result):
            raise ArtifactError(
                f"{path} is not a comparison",
                expected="an object with pairs, models and meta",
                got=f"{type(result).__name__}",
                fix="write it again with `truthheads compare`",
            )
        try:
            _Told.model_validate(result)
        except ValidationError as error:
            told = error.errors()[0]
            raise ArtifactError(
                f"{path} is not a comparison",
                expected="pairs and models as `truthheads compare` writes them",
                got=f"{'.'.join(map(str, told['loc']))}: {told['msg']}"[:200],
                fix="write it again with `truthheads compare`",
            ) from error
        known = cast(ComparisonResult, result)
        files = {(p["a"], p["b"]): path.with_name(p["drift_file"]) for p in known["pairs"] if "drift_file" in p}
        return cls(known, {pair: Drift.load(file) for pair, file in files.items() if file.exists()})

    def table(self) -> list[PairRow]:
        """Return one row per pair: names, figures, verdicts."""
        return [
            {
                "a": pair["a"],
                "b": pair["b"],
                "pearson": pair.get("pearson"),
                "pearson_within_layer": pair.get("pearson_within_layer"),
                "p_permutation": pair.get("p_permutation"),
                "noise_ceiling": pair.get("noise_ceiling"),
                "verdict": pair.get("verdict"),
            }
            for pair in self.pairs
        ]

    def to_pandas(self) -> Any:
        """Return one row per pair as a pandas DataFrame; a figure has the columns ``x``, ``x_low`` and ``x_high``.

        Raises:
            TruthHeadsError: pandas is not installed.
        """
        return data_frame(cast("list[dict[str, object]]", self.table()))

    def in_short(self) -> str:
        """Return the first pairs with their verdicts."""
        told = [f"{pair['a']} and {pair['b']}: {pair.get('verdict')}" for pair in self.pairs]
        return "; ".join(told[:3]) + (f"; {len(told) - 3} more pairs" if len(told) > 3 else "")

    def chart(self) -> Any:
        """Return the pair as scatter, profile, heat maps and difference, or several models as a matrix (Altair).

        Raises:
            DataError: No scores were compared.
            ArtifactError: What was read lacks a figure that the chart shows.
        """
        try:
            return self._drawn()
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ArtifactError(
                "the comparison cannot be drawn",
                expected="every pair's figures with their intervals, and the scores of its models",
                got=f"{type(error).__name__}: {error}"[:200],
                fix="write it again with `truthheads compare`",
            ) from error

    def _drawn(self) -> Any:
        values = {m["name"]: np.array(m["values"], dtype=float) for m in self.result["models"] if m.get("values")}
        scored = [pair for pair in self.pairs if pair.get("pearson") is not None]
        if not scored:
            raise DataError(
                "there is nothing to draw",
                expected="two score files of one shape",
                got="a comparison without scores" if not values else "scores of different shape",
                fix="give score files, or leave --plot out",
            )
        models = self.result["models"]
        rows = [f"{model['name']}: {count} rows" for model in models if (count := model.get("rows"))]
        notes = [f"From the scores of {'; '.join(rows)}." if rows else "From score files that do not tell their rows."]
        if len(scored) == 1:
            pair, unit = scored[0], str(models[0]["unit"])
            return pair_chart(pair, values[pair["a"]], values[pair["b"]], unit=unit, notes=notes)
        return matrix_chart(self.pairs, [model["name"] for model in models], notes=notes)

    def _repr_html_(self) -> str:
        if any(pair.get("pearson") is not None for pair in self.pairs):
            return chart_html(self.chart())
        rows = [
            {"a": pair["a"], "b": pair["b"], "verdict": pair.get("verdict"), **pair.get("drift", {})}
            for pair in self.pairs
        ]
        return table_html("Models compared by their weights: relative drift", rows)


def drift_files(names: Sequence[str]) -> dict[tuple[str, str], str]:
    """Name the files of the drift of each pair of models: by the last parts of their names while these differ."""
    told = distinct_names([Path(name) for name in names], join="_", suffixes=True)
    plain = ["".join(c if c.isalnum() or c in "._" else "_" for c in name) for name in told]
    return {
        (names[i], names[j]): f"drift-{plain[i]}-{plain[j]}.safetensors" for i, j in combinations(range(len(names)), 2)
    }
