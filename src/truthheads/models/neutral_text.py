"""Neutral text, which a gate must not change, and how much it changes."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import StoppingCriteriaList

from truthheads.data.questions import Question
from truthheads.errors import DataError
from truthheads.models.forward import positioned
from truthheads.models.hooks import Intervention
from truthheads.models.load import Model
from truthheads.models.progress import Progress
from truthheads.stats.figures import Figure, mean_figure
from truthheads.storage.files import SURROGATE
from truthheads.storage.kept_results import KeptResults

LENGTH = 64

KEPT_BYTES = 2**30
"""Logits of the untouched model on neutral text that are kept in memory, at most: 50 texts of 64 tokens in bf16 with a
vocabulary of 150,000."""

OPENINGS = (
    "The", "In", "A", "It", "When", "There", "My", "This", "One", "After", "How", "If", "We", "Many", "On", "She",
)  # fmt: skip
"""First words of texts that a model writes itself."""


class Harm(NamedTuple):
    """What a gate does to neutral text, one value per text, in nats a token.

    Attributes:
        kl: Mean KL divergence of the gated model's next-token distribution from the ungated model's.
        loss: How much more the text itself costs under the gate; may be negative.
    """

    kl: Float[np.ndarray, " texts"]
    loss: Float[np.ndarray, " texts"]

    def figures(self, *, seed: int) -> dict[str, Figure]:
        """Return both means with their intervals by bootstrap over texts."""
        each = np.arange(len(self.kl))
        return {"kl": mean_figure(self.kl, each, seed=seed), "loss": mean_figure(self.loss, each, seed=seed)}


def read_neutral(path: Path) -> list[str]:
    """Return the texts of a file: JSONL with ``text``, else paragraphs between empty lines.

    Raises:
        DataError: The file is missing, not UTF-8, or holds no text.
    """
    try:
        whole = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            texts = [str(json.loads(line)["text"]).strip() for line in whole.splitlines() if line.strip()]
        else:
            texts = [part.strip() for part in whole.split("\n\n")]
        if any(SURROGATE.search(text) for text in texts):
            raise ValueError("half a character")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as neutral text",
            expected="UTF-8 paragraphs between empty lines, or .jsonl with a text in every line",
            got=f"{type(error).__name__}: {error}",
            fix="check the path and the file",
        ) from error
    texts = [text for text in texts if text]
    if len(texts) < 2:
        raise DataError(
            f"{path} holds too little neutral text",
            expected="two texts or more: some to learn from, some to test on",
            got=f"{len(texts)}",
            fix="separate texts by an empty line, or leave --neutral out",
        )
    return texts


OWN_TEXTS_AT_ONCE = 64


def own_text(
    model: Model,
    texts: int,
    *,
    length: int = LENGTH,
    seed: int = 0,
    progress: Progress | None = None,
    kept: KeptResults | None = None,
) -> list[list[int]]:
    """Return token ids of texts that the model writes itself, sampled at temperature 1 after common first words.

    Args:
        model: The model, ungated.
        texts: How many.
        length: New tokens of each; fewer where the model has not so many positions.
        seed: Random seed of the samples. transformers draws from torch's global generator, whose state is put back.
        progress: Called with the tokens done and the total.
        kept: Where each batch is kept as it comes, and found again; None: nowhere.
    """
    tokenizer = model.tokenizer
    starts = [list(tokenizer(OPENINGS[at % len(OPENINGS)])["input_ids"]) for at in range(texts)]
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    starts = [ids[:-1] if len(ids) > 1 and ids[-1] in ends else ids for ids in starts]
    longest = max(map(len, starts))
    length = length if model.layout.max_positions is None else min(length, model.layout.max_positions - longest)
    written: list[list[int]] = []
    devices = [model.device] if model.device.type == "cuda" else []
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    done = 0

    def tick(*_: Any, **__: Any) -> Tensor:
        nonlocal done
        done += len(part)
        if progress is not None:
            progress(done, texts * length)
        return torch.zeros(len(part), dtype=torch.bool, device=model.device)

    def sampled() -> list[list[int]]:
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in part], device=model.device)
        seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part], device=model.device)
        # Each batch has a seed of its own, so that it can be made without those before it.
        torch.random.manual_seed(seed + first)
        made = model.network.generate(
            input_ids=ids,
            attention_mask=seen,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=pad if pad is not None else 0,
            stopping_criteria=StoppingCriteriaList([tick]),
        )
        return [row[width - len(start) :] for row, start in zip(made.tolist(), part, strict=True)]

    kept = kept or KeptResults(None, {})
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        for first in range(0, texts, OWN_TEXTS_AT_ONCE):
            part = starts[first : first + OWN_TEXTS_AT_ONCE]
            written += kept.result(f"own text/{first}", sampled)
            done = len(written) * length
    return written


def neutral_ids(
    model: Model,
    questions: Sequence[Question],
    *,
    path: Path | None = None,
    texts: int = 96,
    length: int = LENGTH,
    seed: int = 0,
    progress: Progress | None = None,
    kept: KeptResults | None = None,
) -> list[list[int]]:
    """Return neutral text as token ids, in an order drawn by seed.

    Args:
        model: Its tokenizer is used, and its own samples.
        questions: Their contexts are half of the text where there is no file; the model's own samples the other half.
        path: A user's own file instead; see :func:`read_neutral`.
        texts: How many texts, at most.
        length: Tokens of each, at most; longer ones are cut.
        seed: Random seed of order and samples.
        progress: Called with the tokens of the model's own samples done and the total.
        kept: Where samples are kept as they come, and found again; None: nowhere.

    Raises:
        DataError: The file cannot be used.
    """
    generator = np.random.default_rng(seed)
    if path is not None:
        found = read_neutral(path)
        own: list[list[int]] = []
    else:
        contexts = list(dict.fromkeys(question.context for question in questions if question.context.strip()))
        found = [contexts[at] for at in generator.permutation(len(contexts))[: texts // 2]]
        own = own_text(model, texts - len(found), length=length, seed=seed, progress=progress, kept=kept)
    rows = [list(model.tokenizer(text)["input_ids"])[:length] for text in found] + [row[:length] for row in own]
    rows = [row for row in rows if len(row) > 1]
    return [rows[at] for at in generator.permutation(len(rows))[:texts]]


class NeutralBatch(NamedTuple):
    """Neutral texts ready to be run, and what the untouched model expects after each of their tokens.

    Attributes:
        inputs: What the network is called with.
        ids: Token ids, right-padded.
        real: True where a token is not padding.
        plain: Log-probabilities of the next token, fp32.
    """

    inputs: dict[str, object]
    ids: Int[Tensor, "texts seq"]
    real: Bool[Tensor, "texts seq"]
    plain: Float[Tensor, "texts next vocabulary"]


def read_plain(model: Model, rows: Sequence[Sequence[int]]) -> NeutralBatch:
    """Let the untouched model read neutral texts.

    Args:
        model: The model, without a gate or an adapter.
        rows: Token ids, two or more each.
    """
    inputs, ids, real = _padded(model, rows)
    return NeutralBatch(inputs, ids, real, _logits(model, inputs).float().log_softmax(-1))


def _padded(model: Model, rows: Sequence[Sequence[int]]) -> tuple[dict[str, object], Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device).bool()
    return positioned(model, {"input_ids": ids, "use_cache": False}, real, width), ids, real


def _logits(model: Model, inputs: dict[str, object]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.network(**inputs).logits[:, :-1]
        return found


class NeutralTexts:
    """Neutral texts in batches, and what the untouched model expects after each of their tokens.

    On a CPU the untouched model's logits are kept, in its own precision, as many batches as fit ``KEPT_BYTES``: each
    change is compared with the same ones, and half of the passes are saved.

    Args:
        model: The model.
        rows: Token ids, two or more each.
        batch: Texts in a pass.
    """

    def __init__(self, model: Model, rows: Sequence[Sequence[int]], *, batch: int = 8) -> None:
        self.model, self.rows, self.batch = model, rows, batch
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT_BYTES if model.device.type == "cpu" else 0

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.rows)

    def read(self, first: int) -> NeutralBatch:
        """Return the batch that begins with a text; nothing must be at work on the model."""
        inputs, ids, real = _padded(self.model, self.rows[first : first + self.batch])
        logits = self._kept.get(first)
        if logits is None:
            logits = _logits(self.model, inputs)
            if logits.nbytes <= self._room:
                self._kept[first] = logits
                self._room -= logits.nbytes
        return NeutralBatch(inputs, ids, real, logits.float().log_softmax(-1))


def divergence_of(model: Model, batch: NeutralBatch) -> tuple[Float[Tensor, " texts"], Float[Tensor, " texts"]]:
    """Return mean KL and mean rise of loss of each text, in nats a token; the pass keeps the caller's gradients.

    Args:
        model: The model with its gate or adapter at work.
        batch: What :func:`read_plain` returned without it.
    """
    changed = model.network(**batch.inputs).logits[:, :-1].float().log_softmax(-1)
    counted = batch.real[:, 1:].float()
    targets = batch.ids[:, 1:, None]
    kl = (batch.plain.exp() * (batch.plain - changed)).sum(-1)
    loss = (batch.plain.gather(-1, targets) - changed.gather(-1, targets)).squeeze(-1)
    count = counted.sum(1)
    return (kl * counted).sum(1) / count, (loss * counted).sum(1) / count


def divergence(
    model: Model, rows: Sequence[Sequence[int]], under: Callable[[], AbstractContextManager[object]]
) -> tuple[Float[Tensor, " texts"], Float[Tensor, " texts"]]:
    """Return mean KL and mean rise of loss of each text, in nats a token; the second pass keeps the caller's gradients.

    Args:
        model: The model, untouched.
        rows: Token ids, two or more each.
        under: Makes the context in which a gate or an adapter is at work.
    """
    batch = read_plain(model, rows)
    with under():
        return divergence_of(model, batch)


def measure_harm(
    model: Model,
    texts: NeutralTexts | Sequence[Sequence[int]],
    gate: Intervention | None,
    *,
    progress: Progress | None = None,
    kept: KeptResults | None = None,
    name: str = "harm",
) -> Harm:
    """Measure the effect of a gate or an adapter on neutral text.

    Args:
        model: The model, untouched.
        texts: The texts; their token ids where they are read only once.
        gate: What is at work; None measures nothing but zeros.
        progress: Called with the texts done and the total.
        kept: Where each batch is kept as it comes, and found again; None: nowhere.
        name: What the batches are called there.
    """
    kept = kept or KeptResults(None, {})
    texts = texts if isinstance(texts, NeutralTexts) else NeutralTexts(model, texts)
    kl: list[float] = []
    loss: list[float] = []
    for first in range(0, len(texts), texts.batch):
        found = kept.result(f"{name}/{first}", partial(_harm, model, texts, first, gate))
        kl += found[0]
        loss += found[1]
        if progress is not None:
            progress(len(kl), len(texts))
    return Harm(np.array(kl), np.array(loss))


def _harm(model: Model, texts: NeutralTexts, first: int, gate: Intervention | None) -> list[list[float]]:
    with torch.inference_mode():
        batch = texts.read(first)
        with gate.apply(model) if gate else nullcontext():
            return [value.tolist() for value in divergence_of(model, batch)]
