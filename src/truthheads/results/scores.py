"""The Truth Scores artefact: one number per head, and the samples behind its uncertainty."""

import csv
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, NotRequired, TypeAlias, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from truthheads.data.cautions import cannot_rank
from truthheads.errors import ArtifactError
from truthheads.plots.charts import chart_html, heat_map
from truthheads.plots.views import Shown, data_frame, head_place
from truthheads.results.origin import of_model, told_groups, told_rows
from truthheads.stats.figures import FigureJson
from truthheads.stats.intervals import auroc_spread, layer_ends, mean_ends, probed_ends, spread_of
from truthheads.stats.overlap import UNKNOWN
from truthheads.stats.thresholds import CHANCE_SCORE
from truthheads.storage.artifacts import check_tensors, load_artifact, save_artifact
from truthheads.storage.files import as_path

KIND = "scores"

LARGEST = 6e4
"""What a sample is clamped to, so that fp16 can hold it."""

TENSORS = {
    "values": "float num_layers num_heads",
    "accuracy": "float num_layers num_heads",
    "auroc": "float num_layers num_heads",
    "pair_accuracy": "float num_layers num_heads",
    "fold_accuracy": "float folds num_layers num_heads",
    "kind_values": "float kinds num_layers num_heads",
    "sample": "float samples num_layers num_heads",
    "sample_label": "int samples",
    "sample_group": "int samples",
    "sample_question": "int samples",
    "sample_id": "int samples",
    "probe_weight": "float num_layers num_heads head_dim",
    "probe_bias": "float num_layers num_heads",
}

LATER = {
    "dependence": "float num_layers num_heads",
    "pair_dependence": "float num_layers num_heads",
    "layer_dependence": "float num_layers",
}
"""Tensors that files of 0.1.0 lack; their intervals are then as wide as labels without meaning would make them."""

TOLD = {"model": dict, "data": dict, "kinds": list, "summary": dict}


class HeadScore(TypedDict):
    """One row of a table of heads; figures that are not defined are NaN, null in a file."""

    head: str
    score: float
    low: float
    high: float
    auroc: float
    auroc_low: float
    auroc_high: float
    pair_accuracy: float
    pair_accuracy_low: float
    pair_accuracy_high: float
    ranked: NotRequired[bool]


class KindRows(TypedDict, total=False):
    """How many rows have one kind of untruthful answer."""

    rows: int


class SplitHalf(TypedDict):
    """Reliability of scores: correlation between disjoint halves of the questions, averaged over splits."""

    splits: int
    pearson: FigureJson | None
    spearman: FigureJson | None


class FormResult(TypedDict):
    """How far the mere form of the answers separates them."""

    accuracy: FigureJson
    best_feature: str
    best_accuracy: float
    warns: bool


class StoredSummary(TypedDict, total=False):
    """What a score file keeps of its summary; arrays from elsewhere have none of it."""

    mean: FigureJson
    margin: FigureJson
    split_half: SplitHalf
    form: FormResult | None
    kinds: dict[str, KindRows]
    chosen: FigureJson | None


class ScoreSettings(TypedDict):
    """How scores were computed."""

    method: str
    chat: bool
    truncate: bool
    batch_tokens: int
    dtype: str
    probe: NotRequired[str | None]
    folds: NotRequired[str | None]
    num_folds: NotRequired[int | None]
    share_prefix: NotRequired[bool]
    shuffle_labels: NotRequired[bool]
    untruthful: NotRequired[bool]


class ScoreMeta(TypedDict):
    """Metadata of scores that ``truthheads score`` computes, as their file holds it."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: ScoreSettings
    seed: int
    groups: int
    packages: dict[str, str]
    command: str | None
    kinds: NotRequired[list[str]]
    summary: NotRequired[StoredSummary]
    measure: NotRequired[str]
    position: NotRequired[str]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scores(Shown):
    """Truth Scores of every head of one model on one data set.

    Attributes:
        method: ``probe``, ``attribution`` or ``evidence``.
        values: The score itself: out-of-fold accuracy (probe), mean gradient in nats (attribution), AUROC (evidence).
        accuracy: Mean of the folds' accuracies; NaN where not defined, as everywhere below.
        auroc: Chance that a truthful answer outscores an untruthful one.
        pair_accuracy: Share of questions whose truthful answer outscores its own untruthful one.
        fold_accuracy: Accuracy in each fold.
        kind_values: The score on the rows of each kind alone, in the order of ``meta["kinds"]``.
        sample: What bootstraps resample: out-of-fold logit of each answer (probe), gradient of each question's
            margin (attribution), fp16.
        sample_label: 1 truthful, 0 not (probe); 1 (attribution).
        sample_group: Number of the group of each sample.
        sample_question: Row of the question of each sample.
        sample_id: 64-bit digest of that question, equal for the same row in two files.
        probe_weight: Probe on raw z, fitted on all answers.
        probe_bias: Its intercept.
        meta: Model, data, settings, seed, versions, command line.
        dependence: How far overlapping training folds widen a head's accuracy and AUROC
            (:mod:`truthheads.stats.overlap`); NaN where not known.
        pair_dependence: The same of pair accuracy.
        layer_dependence: What they add to the variance of one answer's mean over a layer's heads.
    """

    method: str
    values: Float[Tensor, "num_layers num_heads"]
    accuracy: Float[Tensor, "num_layers num_heads"]
    auroc: Float[Tensor, "num_layers num_heads"]
    pair_accuracy: Float[Tensor, "num_layers num_heads"]
    fold_accuracy: Float[Tensor, "folds num_layers num_heads"]
    kind_values: Float[Tensor, "kinds num_layers num_heads"]
    sample: Float[Tensor, "samples num_layers num_heads"]
    sample_label: Int[Tensor, " samples"]
    sample_group: Int[Tensor, " samples"]
    sample_question: Int[Tensor, " samples"]
    sample_id: Int[Tensor, " samples"]
    probe_weight: Float[Tensor, "num_layers num_heads head_dim"]
    probe_bias: Float[Tensor, "num_layers num_heads"]
    meta: Mapping[str, Any] = field(default_factory=dict)
    # After the fields of 0.1.0, and not asked for: who builds scores as 0.1.0 did gets what a file of 0.1.0 gives.
    dependence: Float[Tensor, "num_layers num_heads"] = None  # type: ignore[assignment]
    pair_dependence: Float[Tensor, "num_layers num_heads"] = None  # type: ignore[assignment]
    layer_dependence: Float[Tensor, " num_layers"] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill in NaN where it is not known how far folds overlap."""
        layers, heads = self.values.shape
        for name, axes in LATER.items():
            if getattr(self, name) is None:
                shape = (layers, heads) if "num_heads" in axes else (layers,)
                object.__setattr__(self, name, torch.full(shape, float("nan")))

    @classmethod
    def of(cls, method: str, values: Tensor, *, meta: Mapping[str, Any], **tensors: Tensor) -> "Scores":
        """Return scores with everything that is not given left empty, or NaN for arrays of heads.

        Args:
            method: ``probe``, ``attribution`` or ``evidence``.
            values: The score, ``[num_layers, num_heads]``.
            meta: See the class.
            tensors: Any other attribute of the class.
        """
        layers, heads = values.shape
        nothing = torch.full((layers, heads), float("nan"))
        whole = torch.zeros(0, dtype=torch.int64)
        blank = {
            "accuracy": nothing,
            "auroc": nothing,
            "pair_accuracy": nothing,
            "fold_accuracy": torch.zeros(0, layers, heads),
            "kind_values": torch.zeros(0, layers, heads),
            "sample": torch.zeros(0, layers, heads, dtype=torch.float16),
            "sample_label": whole,
            "sample_group": whole,
            "sample_question": whole,
            "sample_id": whole,
            "probe_weight": torch.zeros(layers, heads, 0),
            "probe_bias": nothing,
        }
        return cls(method=method, values=values.float(), meta=dict(meta), **{**blank, **tensors})

    def save(self, path: str | Path) -> None:
        """Write the artefact.

        Raises:
            ArtifactError: The file could not be written.
        """
        tensors = {name: getattr(self, name) for name in (*TENSORS, *LATER)}
        save_artifact(as_path(path), tensors, {**self.meta, "kind": KIND, "method": self.method})

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read scores: our own file, or an ``[layers, heads]`` array as ``.npy`` or ``.csv`` (the released formats).

        Raises:
            ArtifactError: The file is missing, damaged, or not scores.
        """
        path = as_path(path)
        if path.suffix in (".npy", ".csv"):
            values = torch.from_numpy(_foreign(path))
            return cls.of("probe", values, accuracy=values.float(), meta={"source": path.name})
        artifact = load_artifact(path, kind=KIND)
        there = {name: axes for name, axes in LATER.items() if name in artifact.tensors}
        check_tensors(path, artifact, {**TENSORS, **there}, TOLD, command="score")
        kinds, known = artifact.meta.get("kinds") or [], len(artifact.tensors["kind_values"])
        if len(kinds) != known or not all(isinstance(kind, str) for kind in kinds):
            raise ArtifactError(
                f"{path} is not whole",
                expected=f"the names of {known} kinds",
                got=str(kinds)[:80],
                fix="write it again with `truthheads score`",
            )
        meta = {key: value for key, value in artifact.meta.items() if key not in ("kind", "method", "format_version")}
        wanted = {name: artifact.tensors[name] for name in (*TENSORS, *there)}
        return cls(method=str(artifact.meta.get("method")), meta=meta, **wanted)

    @property
    def questions(self) -> int | None:
        """Independent questions (groups) that the scores rest on; None where the file does not tell."""
        return told_groups(self.meta, self.sample_group)

    @property
    def caution(self) -> str | None:
        """The sentence that says that there are too few questions to rank heads; None where there are enough."""
        return cannot_rank(self.questions, int(self.values.isfinite().sum()))

    @property
    def unit(self) -> str:
        """What a value is, in words."""
        names = {"attribution": "mean gradient (nats)", "evidence": _measure(self.meta)}
        return names.get(self.method, "accuracy")

    @property
    def chance(self) -> float | None:
        """The score of a head that knows nothing, the centre of colour scales; None for scores of unknown origin."""
        return CHANCE_SCORE.get(self.method)

    def intervals(self) -> tuple[Float[np.ndarray, "num_layers num_heads"], Float[np.ndarray, "num_layers num_heads"]]:
        """Return the ends of each head's 95 % interval over groups of questions; NaN where no samples were kept.

        Of a probe's accuracy it also counts that training folds overlap (docs/decisions/0015). It is the interval of a
        head that was named beforehand, not of the best of many.
        """
        nothing = np.full(tuple(self.values.shape), np.nan)
        if not len(self.sample):
            return nothing, nothing
        group = self.sample_group.numpy()
        if self.method == "probe":
            item = self.right().reshape(len(self.sample), -1)
            spread = spread_of(item, group)
            low, high = probed_ends(
                self.values.double().numpy().ravel(), spread, float(len(item)), _known(self.dependence)
            )
        else:
            bounded = self.method == "evidence" and not self.unit.endswith("lift")
            low, high = mean_ends(self.sample.double().flatten(1).numpy(), group, bounded=bounded)
        return low.reshape(nothing.shape), high.reshape(nothing.shape)

    def layer_intervals(self) -> tuple[Float[np.ndarray, " num_layers"], Float[np.ndarray, " num_layers"]]:
        """Return the ends of the 95 % interval of each layer's mean over its heads; NaN where no samples were kept."""
        nothing = np.full(len(self.values), np.nan)
        if not len(self.sample):
            return nothing, nothing
        group, probed = self.sample_group.numpy(), self.method == "probe"
        item = self.right() if probed else self.sample.double().numpy()
        known = np.isfinite(item)
        with np.errstate(invalid="ignore"):
            mean = np.where(known, item, 0).sum(2) / known.sum(2)
        if not probed:
            return mean_ends(mean, group, bounded=False)
        values = self.values.double().numpy()
        there = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            share: Float[np.ndarray, " num_layers"] = np.where(there, values, 0).sum(1) / there.sum(1)
        return layer_ends(share, mean, group, self.layer_dependence.double().numpy())

    def right(self) -> Float[np.ndarray, "samples num_layers num_heads"]:
        """Return 1 where a probe places a sample right, 0 where it does not, NaN where there is no head."""
        sample = self.sample.double().numpy()
        right: Float[np.ndarray, "samples num_layers num_heads"] = (
            (sample > 0) == (self.sample_label.numpy() == 1)[:, None, None]
        ).astype(float)
        right[np.isnan(sample)] = np.nan
        return right

    def rank_intervals(self, heads: list[tuple[int, int]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the ends of the 95 % intervals of AUROC and pair accuracy of some heads of a probe; NaN where unknown.

        Args:
            heads: Layer and number of each.
        """
        nothing = np.full(len(heads), np.nan)
        found = {"auroc": (nothing, nothing), "pair_accuracy": (nothing, nothing)}
        label = self.sample_label.numpy() == 1
        if self.method != "probe" or not heads or label.all() or not label.any():
            return found
        at = tuple(np.array(heads).T)
        logit = self.sample.double().numpy()[:, at[0], at[1]]
        group, question = self.sample_group.numpy(), self.sample_question.numpy()
        spread, count = auroc_spread(logit, label, group)
        area, share = self.auroc.double().numpy()[at], self.pair_accuracy.double().numpy()[at]
        found["auroc"] = probed_ends(area, spread, count, _known(self.dependence)[np.ravel_multi_index(at, self.shape)])
        good, bad = np.flatnonzero(label), np.flatnonzero(~label)
        both, first, second = np.intersect1d(question[good], question[bad], return_indices=True)
        if len(both):
            gap = logit[good[first]] - logit[bad[second]]
            spread = spread_of((gap > 0) + 0.5 * (gap == 0), group[good[first]])
            dependence = _known(self.pair_dependence)[np.ravel_multi_index(at, self.shape)]
            found["pair_accuracy"] = probed_ends(share, spread, float(len(both)), dependence)
        return found

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads."""
        layers, heads = self.values.shape
        return layers, heads

    def top(self, count: int = 10) -> list[tuple[int, int]]:
        """Return the heads with the largest values, best first; heads without a value are left out."""
        flat = self.values.flatten()
        order = torch.argsort(torch.nan_to_num(flat, nan=-torch.inf), descending=True, stable=True)
        heads = [divmod(int(i), self.values.shape[1]) for i in order if not torch.isnan(flat[i])]
        return heads[:count]

    def table(self, count: int = 10) -> list[HeadScore]:
        """Return the top heads as rows: head, score with interval, AUROC, pair accuracy.

        Where the questions are too few to rank heads (:attr:`caution`), every row has ``ranked``, which is False.
        """
        return self._rows(self.top(count))

    def to_pandas(self) -> Any:
        """Return all heads, layer by layer, as a pandas DataFrame: ``layer``, ``head_index`` and the table's columns.

        Raises:
            TruthHeadsError: pandas is not installed.
        """
        heads = [(layer, head) for layer in range(self.shape[0]) for head in range(self.shape[1])]
        return data_frame({**head_place(*place), **row} for place, row in zip(heads, self._rows(heads), strict=True))

    def in_short(self) -> str:
        """Return method, shape, best head, questions and model."""
        layers, heads = self.shape
        best = [f"highest L{layer}H{head} {float(self.values[layer, head]):.3f}" for layer, head in self.top(1)]
        asked = [] if self.questions is None else [f"{self.questions} questions"]
        model = (self.meta.get("model") or {}).get("name")
        named = [] if model is None else [f"model {model!r}"]
        return ", ".join([self.method, f"{layers} layers x {heads} heads", *best, *asked, *named])

    def _rows(self, heads: list[tuple[int, int]]) -> list[HeadScore]:
        low, high = self.intervals()
        ranks = self.rank_intervals(heads)
        rows: list[HeadScore] = [
            {
                "head": f"L{layer}H{head}",
                "score": float(self.values[layer, head]),
                "low": float(low[layer, head]),
                "high": float(high[layer, head]),
                "auroc": float(self.auroc[layer, head]),
                "auroc_low": float(ranks["auroc"][0][at]),
                "auroc_high": float(ranks["auroc"][1][at]),
                "pair_accuracy": float(self.pair_accuracy[layer, head]),
                "pair_accuracy_low": float(ranks["pair_accuracy"][0][at]),
                "pair_accuracy_high": float(ranks["pair_accuracy"][1][at]),
            }
            for at, (layer, head) in enumerate(heads)
        ]
        if self.caution is not None:
            for row in rows:
                row["ranked"] = False
        return rows

    def chart(self) -> Any:
        """Return the heat map of layers × heads as an Altair chart, one more for each kind of row."""
        kinds = {kind: self.kind_values[i].numpy() for i, kind in enumerate(self.meta.get("kinds", []))}
        return heat_map(
            self.values.numpy(),
            title=f"{self.unit} per head {of_model(self.meta)}".strip(),
            unit=self.unit,
            middle=self.chance,
            panels=kinds if len(kinds) > 1 else None,
            ends=self.intervals(),
            notes=[one for one in (SHOWN.get(self.method), *told_rows(self.meta, self.questions), self.caution) if one],
        )

    def _repr_html_(self) -> str:
        return chart_html(self.chart())  # a notebook may have no network


if TYPE_CHECKING:
    ScoresLike: TypeAlias = Scores | str | Path
else:  # what holds no scores is answered in our words, not in those of a type checker at run time
    ScoresLike = object


def as_scores(scores: ScoresLike) -> Scores:
    """Return the scores that a person means: some, or the file of some.

    Raises:
        ArtifactError: It is neither, or the file cannot be read.
    """
    if isinstance(scores, Scores):
        return scores
    if isinstance(scores, str | Path):
        return Scores.load(scores)
    raise ArtifactError(
        "what was given holds no scores",
        expected="Scores, or the path of a score file",
        got=f"{type(scores).__module__}.{type(scores).__name__}".removeprefix("builtins."),
        fix="give what truthheads.score returned, or Scores.load(path)",
    )


SHOWN = {
    "probe": "Each square is a head: how often a linear probe on its output tells truthful answers from others, on "
    "questions that it was not fitted on. 0.5 is chance.",
    "attribution": "Each square is a head: how much the margin between the truthful and the untruthful answer grows, "
    "in nats, where its output is scaled up. Below 0 it speaks against the context.",
    "evidence": "Each square is a head: how well its attention finds the evidence in the context.",
}
"""What a chart of scores shows, by their method."""


def _known(dependence: Tensor) -> Float[np.ndarray, " heads"]:
    """Return the dependence of all heads in one row, where it is not known that of labels without meaning."""
    known: Float[np.ndarray, " heads"] = np.nan_to_num(dependence.double().numpy().ravel(), nan=UNKNOWN)
    return known


def _measure(meta: Mapping[str, Any]) -> str:
    """Return the name of an evidence measure."""
    return str(meta.get("measure", "auroc")).replace("auroc", "AUROC").replace("_", " ")


def open_array(path: Path) -> np.ndarray:
    """Return the array of a ``.npy`` file, mapped: the shape in its header is compared with the file's size.

    Raises:
        ValueError: It is damaged, or no array of numbers.
        OSError: It cannot be read.
    """
    with path.open("rb") as opened:
        if opened.read(6) != b"\x93NUMPY":  # the library would also open a zip file, or a pickle
            raise ValueError("no array of numpy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    # numpy reads the header as Python, and raises what that raises.
    except (EOFError, OverflowError, RecursionError, SyntaxError, TokenError, TypeError, MemoryError) as error:
        raise ValueError(f"a damaged header: {error}") from error
    return np.asarray(values)


def _foreign(path: Path) -> Float[np.ndarray, "num_layers num_heads"]:
    """Return a released array: ``.npy`` of two axes, or a CSV with the columns layer, head, accuracy."""
    expected = "a .npy array [layers, heads], or a CSV with columns layer, head, accuracy"
    try:
        if path.suffix == ".npy":
            values = open_array(path)
        else:
            with path.open(encoding="utf-8-sig", newline="") as lines:
                cells = {(int(r["layer"]), int(r["head"])): float(r["accuracy"]) for r in csv.DictReader(lines)}
            shape = max(layer for layer, _ in cells) + 1, max(head for _, head in cells) + 1
            if shape[0] * shape[1] > 4 * len(cells) + 64 or min(min(cell) for cell in cells) < 0:
                raise ValueError(f"{len(cells)} cells of a {shape[0]} x {shape[1]} array")
            values = np.full(shape, np.nan)
            for cell, value in cells.items():
                values[cell] = value
        if values.ndim != 2 or values.dtype.kind not in "fiu" or 0 in values.shape:
            raise ValueError(f"an array of shape {values.shape} and type {values.dtype}")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ArtifactError(
            f"{path} cannot be read as scores",
            expected=expected,
            got=f"{type(error).__name__}: {error}",
            fix="check the file",
        ) from error
    result: Float[np.ndarray, "num_layers num_heads"] = values.astype(np.float64)
    return result
