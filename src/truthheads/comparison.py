"""The stage behind ``truthheads compare``: models side by side, by their Truth Scores, by their weights, or by both."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from truthheads.artifacts import dumps, read_json, replaced
from truthheads.drift import Drift, weight_drift
from truthheads.errors import ArtifactError, DataError
from truthheads.lineage import relate
from truthheads.pairwise import figures, scores_side, weights_side
from truthheads.plots import chart_html
from truthheads.provenance import provenance
from truthheads.scores import Scores
from truthheads.sidebyside import matrix_chart, pair_chart
from truthheads.triples import middle

Progress = Callable[[int, int], None]
NOTHING: dict[str, Any] = {
    "pearson": None,
    "spearman": None,
    "pearson_within_layer": None,
    "p_permutation": None,
    "noise_ceiling": None,
}


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
    """What is asked of a comparison file; the rest of it is carried as it is."""

    pairs: list[_Pair]
    models: list[_Model]
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Models side by side.

    Attributes:
        result: The JSON result, ``comparison.json``: ``pairs``, ``models`` with their scores, ``triples``, ``meta``.
        drifts: Weight drift of each pair that was compared by weights; saved beside the JSON.
    """

    result: dict[str, Any]
    drifts: dict[tuple[str, str], Drift] = field(default_factory=dict)

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Every pair of models."""
        found: list[dict[str, Any]] = self.result["pairs"]
        return found

    def save(self, path: str | Path) -> None:
        """Write ``comparison.json``, and each pair's drift per head to ``drift-A-B.safetensors`` beside it.

        Raises:
            ArtifactError: A file could not be written.
        """
        path = Path(path)
        with replaced(path) as told, ExitStack() as beside:  # there is room for all, or none changes
            told.write_text(dumps(self.result, indent=2) + "\n", encoding="utf-8")
            for (a, b), drift in self.drifts.items():
                drift.save(beside.enter_context(replaced(path.with_name(drift_file(a, b)))))
            path.unlink(missing_ok=True)  # it must not stand beside drifts that it does not tell of, after a kill

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read what :meth:`save` wrote; drifts from the files beside it, where they are.

        Raises:
            ArtifactError: The file is missing or is not a comparison.
        """
        path = Path(path)
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
        files = {(p["a"], p["b"]): path.with_name(p["drift_file"]) for p in result["pairs"] if "drift_file" in p}
        return cls(result, {pair: Drift.load(file) for pair, file in files.items() if file.exists()})

    def table(self) -> list[dict[str, Any]]:
        """Return one row per pair: names, figures, verdicts."""
        kept = ("a", "b", "pearson", "pearson_within_layer", "p_permutation", "noise_ceiling", "verdict")
        return [{name: pair.get(name) for name in kept} for pair in self.pairs]

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
        if len(scored) == 1:
            pair = scored[0]
            return pair_chart(pair, values[pair["a"]], values[pair["b"]], unit=self.result["models"][0]["unit"])
        return matrix_chart(self.pairs, [model["name"] for model in self.result["models"]])

    def _repr_html_(self) -> str:
        return chart_html(self.chart())


def compare(
    *scores: Scores | str | Path,
    weights: Sequence[str] = (),
    names: Sequence[str] | None = None,
    reference: Scores | str | Path | None = None,
    align: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Compare models pair by pair: was one made from the other, or both from a third?

    Args:
        scores: Truth Scores, or files of them; none where only weights are compared.
        weights: Models as for ``load``, base first; with scores, as many and in the same order.
        names: Of the models; by default the files' paths, or the models' names.
        reference: Scores of one of the models on other data: how well a model agrees with itself.
        align: Bring heads of different places or shapes onto each other, too.
        seed: Of resamples and permutations.
        progress: Told the layers done and in all, while weights are read.

    Raises:
        DataError: Fewer than two models, or scores and weights that do not pair up.
        ShapeError: Scores of different shape, without ``align``; or weights of different shape.
        ArtifactError: A score file cannot be read.
        ModelError: Weights cannot be read.
    """
    loaded = [one if isinstance(one, Scores) else Scores.load(one) for one in scores]
    called = _names(scores, loaded, weights, names)
    found, drifts = [], {}
    for i, j in combinations(range(len(called)), 2):
        pair: dict[str, Any] = {"a": called[i], "b": called[j], **NOTHING}
        if loaded:
            pair |= scores_side(loaded[i], loaded[j], align=align, seed=seed)
        if weights:
            drift = weight_drift(weights[i], weights[j], progress=progress)
            drifts[called[i], called[j]] = drift
            pair |= weights_side(drift, loaded[i] if loaded else None, loaded[j] if loaded else None, seed)
            pair["drift_file"] = drift_file(called[i], called[j])
        found.append(pair)
    known = reference if reference is None or isinstance(reference, Scores) else Scores.load(reference)
    models = [_model(name, loaded[at] if loaded else None) for at, name in enumerate(called)]
    result: dict[str, Any] = {
        "pairs": found,
        "models": models,
        "triples": [middle(trio, drifts, seed=seed).json() for trio in combinations(called, 3)] if weights else [],
        "reference": None if known is None else _reference(known, loaded, called, seed),
        "meta": {"seed": seed, **provenance()},
    }
    return Comparison(result, drifts)


def drift_file(a: str, b: str) -> str:
    """Return the name of the file of a pair's drift."""
    plain = ["".join(c if c.isalnum() or c in "._" else "_" for c in Path(name).name) for name in (a, b)]
    return f"drift-{plain[0]}-{plain[1]}.safetensors"


def _names(
    scores: Sequence[Scores | str | Path],
    loaded: Sequence[Scores],
    weights: Sequence[str],
    names: Sequence[str] | None,
) -> list[str]:
    if len(scores or weights) < 2 or (scores and weights and len(scores) != len(weights)):
        raise DataError(
            "there are no pairs to compare",
            expected="two or more score files, or models with --weights; where both, one model for each file",
            got=f"{len(scores)} score files and {len(weights)} models",
            fix="for instance: truthheads compare base.safetensors tuned.safetensors --weights BASE TUNED",
        )
    own = [
        Path(given).stem if not isinstance(given, Scores) else str((one.meta.get("model") or {}).get("name", "scores"))
        for given, one in zip(scores, loaded, strict=True)
    ]
    found = list(names or own or weights)
    if len(found) != len(scores or weights):
        raise DataError(
            "names and models differ in number",
            expected=str(len(scores or weights)),
            got=str(len(found)),
            fix="name each",
        )
    return [name if found.count(name) == 1 else f"{name} ({at + 1})" for at, name in enumerate(found)]


def _model(name: str, scores: Scores | None) -> dict[str, Any]:
    if scores is None:
        return {"name": name}
    data = scores.meta.get("data") or {}
    return {
        "name": name,
        "model": (scores.meta.get("model") or {}).get("name"),
        "rows": data.get("rows"),
        "data_sha256": data.get("sha256"),
        "unit": scores.unit,
        "values": scores.values.double().tolist(),
    }


def _reference(reference: Scores, loaded: Sequence[Scores], called: Sequence[str], seed: int) -> dict[str, Any]:
    """Return how well the model of the reference agrees with itself on the compared data."""
    wanted = (reference.meta.get("model") or {}).get("fingerprint")
    same = [at for at, one in enumerate(loaded) if (one.meta.get("model") or {}).get("fingerprint") == wanted]
    same = [at for at in same if loaded[at].values.shape == reference.values.shape]
    if not same:
        raise DataError(
            "the reference is of none of the models",
            expected="scores of one of the compared models, on other data",
            got=str((reference.meta.get("model") or {}).get("name", "scores without a model's name")),
            fix="score one of these models on other questions, and give that file as --reference",
        )
    return {"of": called[same[0]], **figures(relate(loaded[same[0]], reference, seed=seed))}
