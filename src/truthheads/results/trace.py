"""The trace artefact: how well each head's attention finds the evidence (measures: ``tracing.evidence``)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from truthheads.data.cautions import cannot_rank
from truthheads.errors import ArtifactError, DataError
from truthheads.plots.charts import chart_html, heat_map
from truthheads.plots.views import Shown, data_frame, head_place
from truthheads.results.origin import of_model, told_groups, told_rows
from truthheads.results.scores import Scores
from truthheads.stats.figures import FigureJson
from truthheads.stats.intervals import mean_ends
from truthheads.storage.artifacts import check_tensors, load_artifact, save_artifact
from truthheads.storage.files import as_path

MEASURES = ("auroc", "lift", "pointing", "sink", "distractor_auroc", "distractor_lift", "distractor_pointing")

KIND = "trace"

UNITS = {
    "auroc": "AUROC of the evidence",
    "lift": "lift of the evidence",
    "pointing": "pointing rate",
    "sink": "share on sinks",
    "distractor_auroc": "AUROC of the distractor",
    "distractor_lift": "lift of the distractor",
    "distractor_pointing": "pointing rate, distractor",
}

SHOWN = {
    "auroc": "the chance that a token of the evidence gets more of its attention than another token. 0.5 is chance.",
    "lift": "how many times its even share of the attention the evidence gets. 1 is chance.",
    "pointing": "how often the token that it attends to most belongs to the evidence.",
    "sink": "the share of its attention that goes to tokens that are looked at whatever they say.",
}
"""What a chart shows, by measure."""

MIDDLES = {"auroc": 0.5, "lift": 1.0}


class TracedHead(TypedDict):
    """One row of a table of heads; figures that are not defined are NaN, null in a file."""

    head: str
    auroc: float
    low: float
    high: float
    lift: float
    pointing: float
    sink: float
    distractor_auroc: float
    distractor_lift: float
    distractor_pointing: float
    truth_score: float
    ranked: NotRequired[bool]


class ClaimResult(TypedDict):
    """How one measure correlates with Truth Scores over heads; what each figure is: ``tracing.score_correlation``."""

    spearman: FigureJson
    within_layer: FigureJson
    p_permutation: float
    depth_only: float
    pearson: FigureJson
    pearson_within_layer: FigureJson
    p_pearson: float
    disjoint_within_layer: FigureJson | None
    equal_depth: FigureJson
    heads: int
    shared_questions: int


Claim = dict[str, dict[str, ClaimResult]]
"""Results by position and measure."""


class TraceCounts(TypedDict):
    """What was traced, and means over heads by position and measure."""

    rows: int
    left_out: dict[str, int]
    sources: dict[str, int]
    distractors: int
    evidence_tokens: float
    evidence_share: float
    means: dict[str, dict[str, FigureJson]]


class TraceSummary(TraceCounts):
    """The JSON result of ``truthheads trace``; None where the file does not tell."""

    model: Mapping[str, Any] | None
    data: Mapping[str, Any] | None
    settings: Mapping[str, Any] | None
    seed: int | None
    positions: list[str]
    position: str
    scores: Mapping[str, Any] | None
    claim: Claim | None
    top: list[TracedHead]
    questions: int | None
    ranked: bool
    warnings: list[str]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trace(Shown):
    """How well each head's attention finds the evidence, for one model on one data set.

    Attributes:
        values: Means over questions, in the order of ``meta["positions"]`` and ``MEASURES``; NaN where not defined.
        sample: The measures of each question, fp16: what bootstraps resample.
        sample_group: Number of the group of each question.
        sample_question: Its row.
        sample_id: 64-bit digest of the question, equal for the same row in two files.
        truth: The Truth Scores that were given, or NaN.
        meta: Model, data, settings, seed, versions, ``positions``, ``position`` (the main one), ``summary``, ``claim``.
    """

    values: Float[Tensor, "positions measures num_layers num_heads"]
    sample: Float[Tensor, "samples positions measures num_layers num_heads"]
    sample_group: Int[Tensor, " samples"]
    sample_question: Int[Tensor, " samples"]
    sample_id: Int[Tensor, " samples"]
    truth: Float[Tensor, "num_layers num_heads"]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def positions(self) -> tuple[str, ...]:
        """Whose attention was read: ``answer``, ``question`` and, where asked for, ``untruthful``."""
        return tuple(self.meta["positions"])

    @property
    def position(self) -> str:
        """The position that is shown where none is named."""
        return str(self.meta["position"])

    @property
    def questions(self) -> int | None:
        """Independent questions (groups) that were traced; None where the file does not tell."""
        return told_groups(self.meta, self.sample_group)

    @property
    def caution(self) -> str | None:
        """The sentence that says that there are too few questions to rank heads; None where there are enough."""
        return cannot_rank(self.questions, int(self.auroc.isfinite().sum()))

    @property
    def auroc(self) -> Float[Tensor, "num_layers num_heads"]:
        """AUROC at the main position."""
        return self.array("auroc")

    @property
    def lift(self) -> Float[Tensor, "num_layers num_heads"]:
        """Lift at the main position."""
        return self.array("lift")

    @property
    def pointing(self) -> Float[Tensor, "num_layers num_heads"]:
        """Pointing rate at the main position."""
        return self.array("pointing")

    @property
    def sink(self) -> Float[Tensor, "num_layers num_heads"]:
        """Share of the attention that goes to sinks, at the main position."""
        return self.array("sink")

    def array(self, measure: str, position: str | None = None) -> Float[Tensor, "num_layers num_heads"]:
        """Return one measure of every head.

        Args:
            measure: One of ``MEASURES``.
            position: One of ``positions``; None for the main one.

        Raises:
            DataError: There is no such measure or position.
        """
        return self.values[self._at(measure, position)]

    def samples(self, measure: str, position: str | None = None) -> Float[Tensor, "samples num_layers num_heads"]:
        """Return one measure of every question and head, as :meth:`array`."""
        at, which = self._at(measure, position)
        return self.sample[:, at, which]

    def intervals(
        self, measure: str, position: str | None = None
    ) -> tuple[Float[np.ndarray, "num_layers num_heads"], Float[np.ndarray, "num_layers num_heads"]]:
        """Return the ends of each head's 95 % interval by bootstrap over groups; NaN where no samples were kept."""
        flat = self.samples(measure, position).double().flatten(1).numpy()
        known = np.isfinite(flat).any(1)
        if not known.any():
            nothing = np.full(tuple(self.truth.shape), np.nan)
            return nothing, nothing
        low, high = mean_ends(flat[known], self.sample_group.numpy()[known], bounded=not measure.endswith("lift"))
        return low.reshape(self.truth.shape), high.reshape(self.truth.shape)

    def as_scores(self, measure: str = "auroc", position: str | None = None) -> Scores:
        """Return one measure as a score file of its own, method ``evidence``; its samples are those of each question.

        Questions in which the measure is not defined are left out.
        """
        found = self.samples(measure, position)
        known = torch.isfinite(found).flatten(1).any(1)
        meta = {key: value for key, value in self.meta.items() if key not in ("claim", "summary", "positions")}
        return Scores.of(
            "evidence",
            self.array(measure, position),
            sample=found[known],
            sample_label=torch.ones(int(known.sum()), dtype=torch.int64),
            sample_group=self.sample_group[known],
            sample_question=self.sample_question[known],
            sample_id=self.sample_id[known],
            meta={**meta, "measure": measure, "position": position or self.position},
        )

    def top(self, count: int = 10, *, measure: str = "auroc") -> list[tuple[int, int]]:
        """Return the heads with the largest values, best first; heads without a value are left out."""
        return self.as_scores(measure).top(count)

    def table(self, count: int = 10) -> list[TracedHead]:
        """Return the top heads by AUROC as rows: AUROC with interval, lift, pointing rate, sinks, Truth Score.

        Where the questions are too few to rank heads (:attr:`caution`), every row has ``ranked``, which is False.
        """
        return self._rows(self.top(count))

    def to_pandas(self) -> Any:
        """Return all heads, layer by layer, as a pandas DataFrame: ``layer``, ``head_index`` and the table's columns.

        Raises:
            TruthHeadsError: pandas is not installed.
        """
        layers, width = self.truth.shape
        heads = [(layer, head) for layer in range(layers) for head in range(width)]
        return data_frame({**head_place(*place), **row} for place, row in zip(heads, self._rows(heads), strict=True))

    def in_short(self) -> str:
        """Return shape, position, best head, questions and model."""
        layers, heads = self.truth.shape
        best = [f"highest AUROC L{layer}H{head} {float(self.auroc[layer, head]):.3f}" for layer, head in self.top(1)]
        asked = [] if self.questions is None else [f"{self.questions} questions"]
        model = (self.meta.get("model") or {}).get("name")
        named = [] if model is None else [f"model {model!r}"]
        where = f"last token of the {self.position}"
        return ", ".join([f"{layers} layers x {heads} heads", where, *best, *asked, *named])

    def _rows(self, heads: list[tuple[int, int]]) -> list[TracedHead]:
        low, high = self.intervals("auroc")
        rows: list[TracedHead] = [
            {
                "head": f"L{layer}H{head}",
                "auroc": float(self.auroc[layer, head]),
                "low": float(low[layer, head]),
                "high": float(high[layer, head]),
                "lift": float(self.lift[layer, head]),
                "pointing": float(self.pointing[layer, head]),
                "sink": float(self.sink[layer, head]),
                "distractor_auroc": float(self.array("distractor_auroc")[layer, head]),
                "distractor_lift": float(self.array("distractor_lift")[layer, head]),
                "distractor_pointing": float(self.array("distractor_pointing")[layer, head]),
                "truth_score": float(self.truth[layer, head]),
            }
            for layer, head in heads
        ]
        if self.caution is not None:
            for row in rows:
                row["ranked"] = False
        return rows

    def chart(self, measure: str = "auroc", position: str | None = None) -> Any:
        """Return the heat map of layers × heads as an Altair chart."""
        where, shown = position or self.position, SHOWN[measure.removeprefix("distractor_")]
        return heat_map(
            self.array(measure, position).numpy(),
            title=f"Attention of the {where}'s last token: {UNITS[measure]} {of_model(self.meta)}".strip(),
            unit=UNITS[measure],
            middle=MIDDLES.get(measure.removeprefix("distractor_")),
            ends=self.intervals(measure, position),
            notes=[f"Each square is a head: {shown}", *told_rows(self.meta, self.questions)],
        )

    def _repr_html_(self) -> str:
        return chart_html(self.chart())  # a notebook may have no network

    def save(self, path: str | Path) -> None:
        """Write the artefact: one tensor for each measure and position, named ``answer.auroc`` and so on.

        Raises:
            ArtifactError: The file could not be written.
        """
        named = {f"{p}.{m}": self.array(m, p) for p in self.positions for m in MEASURES}
        kept = {name: getattr(self, name) for name in _KEPT}
        save_artifact(as_path(path), {**named, **kept}, {**self.meta, "kind": KIND})

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read a trace.

        Raises:
            ArtifactError: The file is missing, damaged, or not a trace.
        """
        artifact = load_artifact(as_path(path), kind=KIND)
        positions = artifact.meta.get("positions")
        if not isinstance(positions, list) or artifact.meta.get("position") not in positions:
            raise ArtifactError(
                f"{path} is not whole",
                expected="positions, and the main one of them",
                got=f"{str(positions)[:80]}, {str(artifact.meta.get('position'))[:80]}",
                fix="write it again with `truthheads trace`",
            )
        wanted = [f"{position}.{measure}" for position in positions for measure in MEASURES]
        check_tensors(as_path(path), artifact, {**dict.fromkeys(wanted, HEADS), **_KEPT}, TOLD, command="trace")
        shape = artifact.tensors["sample"].shape[1:3]
        if shape != (len(positions), len(MEASURES)):
            raise ArtifactError(
                f"{path} is not whole",
                expected=f"samples of {len(positions)} positions and {len(MEASURES)} measures",
                got=" x ".join(map(str, shape)),
                fix="write it again with `truthheads trace`",
            )
        arrays = torch.stack([artifact.tensors[name] for name in wanted])
        kept = {name: artifact.tensors[name] for name in _KEPT}
        meta = {key: value for key, value in artifact.meta.items() if key not in ("kind", "format_version")}
        return cls(values=arrays.unflatten(0, (len(positions), -1)), meta=meta, **kept)  # type: ignore[no-untyped-call]

    def _at(self, measure: str, position: str | None) -> tuple[int, int]:
        place = position or self.position
        if measure not in MEASURES or place not in self.positions:
            raise DataError(
                f"{measure} at {place} is not in the trace",
                expected=f"one of {', '.join(MEASURES)}, at one of {', '.join(self.positions)}",
                got=f"{measure} at {place}",
                fix="choose one of them; attention under the untruthful answer is traced when asked for",
            )
        return self.positions.index(place), MEASURES.index(measure)


HEADS = "float num_layers num_heads"

_KEPT = {
    "sample": "float samples positions measures num_layers num_heads",
    "sample_group": "int samples",
    "sample_question": "int samples",
    "sample_id": "int samples",
    "truth": HEADS,
}

TOLD = {"model": dict, "data": dict, "claim": dict, "summary": dict}
