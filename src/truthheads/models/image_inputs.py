"""Prompts that show an image: image tokens, pixels, positions, and decoding in worker processes."""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from truthheads.data.images import load_image
from truthheads.errors import ActivationError, DataError, TruthHeadsError
from truthheads.models.load import Model

Item = TypeVar("Item")

Made = TypeVar("Made")

MIN_IMAGES_FOR_WORKERS = 32
"""Fewer items than this are done in this process: starting others would take longer."""

MOST = 8


class _Mapped(Dataset[Any], Generic[Item, Made]):
    def __init__(self, function: Callable[[Item], Made], items: Sequence[Item]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> "Made | TruthHeadsError":
        try:
            return self.function(self.items[index])
        except TruthHeadsError as error:
            return error  # the loader would raise it anew from its text alone


def spare_processes() -> int:
    """Choose the number of worker processes for images: all processors but one, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, usable - 1)


def mapped(function: Callable[[Item], Made], items: Sequence[Item], *, workers: int | None = None) -> Iterator[Made]:
    """Yield ``function(item)`` in order, computed in worker processes, two items ahead for each of them.

    Args:
        function: Called in the workers; it and its results can be pickled. Arrays, not tensors: these would go through
            shared memory, of which containers have little.
        items: What it is called with.
        workers: So many processes; by default none for fewer than 32 items, else :func:`spare_processes`.

    Raises:
        TruthHeadsError: Whatever ``function`` raised, as it was.
        ActivationError: A worker was killed.
    """
    count = (spare_processes() if len(items) >= MIN_IMAGES_FOR_WORKERS else 0) if workers is None else workers
    with _quiet_tokenizers():
        # Without a generator of its own, a loader draws a seed from torch's global one.
        loader = DataLoader(
            _Mapped(function, items),
            batch_size=None,
            num_workers=count,
            collate_fn=_as_is,
            generator=torch.Generator(),
        )
        try:
            for made in loader:
                if isinstance(made, TruthHeadsError):
                    raise made
                yield made
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ActivationError(
                "a process that prepares images was killed",
                expected=f"memory for {count} images at a time beside the model",
                got=str(error).splitlines()[0],
                fix="free memory, or make the largest images smaller",
            ) from error


def _as_is(item: Any) -> Any:
    return item


@contextmanager
def _quiet_tokenizers() -> Iterator[None]:
    """Keep tokenizers from using threads, and from warning of them, while processes are forked."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


PREFIX_FIRST = ("paligemma",)
"""The prompt attends to itself in both directions, so no part of it can be computed before the rest is there."""

CROSSING = ("mllama",)
"""Layers of their own attend to the image; a cache of a part of the prompt would lack it."""

Pixels = dict[str, np.ndarray]
"""What an image processor returns, by its own names."""


def model_type(model: Model) -> str:
    """Return the network's type, as its configuration names it."""
    return str(model.network.config.model_type)


def shares_with_image(model: Model) -> bool:
    """Return whether a prompt, image included, may be computed once for several answers."""
    return model_type(model) not in (*PREFIX_FIRST, *CROSSING)


def placeholder(model: Model) -> str:
    """Find the placeholder that stands for an image in a prompt until the processor replaces it by image tokens."""
    processor, kind = model.processor, model_type(model)
    if kind == "gemma3":
        return str(processor.boi_token)
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        return f"<|vision_start|>{processor.image_token}<|vision_end|>"
    if kind == "qwen2_5_omni_thinker":
        return f"{processor.vision_bos_token}{processor.image_token}{processor.vision_eos_token}"
    return str(processor.image_token)


def prepared(image_processor: Any, paths: Sequence[str]) -> Pixels:
    """Run the image processor on one image per row; a file that several rows share is read once.

    Raises:
        DataError: An image cannot be read.
    """
    images = {path: load_image(path) for path in dict.fromkeys(paths)}
    made = image_processor(images=[[images[path]] for path in paths], return_tensors="pt")
    return {name: value.numpy() for name, value in made.items() if isinstance(value, Tensor)}


def beside(
    model: Model,
    ids: Int[Tensor, "rows seq"],
    seen: Bool[Tensor, "rows seq"],
    paths: Sequence[str | None],
    starts: Int[Tensor, " rows"] | None = None,
    *,
    pixels: Pixels | None = None,
) -> dict[str, Tensor]:
    """Collect the network's inputs other than token ids; none for plain text in most models.

    Args:
        model: The model.
        ids: The tokens of a pass without a cache.
        seen: True where a token is not padding.
        paths: One image for each row, or None.
        starts: For whole rows the index of the answer's first token, else None.
        pixels: What :func:`prepared` makes of these paths, where that has been done ahead.

    Returns:
        By the network's own names; ``position_ids`` ``[3, rows, seq]`` where positions have three axes.

    Raises:
        DataError: An image cannot be read.
    """
    kind = model_type(model)
    place = torch.arange(ids.shape[1], device=ids.device)
    found: dict[str, Tensor] = {}
    if kind in PREFIX_FIRST and starts is not None:
        found["token_type_ids"] = (place >= starts[:, None]).long()
    shown = tuple(path for path in paths if path is not None)
    if not shown:
        return found
    taken = inspect.signature(model.network.forward).parameters
    made = (pixels or prepared(model.processor.image_processor, shown)).items()
    values = ((name, torch.from_numpy(array)) for name, array in made if name in taken)
    found |= {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in values
    }
    config = model.network.config
    image = ids == getattr(config, "image_token_id", getattr(config, "image_token_index", -1))
    if kind == "gemma3":
        found["token_type_ids"] = image.long()
    if kind in CROSSING:
        after = (image.long().cumsum(1) > 0) & seen
        found["cross_attention_mask"] = after[:, :, None, None] * found["aspect_ratio_mask"][:, None]
    if "image_grid_thw" in found:
        found["position_ids"] = _three_axes(model, ids, seen, image, found["image_grid_thw"])
    return found


def _three_axes(model: Model, ids: Tensor, seen: Tensor, image: Tensor, grid: Tensor) -> Int[Tensor, "3 rows seq"]:
    """Return positions in time, height and width, by the network's own rule."""
    holder = next(one for one in (model.network.base_model, model.network) if hasattr(one, "get_rope_index"))
    given = {
        "input_ids": ids,
        "mm_token_type_ids": image.int(),
        "image_grid_thw": grid,
        "attention_mask": seen.long(),
    }
    taken = inspect.signature(holder.get_rope_index).parameters
    positions: Tensor = holder.get_rope_index(**{name: value for name, value in given.items() if name in taken})[0]
    return positions.long()


@dataclass(frozen=True, slots=True)
class ImageTexts:
    """Texts of one question, all about one image.

    Attributes:
        row: The question's id.
        image: The image's path.
        texts: The prompt, and the prompt with each of its answers.
    """

    row: str
    image: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Tokeniser:
    """The processor's own call, for a worker process: it holds no network."""

    processor: Any
    prefix_first: bool
    special: bool

    def __call__(self, shown: ImageTexts) -> list[list[int]]:
        try:
            image = load_image(shown.image)
        except DataError as error:
            raise DataError(
                f"row {shown.row!r}: {error.problem}", expected=error.expected, got=error.got, fix=error.fix
            ) from error
        if self.prefix_first:
            prompt, *longer = shown.texts
            ends = [None, *(text[len(prompt) :].strip() for text in longer)]
            made = [self.processor(text=prompt, images=image, suffix=end)["input_ids"] for end in ends]
            return [list(made[0][0]), *(list(ids[0][:-1]) for ids in made[1:])]  # it ends answers with </s>
        first = self._call(shown.texts[0], image)
        rest = self._continued(first, shown.texts)
        return [first, *([self._call(text, image) for text in shown.texts[1:]] if rest is None else rest)]

    def _call(self, text: str, image: Any) -> list[int]:
        ids = self.processor(text=[text], images=[[image]], add_special_tokens=self.special)["input_ids"][0]
        return [int(one) for one in ids]  # some processors return tensors unasked

    def _continued(self, first: list[int], texts: Sequence[str]) -> list[list[int]] | None:
        """Return the answers' ids from the prompt's alone, so that the image is prepared once; None where that fails.

        Image tokens are special: what is left of them is tokenised without regard to what is right of them.
        """
        prompt, *answers = self.processor.tokenizer(list(texts), add_special_tokens=self.special)["input_ids"]
        same = 0
        while same < min(len(first), len(prompt)) and first[-1 - same] == prompt[-1 - same]:
            same += 1
        kept = len(prompt) - same
        if not same or not kept or any(list(ids[:kept]) != list(prompt[:kept]) for ids in answers):
            return None
        return [first[: len(first) - same] + list(ids[kept:]) for ids in answers]


def tokens_with_images(model: Model, shown: Sequence[ImageTexts], *, special: bool) -> Iterator[list[list[int]]]:
    """Yield the token ids of each question's texts, in order; images are decoded ahead, in worker processes.

    Args:
        model: Its processor is used.
        shown: The questions.
        special: Let the tokenizer add its marks; False where a chat template already has.

    Raises:
        DataError: An image cannot be read; its row is named.
    """
    yield from mapped(_Tokeniser(model.processor, model_type(model) in PREFIX_FIRST, special), shown)
