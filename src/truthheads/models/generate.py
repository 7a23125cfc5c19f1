"""Answers of a model: the logits of the first token in one pass, and greedy text in batches."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from truthheads.errors import ActivationError
from truthheads.models.context_aware import contrasted
from truthheads.models.forward import Tails, backbone, cache_name, cache_of, positioned, prepare_tails, shares_prefix
from truthheads.models.load import Model
from truthheads.models.offload import is_spread
from truthheads.models.prompts import Encoded


class Written(NamedTuple):
    """Answers of one batch, a row for each prompt.

    Attributes:
        tokens: New token ids of each, without the end marker.
        finished: Whether the model came to its end before the cap.
        yes: Log-probability that the first token says yes, all spellings summed; None where not asked.
        no: The same for no.
    """

    tokens: list[list[int]]
    finished: list[bool]
    yes: list[float] | None
    no: list[float] | None


class SharedPrefix:
    """What all prompts of a task begin with, computed once; to be made under the gate that is at work.

    Args:
        model: The model.
        ids: Tokens of the head.
    """

    def __init__(self, model: Model, ids: Sequence[int]) -> None:
        self.length = len(ids)
        with torch.inference_mode():
            row = torch.tensor([list(ids)], device=model.device)
            self._cache = cache_of(backbone(model)(input_ids=row, use_cache=True))

    def copies(self, count: int) -> Any:
        """Return a cache of its own for so many prompts."""
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        return cache


def can_share_prefix(model: Model) -> bool:
    """Return whether prompts may be continued after padding: not with states, nor with windows counted in places."""
    config = model.network.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "layer_types")]
    local = any(kind != "full_attention" for kind in windows[2] or [])
    return shares_prefix(model) and windows[:2] == [None, None] and not local


def after_shared_prefix(model: Model, batch: Sequence[Encoded], head: SharedPrefix) -> Tails:
    """Return the tails of a batch, ready to be run, as ``prepare_tails`` does, where a head stands before each prefix.

    The places of the cache between the head and a shorter prefix are padding and masked.
    """
    device, count = model.device, len(batch)
    owner = torch.tensor([i for i, item in enumerate(batch) for _ in item.tails], device=device)
    cache, seen = head.copies(count), torch.ones(count, head.length, dtype=torch.bool, device=device)
    if batch[0].prefix:
        prefix, real = _padded([item.prefix for item in batch], "left", device)
        seen = torch.cat([seen, real], 1)
        body = backbone(model)
        inputs = positioned(model, {"input_ids": prefix, cache_name(body): cache}, seen, prefix.shape[1])
        cache = cache_of(body(**inputs, use_cache=True))
    cache.reorder_cache(owner)
    ids, real = _padded([tail for item in batch for tail in item.tails], "right", device)
    inputs = {"input_ids": ids, cache_name(model.network): cache, "use_cache": True}
    inputs = positioned(model, inputs, torch.cat([seen[owner], real], 1), ids.shape[1])
    starts = torch.tensor([start for item in batch for start in item.starts], device=device)
    return Tails(ids, real, owner, real.sum(1) - 1, starts, inputs)


def _padded(rows: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = pad_sequence([torch.tensor(list(row)) for row in rows], batch_first=True, padding_side=side)
    real = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True, padding_side=side)
    return ids.to(device), real.to(device)


class Contrast(NamedTuple):
    """The prompts of a batch without their contexts, in the same order: for context-aware decoding.

    Attributes:
        batch: The prompts, with as many tails as those with the context.
        alpha: Weight of what the context adds.
    """

    batch: Sequence[Encoded]
    alpha: float


class _Reading:
    """One batch of prompts that is read, and then continued by the same tokens in every row.

    Attributes:
        logits: fp32 logits of the next token of each row.
    """

    def __init__(self, model: Model, tails: Tails, *, growing: bool) -> None:
        self._model, self._taken = model, cache_name(model.network)
        self._seen, place = tails.inputs["attention_mask"], tails.inputs.get("position_ids")
        self._place = None if place is None else place[..., -1:]
        self.logits, self._cache = _first(model, tails, growing)

    def go_on(self, tokens: Int[Tensor, " tails"]) -> None:
        """Read one more token in each row."""
        self._seen = torch.cat([self._seen, self._seen.new_ones(len(self._seen), 1)], dim=1)
        inputs: dict[str, Any] = {"input_ids": tokens[:, None], "attention_mask": self._seen, "use_cache": True}
        if self._place is not None:
            self._place = self._place + 1
            inputs["position_ids"] = self._place
        made = self._model.network(**inputs, **{self._taken: self._cache})
        self._cache, self.logits = cache_of(made), made.logits[:, -1]


def answer(
    model: Model,
    batch: Sequence[Encoded],
    *,
    new_tokens: int = 1,
    words: dict[str, list[int]] | None = None,
    head: SharedPrefix | None = None,
    ended: Callable[[list[int]], bool] | None = None,
    contrast: Contrast | None = None,
) -> Written:
    """Answer the prompts of a batch, greedily.

    Args:
        model: The model; a gate is the caller's.
        batch: Prompts as ``evaluation.ask.group_by_prefix`` gives them; for more than one new token each alone.
        new_tokens: Largest number of new tokens.
        words: Tokens that say yes and no, to be told their log-probabilities.
        head: What stands before every prompt of the batch and is not among its tokens.
        ended: Whether an answer of so many new tokens has all that is wanted. Generation ends when each answer has;
            one that has them sooner gets more.
        contrast: The same prompts without their contexts, for context-aware decoding; None decodes as usual.

    Raises:
        ActivationError: A logit of a first token is not finite.
    """
    ends, growing = _ends(model), new_tokens > 1
    with torch.inference_mode():
        tails = prepare_tails(model, batch) if head is None else after_shared_prefix(model, batch, head)
        readings = [_Reading(model, tails, growing=growing)]
        if contrast is not None:
            readings.append(_Reading(model, prepare_tails(model, contrast.batch), growing=growing))

        def logits() -> Float[Tensor, "tails vocabulary"]:
            full, *bare = (reading.logits for reading in readings)
            return contrasted(full.float(), bare[0].float(), contrast.alpha) if contrast is not None else full

        first = logits()
        check_finite(first.logsumexp(-1), batch)
        told = _told(first, words)
        chosen = [first.argmax(-1)]
        over = torch.isin(chosen[0], ends)
        while len(chosen) < new_tokens:
            if ended is not None:
                over |= torch.tensor([ended(row) for row in torch.stack(chosen, 1).tolist()], device=over.device)
            if bool(over.all()):
                break
            for reading in readings:
                reading.go_on(chosen[-1])
            chosen.append(logits().argmax(-1))
            over |= torch.isin(chosen[-1], ends)
    rows, stops = torch.stack(chosen, 1).tolist(), set(ends.tolist())
    cut = [next((at for at, token in enumerate(row) if token in stops), None) for row in rows]
    return Written(
        [row[:at] for row, at in zip(rows, cut, strict=True)], [at is not None for at in cut], told[0], told[1]
    )


def check_finite(values: Float[Tensor, "..."], batch: Sequence[Encoded]) -> None:
    """Raise ActivationError where what a batch gave cannot be used."""
    if not bool(torch.isfinite(values).all()):
        rows = [one.row for one in batch]  # in the order of their lengths
        raise ActivationError(
            f"rows {min(rows)} to {max(rows)}: a logit cannot be used",
            expected="finite logits",
            got="NaN or infinity",
            fix="try --dtype fp32; if that does not help, the gate is too strong or the weights are damaged",
        )


def _first(model: Model, tails: Tails, growing: bool) -> tuple[Float[Tensor, "tails vocabulary"], Any]:
    """Return fp32 logits after each tail's last token, and the cache; the head runs on last tokens where it can."""
    inputs = dict(tails.inputs)
    inputs["use_cache"] = growing or bool(inputs.get("use_cache"))
    lasts, place = torch.unique(tails.last, return_inverse=True)
    if "logits_to_keep" not in inspect.signature(model.network.forward).parameters:
        place = tails.last
    elif is_spread(model.network):
        # Indices would be on the first device, the states that they choose from on the last: a number is on none.
        width, first = tails.ids.shape[1], int(lasts[0])
        inputs["logits_to_keep"], place = width - first, tails.last - first
    else:
        inputs["logits_to_keep"] = lasts
    made = model.network(**inputs)
    rows = torch.arange(len(place), device=place.device)
    logits: Float[Tensor, "tails vocabulary"] = made.logits[rows, place].float()
    return logits, cache_of(made) if growing else None


def _told(
    logits: Float[Tensor, "tails vocabulary"], words: dict[str, list[int]] | None
) -> tuple[list[float] | None, list[float] | None]:
    if words is None:
        return None, None
    whole = logits.logsumexp(-1)
    yes, no = ((logits[:, words[word]].logsumexp(-1) - whole).tolist() for word in ("yes", "no"))
    return yes, no


def _ends(model: Model) -> Int[Tensor, " ends"]:
    """Return the tokens that end an answer: those of the generation settings and the tokenizer's own."""
    told = getattr(model.network.generation_config, "eos_token_id", None)
    numbers = {*(told if isinstance(told, list | tuple) else [told]), model.tokenizer.eos_token_id} - {None}
    return torch.tensor(sorted(numbers), dtype=torch.long, device=model.device)
