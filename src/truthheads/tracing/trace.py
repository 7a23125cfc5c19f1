"""The stage behind ``truthheads trace``: questions with evidence in, attention to the evidence per head out."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from truthheads.data.answers import describe_data, digests, kept_samples
from truthheads.data.held import QuestionsLike
from truthheads.data.questions import Question
from truthheads.data.readers import as_questions
from truthheads.errors import ActivationError, DataError
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import Progress, filled
from truthheads.models.held import ModelLike, as_model
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, with_images
from truthheads.results.scores import LARGEST, ScoresLike, as_scores
from truthheads.results.trace import MEASURES, Trace, TraceCounts
from truthheads.stats.figures import FigureJson, mean_figure
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import dumps
from truthheads.storage.row_store import Field, RowStore, first_only, open_rows, work_folder
from truthheads.tracing.attention import POSITIONS, Traceable, collect_attention, query_of, traceable
from truthheads.tracing.evidence import TokenSpans, evidence_metrics
from truthheads.tracing.score_correlation import check_shape, score_correlations

MAX_SAMPLES = 5_000


class Attention(NamedTuple):
    """The attention of one query to every token of one question.

    Attributes:
        places: The tokens: their characters, or the pixels that image tokens cover, and what stands where.
        query: Position of the query.
        weights: Attention of each head that was asked for to every token; later tokens get 0.
    """

    places: TokenSpans
    query: int
    weights: Float[Tensor, "heads seq"]


def trace(
    model: ModelLike,
    questions: QuestionsLike,
    *,
    scores: ScoresLike | None = None,
    position: str = "answer",
    untruthful: bool = False,
    seed: int = 0,
    chat: bool = False,
    truncate: bool = False,
    skip_missing: bool = False,
    batch_tokens: int | None = None,
    max_samples: int = MAX_SAMPLES,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Measure how well each head's attention finds the evidence.

    The rows read are those of the truthful answer's last token and of the question's last token, which is the prompt's:
    the one that the answer is predicted from. No language-model head is run.

    Args:
        model: From :func:`truthheads.load`, or a name that it takes.
        questions: Questions, or what :func:`truthheads.read_questions` reads, with ``evidence`` spans or ``boxes``. In
            a row without them the evidence is where the truthful answer stands in the context; a row in which it does
            not, or without a truthful answer, is counted and left out.
        scores: Truth Scores of the same heads, to test the claim that such heads look at the evidence.
        position: ``answer`` or ``question``: the main one, which tables and charts show.
        untruthful: Read the untruthful answer's last token, too.
        seed: Random seed of bootstraps and permutations.
        chat: Wrap the prompt in the tokenizer's chat template.
        truncate: Drop the start of contexts that are too long, with the evidence in it.
        skip_missing: Leave out rows whose image is not there, and count them.
        batch_tokens: Padded tokens in a batch, at most; None chooses by device.
        max_samples: Questions whose measures are kept in the artefact.
        work_dir: Folder for measures; a run that was killed goes on from it. None: a temporary one.
        progress: Called with the unique tokens done and the total.

    Raises:
        DataError: No question has evidence, or a span or box lies outside its context or image.
        ModelError: The tokenizer has no character offsets.
        ArchitectureError: The model computes attention in a way that cannot be seen.
        ShapeError: The scores are of another shape.
        ActivationError: Attention is not finite, or one question does not fit into memory.
    """
    positions = POSITIONS if untruthful else POSITIONS[:2]
    if position not in positions:
        raise DataError(
            f"unknown position {position!r}",
            expected=" or ".join(positions),
            got=repr(position),
            fix="choose one of them",
        )
    scores = None if scores is None else as_scores(scores)
    questions, model = as_questions(questions), as_model(model)
    if skip_missing:
        questions = with_images(model, questions)
    batch_tokens = batch_tokens or pick_batch_tokens(model.device)
    if scores is not None:
        check_shape(model.layout.shape, scores)
    rows, left_out = traceable(model, questions, untruthful=untruthful, chat=chat, truncate=truncate)
    meta: dict[str, Any] = {
        "model": model.describe(),
        "data": describe_data(questions),
        "settings": {
            "method": "evidence",
            "chat": chat,
            "truncate": truncate,
            "untruthful": untruthful,
            "batch_tokens": batch_tokens,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "seed": seed,
        "positions": list(positions),
        "position": position,
        **provenance(),
    }
    tokens = hashlib.sha256(repr([(row.encoded, row.located) for row in rows]).encode()).hexdigest()
    identity = dumps({"tokens": tokens, **{key: meta[key] for key in ("model", "data", "settings", "packages")}})
    with work_folder(work_dir) as folder:
        store = _measured(model, rows, positions, folder, identity, batch_tokens, progress)
        try:
            sample = store.read("sample")
            group = _groups([row.question for row in rows])
            meta["groups"] = len(np.unique(group))
            meta["summary"] = _summary(rows, left_out, positions, sample, group, seed)
            number = np.array([row.number for row in rows])
            kept = kept_samples(number, max_samples, seed)
            found = Trace(
                values=_means(sample),
                sample=sample[torch.from_numpy(kept)].clamp(max=LARGEST).half(),
                sample_group=torch.from_numpy(group[kept]).long(),
                sample_question=torch.from_numpy(number[kept]).long(),
                sample_id=digests(questions, number[kept]),
                truth=torch.full(model.layout.shape, torch.nan) if scores is None else scores.values.float(),
                meta=meta,
            )
        finally:
            store.close()
    if scores is None:
        return found
    tested = score_correlations(found, scores, seed=seed)
    source = {key: scores.meta.get(key) for key in ("model", "data", "source") if scores.meta.get(key) is not None}
    return replace(
        found,
        meta={**meta, "scores": {"method": scores.method, "caution": scores.caution, **source}, "claim": tested},
    )


def attention_of(
    model: Model,
    question: Question,
    heads: Sequence[tuple[int, int]],
    *,
    position: str = "answer",
    chat: bool = False,
    truncate: bool = False,
) -> Attention:
    """Return the attention of some heads over one question, to be drawn.

    Args:
        model: The model.
        question: The question.
        heads: ``(layer, head)`` of each head wanted.
        position: As in :func:`trace`; ``untruthful`` reads the untruthful answer's last token.
        chat: As in :func:`trace`.
        truncate: As in :func:`trace`.

    Raises:
        DataError: The question has no evidence, or a head or position is not there.
    """
    wanted = [head for head in heads if not _there(model, head)]
    if wanted or position not in POSITIONS:
        raise DataError(
            f"no attention of {wanted or position}",
            expected=f"heads of a model of {' x '.join(map(str, model.layout.shape))}, at {', '.join(POSITIONS)}",
            got=f"{wanted or position}",
            fix="choose heads and a position that are there",
        )
    rows, _ = traceable(model, [question], untruthful=position == "untruthful", chat=chat, truncate=truncate)
    weights: dict[int, Tensor] = {}

    def keep(_: int, at: int, found: Tensor) -> None:
        weights[at] = found

    at = POSITIONS.index(position)
    collect_attention(model, [rows[0].encoded], POSITIONS[: 3 if at == 2 else 2], keep)
    encoded, tail = rows[0].encoded, 1 if at == 2 else 0
    chosen = torch.stack([weights[at][layer, head] for layer, head in heads])
    return Attention(rows[0].places[tail], query_of(encoded, tail, start=at == 1), chosen.cpu())


def _measured(
    model: Model,
    rows: Sequence[Traceable],
    positions: Sequence[str],
    folder: Path,
    identity: str,
    batch_tokens: int,
    progress: Progress | None,
) -> RowStore:
    """Return a store with ``sample``: every question's measures, ``[rows, positions, measures, layers, heads]``."""
    shape = (len(positions), len(MEASURES), *model.layout.shape)
    store = open_rows(folder, {"sample": Field(shape, torch.float32)}, rows=len(rows), identity=identity)
    there = torch.zeros(model.layout.shape, dtype=torch.bool)
    for layer in model.layout.layers:
        there[layer.index, : layer.num_heads] = True

    def step(batch: Sequence[Encoded]) -> None:
        found = torch.full((len(batch), *shape), torch.nan)

        def keep(i: int, at: int, weights: Tensor) -> None:
            row = rows[batch[i].row]
            tail = 1 if positions[at] == "untruthful" else 0
            places, query = row.places[tail], query_of(row.encoded, tail, start=positions[at] == "question")
            masks = {
                name: getattr(places, name).to(weights.device) for name in ("sink", "context", "evidence", "distractor")
            }
            own = weights[there.to(weights.device)]
            if not bool(torch.isfinite(own).all()):
                raise ActivationError(
                    f"row {row.question.id!r}: attention is not finite",
                    expected="finite attention weights",
                    got="NaN or infinity",
                    fix="try --dtype fp32; if that does not help, the weights or the row are damaged",
                )
            found[i, at][:, there] = evidence_metrics(own, query, **masks).cpu()

        collect_attention(model, batch, positions, keep)
        store.write("sample", torch.tensor([item.row for item in batch]), found)

    encoded = [row.encoded for row in rows]
    return first_only(filled(model, store, encoded, step, batch_tokens=batch_tokens, progress=progress))


def _summary(
    rows: Sequence[Traceable],
    left_out: Counter[str],
    positions: Sequence[str],
    sample: Tensor,
    group: Int[np.ndarray, " rows"],
    seed: int,
) -> TraceCounts:
    """Count what was traced, and give means over heads with intervals."""
    places = [row.places[0] for row in rows]
    share = [float(p.evidence.sum() / (~p.sink).sum()) for p in places]
    means: dict[str, dict[str, FigureJson]] = {}
    for at, position in enumerate(positions):
        means[position] = {}
        for which, name in enumerate(MEASURES):
            values = sample[:, at, which].double().flatten(1).nanmean(1).numpy()
            known = np.isfinite(values)
            if known.any():
                means[position][name] = mean_figure(values[known], group[known], seed=seed).json()
    return {
        "rows": len(rows),
        "left_out": dict(sorted(left_out.items())),
        "sources": dict(sorted(Counter(row.located.source for row in rows).items())),
        "distractors": sum(bool(p.distractor.any()) for p in places),
        "evidence_tokens": float(np.mean([int(p.evidence.sum()) for p in places])),
        "evidence_share": float(np.mean(share)),
        "means": means,
    }


def _means(sample: Tensor) -> Tensor:
    """Return means over questions, one measure at a time: the rows may be many."""
    flat = sample.flatten(1, 2)
    means = torch.stack([flat[:, i].double().nanmean(0).float() for i in range(flat.shape[1])])
    return means.view(sample.shape[1:])


def _groups(questions: Sequence[Question]) -> Int[np.ndarray, " n"]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(q.group or q.id, len(numbers)) for q in questions])


def _there(model: Model, head: tuple[int, int]) -> bool:
    return any(layer.index == head[0] and 0 <= head[1] < layer.num_heads for layer in model.layout.layers)
