"""Forward passes over questions: batches by length, the shared prefix computed once, halved when memory runs out."""

import gc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from truthheads.errors import ActivationError, out_of_memory
from truthheads.models.architectures import carries_state
from truthheads.models.image_inputs import MIN_IMAGES_FOR_WORKERS, Pixels, beside, mapped, prepared
from truthheads.models.load import Model
from truthheads.models.progress import Progress as Progress
from truthheads.models.progress import told_by_layer
from truthheads.models.prompts import Encoded
from truthheads.storage.distributed import my_share
from truthheads.storage.row_store import RowShards, RowStore

NEW, OLD = "cache", "past_key_values"


def cache_name(network: Any) -> str:
    """Find the name of the cache argument of a network's ``forward``; code from the hub may use the old name."""
    taken = inspect.signature(network.forward).parameters
    return next((name for name in (NEW, OLD) if name in taken), None) or _own_name()


def cache_of(outputs: Any) -> Any:
    """Return the cache that a network gives back."""
    return outputs[NEW] if NEW in outputs else outputs[OLD]


def _own_name() -> str:
    """Find the name of the cache argument in the installed release of transformers."""
    return NEW if NEW in {field.name for field in fields(BaseModelOutputWithPast)} else OLD


class Batch(tuple[Encoded, ...]):
    """Questions that are run together.

    Attributes:
        pixels: What their images have been made into ahead of the pass, or None; a part of a batch has none.
    """

    pixels: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Tails:
    """The answers of one batch, right-padded, with what stands before them.

    Attributes:
        ids: Token ids of the tails.
        real: True where a token is not padding.
        owner: For each tail the question in the batch that it belongs to.
        last: For each tail the index of its final token.
        start: For each tail the index of its answer's first token.
        inputs: Everything that the network is to be called with.
    """

    ids: Int[Tensor, "tails seq"]
    real: Bool[Tensor, "tails seq"]
    owner: Int[Tensor, " tails"]
    last: Int[Tensor, " tails"]
    start: Int[Tensor, " tails"]
    inputs: dict[str, Any]


def plan_batches(encoded: Sequence[Encoded], *, batch_tokens: int) -> list[list[int]]:
    """Pack questions of similar length, longest first, up to a number of padded tokens.

    Args:
        encoded: The questions.
        batch_tokens: At most so many tokens of prefix and tails with padding; a longer question goes alone.

    Returns:
        Positions in ``encoded``. Questions with and without a shared prefix, or an image, never share a batch.
    """
    order = sorted(
        range(len(encoded)),
        key=lambda i: (_manner(encoded[i]), len(encoded[i].prefix), encoded[i].length, encoded[i].tails),
        reverse=True,
    )
    batches: list[list[int]] = []
    width = tail = tails = 0
    for i in order:
        item = encoded[i]
        wider, longer = max(width, len(item.prefix)), max(tail, *map(len, item.tails))
        cost = wider * (len(batches[-1]) + 1 if batches else 1) + longer * (tails + len(item.tails))
        together = batches and _manner(item) == _manner(encoded[batches[-1][0]])
        if not together or cost > batch_tokens:
            batches.append([])
            wider, longer, tails = len(item.prefix), max(map(len, item.tails)), 0
        batches[-1].append(i)
        width, tail, tails = wider, longer, tails + len(item.tails)
    return batches


def _manner(item: Encoded) -> tuple[bool, bool]:
    """Build the key that questions of one batch share: with or without a prefix, with or without an image."""
    return bool(item.prefix), item.image is not None


def run_batches(
    model: Model,
    encoded: Sequence[Encoded],
    batches: Sequence[Sequence[int]],
    step: Callable[[Sequence[Encoded]], None],
    *,
    done: set[int],
    complete: Callable[[int], None],
    progress: Progress | None = None,
    passes: int = 1,
) -> None:
    """Run ``step`` on every batch that is not done; a batch that runs out of memory is halved and tried again.

    Images are prepared in worker processes, a few batches ahead of the model.

    Args:
        model: The model; its image processor prepares what the questions show.
        encoded: The questions.
        batches: From :func:`plan_batches`.
        step: Computes one batch and keeps its result.
        done: Batches that need not run.
        complete: Called with the number of each batch when it is through.
        progress: Called with the unique tokens done and the total: after each batch, and within one that takes long.
        passes: Forward passes that ``step`` takes beside that over a shared prefix.

    Raises:
        ActivationError: A single question does not fit into memory.
    """
    total = sum(item.unique_tokens for item in encoded)
    left = [number for number in range(len(batches)) if number not in done]
    through = sum(encoded[i].unique_tokens for number in done for i in batches[number])
    if progress is not None and done:
        progress(through, total)
    for number, members in zip(left, _ready(model, [[encoded[i] for i in batches[n]] for n in left]), strict=True):
        size = sum(item.unique_tokens for item in members)
        within = None if progress is None else partial(_within, progress, through, size, total)
        with told_by_layer(model, within, passes=passes + bool(members[0].prefix)):
            _halving(members, step)
        complete(number)
        through += size
        if progress is not None:
            progress(through, total)


def _within(progress: Progress, through: int, size: int, total: int, share: float) -> None:
    progress(through + int(share * size), total)


def _ready(model: Model, batches: Sequence[Sequence[Encoded]]) -> Iterator[Batch]:
    """Yield the batches in order with their images prepared, if they show any."""
    paths = [_images(batch) for batch in batches]
    if not any(paths):
        yield from map(Batch, batches)
        return
    count = None if sum(map(len, paths)) >= MIN_IMAGES_FOR_WORKERS else 0
    pixels = mapped(partial(_prepared, model.processor.image_processor), paths, workers=count)
    for batch, made in zip(batches, pixels, strict=True):
        ready = Batch(batch)
        ready.pixels = made
        yield ready


def _prepared(image_processor: Any, paths: Sequence[str]) -> Pixels | None:
    return prepared(image_processor, paths) if paths else None


def _images(batch: Sequence[Encoded]) -> list[str]:
    """Return the image of each row of the pass that sees them: of a prefix, else of every answer."""
    shown = [item for item in batch for _ in (range(1) if batch[0].prefix else item.tails)]
    return [item.image for item in shown if item.image is not None]


def filled(
    model: Model,
    store: RowStore | RowShards,
    encoded: Sequence[Encoded],
    step: Callable[[Sequence[Encoded]], None],
    *,
    batch_tokens: int,
    progress: Progress | None,
) -> RowStore | None:
    """Run ``step`` on what a store still lacks and return the store; after an error it is closed, not deleted.

    Where several processes share the store, each runs its share; the first returns the whole, the others None.
    """
    try:
        batches = plan_batches(encoded, batch_tokens=batch_tokens)
        mine = my_batches(encoded, batches) if isinstance(store, RowShards) else set(range(len(batches)))
        done = store.done | set(range(len(batches))) - mine
        run_batches(model, encoded, batches, step, done=done, complete=store.complete, progress=progress)
        return store.whole(len(batches)) if isinstance(store, RowShards) else store
    except BaseException:
        store.close()
        raise


def my_batches(encoded: Sequence[Encoded], batches: Sequence[Sequence[int]]) -> set[int]:
    """Return the batches that are this process's, by the tokens that they cost."""
    return my_share([sum(encoded[i].unique_tokens for i in batch) for batch in batches])


def _halving(members: Sequence[Encoded], step: Callable[[Sequence[Encoded]], None]) -> None:
    try:
        step(members)
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        if len(members) == 1:
            raise ActivationError(
                f"question {members[0].row} does not fit into memory",
                expected="memory for one question",
                got=f"{members[0].length} tokens; {(str(error) or type(error).__name__).splitlines()[0]}",
                fix="use a device with more memory, a smaller --dtype, or remove the row",
            ) from error
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    middle = len(members) // 2
    _halving(members[:middle], step)
    _halving(members[middle:], step)


def shares_prefix(model: Model) -> bool:
    """Return whether a prefix may be computed once: layers that carry a state instead of keys cannot branch."""
    return not model.layout.skipped and not carries_state(model.network)


def prepare_tails(model: Model, batch: Sequence[Encoded]) -> Tails:
    """Compute the shared prefixes of a batch and return its answers, ready to be run.

    Prefixes are padded on the left and tails on the right, so that a row's tokens are contiguous in the cache and
    sliding windows see the true distances.

    Args:
        model: The model; interception and gradient mode are the caller's.
        batch: Questions that all have a prefix, or none; and all an image, or none. A :class:`Batch` brings its pixels.
    """
    device = model.device
    pixels = batch.pixels if isinstance(batch, Batch) else None
    owner = torch.tensor([i for i, item in enumerate(batch) for _ in item.tails], device=device)
    tails = [tail for item in batch for tail in item.tails]
    starts = torch.tensor([start for item in batch for start in item.starts], device=device)
    ids, real = _padded(tails, left=False, device=device)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    past = torch.zeros(len(batch), 0, dtype=torch.bool, device=device)
    if batch[0].prefix:
        prefix, past = _padded([item.prefix for item in batch], left=True, device=device)
        shown = [item.image for item in batch]
        prompt = {"input_ids": prefix, **beside(model, prefix, past, shown, pixels=pixels)}
        cache = cache_of(backbone(model)(**positioned(model, prompt, past, past.shape[1]), use_cache=True))
        cache.reorder_cache(owner)
        inputs |= {cache_name(model.network): cache, "use_cache": True, **_after(prompt, past, real, owner)}
    else:
        shown = [item.image for item in batch for _ in item.tails]
        inputs |= beside(model, ids, real, shown, starts, pixels=pixels)
    seen = torch.cat([past[owner], real], dim=1)
    last = real.sum(1) - 1
    return Tails(ids, real, owner, last, starts, positioned(model, inputs, seen, ids.shape[1]))


def _after(prompt: Mapping[str, Tensor], past: Tensor, real: Tensor, owner: Tensor) -> dict[str, Tensor]:
    """Return the tails' positions where those of the prefix have three axes: an image takes up less than its tokens."""
    if "position_ids" not in prompt:
        return {}
    used = prompt["position_ids"].masked_fill(~past, -1).amax((0, 2)) + 1
    position = used[owner, None] + (real.long().cumsum(1) - 1).clamp(min=0)
    return {"position_ids": position.expand(3, *position.shape)}


def backbone(model: Model) -> Any:
    """Return the network without its language-model head."""
    return model.network.base_model


def final_values(z: Float[Tensor, "tails seq num_heads head_dim"], tails: Tails) -> Tensor:
    """Return z at each tail's final token, ``[tails, num_heads, head_dim]``."""
    return z[torch.arange(len(tails.last), device=z.device), tails.last.to(z.device)]


def answer_logprobs(model: Model, tails: Tails) -> Float[Tensor, " tails"]:
    """Return log P(answer | prompt) in nats, summed over the answer's tokens, computed in fp32.

    The language-model head runs on the tails alone.
    """
    logits = model.network(**tails.inputs).logits[:, :-1].float()
    targets = tails.ids[:, 1:].to(logits.device)
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    position = torch.arange(1, tails.ids.shape[1], device=targets.device)
    counted = tails.real[:, 1:].to(logits.device) & (position >= tails.start.to(logits.device).unsqueeze(1))
    total: Float[Tensor, " tails"] = chosen.masked_fill(~counted, 0.0).sum(1)
    return total


def _padded(rows: Sequence[Sequence[int]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    # Padding is masked, so any id will do; 0 exists in every vocabulary.
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        real[i, where] = True
    return ids.to(device), real.to(device)


def positioned(model: Model, inputs: Mapping[str, object], seen: Tensor, width: int) -> dict[str, object]:
    """Add the mask over everything seen and, where the network takes them, the positions of the new tokens."""
    inputs = {**inputs, "attention_mask": seen.long()}
    if "position_ids" not in inputs and "position_ids" in inspect.signature(backbone(model).forward).parameters:
        inputs["position_ids"] = (seen.long().cumsum(1) - 1).clamp(min=0)[:, -width:]
    return inputs
