"""How well a detector does on labelled rows, beside simpler scores and beside other detectors' columns."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from truthheads.data.answers import describe_data, list_answers
from truthheads.data.questions import Question
from truthheads.detection.detect import prepare, write_detections
from truthheads.detection.figures import LOGP, LOGP_TOKEN, answer_likelihoods, detection_figures, form_scores, halves
from truthheads.errors import DataError
from truthheads.models.forward import Progress, shares_prefix
from truthheads.models.load import Model
from truthheads.models.prompts import encode
from truthheads.results.detections import read_detections
from truthheads.results.detector import DetectionFigures, Detector
from truthheads.results.evaluation import SUMMARY, DetectionEvaluation, Mistake, RunResult
from truthheads.scoring.form_probe import form_features
from truthheads.scoring.probes import NUM_FOLDS, dealt_folds
from truthheads.stats.figures import Figure
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import write_json

TASK = "detect"

DETECTIONS = "detections.jsonl"

MISTAKES = 8
"""Mistakes of each kind that a summary holds, the most confident ones."""

SHOWN = 2_000
"""Characters of a context that a mistake is shown with."""


def evaluate_detector(
    model: Model,
    questions: Sequence[Question],
    *,
    out: str | Path,
    detector: Detector | None = None,
    beside: Sequence[str] = (),
    threshold: float | None = None,
    chat: bool | None = None,
    truncate: bool = False,
    batch_tokens: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> DetectionEvaluation:
    """Run a detector over labelled rows and measure how well it tells supported answers from others.

    Args:
        model: From :func:`truthheads.load`.
        questions: Labelled rows; with ``beside`` read with ``columns=True``.
        out: Folder for ``detections.jsonl`` and ``summary.json``.
        detector: As for :func:`truthheads.detect`.
        beside: Columns of the rows that hold other detectors' scores, larger where an answer is supported.
        threshold: As for :func:`truthheads.detect`.
        chat: As for :func:`truthheads.detect`.
        truncate: As for :func:`truthheads.detect`.
        batch_tokens: As for :func:`truthheads.detect`.
        seed: Random seed of folds and bootstraps.
        progress: Called with the work done and the total.

    Raises:
        DataError: Rows without a label, or a column of ``beside`` that is not there or holds no numbers.
        ArtifactError: The folder cannot be written to.
    """
    bare = sum(not question.labelled for question in questions)
    if bare or not questions:
        raise DataError(
            "a detector cannot be measured on answers without a label",
            expected="a label in every row (1 supported, 0 not), or truthful and untruthful answers",
            got=f"{bare} of {len(questions)} rows without one",
            fix="label the rows, or use `truthheads detect`, which needs no labels",
        )
    others = beside_scores(questions, beside)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    ready = prepare(
        model, detector=detector, threshold=threshold, chat=chat, truncate=truncate, batch_tokens=batch_tokens
    )
    path = folder / DETECTIONS
    through, again = halves(progress)
    made = write_detections(model, questions, ready, path, progress=through)
    answers = list_answers(questions, seed=seed, features=form_features)
    probability = np.array([one.supported for one in read_detections(path)], dtype=float)
    tokens = partial(encode, model, chat=ready.chat, truncate=truncate, share_prefix=shares_prefix(model))
    likelihood = answer_likelihoods(model, questions, tokens, batch_tokens=ready.batch_tokens, progress=again)
    baselines = {LOGP: likelihood[:, 0], LOGP_TOKEN: likelihood[:, 1]}
    folds = min(NUM_FOLDS, len(answers.order))
    if folds > 1 and answers.label.any() and not answers.label.all():
        fold = dealt_folds(answers.group, answers.order, num_folds=folds)
        baselines |= form_scores(answers.features, answers.label, fold)
    predicted = probability >= ready.cuts.high
    figures = detection_figures(
        _logit(probability),
        probability,
        predicted,
        answers.label,
        answers.group,
        kinds=[answers.kinds[kind] if kind >= 0 else None for kind in answers.kind],
        baselines=baselines | others,
        seed=seed,
    )
    how = provenance()
    summary: DetectionEvaluation = {
        "task": TASK,
        "rows": len(answers.label),
        "primary": "auroc",
        "runs": _runs(figures),
        "settings": {
            "data": describe_data(questions, digest=answers.digest),
            "model": model.describe(),
            "detector": made["detector"],
            "threshold": ready.cuts.high,
            "chat": ready.chat,
            "truncate": truncate,
            "seed": seed,
            "packages": how["packages"],
            "command": how["command"],
        },
        "notes": [*ready.warnings, *([figures["verdict"]] if figures["as_good"] else [])],
        "detection": figures,
        "mistakes": _mistakes(path, questions, predicted, answers.label, probability, ready.cuts.high),
    }
    write_json(folder / SUMMARY, summary)
    return summary


def beside_scores(questions: Sequence[Question], names: Sequence[str]) -> dict[str, Float[np.ndarray, " answers"]]:
    """Return other detectors' scores of every answer, from the rows' own columns.

    Raises:
        DataError: A column is not there, holds something else than numbers, or the rows are pairs.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    for question in questions:
        for name in names:
            value = (question.columns or {}).get(name)
            number = float(value) if isinstance(value, int | float) else _number(value)
            if not math.isfinite(number) or len(question.answers) != 1:
                raise DataError(
                    f"--beside {name} cannot be read in row {question.id!r}",
                    expected="one answer in a row, and a number in that column",
                    got="two answers" if len(question.answers) != 1 else repr(value)[:60],
                    fix=f"choose one of: {', '.join(question.columns or {}) or 'no columns'}",
                )
            found[name].append(number)
    return {name: np.array(values, dtype=float) for name, values in found.items()}


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return math.nan


def _logit(probability: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    inside = np.clip(probability, 1e-12, 1 - 1e-12)
    found: Float[np.ndarray, " n"] = np.log(inside) - np.log1p(-inside)
    return found


def _runs(figures: DetectionFigures) -> list[RunResult]:
    """Return the detector as the run ``none``, and every simpler score with its distance from it."""
    runs: list[RunResult] = [
        {
            "name": "none",
            "kind": "none",
            "rows": figures["rows"],
            "metrics": figures["metrics"],
            "effect": {},
            "verdict": None,
        }
    ]
    for name, one in figures["baselines"].items():
        gain = Figure.of(one["gain"])
        runs.append(
            {
                "name": name,
                "kind": "baseline",
                "rows": figures["rows"],
                "metrics": {"auroc": one["auroc"]},
                "effect": {"auroc": Figure(-gain.value, -gain.high, -gain.low).json()},
                "verdict": "as good as the heads" if name in figures["as_good"] else "tells less than the heads",
            }
        )
    return runs


def _mistakes(
    path: Path,
    questions: Sequence[Question],
    predicted: Sequence[bool] | np.ndarray,
    label: np.ndarray,
    probability: Float[np.ndarray, " n"],
    cut: float,
) -> list[Mistake]:
    """Return the answers that are farthest on the wrong side, half of each kind where there are so many."""
    wrong = np.flatnonzero(np.asarray(predicted) != label)
    order = wrong[np.argsort(-np.abs(probability[wrong] - cut), kind="stable")]
    kept: list[int] = []
    for kind in (True, False):
        kept += [int(at) for at in order if bool(label[at]) is kind][:MISTAKES]
    wanted = set(kept)
    place = np.repeat(np.arange(len(questions)), [len(one.answers) for one in questions])
    found = {}
    for at, one in enumerate(read_detections(path)):
        if at in wanted:
            question = questions[int(place[at])]
            found[at] = Mistake(
                id=one.id,
                context=question.context[:SHOWN],
                question=question.question,
                answer=one.answer,
                label=int(label[at]),
                supported=one.supported,
            )
    return [found[at] for at in kept]
