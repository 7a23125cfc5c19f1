"""The main job on the embedded model: generated questions, scores, a heat map."""

import shutil
from pathlib import Path
from typing import NamedTuple

from truthheads.data import write_questions
from truthheads.family.text import make_text
from truthheads.forward import Progress
from truthheads.models import load
from truthheads.plots import save_chart
from truthheads.readers import read_questions
from truthheads.scores import Scores
from truthheads.scoring import score

MODEL = "smollm2"
ROWS = 300


class Demo(NamedTuple):
    """What the demo wrote."""

    questions: Path
    scores: Path
    plots: tuple[Path, ...]
    result: Scores


def run_demo(folder: Path, *, rows: int = ROWS, seed: int = 0, progress: Progress | None = None) -> Demo:
    """Write questions, score SmolLM2 on them, and draw its heads.

    Args:
        folder: Where everything is written; a run that was killed goes on from it.
        rows: Questions, a third of each kind.
        seed: Of questions, folds and bootstraps.
        progress: Told the unique tokens done and in all.

    Raises:
        ModelError: SmolLM2 is neither installed nor reachable.
        ArtifactError: The folder cannot be written to.
    """
    path = write_questions(folder / "questions.jsonl", make_text(rows, seed=seed))
    work = folder / "scores.safetensors.partial"
    scores = score(load(MODEL), read_questions(path), seed=seed, work_dir=work, progress=progress)
    target = folder / "scores.safetensors"
    scores.save(target)
    shutil.rmtree(work, ignore_errors=True)
    plots = (folder / "heads.html", folder / "heads.png")
    for plot in plots:
        save_chart(scores.chart(), plot)
    return Demo(path, target, plots, scores)
