"""How far the attention weights of a descendant have moved from its base, per head, and whether it is one at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.errors import ArtifactError
from truthheads.models.head_weights import WEIGHT_PARTS
from truthheads.plots.views import Shown, data_frame, head_place, table_html
from truthheads.stats.figures import Figure, FigureJson, mean_figure
from truthheads.stats.thresholds import (
    HEAD_MATCH_LEAD,
    HEAD_MATCH_SIMILARITY,
    WEIGHT_COSINE_CHANCE_SDS,
    WEIGHT_COSINE_INHERITED,
    WEIGHT_COSINE_UNRELATED,
)
from truthheads.storage.artifacts import check_tensors, load_artifact, save_artifact, without_folder
from truthheads.storage.files import as_path

KIND = "drift"

GQA = "a key-value head's figure is that of every query head of its group"


class HeadMatching(TypedDict):
    """Which heads of a descendant do what those of the base do; one list for each layer that was tried.

    ``drift`` is that of every part in the order of the match, where all layers were matched.
    """

    layers: list[int]
    heads: list[list[int]]
    similarity: list[list[float]]
    second: list[list[float]]
    drift: NotRequired[dict[str, FigureJson]]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Drift(Shown):
    """How far the q, k, v and o slices of every head have moved between two checkpoints.

    A slice is what belongs to one head: rows of the projections to queries, keys and values, columns of the output
    projection; weights, not biases. With grouped queries, a key-value head's figure is given to every query head of its
    group. Shapes are the base's; NaN where a layer has no such heads, or where the base's slice is all zeros.

    Attributes:
        base: Name of the model that the drift is relative to.
        descendant: Name of the other.
        parts: ``q``, ``k``, ``v``, ``o``: relative Frobenius drift, ‖D − B‖ ÷ ‖B‖, of each head's slice.
        meta: Names, shapes, settings, and what else the verdict rests on.
        cosines: The same parts: cosine of each head's two slices, taken as vectors.
        chance: Cosine of the base's rows with the descendant's next rows, for each layer and part, in that order.
    """

    base: str
    descendant: str
    parts: dict[str, Float[Tensor, "num_layers num_heads"]]
    meta: Mapping[str, Any] = field(default_factory=dict)
    cosines: dict[str, Float[Tensor, "num_layers num_heads"]] = field(default_factory=dict)
    chance: Float[Tensor, "num_layers 4"] = field(default_factory=lambda: torch.zeros(0, 4))

    def in_short(self) -> str:
        """Return the two models, the shape, and the drift of each part."""
        layers, heads = next(iter(self.parts.values())).shape
        means = ", ".join(f"{part} {float(values.nanmean()):.3g}" for part, values in self.parts.items())
        return f"{self.base!r} to {self.descendant!r}, {layers} layers x {heads} heads, relative drift {means}"

    def to_pandas(self) -> Any:
        """Return the relative drift of all heads, part by part, as a pandas DataFrame.

        Raises:
            TruthHeadsError: pandas is not installed.
        """
        layers, heads = next(iter(self.parts.values())).shape
        return data_frame(
            {**head_place(layer, head), **{part: float(values[layer, head]) for part, values in self.parts.items()}}
            for layer in range(layers)
            for head in range(heads)
        )

    def _repr_html_(self) -> str:
        rows = [{"part": part, "relative_drift": figure.json()} for part, figure in self.figures().items()]
        return table_html(f"{self.base} and {self.descendant}: {self.verdict()[0]}", rows)

    def figures(self, *, seed: int = 0) -> dict[str, Figure]:
        """Return for each part the mean drift over heads, with layers resampled for its 95 % interval.

        Args:
            seed: Random seed of the resampling. Below 3 layers, heads are resampled instead.
        """
        return {part: _figure([values], seed) for part, values in self.parts.items()}

    def kinship(self, *, seed: int = 0) -> dict[str, Figure]:
        """Return the mean cosine over heads less what chance gives, for each part and over ``all`` of them.

        1: the same weights up to scale. 0: weights that have nothing to do with each other. Chance is taken off layer
        by layer as (cosine − chance) ÷ (1 − chance), for models whose weights all share a sign or a pattern.

        Args:
            seed: Random seed of the resampling of layers; below 3 layers, of heads.
        """
        net = {}
        for column, part in enumerate(WEIGHT_PARTS):
            chance = self.chance[:, column, None]
            net[part] = (self.cosines[part] - chance) / (1 - chance)
        return {"all": _figure(list(net.values()), seed), **{part: _figure([net[part]], seed) for part in WEIGHT_PARTS}}

    def verdict(self) -> tuple[str, str]:
        """Return ``inherited``, ``partly``, ``not related`` or ``can't tell``, and a sentence of evidence.

        Thresholds and why: docs/decisions/0005. They are asked of the ends of intervals, never of a value. Weights do
        not tell which of the two models was first.
        """
        size = sum(int(torch.isfinite(values).sum()) for values in self.parts.values())
        if self.meta.get("alike") == "exact":
            return "inherited", f"a copy: all {size} attention slices are equal, value by value"
        if self.meta.get("alike") == "rounded":
            return "inherited", f"a copy: all {size} attention slices are equal up to rounding to the narrower type"
        moved = ", ".join(f"{part} {figure.value:.3f}" for part, figure in self.figures().items())
        kin = self.kinship()
        whole = kin["all"]
        evidence = f"mean cosine of {size} attention slices {whole} (unrelated weights: 0), relative drift {moved}"
        if all(figure.low >= WEIGHT_COSINE_INHERITED for figure in kin.values()):
            return "inherited", evidence
        match, gap, places = self._match()
        matched = f"heads matched by what they do, {places}: similarity {match}, {gap} above the next best pairing"
        if match.low >= HEAD_MATCH_SIMILARITY and gap.low > HEAD_MATCH_LEAD:
            return "inherited", f"{matched}; in place: {evidence}"
        related = self._related()
        if whole.low > related:
            weakest = min(WEIGHT_PARTS, key=lambda part: kin[part].value)
            return "partly", f"{evidence}; least of all {weakest}, {kin[weakest]}"
        if gap.low > HEAD_MATCH_LEAD:
            return "partly", f"{matched}; in place: {evidence}"
        if whole.high >= related:
            return "can't tell", f"{evidence}: the interval reaches {related:.2f}, where kinship begins"
        if gap.high >= HEAD_MATCH_LEAD:
            return "can't tell", f"{matched}: the interval reaches {HEAD_MATCH_LEAD}; in place: {evidence}"
        return "not related", f"{evidence}; {matched}"

    def _related(self) -> float:
        """Return where kinship begins: independent weights have a mean cosine of variance 1 ÷ their number."""
        counts = [self.meta.get("weights", {}).get(part, float("inf")) for part in WEIGHT_PARTS]
        deviation = float(sum(1 / count for count in counts) ** 0.5 / len(counts))
        return max(WEIGHT_COSINE_UNRELATED, WEIGHT_COSINE_CHANCE_SDS * deviation)

    def _match(self) -> tuple[Figure, Figure, str]:
        """Return similarity of matched heads, its lead over the next best pairing, and how many changed place."""
        found = self.meta.get("matching")
        if not found:
            nothing = Figure(float("nan"), float("nan"), float("nan"))
            return nothing, nothing, "not tried"
        rows = [np.array(row) for row in found["heads"]]
        moved = sum(int((row != np.arange(len(row))).sum()) for row in rows)
        first, second = (_ragged(found[name]) for name in ("similarity", "second"))
        places = f"{moved} of {sum(map(len, rows))} in another place"
        return _figure([first], 0), _figure([first - second], 0), places

    def save(self, path: str | Path) -> None:
        """Write the artefact, ``drift-A-B.safetensors`` by custom.

        Raises:
            ArtifactError: The file could not be written.
        """
        tensors = {**self.parts, **{f"cosine_{part}": self.cosines[part] for part in self.cosines}}
        meta = {
            **self.meta,
            "kind": KIND,
            "base_name": without_folder(self.base),
            "descendant_name": without_folder(self.descendant),
        }
        save_artifact(as_path(path), {**tensors, "chance": self.chance}, meta)

    @classmethod
    def load(cls, path: str | Path) -> "Drift":
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: The file is missing, damaged, of another kind, or not whole.
        """
        tensors, meta = artifact = load_artifact(as_path(path), kind=KIND)
        axes = dict.fromkeys(
            (*WEIGHT_PARTS, *(f"cosine_{part}" for part in WEIGHT_PARTS)), "float num_layers num_heads"
        )
        axes["chance"] = "float num_layers parts"
        check_tensors(as_path(path), artifact, axes, {"weights": dict, "matching": dict}, command="compare --weights")
        own = {key: value for key, value in meta.items() if key not in ("kind", "format_version")}
        made = cls(
            base=str(own.pop("base_name", "")),
            descendant=str(own.pop("descendant_name", "")),
            parts={part: tensors[part] for part in WEIGHT_PARTS},
            meta=own,
            cosines={part: tensors[f"cosine_{part}"] for part in WEIGHT_PARTS},
            chance=tensors["chance"],
        )
        try:
            made._related(), made._match()
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is not whole",
                expected="numbers of weights, and the matching of heads, as `truthheads compare --weights` writes them",
                got=f"{type(error).__name__}: {error}"[:200],
                fix="write it again with `truthheads compare --weights`",
            ) from error
        return made


def _ragged(rows: Sequence[Sequence[float]]) -> Float[Tensor, "layers heads"]:
    """Return rows of different length as one array, NaN behind the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[float("nan")] * (longest - len(row))] for row in rows])


def _figure(arrays: list[Tensor], seed: int) -> Figure:
    """Return the mean over everything finite in some ``[layers, heads]`` arrays, layers resampled."""
    values = torch.cat(arrays, dim=1).double().numpy()
    layer = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
    finite = np.isfinite(values)
    if not finite.any():
        return Figure(float("nan"), float("nan"), float("nan"))
    clusters = layer[finite]
    if len(np.unique(clusters)) < 3:
        clusters = np.arange(len(clusters))
    return mean_figure(values[finite], clusters, seed=seed)
