"""Fit a detector: probes of all heads, the best of them, their mean, a calibration; figures on rows left out."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from truthheads.data.answers import Answers, describe_data, list_answers
from truthheads.data.held import QuestionsLike
from truthheads.data.questions import Question
from truthheads.data.readers import as_questions
from truthheads.detection.figures import LOGP, LOGP_TOKEN, answer_likelihoods, detection_figures, form_scores, halves
from truthheads.errors import ArtifactError, DataError
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import Progress, shares_prefix
from truthheads.models.held import ModelLike, as_model
from truthheads.models.load import Model
from truthheads.models.prompts import encode, has_chat_template
from truthheads.results.detector import Detector, DetectorMeta, DetectorSettings
from truthheads.scoring.activations import Activations, gather
from truthheads.scoring.fit import BLOCK_BYTES
from truthheads.scoring.form_probe import form_features
from truthheads.scoring.probes import NUM_FOLDS, dealt_folds, newton_probe
from truthheads.stats.calibration import best_threshold, fit_platt
from truthheads.stats.figures import head_auroc
from truthheads.storage.artifacts import provenance
from truthheads.storage.cache import DETECTORS, cache_dir, mark_used
from truthheads.storage.row_store import work_folder
from truthheads.synthetic.claims import make_claims
from truthheads.synthetic.text import make_text

HEADS = 20

GENERATED_TEXT, GENERATED_CLAIMS = 150, 100
"""Generated rows of short answers, and of answers in sentences."""

CACHE_VERSION = 2
"""To be raised where generated rows, or how a detector is fitted on them, change."""


def generated_rows(*, seed: int = 0) -> list[Question]:
    """Write the rows that a detector is fitted on where none are given: short answers, sentences and summaries."""
    return [
        *make_text(GENERATED_TEXT, seed=seed, split="dev"),
        *make_claims(GENERATED_CLAIMS, seed=seed, split="dev"),
    ]


def default_detector(
    model: Model,
    *,
    chat: bool | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> Detector:
    """Return the model's detector fitted on generated rows; fitted once, then kept in the cache folder.

    Log P is not measured with it: what it is worth is seen on a person's own rows.

    Args:
        model: The model.
        chat: As for :func:`fit_detector`.
        batch_tokens: As for :func:`fit_detector`.
        progress: As for :func:`fit_detector`.
    """
    chat = has_chat_template(model) if chat is None else chat
    dtype = str(model.dtype).removeprefix("torch.")
    name = f"{model.fingerprint}-{dtype}-{'chat' if chat else 'plain'}-v{CACHE_VERSION}.safetensors"
    path = cache_dir() / DETECTORS / re.sub(r"[^\w.-]", "_", name)
    try:
        kept = Detector.load(path)
        kept.check(model, chat=chat)
        mark_used(path)
    except ArtifactError:
        kept = fit_detector(model, chat=chat, batch_tokens=batch_tokens, likelihoods=False, progress=progress)
        with suppress(ArtifactError, OSError):  # a cache that cannot be written to costs time, no more
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.save(path)
    return kept


def fit_detector(
    model: ModelLike,
    questions: QuestionsLike | None = None,
    *,
    heads: int = HEADS,
    chat: bool | None = None,
    seed: int = 0,
    num_folds: int = NUM_FOLDS,
    truncate: bool = False,
    batch_tokens: int | None = None,
    likelihoods: bool = True,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Detector:
    """Fit a detector of answers that their context does not support.

    A probe is fitted on every head's z at the answer's last token. The mean logit of the best heads is the score. In
    each fold, heads are chosen on the other folds and probes fitted on them, so that all figures, the calibration and
    the threshold rest on rows that were left out.

    Args:
        model: A model's name, or what :func:`truthheads.load` returned.
        questions: Labelled rows, in memory or in a file: pairs, or answers with a label. None: generated rows of
            several kinds.
        heads: How many heads to combine.
        chat: Wrap the prompt in the chat template; None: where the tokenizer has one.
        seed: Random seed of generated rows, folds and bootstraps.
        num_folds: Folds; a group of rows is never divided.
        truncate: Drop the start of contexts that are too long.
        batch_tokens: Padded tokens in a batch, at most; None chooses by device.
        likelihoods: Measure log P of the answers, too, to tell whether it is as good; this takes as long again.
        work_dir: Folder for activations; a run that was killed goes on from it. None: a temporary one.
        progress: Called with the work done and the total.

    Raises:
        DataError: A row has no label, all have one, there are fewer groups than folds, or ``heads`` is below 1.
        ModelError: ``chat`` with a tokenizer that has no chat template.
        ActivationError: A forward pass gave NaN or infinity, or memory ran out on a single question.
    """
    if heads < 1:
        raise DataError("too few heads", expected="--heads of at least 1", got=str(heads), fix="leave --heads out")
    generated = questions is None
    rows = generated_rows(seed=seed) if questions is None else as_questions(questions, answers=True)
    _check_labels(rows)
    model = as_model(model)
    chat = has_chat_template(model) if chat is None else chat
    batch_tokens = batch_tokens or pick_batch_tokens(model.device)
    answers = list_answers(rows, seed=seed, features=form_features)
    if answers.label.all() or not answers.label.any():
        raise DataError(
            "all answers have one label",
            expected="supported and unsupported answers",
            got=f"{len(answers.label)} of one kind",
            fix="give rows of both kinds, or none: a detector can be fitted on generated rows",
        )
    fold = dealt_folds(answers.group, answers.order, num_folds=num_folds)
    settings: DetectorSettings = {
        "heads": heads,
        "chat": chat,
        "truncate": truncate,
        "num_folds": num_folds,
        "dtype": str(model.dtype).removeprefix("torch."),
        "generated": generated,
    }
    made = provenance()
    told = describe_data(rows, digest=answers.digest)
    tokens = partial(encode, model, chat=chat, truncate=truncate, share_prefix=shares_prefix(model))
    through, again = halves(progress) if likelihoods else (progress, None)
    with work_folder(work_dir) as folder:
        activations = gather(
            model,
            rows,
            np.bincount(answers.question, minlength=len(rows)),
            answers.size,
            tokens,
            folder,
            made_from={"model": model.describe(), "data": told, "settings": settings, "packages": made["packages"]},
            batch_tokens=batch_tokens,
            progress=through,
        )
        try:
            probes = _all_probes(model, activations, answers, fold)
        finally:
            activations.close()
    combined = combine(probes.logit, answers.label, fold, heads=heads)
    baselines = form_scores(answers.features, answers.label, fold)
    if likelihoods:
        likelihood = answer_likelihoods(model, rows, tokens, batch_tokens=batch_tokens, progress=again)
        baselines = {LOGP: likelihood[:, 0], LOGP_TOKEN: likelihood[:, 1], **baselines}
    figures = detection_figures(
        combined.score,
        combined.probability,
        combined.predicted,
        answers.label,
        answers.group,
        kinds=[answers.kinds[kind] if kind >= 0 else None for kind in answers.kind],
        baselines=baselines,
        seed=seed,
    )
    platt = fit_platt(combined.score, answers.label)
    meta: DetectorMeta = {
        "model": model.describe(),
        "data": {**told, "layout": "generated"} if generated else told,
        "settings": settings,
        "seed": seed,
        "packages": made["packages"],
        "command": made["command"],
        "figures": figures,
    }
    best = combined.best
    return Detector(
        heads=probes.heads[best],
        weight=probes.weight[best],
        bias=probes.bias[best],
        auroc=torch.from_numpy(head_auroc(probes.logit[:, best], answers.label)).float(),
        platt=torch.tensor(platt, dtype=torch.float64),
        threshold=best_threshold(platt.probability(combined.score), answers.label),
        sample_score=torch.from_numpy(combined.score).float(),
        sample_label=torch.from_numpy(answers.label.astype(np.int64)),
        sample_group=torch.from_numpy(answers.group),
        meta=meta,
    )


class Combined(NamedTuple):
    """The mean logit of the best heads.

    Attributes:
        best: The heads chosen on all rows, the best first.
        score: Score of each row, by heads chosen on the other folds and probes fitted on them.
        probability: The score under a calibration on the other folds.
        predicted: True where it reaches the threshold that is best on the other folds.
    """

    best: Int[np.ndarray, " chosen"]
    score: Float[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]
    predicted: Bool[np.ndarray, " n"]


def combine(
    logit: Float[np.ndarray, "n heads"], label: Bool[np.ndarray, " n"], fold: Int[np.ndarray, " n"], *, heads: int
) -> Combined:
    """Choose heads and combine them, in each fold by the other folds alone.

    Args:
        logit: Out-of-fold logits of all heads.
        label: True for supported answers.
        fold: Fold of each answer.
        heads: How many to choose.
    """
    score = np.zeros(len(label))
    for k in np.unique(fold):
        chosen = _best(logit[fold != k], label[fold != k], heads)
        score[fold == k] = logit[fold == k][:, chosen].mean(1)
    probability, predicted = np.zeros(len(label)), np.zeros(len(label), dtype=bool)
    for k in np.unique(fold):
        other, own = fold != k, fold == k
        platt = fit_platt(score[other], label[other])
        probability[own] = platt.probability(score[own])
        predicted[own] = probability[own] >= best_threshold(platt.probability(score[other]), label[other])
    return Combined(_best(logit, label, heads), score, probability, predicted)


def _best(logit: Float[np.ndarray, "n heads"], label: Bool[np.ndarray, " n"], heads: int) -> Int[np.ndarray, " chosen"]:
    auroc = np.nan_to_num(head_auroc(logit, label), nan=0.5)
    return np.argsort(-auroc, kind="stable")[:heads]


class _Probes(NamedTuple):
    heads: Int[torch.Tensor, "every 2"]
    logit: Float[np.ndarray, "n every"]
    weight: Float[torch.Tensor, "every width"]
    bias: Float[torch.Tensor, " every"]


def _all_probes(model: Model, activations: Activations, answers: Answers, fold: Int[np.ndarray, " n"]) -> _Probes:
    """Fit the probes of all heads, a block of heads at a time."""
    layers = model.layout.layers
    width = max(layer.head_dim for layer in layers)
    label, folds = (torch.from_numpy(one).to(model.device) for one in (answers.label.astype(np.float32), fold))
    places, logits, weights, biases = [], [], [], []
    for layer in layers:
        each = max(1, len(answers.label) * layer.head_dim * 4)
        block = max(1, BLOCK_BYTES * (1 if model.device.type == "cpu" else 16) // each)
        for first in range(0, layer.num_heads, block):
            last = min(first + block, layer.num_heads)
            fits = newton_probe(activations.heads(layer, first, last).to(model.device), label, folds)
            places += [[layer.index, head] for head in range(first, last)]
            logits.append(fits.logit.cpu().numpy())
            wide = fits.weight.new_zeros(last - first, width)
            wide[:, : layer.head_dim] = fits.weight
            weights.append(wide.cpu())
            biases.append(fits.bias.cpu())
    logit = np.concatenate(logits, axis=1).astype(float)
    return _Probes(torch.tensor(places), logit, torch.cat(weights), torch.cat(biases))


def _check_labels(questions: Sequence[Question]) -> None:
    if not questions:
        raise DataError("no questions", expected="at least one", got="0", fix="check --limit and the file")
    bare = [one.id for one in questions if not one.labelled]
    if bare:
        raise DataError(
            "a detector cannot be fitted on answers without a label",
            expected="a label in every row (1 supported, 0 not), or truthful and untruthful answers",
            got=f"{len(bare)} of {len(questions)} rows without one, the first is {bare[0]!r}",
            fix="label the rows, or fit on generated rows: leave the file out, or give `generated`",
        )
