"""Say of answers whether their context supports them: one forward pass, the chosen heads alone."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.data.answers import describe_data
from truthheads.data.held import QuestionsLike
from truthheads.data.questions import Question
from truthheads.data.readers import as_questions
from truthheads.detection.figures import part_of
from truthheads.detection.fit import default_detector
from truthheads.detection.sentences import closing_tokens, split_sentences
from truthheads.errors import ActivationError, DataError
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import Progress, backbone, plan_batches, prepare_tails, run_batches, shares_prefix
from truthheads.models.held import ModelLike, as_model
from truthheads.models.hooks import intercepted
from truthheads.models.load import Model
from truthheads.models.prompts import Encoded, encode, has_chat_template
from truthheads.results.detections import Detection, Detections, DetectionsMeta, Sentence, verdict_of
from truthheads.results.detector import Detector
from truthheads.scoring.activations import first_answers, without_prediction
from truthheads.stats.calibration import Cuts
from truthheads.storage.files import dumps, unwritable, write_text

WINDOW = 256
"""Questions that are read, sorted by length and run together; what a run that was killed has to do again."""


class Prepared(NamedTuple):
    """What a run needs beside the rows.

    Attributes:
        detector: The detector.
        cuts: Where verdicts begin.
        chat: Whether prompts are wrapped in the chat template.
        truncate: Whether the start of long contexts is dropped.
        batch_tokens: Padded tokens in a batch, at most.
        warnings: Sentences on a detector that was made for something else.
    """

    detector: Detector
    cuts: Cuts
    chat: bool
    truncate: bool
    batch_tokens: int
    warnings: list[str]


def prepare(
    model: Model,
    *,
    detector: Detector | None = None,
    threshold: float | None = None,
    precision: float | None = None,
    chat: bool | None = None,
    truncate: bool = False,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Get a detector, its cuts and the prompt ready; see :func:`detect`."""
    if detector is None:
        chat = has_chat_template(model) if chat is None else chat
        detector = default_detector(model, chat=chat, batch_tokens=batch_tokens, progress=progress)
    elif chat is None:
        chat = detector.chat and has_chat_template(model)
    warnings = detector.check(model, chat=chat)
    cuts = detector.cuts(threshold=threshold, precision=precision)
    for side, none in (("supported", np.isinf(cuts.high)), ("not supported", np.isinf(cuts.low))):
        if none:
            warnings.append(
                f"no threshold gave the verdict {side!r} a precision of {precision:g} on the rows that the detector "
                "was calibrated on: no answer gets it"
            )
    return Prepared(detector, cuts, chat, truncate, batch_tokens or pick_batch_tokens(model.device), warnings)


def detect(
    model: ModelLike,
    rows: QuestionsLike,
    *,
    detector: Detector | None = None,
    threshold: float | None = None,
    precision: float | None = None,
    chat: bool | None = None,
    truncate: bool = False,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
) -> Detections:
    """Say for each answer how probable it is that its context supports it.

    Args:
        model: A model's name, or what :func:`truthheads.load` returned; not necessarily what wrote the answers.
        rows: Questions, a file, a DataFrame, or dictionaries with ``context``, ``answer`` and, optional, ``question``
            and any other column.
        detector: From :func:`truthheads.fit_detector`; None: one fitted on generated rows, kept in the cache folder.
        threshold: Probability from which on an answer is supported; None: the detector's own.
        precision: Share of verdicts that must be right on the rows that the detector was calibrated on; answers
            between the two cuts that this takes are ``unsure``.
        chat: Wrap the prompt in the chat template; None: as the detector was made.
        truncate: Drop the start of contexts that are too long.
        batch_tokens: Padded tokens in a batch, at most; None chooses by device.
        progress: Called with the work done and the total.

    Raises:
        DataError: A row cannot be used, or threshold and precision are both given.
        ShapeError: The detector is of a model of another shape.
        ActivationError: A forward pass gave NaN or infinity, or memory ran out on a single row.
    """
    questions, model = as_questions(rows, answers=True), as_model(model)
    ready = prepare(
        model,
        detector=detector,
        threshold=threshold,
        precision=precision,
        chat=chat,
        truncate=truncate,
        batch_tokens=batch_tokens,
    )
    found = [one for part in windows(model, questions, ready, progress=progress) for one in part]
    return Detections(found, describe(model, questions, ready))


def describe(model: Model, questions: Sequence[Question], ready: Prepared) -> DetectionsMeta:
    """Return how detections are made."""
    low, high = (None if np.isinf(cut) else float(cut) for cut in ready.cuts)
    made = ready.detector.meta
    return {
        "model": model.describe(),
        "data": describe_data(questions),
        "detector": {"digest": ready.detector.digest, "model": made.get("model"), "data": made.get("data")},
        "low": low,
        "high": high,
        "chat": ready.chat,
        "truncate": ready.truncate,
        "warnings": ready.warnings,
    }


class _Identity(TypedDict):
    """What the lines of a file depend on."""

    made: DetectionsMeta
    dtype: str
    window: int


def write_detections(
    model: Model, questions: Sequence[Question], ready: Prepared, out: Path, *, progress: Progress | None = None
) -> DetectionsMeta:
    """Write a file of detections window by window; a run that was killed goes on where it stopped.

    Until the file is whole its lines lie in the folder ``OUT.partial``, beside what they depend on.

    Raises:
        ArtifactError: The file cannot be written.
        ActivationError, DataError: As for :func:`detect`.
    """
    made = describe(model, questions, ready)
    identity: _Identity = {"made": made, "dtype": str(model.dtype), "window": WINDOW}
    told = dumps({**identity, "batch_tokens": ready.batch_tokens})
    folder = out.with_name(f"{out.name}.partial")
    partial, header = folder / "lines.jsonl", folder / "made.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        start = _resumed(partial, questions) if _holds(header, told) and partial.is_file() else 0
        if not start:
            partial.unlink(missing_ok=True)
            write_text(header, told + "\n")
        with partial.open("ab") as lines:
            for part in windows(model, questions, ready, start=start, progress=progress):
                lines.write("".join(f"{one.line()}\n" for one in part).encode())
                lines.flush()
                os.fsync(lines.fileno())
        os.replace(partial, out)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise unwritable(out, error) from error
    return made


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8").strip() == text


def _resumed(partial: Path, questions: Sequence[Question]) -> int:
    """Cut a file behind its last whole window and return the question with which it goes on."""
    ends = []
    with partial.open("rb") as lines:
        for line in iter(lines.readline, b""):
            if not line.endswith(b"\n") or not _parses(line):
                break
            ends.append(lines.tell())
    start = at = size = 0
    while start < len(questions):
        at += sum(len(one.answers) for one in questions[start : start + WINDOW])
        if at > len(ends):
            break
        start, size = min(start + WINDOW, len(questions)), ends[at - 1]
    os.truncate(partial, size)
    return start


def _parses(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def windows(
    model: Model,
    questions: Sequence[Question],
    ready: Prepared,
    *,
    start: int = 0,
    progress: Progress | None = None,
) -> Iterator[list[Detection]]:
    """Yield the detections of one window of questions after the other, in order.

    Args:
        model: The model.
        questions: The rows; a window of them is read at a time.
        ready: From :func:`prepare`.
        start: The first question, at the beginning of a window.
        progress: Called with the work done and the total.
    """
    if not questions:
        raise DataError("no rows", expected="at least one", got="0", fix="check --limit and the file")
    for first in range(start, len(questions), WINDOW):
        part = questions[first : first + WINDOW]
        yield _window(model, part, ready, part_of(progress, first, len(part), len(questions)))


def _window(model: Model, questions: Sequence[Question], ready: Prepared, progress: Progress | None) -> list[Detection]:
    shared = shares_prefix(model)
    encoded = [
        without_prediction(item)
        for item in encode(model, questions, chat=ready.chat, truncate=ready.truncate, share_prefix=shared)
    ]
    answers = [answer for question in questions for answer in question.answers]
    spans = [split_sentences(answer.text) for answer in answers]
    ends: list[list[int]] = []
    for item in encoded:
        for tail, start in zip(item.tails, item.starts, strict=True):
            ends.append(_ends(model, tail, start, answers[len(ends)].text, spans[len(ends)]))
    scores = sentence_scores(model, questions, encoded, ends, ready, progress)
    found = []
    at = iter(zip(spans, scores, strict=True))
    for question in questions:
        for answer in question.answers:
            own, score = next(at)
            each = ready.detector.probability(score)
            whole = float(ready.detector.probability(np.array([answer_score(score)]))[0])
            found.append(
                Detection(
                    id=question.id,
                    supported=whole,
                    verdict=verdict_of(whole, ready.cuts),
                    sentences=tuple(Sentence(*span, float(value)) for span, value in zip(own, each, strict=True)),
                    answer=answer.text,
                    label=answer.truthful if question.labelled else None,
                    kind=question.kind,
                    columns=question.columns or {"context": question.context, "question": question.question},
                )
            )
    return found


def answer_score(sentences: Float[np.ndarray, " sentences"]) -> float:
    """Return the score of an answer from those of its sentences."""
    return float(sentences.mean())


def _ends(model: Model, tail: Sequence[int], start: int, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return where in a tail each sentence of its answer ends; the last one ends with the tail."""
    if len(spans) == 1:
        return [len(tail) - 1]
    lead = len(text) - len(text.lstrip())
    closing = closing_tokens(model, tail[start:], text.strip(), [end - lead for _, end in spans])
    return [start + at for at in closing]


class _DeepEnough(Exception):
    """Ends a forward pass behind the deepest layer that is read."""


def sentence_scores(
    model: Model,
    questions: Sequence[Question],
    encoded: Sequence[Encoded],
    ends: Sequence[Sequence[int]],
    ready: Prepared,
    progress: Progress | None = None,
) -> list[Float[np.ndarray, " sentences"]]:
    """Return the mean logit of the chosen heads at the given tokens of every answer.

    Args:
        model: The model.
        questions: The questions, to name a row in an error.
        encoded: Their tokens.
        ends: For each answer, counted through, the tokens of its tail that are read.
        ready: From :func:`prepare`.
        progress: Called with the unique tokens done and the total.
    """
    detector = ready.detector
    read = _Readers.of(detector, model)
    first = dict(zip(map(id, encoded), first_answers(encoded), strict=True))
    found: list[Float[np.ndarray, " sentences"]] = [np.zeros(0)] * len(ends)

    def step(batch: Sequence[Encoded]) -> None:
        rows = [first[id(item)] + k for item in batch for k in range(len(item.tails))]
        tail = torch.tensor([at for at, row in enumerate(rows) for _ in ends[row]], device=model.device)
        token = torch.tensor([end for row in rows for end in ends[row]], device=model.device)
        total = torch.zeros(len(tail), dtype=torch.float32, device=model.device)
        with torch.inference_mode():
            tails = prepare_tails(model, batch)

            def visit(layer: int, z: Tensor) -> None:
                if layer in read.layers:
                    nonlocal total
                    head, weight, bias = (one.to(z.device) for one in read.layers[layer])
                    taken = z[tail.to(z.device), token.to(z.device)][:, head].float()
                    total = total + ((taken * weight).sum(-1) + bias).sum(-1).to(total.device)
                if layer == read.deepest:
                    raise _DeepEnough

            with intercepted(model, visit), suppress(_DeepEnough):
                backbone(model)(**tails.inputs)
        values = (total / len(detector.heads)).double().cpu().numpy()
        if not np.isfinite(values).all():
            bad = int(tail[int(np.flatnonzero(~np.isfinite(values))[0])])
            raise ActivationError(
                f"row {questions[batch[int(tails.owner[bad])].row].id!r}: z is not finite",
                expected="finite activations",
                got="NaN or infinity",
                fix="try --dtype fp32; if that does not help, the weights or the row are damaged",
            )
        at = 0
        for row in rows:
            found[row] = values[at : at + len(ends[row])]
            at += len(ends[row])

    batches = plan_batches(encoded, batch_tokens=ready.batch_tokens)
    run_batches(model, encoded, batches, step, done=set(), complete=lambda _: None, progress=progress)
    return found


class _Readers(NamedTuple):
    """Which heads are read in each layer, with their probes; and the layer behind which a pass may end, or None."""

    layers: dict[int, tuple[Tensor, Tensor, Tensor]]
    deepest: int | None

    @classmethod
    def of(cls, detector: Detector, model: Model) -> "_Readers":
        width = {layer.index: layer.head_dim for layer in model.layout.layers}
        layers = {}
        for layer in sorted(set(detector.heads[:, 0].tolist())):
            own = detector.heads[:, 0] == layer
            weight = detector.weight[own][:, : width[layer]].float()
            layers[layer] = (detector.heads[own, 1], weight, detector.bias[own].float())
        # Weights that are brought in for each layer go back when the layer is through: such a pass must run to its end.
        spread = getattr(model.network, "hf_device_map", None) is not None
        return cls(layers, None if spread else max(layers))
