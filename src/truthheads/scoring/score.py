"""The stage behind ``truthheads score``: questions in, Truth Scores out."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from jaxtyping import Float, Int

from truthheads.choices import Folds, Probe, ScoreMethod
from truthheads.data.answers import Answers, answers_by_kind, describe_data, digests, kept_samples, list_answers
from truthheads.data.held import QuestionsLike
from truthheads.data.questions import Question, answer_kind
from truthheads.data.readers import as_questions
from truthheads.errors import DataError
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import Progress, shares_prefix
from truthheads.models.held import ModelLike, as_model
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, encode, token_digest, with_images
from truthheads.results.scores import FormResult, ScoreMeta, Scores, ScoreSettings, SplitHalf, StoredSummary
from truthheads.scoring.activations import Activations, gather
from truthheads.scoring.attribution import attribute
from truthheads.scoring.fit import fit_probes, subset_of
from truthheads.scoring.form_probe import FormProbe, form_features, probe_form
from truthheads.scoring.probes import NUM_FOLDS, PROBES, dealt_folds, paper_folds
from truthheads.stats.figures import FigureJson, half_of, layer_bootstrap, mean_figure, pearson, spearman
from truthheads.stats.intervals import chosen_figure, share_figure
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import dumps
from truthheads.storage.row_store import work_folder
from truthheads.tracing.trace import trace

NUM_SPLITS = 2
"""Random splits of the questions into halves, over which reliability is averaged."""


class MadeFrom(TypedDict):
    """What computed values depend on beside the tokens; values of something else that lie on disk are not used."""

    model: Mapping[str, object]
    data: Mapping[str, object]
    settings: ScoreSettings
    packages: dict[str, str]


def mean_scores(
    method: str,
    questions: Sequence[Question],
    values: Float[np.ndarray, "num_layers num_heads"],
    sample: Float[np.ndarray, "n num_layers num_heads"],
    rows: Int[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    meta: ScoreMeta,
    max_samples: int,
    *,
    margin: FigureJson | None = None,
) -> Scores:
    """Return scores that are means over questions of one number per head, row by row of ``questions``."""
    seed = meta["seed"]
    names = [answer_kind(questions[row]) for row in rows]
    kinds = sorted({name for name in names if name is not None})
    halves = [half_of(group, seed=seed + split) for split in range(NUM_SPLITS)]
    pairs = [(sample[half].mean(0), sample[~half].mean(0)) for half in halves if half.any() and not half.all()]
    summary: StoredSummary = {
        "mean": mean_figure(np.nanmean(sample, axis=(1, 2)), group, seed=seed).json(),
        "split_half": split_half(pairs, seed),
        "form": None,
        "kinds": {name: {"rows": names.count(name)} for name in kinds},
    }
    if margin is not None:
        summary["margin"] = margin
    by_kind = [sample[[name == kind for name in names]].mean(0) for kind in kinds]
    kept = kept_samples(rows, max_samples, seed)
    return Scores.of(
        method,
        torch.from_numpy(values),
        kind_values=torch.from_numpy(np.stack(by_kind)).float() if kinds else torch.zeros(0, *values.shape),
        sample=torch.from_numpy(sample[kept]).half(),
        sample_label=torch.ones(len(kept), dtype=torch.int64),
        sample_group=torch.from_numpy(group[kept]).long(),
        sample_question=torch.from_numpy(rows[kept]).long(),
        sample_id=digests(questions, rows[kept]),
        meta={**meta, "kinds": kinds, "summary": summary},
    )


def chosen_best(
    pairs: list[tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]],
    group: Int[np.ndarray, " n"],
) -> FigureJson | None:
    """Score the best head on questions that did not choose it, with an interval; None without halves.

    The head is the best of one half of the questions and measured on the other, whose probes never saw the first: each
    way round, averaged over splits. The score of the best of many heads on the questions that chose it is too high.

    Args:
        pairs: Accuracies of both halves, for each split.
        group: Group of each answer.
    """
    shares = []
    for pair in pairs:
        for chooser, judge in (pair, pair[::-1]):
            if np.isfinite(chooser).any() and np.isfinite(
                judge[np.unravel_index(np.nanargmax(chooser), chooser.shape)]
            ):
                shares.append(float(judge[np.unravel_index(np.nanargmax(chooser), chooser.shape)]))
    if not shares:
        return None
    return chosen_figure(float(np.mean(shares)), group).json()


def split_half(
    pairs: list[tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]], seed: int
) -> SplitHalf:
    """Return the reliability of scores: correlation between disjoint halves of the questions."""
    if not pairs or not any(np.isfinite(a).any() and np.isfinite(b).any() for a, b in pairs):
        return {"splits": 0, "pearson": None, "spearman": None}
    return {
        "splits": len(pairs),
        "pearson": layer_bootstrap(pairs, pearson, seed=seed).json(),
        "spearman": layer_bootstrap(pairs, spearman, seed=seed).json(),
    }


MAX_SAMPLES = 20_000


def score(
    model: ModelLike,
    questions: QuestionsLike,
    *,
    method: ScoreMethod = "probe",
    probe: Probe = "newton",
    folds: Folds = "grouped",
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    chat: bool = False,
    truncate: bool = False,
    skip_missing: bool = False,
    share_prefix: bool = True,
    batch_tokens: int | None = None,
    shuffle_labels: bool = False,
    max_samples: int = MAX_SAMPLES,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Measure how context-truthful every head is.

    Args:
        model: From :func:`truthheads.load`, or a name that it takes.
        questions: From :func:`truthheads.read_questions` or :func:`truthheads.make_text`, or what the former reads: a
            file, a DataFrame, a ``datasets.Dataset``, a list of dictionaries.
        method: ``probe`` (accuracy of a linear probe on the head's z at the answer's last token), ``attribution``
            (mean gradient of the margin with respect to the head's gate at 1; pairs only) or ``evidence`` (AUROC of the
            head's attention for the evidence, from the truthful answer's last token; see :func:`truthheads.trace`).
        probe: ``newton``, or ``paper`` for the released protocol.
        folds: ``grouped`` by question, or ``paper`` for the released split.
        num_folds: Folds of ``grouped``.
        seed: Random seed of folds, splits and bootstraps.
        chat: Wrap the prompt in the tokenizer's chat template.
        truncate: Drop the start of contexts that are too long.
        skip_missing: Leave out rows whose image is not there, and count them.
        share_prefix: Compute what two answers share once. Layers that carry a state instead of keys switch it off.
        batch_tokens: Padded tokens in a batch, at most; None chooses by device.
        shuffle_labels: Control: swap truthful and untruthful by a coin per question; scores must fall to chance.
        max_samples: Samples kept in the artefact.
        work_dir: Folder for activations; a run that was killed goes on from it. None: a temporary one.
        progress: Called with the unique tokens done and the total.

    Raises:
        DataError: No question, fewer groups than folds, only one label, or singles with ``attribution``.
        ActivationError: A forward pass gave NaN or infinity, or memory ran out on a single question.
    """
    questions, model = as_questions(questions), as_model(model)
    if skip_missing:
        questions = with_images(model, questions)
    batch_tokens = batch_tokens or pick_batch_tokens(model.device)
    if not questions:
        raise DataError("no questions", expected="at least one", got="0", fix="check --limit and the file")
    if method == "evidence":
        if shuffle_labels:
            raise DataError(
                "there are no labels to shuffle",
                expected="--method probe or attribution with --shuffle-labels",
                got="--method evidence, which looks at truthful answers alone",
                fix="leave --shuffle-labels out",
            )
        found = trace(
            model,
            questions,
            seed=seed,
            chat=chat,
            truncate=truncate,
            batch_tokens=batch_tokens,
            max_samples=len(questions),
            work_dir=work_dir,
            progress=progress,
        ).as_scores()
        each = (found.sample.double().numpy(), found.sample_question.numpy(), found.sample_group.numpy())
        told = cast(ScoreMeta, found.meta)  # a trace's metadata has all of it
        return mean_scores("evidence", questions, found.values.numpy(), *each, told, max_samples)
    if method == "attribution" and any(len(question.answers) != 2 for question in questions):
        raise DataError(
            "attribution needs pairs",
            expected="a truthful and an untruthful answer in every row",
            got="rows with one answer",
            fix="use --method probe, or make pairs",
        )
    settings: ScoreSettings = {
        "method": method,
        "probe": probe if method == "probe" else None,
        "folds": folds if method == "probe" else None,
        "num_folds": (NUM_FOLDS if folds == "paper" else num_folds) if method == "probe" else None,
        "chat": chat,
        "truncate": truncate,
        "share_prefix": share_prefix and shares_prefix(model),
        "batch_tokens": batch_tokens,
        "shuffle_labels": shuffle_labels,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    answers = list_answers(
        questions,
        seed=seed,
        shuffle=seed if shuffle_labels else None,
        features=form_features if method == "probe" else None,
    )
    made = provenance()
    meta: ScoreMeta = {
        "model": model.describe(),
        "data": describe_data(questions, digest=answers.digest),
        "settings": settings,
        "seed": seed,
        "groups": len(answers.order),
        "packages": made["packages"],
        "command": made["command"],
    }
    tokens = partial(encode, model, chat=chat, truncate=truncate, share_prefix=settings["share_prefix"])
    made_from = _made_from(meta)
    with work_folder(work_dir) as folder:
        if method == "attribution":
            return _attributed(
                model, questions, tokens(questions), answers, folder, made_from, meta, max_samples, progress
            )
        fold = _folds(answers, folds, num_folds)
        activations = gather(
            model,
            questions,
            np.bincount(answers.question, minlength=len(questions)),
            answers.size,
            tokens,
            folder,
            made_from=made_from,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        try:
            return _probe_scores(model, answers, fold, activations, meta, max_samples)
        finally:
            activations.close()


def _made_from(meta: ScoreMeta) -> MadeFrom:
    return {
        "model": meta["model"],
        "data": meta["data"],
        "settings": meta["settings"],
        "packages": meta["packages"],
    }


def _probe_scores(
    model: Model,
    answers: Answers,
    fold: Int[np.ndarray, " n"],
    activations: Activations,
    meta: ScoreMeta,
    max_samples: int,
) -> Scores:
    layout, seed = model.layout, meta["seed"]
    kinds = answers_by_kind(answers)
    halves = [half_of(answers.group, seed=seed + split) for split in range(NUM_SPLITS)]
    everything = np.ones(len(answers.label), dtype=bool)
    masks = [everything, *kinds.values(), *(part for half in halves for part in (half, ~half))]
    kept = kept_samples(answers.question, max_samples, seed)
    fits = fit_probes(
        activations,
        layout,
        answers,
        [subset_of(mask, answers, fold) for mask in masks],
        kept,
        probe=PROBES[str(meta["settings"]["probe"])],
        device=model.device,
        made_from={**_made_from(meta), "seed": seed, "kept": len(kept)},
    )
    accuracy, first_half = fits.accuracy, 1 + len(kinds)
    pairs = [(accuracy[i], accuracy[i + 1]) for i in range(first_half, len(masks), 2)]
    form = probe_form(answers.features, answers.label, fold, answers.group, answers.question)
    right = fits.right / sum(head.num_heads for head in layout.layers)
    summary: StoredSummary = {
        "mean": share_figure(right, answers.group, added=fits.mean_dependence).json(),
        "split_half": split_half(pairs, seed),
        "form": _form_json(form),
        "kinds": {name: {"rows": len(np.unique(answers.question[mask]))} for name, mask in kinds.items()},
        "chosen": chosen_best(pairs, answers.group),
    }
    return Scores.of(
        "probe",
        torch.from_numpy(accuracy[0]),
        accuracy=torch.from_numpy(accuracy[0]).float(),
        auroc=torch.from_numpy(fits.auroc).float(),
        pair_accuracy=torch.from_numpy(fits.pair_accuracy).float(),
        fold_accuracy=torch.from_numpy(fits.fold_accuracy).float(),
        kind_values=torch.from_numpy(accuracy[1:first_half]).float(),
        sample=torch.from_numpy(fits.sample),
        sample_label=torch.from_numpy(answers.label[kept]).long(),
        sample_group=torch.from_numpy(answers.group[kept]).long(),
        sample_question=torch.from_numpy(answers.question[kept]).long(),
        sample_id=torch.from_numpy(answers.digest[answers.question[kept]]),
        probe_weight=torch.from_numpy(fits.weight),
        probe_bias=torch.from_numpy(fits.bias),
        dependence=torch.from_numpy(fits.dependence),
        pair_dependence=torch.from_numpy(fits.pair_dependence),
        layer_dependence=torch.from_numpy(fits.layer_dependence),
        meta={**meta, "kinds": list(kinds), "summary": summary},
    )


def _attributed(
    model: Model,
    questions: Sequence[Question],
    encoded: Sequence[Encoded],
    answers: Answers,
    folder: Path,
    made_from: MadeFrom,
    meta: ScoreMeta,
    max_samples: int,
    progress: Progress | None,
) -> Scores:
    identity = dumps({"tokens": token_digest(encoded), **made_from})
    batch_tokens = meta["settings"]["batch_tokens"]
    store = attribute(
        model, encoded, questions, folder, identity=identity, batch_tokens=batch_tokens, progress=progress
    )
    try:
        group = answers.group[::2]
        sign = np.where(answers.label[::2], 1.0, -1.0)  # -1 where the control has swapped the answers
        gradient = store.read("gradient").double().numpy() * sign[:, None, None]
        margin = store.read("margin").double().numpy() * sign
    finally:
        store.close()
    rows = np.arange(len(questions))
    found = mean_figure(margin, group, seed=meta["seed"]).json()
    return mean_scores(
        "attribution", questions, gradient.mean(0), gradient, rows, group, meta, max_samples, margin=found
    )


def _folds(answers: Answers, folds: str, num_folds: int) -> Int[np.ndarray, " n"]:
    if answers.label.all() or not answers.label.any():
        raise DataError(
            "all answers have one label",
            expected="truthful and untruthful answers",
            got=f"{len(answers.label)} of one kind",
            fix="give rows of both kinds (with --limit, rows further down may be missing)",
        )
    if folds == "paper":
        return paper_folds(len(answers.label))
    return dealt_folds(answers.group, answers.order, num_folds=num_folds)


def _form_json(form: FormProbe) -> FormResult:
    return {
        "accuracy": form.accuracy.json(),
        "best_feature": form.best_feature,
        "best_accuracy": form.best_accuracy,
        "warns": form.warns,
    }
