"""Probes of all layers from activations on disk: layer by layer, and few heads at once where rows are many."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file

from truthheads.data.answers import Answers
from truthheads.errors import ArtifactError
from truthheads.models.architectures import HeadLayer, HeadLayout
from truthheads.results.scores import LARGEST
from truthheads.scoring.activations import Activations
from truthheads.scoring.probes import Probe, fold_accuracies, probe_metrics
from truthheads.stats.overlap import Overlap, between, overlap_of
from truthheads.storage.distributed import barrier, leave, my_share, ranks
from truthheads.storage.files import dumps, replaced
from truthheads.storage.row_store import made_room

BLOCK_BYTES = 1 << 26
"""Memory for a block of heads on a CPU; an accelerator is given sixteen times as much, or it waits for its orders."""

WORTH_KEEPING = 50_000
"""Answers from which a layer's probes are kept on disk until all are there: a run that is killed goes on from them."""


class Subset(NamedTuple):
    """Some of the answers, on which probes of their own are cross-validated.

    Attributes:
        rows: Their numbers.
        fold: The fold of each, counted from 0.
    """

    rows: Int[np.ndarray, " members"]
    fold: Int[np.ndarray, " members"]


class Fits(NamedTuple):
    """What the probes of every head found; NaN where a layer has no such head.

    Attributes:
        accuracy: For each subset the mean of the folds' accuracies; NaN where a subset is None.
        auroc: As in :class:`truthheads.scoring.probes.HeadMetrics`, of the first subset, as all that follows.
        pair_accuracy: The same.
        fold_accuracy: The same.
        right: For each answer the number of heads that place it right, out of fold.
        sample: Out-of-fold logits of the answers to keep.
        weight: Probes fitted on all answers.
        bias: Their intercepts.
        dependence: Dependence of answers, as in :class:`truthheads.stats.overlap.Overlap`.
        pair_dependence: Dependence of pairs, the same.
        layer_dependence: Variance that training folds which overlap add to one answer's mean over a layer's heads.
        mean_dependence: The same over all heads.
    """

    accuracy: Float[np.ndarray, "subsets num_layers num_heads"]
    auroc: Float[np.ndarray, "num_layers num_heads"]
    pair_accuracy: Float[np.ndarray, "num_layers num_heads"]
    fold_accuracy: Float[np.ndarray, "folds num_layers num_heads"]
    right: Int[np.ndarray, " n"]
    sample: Float[np.ndarray, "kept num_layers num_heads"]
    weight: Float[np.ndarray, "num_layers num_heads head_dim"]
    bias: Float[np.ndarray, "num_layers num_heads"]
    dependence: Float[np.ndarray, "num_layers num_heads"]
    pair_dependence: Float[np.ndarray, "num_layers num_heads"]
    layer_dependence: Float[np.ndarray, " num_layers"]
    mean_dependence: float


HEAD_BY_HEAD = (
    "accuracy", "auroc", "pair_accuracy", "fold_accuracy", "sample", "bias", "dependence", "pair_dependence"
)  # fmt: skip

Layer = dict[str, np.ndarray]
"""The same of one layer: names to arrays."""


def fit_probes(
    activations: Activations,
    layout: HeadLayout,
    answers: Answers,
    subsets: Sequence[Subset | None],
    kept: Int[np.ndarray, " kept"],
    *,
    probe: Probe,
    device: torch.device,
    made_from: object,
) -> Fits:
    """Fit and cross-validate the probes of every head, on all answers and on each subset.

    Several processes share the layers; the first returns the whole.

    Args:
        activations: From :func:`truthheads.scoring.activations.gather`.
        layout: Where the heads are.
        answers: Labels and questions of the answers.
        subsets: The first holds all answers; None where a subset is too small.
        kept: Answers whose logits are to be kept.
        probe: Fits a block of heads.
        device: Where probes are fitted.
        made_from: What the fits depend on, as JSON; fits of something else that lie on disk are removed.

    Raises:
        NotFirstRank: In every process but the first.
    """
    folder: Path | None = None
    place = ranks()
    if place.several or len(answers.label) >= WORTH_KEEPING:
        folder = activations.folder / "probes"
        if place.rank == 0:
            made_room(folder, {"made from": dumps(made_from)})
        barrier()
    mine = my_share([head.num_heads * head.head_dim for head in layout.layers])
    found: dict[int, Layer] = {}
    for number, head in enumerate(layout.layers):
        file = None if folder is None else folder / f"layer-{head.index}.safetensors"
        if number not in mine or (file is not None and file.is_file()):
            continue
        layer = _fit_layer(activations, head, answers, subsets, kept, probe=probe, device=device)
        if file is None:
            found[head.index] = layer
            continue
        with replaced(file) as temporary:
            save_file(layer, temporary)
    barrier()
    if place.rank:
        leave()
    return _assembled(layout, answers, subsets, len(kept), lambda index: found.get(index) or _load(folder, index))


def _load(folder: Path | None, index: int) -> Layer:
    assert folder is not None
    file = folder / f"layer-{index}.safetensors"
    if not file.is_file():
        raise ArtifactError(
            f"the probes of layer {index} are missing in {folder}",
            expected="what every process wrote",
            got="no such file",
            fix="use a folder that every machine sees, and start again",
        )
    return load_file(file)


def _fit_layer(
    activations: Activations,
    head: HeadLayer,
    answers: Answers,
    subsets: Sequence[Subset | None],
    kept: Int[np.ndarray, " kept"],
    *,
    probe: Probe,
    device: torch.device,
) -> Layer:
    n = len(answers.label)
    at_once = heads_at_once(n, head.head_dim, activations.dtype, device)
    blocks: list[Layer] = []
    right = np.zeros(n, dtype=np.int32)
    shift: Float[np.ndarray, "folds clusters"] | None = None
    shift_fold = np.zeros(0, dtype=np.int64)
    for first in range(0, head.num_heads, at_once):
        z = activations.heads(head, first, min(first + at_once, head.num_heads)).to(device)
        block, logit, overlap = fit_block(z, answers, subsets, probe)
        shift, shift_fold = overlap.shift if shift is None else shift + overlap.shift, overlap.fold
        right += ((logit > 0) == answers.label[:, None]).sum(1, dtype=np.int32)
        block["sample"] = logit[kept].clip(-LARGEST, LARGEST).astype(np.float16)
        blocks.append(block)
    layer = {name: np.concatenate([block[name] for block in blocks], axis=-1) for name in HEAD_BY_HEAD}
    layer["weight"] = np.concatenate([block["weight"] for block in blocks])
    assert shift is not None
    return {**layer, "right": right, "shift": shift, "shift_fold": shift_fold}


def heads_at_once(n: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many heads are fitted together: z as stored, its fp32 copy and a few numbers a fit take little memory.

    Args:
        n: Answers.
        head_dim: Width of a head.
        dtype: Type in which z is stored.
        device: Where probes are fitted.
    """
    each = n * (head_dim * (dtype.itemsize + 4) + 160)
    return max(1, BLOCK_BYTES * (1 if device.type == "cpu" else 16) // each)


def fit_block(
    z: torch.Tensor, answers: Answers, subsets: Sequence[Subset | None], probe: Probe
) -> tuple[Layer, Float[np.ndarray, "n heads"], Overlap]:
    """Fit and cross-validate the probes of some heads; return their figures, held-out logits and dependence.

    Args:
        z: Activations ``[heads, n, head_dim]``.
        answers: Labels and questions of the answers.
        subsets: As in :func:`fit_probes`; the first is there.
        probe: Fits a block of heads.
    """
    block: Layer = {}
    overlap: Overlap | None = None
    accuracy = np.full((len(subsets), len(z)), np.nan)
    whole = np.full((len(answers.label), len(z)), np.nan, dtype=np.float32)
    for i, subset in enumerate(subsets):
        if subset is None:
            continue
        label = answers.label[subset.rows]
        own = z if i == 0 else z[:, torch.from_numpy(subset.rows).to(z.device)]
        fits = probe(own, torch.from_numpy(label).float().to(z.device), torch.from_numpy(subset.fold).to(z.device))
        logit = fits.logit.cpu().numpy()
        if i:
            accuracy[i] = fold_accuracies(logit, label, subset.fold).mean(0)
            continue
        metrics = probe_metrics(logit, label, subset.fold, answers.question[subset.rows])
        accuracy[0], whole = metrics.accuracy, logit
        overlap = overlap_of(fits.fold_logit, label, subset.fold, answers.group[subset.rows])
        block = {
            "auroc": metrics.auroc,
            "pair_accuracy": metrics.pair_accuracy,
            "fold_accuracy": metrics.fold_accuracy,
            "weight": fits.weight.cpu().numpy(),
            "bias": fits.bias.cpu().numpy(),
            "dependence": overlap.answers,
            "pair_dependence": overlap.pairs,
        }
    assert overlap is not None
    return {**block, "accuracy": accuracy}, whole, overlap


def _assembled(
    layout: HeadLayout,
    answers: Answers,
    subsets: Sequence[Subset | None],
    kept: int,
    layer_of: Callable[[int], Layer],
) -> Fits:
    folds = 0 if subsets[0] is None else int(subsets[0].fold.max()) + 1

    def nothing(*shape: int, dtype: type = np.float64) -> np.ndarray:
        return np.full(shape, np.nan, dtype=dtype)

    fits = Fits(
        accuracy=nothing(len(subsets), *layout.shape),
        auroc=nothing(*layout.shape),
        pair_accuracy=nothing(*layout.shape),
        fold_accuracy=nothing(folds, *layout.shape),
        right=np.zeros(len(answers.label), dtype=np.int64),
        sample=nothing(kept, *layout.shape, dtype=np.float16),
        weight=nothing(*layout.shape, layout.head_dim, dtype=np.float32),
        bias=nothing(*layout.shape, dtype=np.float32),
        dependence=nothing(*layout.shape, dtype=np.float32),
        pair_dependence=nothing(*layout.shape, dtype=np.float32),
        layer_dependence=nothing(layout.shape[0], dtype=np.float32),
        mean_dependence=float("nan"),
    )
    total: np.ndarray | float = 0.0
    for head in layout.layers:
        layer, where = layer_of(head.index), slice(0, head.num_heads)
        fits.weight[head.index, where, : head.head_dim] = layer["weight"]
        fits.right[:] += layer["right"]
        for name in HEAD_BY_HEAD:
            getattr(fits, name)[..., head.index, where] = layer[name]
        fits.layer_dependence[head.index] = between(layer["shift"], layer["shift_fold"]) / head.num_heads**2
        total, of_fold = total + layer["shift"], layer["shift_fold"]
    heads = sum(head.num_heads for head in layout.layers)
    return fits._replace(mean_dependence=between(np.asarray(total), of_fold) / heads**2)


def subset_of(rows: Bool[np.ndarray, " n"], answers: Answers, fold: Int[np.ndarray, " n"]) -> Subset | None:
    """Return a subset, or None where it cannot be cross-validated: two folds, and both labels outside each of them."""
    members = np.flatnonzero(rows)
    names, parts = np.unique(fold[members], return_inverse=True)
    label = answers.label[members]
    for part in range(len(names)):
        outside = label[parts != part]
        if outside.all() or not outside.any():
            return None
    return Subset(members, parts.reshape(-1)) if len(names) > 1 else None
