"""Score answers and captions that were made elsewhere: no model runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from truthheads.benchmarks.base import AnswerOptions, Prediction
from truthheads.benchmarks.registry import benchmark
from truthheads.errors import ArtifactError, DataError, RowError
from truthheads.evaluation.predictions import NAME
from truthheads.evaluation.summary import summarise_runs
from truthheads.results.evaluation import PLAIN, SETTINGS, SUMMARY, EvaluationResult
from truthheads.storage.artifacts import named_alone, provenance
from truthheads.storage.files import dumps, replaced, write_json
from truthheads.storage.output_lock import lock_output


def score_answers(
    task: str,
    answers: Sequence[Path],
    data: Sequence[Path],
    *,
    out: Path,
    how: AnswerOptions | None = None,
    seed: int = 0,
    force: bool = False,
) -> EvaluationResult:
    """Score answers that were made elsewhere; write ``predictions.jsonl`` and ``summary.json``.

    Args:
        task: A benchmark that takes them: its record has ``elsewhere``.
        answers: Their files.
        data: The benchmark's files.
        out: Folder for the result.
        how: The options that ``elsewhere`` names; None: their defaults.
        seed: Random seed of the intervals.
        force: Replace the evaluation of other answers or settings.

    Raises:
        DataError: The benchmark takes no such answers, a file cannot be used, or the two do not belong together.
        TruthHeadsError: NLTK is asked for and not there.
        ArtifactError: The folder cannot be written to.
    """
    record = benchmark(task)
    if record.elsewhere is None:
        raise DataError(
            f"{task} takes no answers that were made elsewhere",
            expected="a benchmark that says how to read them",
            got=task,
            fix="evaluate a model instead: `truthheads evaluate " + task + " MODEL --data FILE`",
        )
    try:
        found = record.elsewhere.read(list(answers), list(data), how or record.elsewhere.options(seed=seed))
    except RowError as error:  # a figure over fewer answers would be another one, so that no row is left out here
        fix = "correct the row; every row is counted, so that none can be left out"
        raise DataError(error.problem, expected=error.expected, got=error.got, fix=fix) from error
    lines: list[Prediction] = [{"task": record.name, "run": PLAIN, **line} for line in found.lines]
    return write_results(out, lines, found.settings, found.notes, seed, force=force)


@lock_output("out")
def write_results(
    out: Path,
    lines: Sequence[Prediction],
    settings: Mapping[str, object],
    notes: Sequence[str],
    seed: int,
    *,
    force: bool = False,
) -> EvaluationResult:
    """Write predictions, settings and figures into a folder and return the figures."""
    settings = {**settings, "seed": seed, **provenance()}
    if not force:
        _check_same(out, settings)
    summary = summarise_runs(lines, seed=seed, settings=settings, notes=notes)
    (out / SUMMARY).unlink(missing_ok=True)  # of other predictions; it is written last, and then tells of these
    with replaced(out / NAME) as temporary:
        temporary.write_text("".join(dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_json(out / SETTINGS, {"settings": settings, "notes": list(notes)})
    write_json(out / SUMMARY, summary)
    return summary


def _check_same(out: Path, settings: Mapping[str, object]) -> None:
    """Raise ArtifactError where a folder holds an evaluation of anything else."""
    if not any((out / name).exists() for name in (NAME, SETTINGS, SUMMARY)):
        return
    try:
        before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    now, before = named_alone(json.loads(dumps(settings))), named_alone(before)  # before 0.2 with their folders
    free = {"packages", "command"}
    differ = sorted(key for key in {*now, *before} - free if now.get(key) != before.get(key))
    if differ:
        raise ArtifactError(
            f"{out} holds another evaluation",
            expected="a new folder, or one of the same answers and settings",
            got=f"another {', '.join(differ)}",
            fix="choose another --out, or pass --force to replace it",
        )
