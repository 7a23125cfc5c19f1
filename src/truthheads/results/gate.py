"""Gates: one factor per head, built from scores, with the controls that a claim about them needs."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from truthheads.choices import Control as Control
from truthheads.choices import Norm, Site
from truthheads.errors import ArtifactError, GateError
from truthheads.models.hooks import NetworkLike, Scaling, scale
from truthheads.plots.charts import chart_html, heat_map
from truthheads.plots.views import Shown, data_frame, head_place
from truthheads.results.origin import of_model, told_rows
from truthheads.results.scores import ScoresLike, as_scores
from truthheads.storage.artifacts import load_artifact, save_artifact
from truthheads.storage.files import as_path

MINMAX_EPSILON = 1e-6


def check_settings(strength: float, norm: str, floor: float | None) -> None:
    """Raise GateError for settings that give no gate."""
    if norm not in ("centred", "minmax", "signed"):
        raise GateError("unknown norm", expected="centred, minmax or signed", got=repr(norm), fix="choose one of them")
    if not np.isfinite(strength):
        raise GateError("strength is not finite", expected="a number", got=str(strength), fix="give a finite strength")
    if floor is not None and not (np.isfinite(floor) and floor <= 1):
        raise GateError(
            "the floor must be a number up to 1, or none",
            expected="a number up to 1, or none",
            got=str(floor),
            fix="try 0",
        )


def normalised_scores(
    values: Float[Tensor, "num_layers num_heads"], norm: Norm, standardise: bool
) -> Float[Tensor, "num_layers num_heads"]:
    """Return scores under a norm; NaN where there was NaN.

    Args:
        values: Scores.
        norm: See :meth:`truthheads.results.gate.Gate.from_scores`.
        standardise: Divide centred scores by the standard deviation of all.
    """
    if norm == "centred":
        centred = values - values.nanmean(1, keepdim=True)
        spread = values[torch.isfinite(values)].std(correction=0)
        return centred / spread if standardise and spread > 0 else centred
    if norm == "minmax":
        least = torch.nan_to_num(values, nan=torch.inf).amin(1, keepdim=True)
        most = torch.nan_to_num(values, nan=-torch.inf).amax(1, keepdim=True)
        return (values - least) / (most - least + MINMAX_EPSILON)
    largest = values[torch.isfinite(values)].abs().max()
    return values / largest if largest > 0 else values


KIND = "gate"


class HeadFactor(TypedDict):
    """One row of a table of heads."""

    head: str
    factor: float


class GateInfo(TypedDict):
    """A gate in figures; ``moved`` counts factors that are not 1."""

    num_layers: int
    num_heads: int
    site: Site
    digest: str
    min: float
    max: float
    mean: float
    sd: float
    moved: int
    negative: int
    clipped: int


class GateSummary(GateInfo):
    """The JSON result of ``truthheads gate``."""

    top: list[HeadFactor]
    warnings: list[str]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gate(Shown):
    """One factor per head; 1 leaves a head as it is.

    Attributes:
        gate: The factors, fp32; 1 where a layer has no such head.
        site: ``z`` scales each head's own output (the paper's equation 1), ``output`` blocks of the output
            projection's output (what the released code does).
        absent: Heads that a layer lacks, as (layer, head); controls leave them at 1.
        clipped: How many factors the floor has raised.
        meta: Where it came from: scores, norm, strength, control, seed, command line.

    Raises:
        GateError: A factor is not finite, or the array is not ``[num_layers, num_heads]``.
    """

    gate: Float[Tensor, "num_layers num_heads"]
    site: Site = "z"
    absent: tuple[tuple[int, int], ...] = ()
    clipped: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gate.ndim != 2 or 0 in self.gate.shape:
            raise GateError(
                "a gate has one factor per head",
                expected="an array [num_layers, num_heads]",
                got=f"shape {list(self.gate.shape)}",
                fix="give one row per layer",
            )
        bad = (~torch.isfinite(self.gate)).nonzero()
        if len(bad):
            layer, head = map(int, bad[0])
            raise GateError(
                "a factor of the gate is not finite",
                expected="finite factors; 1 for a head that is to stay as it is",
                got=f"{float(self.gate[layer, head])} at L{layer}H{head} ({len(bad)} in all)",
                fix="correct the array that the gate is made from",
            )
        if self.site not in ("z", "output"):
            raise GateError("unknown site", expected="z or output", got=repr(self.site), fix="choose one of the two")
        object.__setattr__(self, "gate", self.gate.detach().to("cpu", torch.float32).contiguous())

    @classmethod
    def from_scores(
        cls,
        scores: ScoresLike,
        *,
        strength: float = 4.5,
        norm: Norm = "centred",
        site: Site = "z",
        floor: float | None = 0.0,
        standardise: bool = False,
    ) -> "Gate":
        """Return the gate ``1 + strength · norm(score)``.

        Args:
            scores: Scores, or their file, of the model or of a relative of the same shape; a head without one keeps 1.
            strength: λ of the paper. With ``standardise`` in standard deviations of the scores.
            norm: ``centred``: score − mean of its layer. ``minmax``: (score − least) / (largest − least + 1e-6) in
                its layer. ``signed``: score ÷ the largest magnitude of all scores, for scores with a sign.
            site: What a factor scales.
            floor: Factors below are raised to it; None allows factors below 0, which flip the sign of a head's output.
            standardise: Divide ``centred`` scores by the standard deviation of all scores, so that one strength
                means the same for any score file. ``minmax`` and ``signed`` have no unit and are not changed by it.

        Raises:
            GateError: A setting is out of range, or there is no score.

        Source:
            The paper's equations 1 and 2; ``minmax`` with the released code's 1e-6.
        """
        check_settings(strength, norm, floor)
        scores = as_scores(scores)
        values = scores.values.double()
        known = torch.isfinite(values)
        if not bool(known.any()):
            raise GateError(
                "there is no score to make a gate from",
                expected="a finite score for at least one head",
                got="NaN for every head",
                fix="score the model again",
            )
        normed = normalised_scores(values, norm, standardise)
        factors = torch.where(known, 1 + strength * normed, 1.0).float()
        below = factors < floor if floor is not None else torch.zeros_like(known)
        return cls(
            gate=factors.clamp(min=floor) if floor is not None else factors,
            site=site,
            absent=_pairs(~known),
            clipped=int(below.sum()),
            meta={
                "method": "scores",
                "norm": norm,
                "strength": strength,
                "standardise": standardise,
                "floor": floor,
                "scores": {
                    "method": scores.method,
                    "model": scores.meta.get("model"),
                    "data": scores.meta.get("data"),
                    "source": scores.meta.get("source"),
                    "questions": scores.questions,
                    "sha256": hashlib.sha256(scores.values.contiguous().numpy().tobytes()).hexdigest(),
                },
            },
        )

    def control(self, kind: Control, *, seed: int = 0) -> "Gate":
        """Make a control gate: factors of the same size, on other heads.

        Args:
            kind: ``constant``: every head gets this gate's mean. ``shuffled``: the factors of each layer, dealt to
                its heads at random. ``random``: the distances from 1, dealt to all heads of all layers at random,
                each with a sign by coin (plus where minus would go below 0 and this gate never does).
            seed: Random seed of the draw.

        Raises:
            GateError: Another kind.
        """
        there = ~self._absent_mask().numpy()
        factors = self.gate.double().numpy().copy()
        generator = np.random.default_rng(seed)
        if kind == "constant":
            factors[there] = factors[there].mean()
        elif kind == "shuffled":
            for layer in range(len(factors)):
                factors[layer, there[layer]] = generator.permutation(factors[layer, there[layer]])
        elif kind == "random":
            sizes = generator.permutation(np.abs(factors[there] - 1))
            sign = generator.choice([-1.0, 1.0], size=len(sizes))
            lowest = min(0.0, float(factors[there].min()))
            sign[1 - sizes < lowest] = 1.0
            factors[there] = 1 + sign * sizes
        else:
            raise GateError(
                "unknown control",
                expected="constant, shuffled or random",
                got=repr(kind),
                fix="choose one of the three",
            )
        meta = {**self.meta, "control": {"kind": kind, "seed": seed, "of": self.digest}}
        return Gate(torch.from_numpy(factors).float(), self.site, self.absent, 0, meta)

    def scaled(self, share: float) -> "Gate":
        """Return the gate ``1 + share · (factor − 1)``: the same direction, weaker or stronger."""
        meta = {**self.meta, "share": share * float(self.meta.get("share", 1.0))}
        return Gate(1 + share * (self.gate - 1), self.site, self.absent, 0, meta)

    def apply(self, model: NetworkLike) -> Scaling:
        """Put the gate to work on a model until ``remove()`` of what is returned is called.

        Raises:
            ShapeError: The gate is of another shape.
            GateError: The model is at work under a gate already: gates do not nest.
        """
        return scale(model, self.gate, site=self.site)

    @property
    def digest(self) -> str:
        """Hexadecimal digest of factors and site."""
        return hashlib.sha256(self.site.encode() + self.gate.numpy().tobytes()).hexdigest()[:32]

    @property
    def moved(self) -> int:
        """How many factors are not 1."""
        return int((self.gate != 1).sum())

    def save(self, path: str | Path) -> None:
        """Write the artefact.

        Raises:
            ArtifactError: The file could not be written.
        """
        meta = {**self.meta, "kind": KIND, "site": self.site, "absent": self.absent, "clipped": self.clipped}
        save_artifact(as_path(path), {"gate": self.gate}, meta)

    @classmethod
    def load(cls, path: str | Path) -> "Gate":
        """Read a gate.

        Raises:
            ArtifactError: The file is missing, damaged or no gate.
            GateError: Its factors cannot be used.
        """
        artifact = load_artifact(as_path(path), kind=KIND)
        own = ("kind", "format_version", "site", "absent", "clipped")
        meta = {key: value for key, value in artifact.meta.items() if key not in own}
        try:
            absent = tuple((int(layer), int(head)) for layer, head in artifact.meta.get("absent", []))
            clipped = int(artifact.meta.get("clipped", 0))
            if artifact.tensors["gate"].is_complex():
                raise ValueError("complex factors")
            if artifact.tensors["gate"].ndim != 2:
                raise ValueError(f"an array of shape {list(artifact.tensors['gate'].shape)}")
            factors = artifact.tensors["gate"].float()
            shape = tuple(factors.shape)
            if any(not (0 <= place < size) for pair in absent for place, size in zip(pair, shape, strict=True)):
                raise ValueError(f"absent heads outside {shape}")
            site = artifact.meta.get("site", "z")
            if site not in ("z", "output"):
                raise ValueError(f"site {site!r}")
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is not whole",
                expected="a tensor gate [layers, heads], site z or output, and absent as pairs",
                got=f"{type(error).__name__}: {error}",
                fix="write it again with `truthheads gate` or `truthheads tune`",
            ) from error
        return cls(factors, site, absent, clipped, meta)

    def table(self, count: int = 10) -> list[HeadFactor]:
        """Return the heads whose factors are farthest from 1 as rows: head, factor."""
        distance = (self.gate - 1).abs().flatten()
        order = torch.argsort(distance, descending=True, stable=True)[:count]
        heads = [divmod(int(i), self.gate.shape[1]) for i in order if distance[i] > 0]
        return [{"head": f"L{layer}H{head}", "factor": float(self.gate[layer, head])} for layer, head in heads]

    def to_pandas(self) -> Any:
        """Return the factors of all heads, layer by layer, as a pandas DataFrame.

        Raises:
            TruthHeadsError: pandas is not installed.
        """
        layers, heads = self.gate.shape
        return data_frame(
            {**head_place(layer, head), "factor": float(self.gate[layer, head])}
            for layer in range(layers)
            for head in range(heads)
        )

    def in_short(self) -> str:
        """Return shape, site, and how far the factors reach."""
        layers, heads = self.gate.shape
        low, high = float(self.gate.min()), float(self.gate.max())
        return f"{layers} layers x {heads} heads at {self.site}, factors {low:.3f} to {high:.3f}, {self.moved} not 1"

    def describe(self) -> GateInfo:
        """Summarise a gate in figures: shape, site, range, spread, number of factors that are not 1 or were clipped."""
        there = self.gate[~self._absent_mask()]
        return {
            "num_layers": self.gate.shape[0],
            "num_heads": self.gate.shape[1],
            "site": self.site,
            "digest": self.digest,
            "min": float(there.min()),
            "max": float(there.max()),
            "mean": float(there.mean()),
            "sd": float(there.std(correction=0)),
            "moved": self.moved,
            "negative": int((there < 0).sum()),
            "clipped": self.clipped,
        }

    def chart(self) -> Any:
        """Return the heat map of layers × heads as an Altair chart."""
        shown = torch.where(self._absent_mask(), float("nan"), self.gate)
        made_from = self.meta.get("scores")
        source = made_from if isinstance(made_from, Mapping) and made_from else self.meta
        name, questions = of_model(source), source.get("questions")
        notes = [
            f"Each square is a head and its factor: 1 leaves it as it is, 0 mutes it, below 0 flips its sign. "
            f"{self.moved} of {int(shown.isfinite().sum())} heads have another factor than 1.",
            *told_rows(source, questions if isinstance(questions, int) else None),
        ]
        title = f"gate per head, site {self.site}{f': {name}' if name else ''}"
        return heat_map(shown.numpy(), title=title, unit="factor", middle=1.0, notes=notes)

    def _repr_html_(self) -> str:
        return chart_html(self.chart())  # a notebook may have no network

    def _absent_mask(self) -> Bool[Tensor, "num_layers num_heads"]:
        mask = torch.zeros(self.gate.shape, dtype=torch.bool)
        for layer, head in self.absent:
            mask[layer, head] = True
        return mask


if TYPE_CHECKING:
    GateLike: TypeAlias = Gate | str | Path
else:  # what is no gate is answered in our words, not in those of a type checker at run time
    GateLike = object


def as_gate(gate: GateLike) -> Gate:
    """Return the gate that a person means: one, or the file of one.

    Raises:
        GateError: It is neither.
        ArtifactError: The file cannot be read.
    """
    if isinstance(gate, str | Path):
        return Gate.load(gate)
    if isinstance(gate, Gate):
        return gate
    raise GateError(
        "what was given is not a gate",
        expected="a Gate, or the path of a gate file",
        got=f"{type(gate).__module__}.{type(gate).__name__}".removeprefix("builtins."),
        fix="make one: Gate.from_scores(scores), or Gate(gate=factors) with one factor for each layer and head",
    )


@contextmanager
def gated(model: NetworkLike, gate: GateLike) -> Iterator[Scaling]:
    """Put a gate to work inside the block; on exit, also after an error, the model is bit for bit itself.

    Generation, batches, caches, multimodal wrappers and ``torch.compile`` work inside; compiled models are compiled
    anew at both ends of the block. Gates do not nest.

    Raises:
        ShapeError: The gate is of another shape.
        GateError: The model is at work under a gate already; or what was given is no gate.
        ModelError: What was given is no model that is loaded.
    """
    with as_gate(gate).apply(model) as scaling:
        yield scaling


def _pairs(mask: Bool[Tensor, "num_layers num_heads"]) -> tuple[tuple[int, int], ...]:
    return tuple((int(layer), int(head)) for layer, head in mask.nonzero())
