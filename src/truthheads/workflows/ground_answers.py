"""Answers before and after: what the model writes to test rows as it is, and with the remedy."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from truthheads.benchmarks.conflict import first_line
from truthheads.data.questions import Question
from truthheads.evaluation.ask import ask_questions
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import plan_batches
from truthheads.models.hooks import Intervention
from truthheads.models.load import Model
from truthheads.models.progress import Progress, WorkParts
from truthheads.models.prompts import token_digest
from truthheads.results.gate import Gate
from truthheads.results.grounding import AnswerPair, GroundAnswers, RemedyName
from truthheads.results.head_adapter import HeadAdapter
from truthheads.storage.artifacts import provenance
from truthheads.storage.files import write_text
from truthheads.storage.kept_results import KeptResults
from truthheads.workflows.greedy import Asked, greedy_answers, prompts_of

ASKED = 24
"""Test rows that are asked, the first of them: a written answer costs as much as several judged ones."""

SHOWN = 5

NEW_TOKENS = 24


def _answering(model: Model, longest: int) -> Asked:
    """Return how answers are written: one line, as far as the model has positions for it."""
    limit = model.layout.max_positions
    room = NEW_TOKENS if limit is None else max(1, min(NEW_TOKENS, limit - longest))
    return Asked(room, lambda text: "\n" in text.strip(), lambda text, _: first_line(text))


def write_answers(
    model: Model,
    rows: Sequence[Question],
    change: Gate | HeadAdapter | None,
    out: Path,
    *,
    instruction: str = "",
    chat: bool,
    truncate: bool,
    batch_tokens: int | None,
    work_dir: Path,
    progress: Progress | None,
) -> None:
    """Write what the model answers, greedily, before and after: one line of JSON for each row.

    Args:
        model: The model.
        rows: The test rows; the first 24 are asked.
        change: What is at work after; None: the instruction alone.
        out: The file.
        instruction: What stands before each prompt after.
        chat: Use the chat template.
        truncate: Drop the start of contexts that are too long.
        batch_tokens: Padded tokens in a batch, at most; None: by device.
        work_dir: Folder of the answers as they come.
        progress: Called with the work done and the total.
    """
    asked = list(rows[:ASKED])
    sides: tuple[tuple[str, Intervention | None, str], ...] = (("before", None, ""), ("after", change, instruction))
    prompts = {
        side: prompts_of(model, ask_questions(model, asked, chat=chat, truncate=truncate, instruction=text))
        for side, _, text in sides
    }
    made_from = {
        "model": model.describe(),
        "dtype": str(model.dtype),
        "tokens": [token_digest(each) for each in prompts.values()],
        "change": change.digest if change is not None else None,
        "new tokens": NEW_TOKENS,
        "packages": provenance()["packages"],
    }
    how = _answering(model, max(one.length for each in prompts.values() for one in each))
    kept, parts = KeptResults(work_dir, made_from), WorkParts(progress, {"before": 1e6, "after": 1e6})
    said = {}
    for side, at_work, _ in sides:
        encoded = prompts[side]
        batches = plan_batches(encoded, batch_tokens=batch_tokens or pick_batch_tokens(model.device))
        with at_work.apply(model) if at_work is not None else nullcontext():
            said[side] = greedy_answers(
                model, encoded, batches, how, kept, prefix=f"{side}/", progress=parts.part(side)
            )
    pairs: list[AnswerPair] = [
        {"id": row.id, "question": row.question, "truthful": str(row.truthful), "before": before, "after": after}
        for row, before, after in zip(asked, said["before"], said["after"], strict=True)
    ]
    write_text(out, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))


def read_answers(path: Path, remedy: RemedyName) -> GroundAnswers:
    """Return the first five answers that differ, and of how many: none is picked by what it says."""
    pairs: list[AnswerPair] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    changed = [pair for pair in pairs if pair["before"] != pair["after"]]
    return {"remedy": remedy, "asked": len(pairs), "changed": len(changed), "shown": changed[:SHOWN]}
