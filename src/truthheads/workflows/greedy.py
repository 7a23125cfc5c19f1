"""Greedy answers of a model, batch by batch; what is there already is not asked again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truthheads.models.forward import run_batches, shares_prefix
from truthheads.models.generate import answer
from truthheads.models.load import Model
from truthheads.models.progress import Progress
from truthheads.models.prompts import Encoded
from truthheads.storage.kept_results import KeptResults


@dataclass(frozen=True, slots=True)
class Asked:
    """How a model is asked.

    Attributes:
        new_tokens: Tokens of an answer, at most.
        ended: Whether a text has come to its end, so that no more tokens are wanted.
        finish: Makes the answer of a text; the second argument tells whether the model ended it by itself.
    """

    new_tokens: int
    ended: Callable[[str], bool]
    finish: Callable[[str, bool], str]


def prompts_of(model: Model, asked: Sequence[tuple[Sequence[int], str | None]]) -> list[Encoded]:
    """Return prompts to be continued, given as token ids and the image that they show, if any.

    Where layers carry a state, which cannot skip padding, none is divided.
    """
    shared = shares_prefix(model)
    return [
        Encoded(number, tuple(ids[:-1]) if shared else (), (tuple(ids[-1:] if shared else ids),), (1,), image)
        for number, (ids, image) in enumerate(asked)
    ]


def greedy_answers(
    model: Model,
    encoded: Sequence[Encoded],
    batches: Sequence[Sequence[int]],
    how: Asked,
    kept: KeptResults,
    *,
    prefix: str = "",
    progress: Progress | None = None,
) -> list[str]:
    """Return one answer for each prompt, in their order.

    Args:
        model: The model, with what is at work on it.
        encoded: From :func:`prompts_of`.
        batches: Which prompts are asked together.
        how: See the class.
        kept: Where each batch is kept as it comes, and found again.
        prefix: Stands before the names of the batches there.
        progress: Called with the prompts' tokens done and the total.
    """
    said: dict[int, str] = {}

    def text(tokens: list[int]) -> str:
        return str(model.tokenizer.decode(tokens, skip_special_tokens=True))

    def step(part: Sequence[Encoded]) -> None:
        written = answer(model, part, new_tokens=how.new_tokens, ended=lambda tokens: how.ended(text(tokens)))
        for one, tokens, over in zip(part, written.tokens, written.finished, strict=True):
            said[one.row] = how.finish(text(tokens), over)

    def complete(number: int) -> None:
        kept.result(f"{prefix}{number}", lambda: [said[row] for row in batches[number]])

    done = {number for number in range(len(batches)) if f"{prefix}{number}" in kept}
    run_batches(model, encoded, batches, step, done=done, complete=complete, progress=progress, passes=how.new_tokens)
    for number, members in enumerate(batches):
        said.update(zip(members, kept.result(f"{prefix}{number}", list), strict=True))
    return [said[row] for row in range(len(encoded))]
