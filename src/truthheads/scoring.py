"""The stage behind ``truthheads score``: questions in, Truth Scores out."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from truthheads.activations import collect, field_name
from truthheads.answers import Answers, answers_by_kind, describe_data, digests, kept_samples, list_answers
from truthheads.artifacts import dumps, provenance
from truthheads.attribution import attribute
from truthheads.data import Question, kind_of
from truthheads.devices import pick_batch_tokens
from truthheads.errors import DataError
from truthheads.form import FormProbe, probe_form
from truthheads.forward import Progress, shares_prefix
from truthheads.models import Model
from truthheads.probes import NUM_FOLDS, PROBES, grouped_folds, measure, paper_folds
from truthheads.prompts import encode
from truthheads.scores import Scores
from truthheads.stats import half_of, layer_bootstrap, mean_figure, pearson, spearman
from truthheads.store import RowStore
from truthheads.tracing import trace

MAX_SAMPLES = 20_000
NUM_SPLITS = 2


def score(
    model: Model,
    questions: Sequence[Question],
    *,
    method: Literal["probe", "attribution", "evidence"] = "probe",
    probe: Literal["newton", "paper"] = "newton",
    folds: Literal["grouped", "paper"] = "grouped",
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    chat: bool = False,
    truncate: bool = False,
    share_prefix: bool = True,
    batch_tokens: int | None = None,
    shuffle_labels: bool = False,
    max_samples: int = MAX_SAMPLES,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Measure how context-truthful every head is.

    Args:
        model: From :func:`truthheads.load`.
        questions: From :func:`truthheads.read_questions` or :func:`truthheads.make_text`.
        method: ``probe`` (accuracy of a linear probe on the head's z at the answer's last token), ``attribution``
            (mean gradient of the margin with respect to the head's gate at 1; pairs only) or ``evidence`` (AUROC of the
            head's attention for the evidence, from the truthful answer's last token; see :func:`truthheads.trace`).
        probe: ``newton``, or ``paper`` for the released protocol.
        folds: ``grouped`` by question, or ``paper`` for the released split.
        num_folds: Folds of ``grouped``.
        seed: Of folds, splits and bootstraps.
        chat: Wrap the prompt in the tokenizer's chat template.
        truncate: Drop the start of contexts that are too long.
        share_prefix: Compute what two answers share once. Layers that carry a state instead of keys switch it off.
        batch_tokens: Padded tokens in a batch, at most; None chooses by device.
        shuffle_labels: Control: swap truthful and untruthful by a coin per question; scores must fall to chance.
        max_samples: Samples kept in the artefact.
        work_dir: Folder for activations; a run that was killed goes on from it. None: a temporary one.
        progress: Told the unique tokens done and in all.

    Raises:
        DataError: No question, fewer groups than folds, only one label, or singles with ``attribution``.
        ActivationError: A forward pass gave NaN or infinity, or memory ran out on a single question.
    """
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
        return _mean_scores("evidence", questions, found.values.numpy(), *each, dict(found.meta), max_samples)
    if method == "attribution" and any(len(question.answers) != 2 for question in questions):
        raise DataError(
            "attribution needs pairs",
            expected="a truthful and an untruthful answer in every row",
            got="rows with one answer",
            fix="use --method probe, or make pairs",
        )
    settings = {
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
    meta: dict[str, Any] = {
        "model": model.describe(),
        "data": describe_data(questions),
        "settings": settings,
        "seed": seed,
        **provenance(),
    }
    answers = list_answers(questions, shuffle=seed if shuffle_labels else None)
    fold = _folds(answers, folds, num_folds, seed) if method == "probe" else np.zeros(len(answers.label), dtype=int)
    encoded = encode(model, questions, chat=chat, truncate=truncate, share_prefix=bool(settings["share_prefix"]))
    tokens = hashlib.sha256(repr([(item.prefix, item.tails) for item in encoded]).encode()).hexdigest()
    identity = dumps({"tokens": tokens, **{key: meta[key] for key in ("model", "data", "settings", "packages")}})
    with tempfile.TemporaryDirectory(prefix="truthheads-") as scratch:
        folder = Path(work_dir) if work_dir is not None else Path(scratch) / "work"
        gather = collect if method == "probe" else attribute
        store = gather(
            model, encoded, questions, folder, identity=identity, batch_tokens=batch_tokens, progress=progress
        )
        try:
            if method == "probe":
                return _probe_scores(model, questions, answers, fold, store, meta, max_samples)
            return _attribution_scores(questions, answers, store, meta, max_samples)
        finally:
            store.close()


def _probe_scores(
    model: Model,
    questions: Sequence[Question],
    answers: Answers,
    fold: Int[np.ndarray, " n"],
    store: RowStore,
    meta: dict[str, Any],
    max_samples: int,
) -> Scores:
    n, layout, seed = len(answers.label), model.layout, int(meta["seed"])
    everything = np.ones(n, dtype=bool)
    kinds = answers_by_kind(questions, answers)
    halves = [half_of(answers.group, seed=seed + split) for split in range(NUM_SPLITS)]
    subsets = [everything, *kinds.values(), *(part for half in halves for part in (half, ~half))]
    usable = [_usable(subset, answers, fold) for subset in subsets]
    accuracy = np.full((len(subsets), *layout.shape), np.nan)
    auroc, paired = np.full(layout.shape, np.nan), np.full(layout.shape, np.nan)
    num_folds = int(fold.max()) + 1
    per_fold = np.full((num_folds, *layout.shape), np.nan)
    logit = torch.full((n, *layout.shape), float("nan"))
    weight = torch.full((*layout.shape, layout.head_dim), float("nan"))
    bias = torch.full(layout.shape, float("nan"))
    fit = PROBES[str(meta["settings"]["probe"])]
    for head in layout.layers:
        z = store.read(field_name(head.index)).to(model.device).transpose(0, 1).float()
        for i, (subset, good) in enumerate(zip(subsets, usable, strict=True)):
            if not good:
                continue
            rows = torch.from_numpy(np.flatnonzero(subset)).to(model.device)
            label = torch.from_numpy(answers.label[subset]).float().to(model.device)
            parts = np.unique(fold[subset], return_inverse=True)[1]
            fits = fit(z if subset is everything else z[:, rows], label, torch.from_numpy(parts).to(model.device))
            found = measure(fits.logit.cpu().numpy(), answers.label[subset], parts, answers.question[subset])
            where = slice(0, head.num_heads)
            accuracy[i, head.index, where] = found.accuracy
            if i == 0:
                auroc[head.index, where], paired[head.index, where] = found.auroc, found.pair_accuracy
                per_fold[:, head.index, where] = found.fold_accuracy
                logit[:, head.index, where] = fits.logit.cpu()
                weight[head.index, where, : head.head_dim] = fits.weight.cpu()
                bias[head.index, where] = fits.bias.cpu()
    first_half = 1 + len(kinds)
    pairs = [(accuracy[i], accuracy[i + 1]) for i in range(first_half, len(subsets), 2)]
    form = probe_form(answers.text, answers.label, fold, answers.group, answers.question, seed=seed)
    right = ((logit.numpy() > 0) == answers.label[:, None, None]).astype(float)
    right[np.isnan(logit.numpy())] = np.nan
    meta["summary"] = {
        "mean": mean_figure(np.nanmean(right, axis=(1, 2)), answers.group, seed=seed).json(),
        "split_half": _split_half(pairs, seed),
        "form": _form_json(form),
        "kinds": {name: {"rows": len(np.unique(answers.question[subset]))} for name, subset in kinds.items()},
    }
    meta["kinds"] = list(kinds)
    kept = kept_samples(answers.question, max_samples, seed)
    return Scores.of(
        "probe",
        torch.from_numpy(accuracy[0]),
        accuracy=torch.from_numpy(accuracy[0]).float(),
        auroc=torch.from_numpy(auroc).float(),
        pair_accuracy=torch.from_numpy(paired).float(),
        fold_accuracy=torch.from_numpy(per_fold).float(),
        kind_values=torch.from_numpy(accuracy[1 : 1 + len(kinds)]).float(),
        sample=logit[kept].clamp(-6e4, 6e4).half(),
        sample_label=torch.from_numpy(answers.label[kept]).long(),
        sample_group=torch.from_numpy(answers.group[kept]).long(),
        sample_question=torch.from_numpy(answers.question[kept]).long(),
        sample_id=digests(questions, answers.question[kept]),
        probe_weight=weight,
        probe_bias=bias,
        meta=meta,
    )


def _attribution_scores(
    questions: Sequence[Question], answers: Answers, store: RowStore, meta: dict[str, Any], max_samples: int
) -> Scores:
    group = answers.group[::2]
    sign = np.where(answers.label[::2], 1.0, -1.0)  # -1 where the control has swapped the answers
    gradient = store.read("gradient").double().numpy() * sign[:, None, None]
    margin = store.read("margin").double().numpy() * sign
    rows = np.arange(len(questions))
    found = mean_figure(margin, group, seed=int(meta["seed"])).json()
    return _mean_scores(
        "attribution", questions, gradient.mean(0), gradient, rows, group, meta, max_samples, margin=found
    )


def _mean_scores(
    method: str,
    questions: Sequence[Question],
    values: Float[np.ndarray, "num_layers num_heads"],
    sample: Float[np.ndarray, "n num_layers num_heads"],
    rows: Int[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    meta: dict[str, Any],
    max_samples: int,
    **figures: Any,
) -> Scores:
    """Return scores that are means over questions of one number per head, row by row of ``questions``."""
    seed = int(meta["seed"])
    names = [kind_of(questions[row]) for row in rows]
    kinds = sorted({name for name in names if name is not None})
    halves = [half_of(group, seed=seed + split) for split in range(NUM_SPLITS)]
    pairs = [(sample[half].mean(0), sample[~half].mean(0)) for half in halves if half.any() and not half.all()]
    meta["kinds"] = kinds
    meta["summary"] = {
        "mean": mean_figure(np.nanmean(sample, axis=(1, 2)), group, seed=seed).json(),
        **figures,
        "split_half": _split_half(pairs, seed),
        "form": None,
        "kinds": {name: {"rows": names.count(name)} for name in kinds},
    }
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
        meta=meta,
    )


def _folds(answers: Answers, folds: str, num_folds: int, seed: int) -> Int[np.ndarray, " n"]:
    if answers.label.all() or not answers.label.any():
        raise DataError(
            "all answers have one label",
            expected="truthful and untruthful answers",
            got=f"{len(answers.label)} of one kind",
            fix="give rows of both kinds (with --limit, rows further down may be missing)",
        )
    if folds == "paper":
        return paper_folds(len(answers.label))
    return grouped_folds(answers.group_name, num_folds=num_folds, seed=seed)


def _usable(subset: Bool[np.ndarray, " n"], answers: Answers, fold: Int[np.ndarray, " n"]) -> bool:
    """Return whether a probe can be cross-validated on a subset: two folds, and both labels outside each of them."""
    parts = np.unique(fold[subset])
    labels = [answers.label[subset & (fold != part)] for part in parts]
    return len(parts) > 1 and all(label.any() and not label.all() for label in labels)


def _split_half(
    pairs: list[tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]], seed: int
) -> dict[str, Any]:
    """Return the reliability of scores: correlation between disjoint halves of the questions."""
    if not pairs or not any(np.isfinite(a).any() and np.isfinite(b).any() for a, b in pairs):
        return {"splits": 0, "pearson": None, "spearman": None}
    return {
        "splits": len(pairs),
        "pearson": layer_bootstrap(pairs, pearson, seed=seed).json(),
        "spearman": layer_bootstrap(pairs, spearman, seed=seed).json(),
    }


def _form_json(form: FormProbe) -> dict[str, Any]:
    return {
        "accuracy": form.accuracy.json(),
        "best_feature": form.best_feature,
        "best_accuracy": form.best_accuracy,
        "warns": form.warns,
    }
