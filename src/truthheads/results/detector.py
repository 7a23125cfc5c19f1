"""The detector artefact: heads, their probes, a calibration, a threshold, and what they reached on rows left out."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from truthheads.errors import ArtifactError, DataError, ShapeError
from truthheads.models.load import Model
from truthheads.results.frames import as_frame
from truthheads.stats.calibration import Cuts, Platt, cuts_for
from truthheads.stats.figures import Figure, FigureJson
from truthheads.storage.artifacts import check_tensors, load_artifact, save_artifact

KIND = "detector"


class BaselineResult(TypedDict):
    """What something simpler reached on the same rows: its AUROC, and how far the detector's lies above it."""

    auroc: FigureJson
    gain: FigureJson


class ReliabilityJson(TypedDict):
    """Bins of equal size: mean probability, share of supported answers, number of rows."""

    probability: list[float]
    share: list[float]
    rows: list[int]


class RocJson(TypedDict):
    """A ROC curve, from the highest cut down."""

    false_positive: list[float]
    true_positive: list[float]


class DetectionFigures(TypedDict):
    """How well supported answers are told from others.

    Attributes:
        rows: Answers.
        groups: Independent groups of them.
        supported: How many are supported.
        metrics: AUROC, balanced accuracy, F1, expected calibration error and Brier score, with intervals.
        kinds: AUROC by kind of row.
        baselines: What simpler scores reached.
        as_good: Those whose AUROC the detector's does not surpass.
        verdict: The same in words.
        roc: The detector's ROC curve and, by name, those of the baselines.
        reliability: Promised against true shares.
    """

    rows: int
    groups: int
    supported: int
    metrics: dict[str, FigureJson]
    kinds: dict[str, FigureJson]
    baselines: dict[str, BaselineResult]
    as_good: list[str]
    verdict: str
    roc: dict[str, RocJson]
    reliability: ReliabilityJson


class DetectorSettings(TypedDict):
    """How a detector was fitted."""

    heads: int
    chat: bool
    truncate: bool
    num_folds: int
    dtype: str
    generated: bool


class DetectorMeta(TypedDict):
    """Where a detector comes from, and what it reached on rows that it was not fitted on."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: DetectorSettings
    seed: int
    packages: dict[str, str]
    command: str | None
    figures: DetectionFigures


class DetectorHead(TypedDict):
    """One row of the table of heads: its name and the AUROC of its own probe, out of fold."""

    head: str
    auroc: float


class DetectorSummary(DetectionFigures):
    """The JSON result of ``truthheads detect --fit``."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: DetectorSettings
    threshold: float
    heads: list[DetectorHead]
    warnings: list[str]


class DetectorOutput(DetectorSummary):
    """The same, and where the detector was written."""

    out: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Detector:
    """Says how probable it is that the context supports an answer, from z of a few heads at the answer's last token.

    Attributes:
        heads: Layer and head of each chosen head, the best first.
        weight: Their probes on raw z; rows of narrower heads end with zeros.
        bias: Their intercepts.
        auroc: AUROC of each alone, out of fold.
        platt: From the mean logit of the heads to a probability: slope and intercept.
        threshold: The probability from which on an answer counts as supported.
        sample_score: Mean logit of each fitting row by heads and probes that did not see it.
        sample_label: 1 where the row is supported.
        sample_group: Number of its group.
        meta: Model, data, settings, seed, versions, figures.
    """

    heads: Int[Tensor, "heads 2"]
    weight: Float[Tensor, "heads head_dim"]
    bias: Float[Tensor, " heads"]
    auroc: Float[Tensor, " heads"]
    platt: Float[Tensor, " 2"]
    threshold: float
    sample_score: Float[Tensor, " samples"]
    sample_label: Int[Tensor, " samples"]
    sample_group: Int[Tensor, " samples"]
    meta: DetectorMeta = field(default_factory=lambda: cast(DetectorMeta, {}))

    def probability(self, score: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
        """Return the probabilities of mean logits."""
        return Platt(*self.platt.tolist()).probability(score)

    @property
    def figures(self) -> DetectionFigures:
        """What the detector reached on rows that it was not fitted on."""
        return self.meta["figures"]

    @property
    def chat(self) -> bool:
        """Whether the prompts were wrapped in the chat template."""
        return bool(self.meta["settings"]["chat"])

    @property
    def digest(self) -> str:
        """Hexadecimal digest of heads, probes and calibration."""
        parts = (self.heads.long(), self.weight.float(), self.bias.float(), self.platt.float())
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:32]

    @property
    def labels(self) -> Bool[np.ndarray, " samples"]:
        """Whether each fitting row is supported."""
        supported: Bool[np.ndarray, " samples"] = self.sample_label.numpy() == 1
        return supported

    def cuts(self, *, threshold: float | None = None, precision: float | None = None) -> Cuts:
        """Return from which probability on an answer is supported, and below which it is not.

        Args:
            threshold: One cut for both; None: the detector's own.
            precision: Share of verdicts of each kind that must be right, measured on fitting rows left out; answers in
                between are unsure.

        Raises:
            DataError: Both are given, or one is out of range.
        """
        if threshold is not None and precision is not None:
            raise DataError(
                "--threshold and --precision exclude each other",
                expected="one of the two",
                got=f"{threshold:g} and {precision:g}",
                fix="leave one of them out",
            )
        for name, value, low in (("threshold", threshold, 0.0), ("precision", precision, 0.5)):
            if value is not None and not low <= value <= 1:
                raise DataError(
                    f"--{name} is out of range",
                    expected=f"a number from {low:g} to 1",
                    got=f"{value:g}",
                    fix=f"give --{name} 0.9, for instance",
                )
        if precision is not None:
            return cuts_for(
                self.probability(self.sample_score.double().numpy()), self.labels, precision, self.threshold
            )
        cut = self.threshold if threshold is None else threshold
        return Cuts(cut, cut)

    def check(self, model: Model, *, chat: bool) -> list[str]:
        """Return warnings on using this detector on a model.

        Args:
            model: The model that it is to be used on.
            chat: Whether the prompts will be wrapped in the chat template.

        Raises:
            ShapeError: The model has no such heads.
        """
        there = {layer.index: layer for layer in model.layout.layers}
        for layer, head in self.heads.tolist():
            own = there.get(layer)
            if own is None or head >= own.num_heads or own.head_dim > self.weight.shape[1]:
                raise ShapeError(
                    "the detector does not fit the model",
                    expected=f"a model with a head L{layer}H{head} of width {self.weight.shape[1]}",
                    got=f"{model.layout.num_layers} layers x {model.layout.num_heads} heads"
                    + (f" of width {own.head_dim}" if own is not None else ""),
                    fix="give a detector fitted on this model or on a relative of the same shape, or leave it out",
                )
            if bool((self.weight[:, own.head_dim :] != 0)[self.heads[:, 0] == layer].any()):
                raise ShapeError(
                    "the detector does not fit the model",
                    expected=f"heads of width {self.weight.shape[1]} in layer {layer}",
                    got=f"width {own.head_dim}",
                    fix="give a detector fitted on this model or on a relative of the same shape, or leave it out",
                )
        found = []
        made = self.meta.get("model") or {}
        if made.get("fingerprint") not in (None, model.fingerprint):
            found.append(
                f"the detector was fitted on {made.get('name')}, another model than {model.name}: its probabilities "
                "are not calibrated here; check it with `truthheads evaluate detect`"
            )
        if self.chat != chat:
            ways = ("the plain prompt", "the chat template")
            found.append(f"the detector was fitted with {ways[self.chat]}, and the rows are shown with {ways[chat]}")
        return found

    def table(self) -> list[DetectorHead]:
        """Return the chosen heads, the best first, each with the AUROC of its own probe."""
        pairs = zip(self.heads.tolist(), self.auroc.tolist(), strict=True)
        return [{"head": f"L{layer}H{head}", "auroc": auroc} for (layer, head), auroc in pairs]

    def to_pandas(self) -> Any:
        """Return :meth:`table` as a data frame."""
        return as_frame(self.table())

    def summary(self) -> DetectorSummary:
        """Return the JSON result of ``truthheads detect --fit``."""
        meta = self.meta
        return {
            **self.figures,
            "model": meta["model"],
            "data": meta["data"],
            "settings": meta["settings"],
            "threshold": self.threshold,
            "heads": self.table(),
            "warnings": [self.figures["verdict"]] if self.figures["as_good"] else [],
        }

    def __repr__(self) -> str:
        name = (self.meta.get("model") or {}).get("name", "")
        auroc = Figure.of(self.figures["metrics"]["auroc"])
        return f"Detector({len(self.heads)} heads of {name}; AUROC {auroc} on {self.figures['rows']} answers left out)"

    def _repr_html_(self) -> str:
        rows = [
            *((name, Figure.of(one)) for name, one in self.figures["metrics"].items()),
            *((f"AUROC of {name}", Figure.of(one["auroc"])) for name, one in self.figures["baselines"].items()),
        ]
        cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(figure))}</td></tr>" for name, figure in rows)
        return f"<p>{escape(repr(self))}<br>{escape(self.figures['verdict'])}</p><table>{cells}</table>"

    def save(self, path: str | Path) -> None:
        """Write the artefact.

        Raises:
            ArtifactError: The file could not be written.
        """
        tensors = {name: getattr(self, name) for name in _AXES}
        save_artifact(Path(path), tensors, {**self.meta, "threshold": self.threshold, "kind": KIND})

    @classmethod
    def load(cls, path: str | Path) -> "Detector":
        """Read a detector.

        Raises:
            ArtifactError: The file is missing, damaged, or no detector.
        """
        artifact = load_artifact(Path(path), kind=KIND)
        told = {"threshold": float, "figures": dict, "settings": dict, "model": dict, "data": dict}
        check_tensors(Path(path), artifact, _AXES, told, command="detect MODEL --fit FILE")
        meta = artifact.meta
        missing = [name for name in told if meta.get(name) is None]
        if missing or tuple(artifact.tensors["platt"].shape) != (2,) or artifact.tensors["heads"].shape[1:] != (2,):
            raise ArtifactError(
                f"{path} is not whole",
                expected=f"heads as pairs, platt of two numbers, and {', '.join(told)}",
                got=f"without {', '.join(missing)}" if missing else "other shapes",
                fix="write it again with `truthheads detect MODEL --fit FILE`",
            )
        own = {key: value for key, value in meta.items() if key not in ("kind", "format_version", "threshold")}
        kept = {name: artifact.tensors[name] for name in _AXES}
        return cls(threshold=float(meta["threshold"]), meta=cast(DetectorMeta, own), **kept)


_AXES = {
    "heads": "int heads pair",
    "weight": "float heads head_dim",
    "bias": "float heads",
    "auroc": "float heads",
    "platt": "float two",
    "sample_score": "float samples",
    "sample_label": "int samples",
    "sample_group": "int samples",
}
