"""What a user could do without changing the model: an instruction to use the context, and context-aware decoding."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from truthheads.benchmarks.base import AskOptions, Benchmark, Item, Items
from truthheads.benchmarks.registry import records
from truthheads.choices import BaselineName
from truthheads.data.questions import Question
from truthheads.errors import DataError, TruthHeadsError
from truthheads.evaluation.ask import PreparedBenchmark, prepare_benchmark
from truthheads.models.context_aware import same_answers
from truthheads.models.load import Model
from truthheads.results.evaluation import BaselineMark


def check_baselines(
    record: Benchmark, baselines: Sequence[str], *, text: str | None, alpha: float
) -> list[BaselineName]:
    """Return the baselines, each once, in one order; before anything is read.

    Raises:
        TruthHeadsError: There is no such baseline, the benchmark shows no context, or a setting cannot be used.
    """
    unknown = [name for name in baselines if name not in get_args(BaselineName)]
    if unknown:
        raise TruthHeadsError(
            f"--baseline {unknown[0]!r} is not known",
            expected=" or ".join(get_args(BaselineName)),
            got=repr(unknown[0]),
            fix="give prompt (an instruction) or cad (context-aware decoding)",
        )
    if baselines and record.context_instruction is None:
        able = [name for name, one in records().items() if one.context_instruction is not None]
        raise TruthHeadsError(
            f"{record.name} cannot be asked with a baseline: its prompts show no context",
            expected=f"--baseline with {', '.join(able)}",
            got=f"--baseline {baselines[0]} with {record.name}",
            fix="leave --baseline out, or evaluate one of these benchmarks",
        )
    if "cad" in baselines and not (math.isfinite(alpha) and alpha > 0):
        raise TruthHeadsError(
            f"--cad-alpha must be a number above 0 (got {alpha:g})",
            expected="a finite number above 0",
            got=f"{alpha:g}",
            fix="0.5 is the published value",
        )
    if "prompt" in baselines and text is not None and not text.strip():
        raise TruthHeadsError(
            "--prompt-text is empty", expected="an instruction", got=repr(text), fix="leave it out, or write one"
        )
    return [name for name in get_args(BaselineName) if name in baselines]


def instruction_of(record: Benchmark, baselines: Sequence[str], text: str | None) -> str:
    """Return the instruction that ``prompt`` puts before every prompt; none where it is not among the baselines."""
    return (text or str(record.context_instruction)).strip() if "prompt" in baselines else ""


def prepare_baseline(
    model: Model,
    record: Benchmark,
    found: Items,
    how: AskOptions,
    plain: PreparedBenchmark,
    name: BaselineName,
    *,
    text: str | None,
    alpha: float,
) -> tuple[PreparedBenchmark, BaselineMark]:
    """Put a benchmark's items into token ids as a baseline asks them, and describe the baseline.

    Args:
        model: The model.
        record: The benchmark.
        found: Its items.
        how: Its options.
        plain: The items without a baseline.
        name: The baseline.
        text: The instruction; None: the benchmark's own.
        alpha: Weight of what the context adds in context-aware decoding.

    Raises:
        DataError: An item has no context, or is too long.
    """
    bare = [_without_context(item) for item in found.items]
    lacking = [item for item, without in zip(found.items, bare, strict=True) if without is None]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(bare)} rows show no context, which the baseline {name} is about",
            expected="a context in every row",
            got=f"none in row {lacking[0].lines[0]['id']!r}",
            fix="leave --baseline out, or give rows with a context",
        )
    if name == "prompt":
        used = instruction_of(record, [name], text)
        asked = prepare_benchmark(model, record, found, how, instruction=used)
        return asked, {"text": used, "passes": 1, "prompt_tokens": asked.prompt_tokens - plain.prompt_tokens}
    dropped = replace(found, items=[one for one in bare if one is not None])
    without = prepare_benchmark(model, record, dropped, how)
    encoded = [replace(one, prefix=without.head + one.prefix) for one in without.encoded]
    if not plain.new_tokens:
        encoded = [same_answers(full, one) for full, one in zip(plain.encoded, encoded, strict=True)]
    asked = replace(plain, without=encoded, alpha=alpha)
    return asked, {"alpha": alpha, "passes": 2, "prompt_tokens": without.prompt_tokens}


def _without_context(item: Item) -> Item | None:
    """Return an item that shows no context, all else alike; None where there is no context to leave out."""
    if isinstance(item.prompt, Question):
        if not item.prompt.context.strip():
            return None
        return replace(item, prompt=replace(item.prompt, context="", evidence=()))
    return None if item.without is None else replace(item, prompt=item.without)
