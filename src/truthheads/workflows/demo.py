"""The whole chain on the embedded family: scores, lineage, evidence, gates, export, evaluation, report."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truthheads.choices import Split
from truthheads.data.questions import write_questions
from truthheads.data.readers import read_questions
from truthheads.evaluation.evaluate import evaluate
from truthheads.exporting.export import export
from truthheads.lineage.compare import compare
from truthheads.models.forward import Progress
from truthheads.models.load import Model, load
from truthheads.plots.charts import save_chart
from truthheads.reporting.report import write_report
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.scoring.score import score
from truthheads.storage.files import read_json
from truthheads.storage.output_lock import lock_output
from truthheads.synthetic.scenes import make_scenes
from truthheads.synthetic.text import make_text
from truthheads.tracing.pictures import draw, write_pictures
from truthheads.tracing.trace import trace
from truthheads.tuning.tune import tune
from truthheads.workflows.steps import Steps, Tell

BASE, READER, VISION = FAMILY = ("smollm2", "smollm2:reader", "smollm2:vision")

ROWS = 180

LEARNED_FROM, SCENES, SHOWN = 1 / 4, 1 / 4, 1 / 2
"""Rows to learn a gate from, scenes, and rows whose attention is traced: shares of the generated questions."""

STRENGTH = 2.0

STEPS = {
    "data": "questions and scenes are generated",
    "score smollm2": "Truth Scores of smollm2",
    "score smollm2-reader": "Truth Scores of its descendant that reads",
    "score smollm2-vision": "Truth Scores of its descendant that sees, on text",
    "score vision-scenes": "Truth Scores of its descendant that sees, on pictures",
    "compare": "was it inherited? scores and weights of the three",
    "trace text": "which heads look at the evidence in a text",
    "trace pictures": "which heads look at the evidence in a picture",
    "gates": "gates from scores, its own and the base's",
    "learn": "a gate is learned",
    "evaluate text": "do gates help on other questions? with controls",
    "evaluate pictures": "do gates help on other pictures? with controls",
    "export": "the gated model is written",
}


class _Chain:
    """The steps, each with what it is made from; one model at a time, loaded when it is first needed."""

    def __init__(self, folder: Path, rows: int, seed: int, tell: Tell | None, progress: Progress | None) -> None:
        self.folder, self.rows, self.seed, self.progress = folder, rows, seed, progress
        self.steps = Steps(folder, tell)
        self._model: Model | None = None

    def model(self, name: str) -> Model:
        if self._model is None or self._model.name != name:
            self._model = None
            self._model = load(name)
        return self._model

    def data(self, folder: Path) -> None:
        """Write what is scored and traced, and below ``other`` what gates are learned from and tested on."""

        def work() -> None:
            learned, scenes = max(15, round(self.rows * LEARNED_FROM)), max(12, round(self.rows * SCENES))
            texts: tuple[tuple[str, int, Split], ...] = (
                ("text.jsonl", self.rows, "dev"),
                ("other/train.jsonl", learned, "train"),
                ("other/test.jsonl", self.rows, "test"),
            )
            for name, count, split in texts:
                write_questions(folder / name, make_text(count, seed=self.seed, split=split))
            for name, split in (("scenes", "dev"), ("other/scenes", "test")):
                make_scenes(scenes, seed=self.seed, out=folder / name, split=split)

        self.steps.run("data", {"rows": self.rows, "seed": self.seed}, [folder], work)

    def score(self, name: str, questions: Path, out: Path) -> None:
        def work() -> None:
            partial = out.with_name(f"{out.name}.partial")
            rows = read_questions(questions)
            score(self.model(name), rows, seed=self.seed, work_dir=partial, progress=self.progress).save(out)
            shutil.rmtree(partial, ignore_errors=True)

        given = {"model": name, "data": questions, "seed": self.seed}
        self.steps.run(f"score {out.stem}", given, [out], work)

    def compare(self, scores: Sequence[Path], out: Path) -> None:
        def work() -> None:
            compare(*scores, weights=FAMILY, names=FAMILY, seed=self.seed, progress=self.progress).save(out)

        given = dict(zip(FAMILY, scores, strict=True))
        self.steps.run("compare", {**given, "seed": self.seed}, [out.parent], work)

    def trace(self, name: str, questions: Path, scores: Path, out: Path) -> None:
        def work() -> None:
            partial = self.folder / f"{out.stem}.partial"
            rows = read_questions(questions, limit=max(6, round(self.rows * SHOWN)))
            found = trace(
                self.model(name),
                rows,
                scores=Scores.load(scores),
                seed=self.seed,
                work_dir=partial,
                progress=self.progress,
            )
            found.save(out)
            write_pictures(out.with_suffix(".html"), draw(self.model(name), rows, found, rows=2))
            shutil.rmtree(partial, ignore_errors=True)

        given = {"model": name, "data": questions, "scores": scores, "seed": self.seed}
        self.steps.run(out.stem.replace("-", " "), given, [out.parent], work)

    def gates(self, made: Mapping[Path, Path]) -> None:
        def work() -> None:
            for out, scores in made.items():
                Gate.from_scores(Scores.load(scores), strength=STRENGTH).save(out)

        given = {out.stem: scores for out, scores in made.items()}
        self.steps.run("gates", {**given, "strength": STRENGTH}, list(made), work)

    def learn(self, name: str, questions: Path, out: Path) -> None:
        def work() -> None:
            tune(self.model(name), read_questions(questions), seed=self.seed, progress=self.progress).save(out)

        self.steps.run("learn", {"model": name, "data": questions, "seed": self.seed}, [out.parent], work)

    def evaluate(self, name: str, task: str, files: Sequence[Path], gates: Mapping[str, Path], out: Path) -> None:
        def work() -> None:
            evaluate(
                self.model(name),
                task,
                files,
                out=out,
                gates={key: Gate.load(path) for key, path in gates.items()},
                controls=1,
                guard_texts=8,
                seed=self.seed,
                progress=self.progress,
            )

        given = {"model": name, "seed": self.seed, **{path.name: path for path in files}, **gates}
        self.steps.run(out.stem.replace("evaluation-", "evaluate "), given, [out], work)

    def export(self, name: str, gate: Path, out: Path) -> None:
        def work() -> None:
            export(name, gate, to="checkpoint", out=out, force=True, progress=self.progress)

        self.steps.run("export", {"model": name, "gate": gate}, [out], work)


@lock_output("folder")
def run_demo(
    folder: Path, *, rows: int = ROWS, seed: int = 0, tell: Tell | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run every part of the package on SmolLM2 and its two embedded descendants.

    Args:
        folder: Where everything is written; a run that was killed goes on from it.
        rows: Generated questions to score, a third of each kind; everything else is in proportion.
        seed: Random seed of questions, scenes, folds, gates and bootstraps.
        tell: Called with each step.
        progress: Called with the work done and the total, within a step.

    Returns:
        ``scores`` (of SmolLM2), ``comparison`` and the two ``evaluations``, as their files hold them.

    Raises:
        ModelError: SmolLM2 is neither installed nor reachable.
        ArtifactError: The folder cannot be written to.
    """
    chain = _Chain(folder, rows, seed, tell, progress)
    data, scores, gates = folder / "data", folder / "scores", folder / "gates"
    text, scenes, other = data / "text.jsonl", data / "scenes" / "questions.jsonl", data / "other"
    chain.data(data)
    base, reader, vision = (scores / f"{name}.safetensors" for name in ("smollm2", "smollm2-reader", "smollm2-vision"))
    seeing = scores / "vision-scenes.safetensors"
    chain.score(BASE, text, base)
    chain.score(READER, text, reader)
    chain.score(VISION, text, vision)
    chain.score(VISION, scenes, seeing)
    comparison = folder / "lineage" / "comparison.json"
    chain.compare((base, reader, vision), comparison)
    chain.trace(BASE, text, base, folder / "trace-text" / "trace-text.safetensors")
    chain.trace(VISION, scenes, seeing, folder / "trace-pictures" / "trace-pictures.safetensors")
    own, of_base, learned = (
        gates / f"{name}.safetensors" for name in ("vision-scores", "base-scores", "learned/learned")
    )
    chain.gates({own: seeing, of_base: base})
    chain.learn(BASE, other / "train.jsonl", learned)
    on_text, on_pictures = folder / "evaluation-text", folder / "evaluation-pictures"
    chain.evaluate(BASE, "pairs", [other / "test.jsonl"], {"base-scores": of_base, "learned": learned}, on_text)
    pope = [other / "scenes" / f"pope_{split}.jsonl" for split in ("random", "popular", "adversarial")]
    three = {"vision-scores": own, "base-scores": of_base, "base-learned": learned}
    chain.evaluate(VISION, "pope", pope, three, on_pictures)
    chain.export(BASE, learned, folder / "model")
    chart = Scores.load(base).chart()
    for suffix in ("html", "png"):
        save_chart(chart, folder / f"heads.{suffix}")
    write_report(folder, folder / "report.html")
    return {
        "scores": Scores.load(base),
        "comparison": read_json(comparison),
        "evaluations": {out.name: read_json(out / "summary.json") for out in (on_text, on_pictures)},
    }
