"""How well a score tells supported answers from others, beside scores that need no heads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from truthheads.data.questions import Question
from truthheads.models.forward import Progress, answer_logprobs, plan_batches, prepare_tails, run_batches
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded
from truthheads.results.detector import BaselineResult, DetectionFigures
from truthheads.scoring.activations import first_answers
from truthheads.scoring.probes import newton_probe
from truthheads.stats.calibration import calibration_error, reliability, roc_points
from truthheads.stats.figures import Figure
from truthheads.stats.resampling import (
    Curve,
    Draws,
    Measured,
    Resampling,
    Sums,
    resample,
    resample_metrics,
    weighted_auroc,
)

LOGP, LOGP_TOKEN, FORM, LENGTH = "log P", "log P per token", "form probe", "length"

CALIBRATION_DRAWS = 200


AT_ONCE = 256
"""Questions whose tokens are in memory at once for log-probabilities."""


def halves(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """Return callbacks for the two halves of the work: the heads, then log-probabilities."""
    if progress is None:
        return None, None
    told = progress
    return lambda done, total: told(done, 2 * total), lambda done, total: told(total + done, 2 * total)


def part_of(progress: Progress | None, first: int, count: int, whole: int) -> Progress | None:
    """Return a callback for a part of the rows, ``count`` of ``whole`` from ``first`` on."""
    if progress is None:
        return None
    told = progress
    return lambda done, total: told(first + count * done // max(1, total), whole)


def answer_likelihoods(
    model: Model,
    questions: Sequence[Question],
    tokens: Callable[[Sequence[Question]], list[Encoded]],
    *,
    batch_tokens: int,
    progress: Progress | None = None,
) -> Float[np.ndarray, "answers 2"]:
    """Return log P of every answer in nats, and the same per token; answers counted through.

    Args:
        model: The model.
        questions: Read a few hundred at a time.
        tokens: Makes their tokens.
        batch_tokens: Padded tokens in a batch, at most.
        progress: Called with the work done and the total.
    """
    parts = []
    for start in range(0, len(questions), AT_ONCE):
        part = questions[start : start + AT_ONCE]
        told = part_of(progress, start, len(part), len(questions))
        parts.append(_likelihoods(model, tokens(part), batch_tokens, told))
    return np.concatenate(parts)


def _likelihoods(
    model: Model, encoded: Sequence[Encoded], batch_tokens: int, progress: Progress | None
) -> Float[np.ndarray, "answers 2"]:
    first = first_answers(encoded)
    place = {id(item): at for item, at in zip(encoded, first, strict=True)}
    found = np.full((sum(len(item.tails) for item in encoded), 2), np.nan)

    def step(batch: Sequence[Encoded]) -> None:
        with torch.inference_mode():
            total = answer_logprobs(model, prepare_tails(model, batch)).double().cpu().numpy()
        rows = [place[id(item)] + k for item in batch for k in range(len(item.tails))]
        tokens = [len(tail) - start for item in batch for tail, start in zip(item.tails, item.starts, strict=True)]
        found[rows, 0] = total
        found[rows, 1] = total / np.array(tokens)

    batches = plan_batches(encoded, batch_tokens=batch_tokens)
    run_batches(model, encoded, batches, step, done=set(), complete=lambda _: None, progress=progress)
    return found


def form_scores(
    features: Float[np.ndarray, "n features"], label: Bool[np.ndarray, " n"], fold: Int[np.ndarray, " n"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Return out-of-fold logits from the answers' form alone, and from their length alone.

    Args:
        features: ``scoring.form_probe.form_features`` of each answer; the first two are characters and words.
        label: True for supported answers.
        fold: Fold of each answer.
    """
    length = np.log1p(features[:, :2].astype(float))
    return {name: _logit(values, label, fold) for name, values in ((FORM, features), (LENGTH, length))}


def _logit(
    features: Float[np.ndarray, "n features"], label: Bool[np.ndarray, " n"], fold: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    mean, spread = features.mean(0, dtype=float), features.std(0, dtype=float)
    scaled = ((features - mean) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    fits = newton_probe(torch.from_numpy(scaled)[None], torch.from_numpy(label).float(), torch.from_numpy(fold))
    logit: Float[np.ndarray, " n"] = fits.logit[:, 0].double().numpy()
    return logit


def detection_figures(
    score: Float[np.ndarray, " n"],
    probability: Float[np.ndarray, " n"],
    predicted: Bool[np.ndarray, " n"],
    label: Bool[np.ndarray, " n"],
    groups: Sequence[str] | Int[np.ndarray, " n"],
    *,
    kinds: Sequence[str | None],
    baselines: Mapping[str, Float[np.ndarray, " n"]],
    seed: int,
) -> DetectionFigures:
    """Return every figure of a detector, with intervals by bootstrap over groups.

    Args:
        score: The detector's, on rows that it was not fitted on.
        probability: What it makes of them.
        predicted: True where it says supported.
        label: True for supported answers.
        groups: Group of each answer.
        kinds: Kind of each answer's row, None where it has none.
        baselines: Simpler scores of the same answers.
        seed: Random seed of the bootstrap.
    """
    every = np.arange(len(label))
    clusters = [str(one) for one in groups]
    resampling = resample(clusters, seed=seed)
    measured = Measured(
        features={
            "right good": (predicted & label).astype(float),
            "right bad": (~predicted & ~label).astype(float),
            "good": label.astype(float),
            "bad": (~label).astype(float),
            "said": predicted.astype(float),
            "squared": (probability - label) ** 2,
            "one": np.ones(len(label)),
        },
        clusters=clusters,
        metrics={"balanced_accuracy": _balanced, "f1": _f1, "brier": lambda sums: sums["squared"] / sums["one"]},
        curves={name: Curve(values, label, every) for name, values in {"auroc": score, **baselines}.items()},
        primary="auroc",
    )
    drawn = resample_metrics(measured, resampling)
    own = drawn["auroc"]
    metrics = {name: drawn[name].figure().json() for name in ("auroc", "balanced_accuracy", "f1", "brier")}
    metrics["calibration_error"] = _calibration(probability, label, resampling).json()
    found: dict[str, BaselineResult] = {}
    for name in baselines:
        gain = Draws(own.value - drawn[name].value, own.draws - drawn[name].draws, own.clusters)
        found[name] = {"auroc": drawn[name].figure().json(), "gain": gain.figure().json()}
    as_good = [name for name, one in found.items() if not (one["gain"]["low"] or 0.0) > 0]
    named = sorted({kind for kind in kinds if kind})
    by_kind = {}
    for kind in named if len(named) > 1 else []:
        rows = np.array([one == kind for one in kinds])
        curve = Curve(score[rows], label[rows], np.flatnonzero(rows))
        index = resampling.cluster[curve.items]
        once = np.ones((1, resampling.weights.shape[1]))
        value = float(weighted_auroc(curve, once, index)[0])
        draws = weighted_auroc(curve, resampling.weights, index)
        by_kind[kind] = Draws(value, draws, len(np.unique(index))).figure().json()
    return {
        "rows": len(label),
        "groups": resampling.weights.shape[1],
        "supported": int(label.sum()),
        "metrics": metrics,
        "kinds": by_kind,
        "baselines": found,
        "as_good": as_good,
        "verdict": _verdict(own.value, found, as_good),
        "roc": {
            name: {"false_positive": points.false_positive, "true_positive": points.true_positive}
            for name, values in {"detector": score, **baselines}.items()
            for points in [roc_points(values, label)]
        },
        "reliability": reliability(probability, label)._asdict(),  # type: ignore[typeddict-item]
    }


def _balanced(sums: Sums) -> Any:
    return (sums["right good"] / sums["good"] + sums["right bad"] / sums["bad"]) / 2


def _f1(sums: Sums) -> Any:
    return 2 * sums["right good"] / (sums["said"] + sums["good"])


def _calibration(probability: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"], resampling: Resampling) -> Figure:
    """Return the expected calibration error; resampling adds noise, so its upper end errs on the high side."""
    value = calibration_error(probability, label)
    draws = []
    for weights in resampling.weights[:CALIBRATION_DRAWS]:
        rows = np.repeat(np.arange(len(label)), weights[resampling.cluster].astype(int))
        draws.append(calibration_error(probability[rows], label[rows]))
    found = Draws(value, np.array(draws), resampling.weights.shape[1]).figure()
    return Figure(value, min(value, found.low), max(value, found.high))


def _verdict(own: float, found: Mapping[str, BaselineResult], as_good: Sequence[str]) -> str:
    if not found:
        return f"AUROC {own:.3f}"
    if not as_good:
        best = max(found, key=lambda name: found[name]["auroc"]["value"] or 0.0)
        gain = Figure.of(found[best]["gain"])
        return f"the heads tell more than {', '.join(found)}: AUROC {own:.3f}, {gain} above {best}"
    told = ", ".join(f"{name} ({found[name]['auroc']['value']:.3f})" for name in as_good)
    return f"as good as the heads (AUROC {own:.3f}) on these rows, or not shown to be worse: {told}"
