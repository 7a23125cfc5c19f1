"""``evaluate`` against one question at a time through stock ``generate``."""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import truthheads as th
from bench.inputs import NQSWAP, smollm2
from bench.timing import Outcome, in_turns, over
from truthheads.benchmarks.base import AskOptions
from truthheads.benchmarks.chair import PROMPT, ChairOptions
from truthheads.benchmarks.halueval import HALUEVAL, HaluEvalOptions
from truthheads.data.images import load_image
from truthheads.data.questions import Question
from truthheads.evaluation.ask import prepare_benchmark, read_benchmark
from truthheads.evaluation.evaluate import evaluate
from truthheads.models.load import Model
from truthheads.models.prompts import framed

NAME = "evaluate-vs-one-by-one"
ANSWER, CAPTION = 16, 64
"""Greedy tokens of the loops, at most; both stop at the end token, as released evaluation scripts do."""


def run(*, quick: bool) -> list[Outcome]:
    """Time whole evaluations, figures and intervals included, in turns with the loops."""
    turns = 1 if quick else 3
    outcomes = []
    halueval = NQSWAP.with_name("halueval_qa_1000.jsonl")
    if halueval.is_file():
        rows = 8 if quick else 60
        outcomes.append(_yes_no("halueval", smollm2(), [halueval], rows, _by_tokens(halueval, rows), turns))
    with tempfile.TemporaryDirectory() as folder:
        made = th.make_scenes(6 if quick else 40, seed=3, out=folder)
        seeing = _seeing()
        pope = list(made.pope.values())
        outcomes.append(_yes_no("pope", seeing, pope, None, _looking(seeing, pope), turns))
        batched, alone = in_turns(
            lambda: _evaluated(seeing, "chair", [made.captions], ChairOptions(caps=(CAPTION,))),
            lambda: _described(seeing, made.images),
            turns=turns,
        )
        outcomes.append(_outcome("chair", alone, batched, ">= 3", f"40 scenes, {CAPTION} new tokens"))
    return outcomes


def _yes_no(
    name: str, model: Model, data: Sequence[Path], rows: int | None, loop: Callable[[], Any], turns: int
) -> Outcome:
    how = AskOptions(limit=rows)
    batched, alone = in_turns(lambda: _evaluated(model, name, data, how), loop, turns=turns)
    return _outcome(name, alone, batched, ">= 5", f"{rows or 'scenes'} rows, at most {ANSWER} new tokens one by one")


def _outcome(name: str, above: Sequence[Any], below: Sequence[Any], target: str, n: str) -> Outcome:
    wall, cpu = over(above, below)
    return Outcome(f"{NAME} {name}", wall, target, n, cpu)


def _evaluated(model: Model, task: str, data: Sequence[Path], how: AskOptions) -> None:
    with tempfile.TemporaryDirectory() as folder:
        evaluate(model, task, list(data), out=folder, asking=how)


def _by_tokens(data: Path, rows: int) -> Callable[[], None]:
    """Return a loop over the same prompts, token for token."""
    model, how = smollm2(), HaluEvalOptions(limit=rows)
    job = prepare_benchmark(model, HALUEVAL, read_benchmark(HALUEVAL, [data], how), how)
    prompts = [[*job.head, *item.prefix, *tail] for item in job.encoded for tail in item.tails]

    def loop() -> None:
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            _generate(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ANSWER)

    return loop


def _looking(model: Model, data: Sequence[Path]) -> Callable[[], None]:
    """Return a loop that shows each question's image anew; a question that is in several files is asked once."""
    asked: dict[tuple[str, str], None] = {}
    for path in data:
        for row in path.read_text(encoding="utf-8").splitlines():
            found = json.loads(row)
            asked[found["image"], found["text"]] = None

    def loop() -> None:
        for image, text in asked:
            _show(model, data[0].parent / image, text, ANSWER)

    return loop


def _described(model: Model, images: Path) -> None:
    for image in sorted(images.iterdir()):
        _show(model, image, PROMPT, CAPTION)


def _show(model: Model, image: Path, text: str, new: int) -> None:
    prompt = framed(model, Question(image.name, "", text, None, None, image=str(image)), chat=False)
    made = model.processor(text=prompt, images=load_image(image), return_tensors="pt")
    given = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in made.items()}
    _generate(model, given, new)


def _generate(model: Model, given: dict[str, Any], new: int) -> None:
    with torch.inference_mode():
        model.network.generate(**given, max_new_tokens=new, do_sample=False, pad_token_id=0)


@cache
def _seeing() -> Model:
    return th.load("smollm2:vision")
