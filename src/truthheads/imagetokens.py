"""Token ids of prompts that show an image: the processor puts one token for each of the image's places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from truthheads.ahead import mapped
from truthheads.errors import DataError
from truthheads.images import load_image
from truthheads.models import Model
from truthheads.pictured import PREFIX_FIRST, kind_of


@dataclass(frozen=True, slots=True)
class Shown:
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

    def __call__(self, shown: Shown) -> list[list[int]]:
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


def tokens_with_images(model: Model, shown: Sequence[Shown], *, special: bool) -> Iterator[list[list[int]]]:
    """Yield the token ids of each question's texts, in order; images are decoded ahead, in worker processes.

    Args:
        model: Its processor is used.
        shown: The questions.
        special: Let the tokenizer add its marks; False where a chat template already has.

    Raises:
        DataError: An image cannot be read; its row is named.
    """
    yield from mapped(_Tokeniser(model.processor, kind_of(model) in PREFIX_FIRST, special), shown)
