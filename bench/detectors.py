"""``python -m bench.detectors FIGURES --data DATA``: whose answers a detector can judge, and which models it works on.

``FIGURES`` holds what ``bench.models`` left. Three parts, each a file ``FIGURES/detectors-PART.json``:

- ``writers``: greedy answers to NQ-Swap that each model wrote itself, judged by the detector of every model: its own
  answers, and those of another.
- ``family``: the detector of SmolLM2, unchanged, on its two descendants, beside their own and that of a stranger, a
  model of the same shape with random weights.
- ``images``: yes and no to POPE's questions about generated scenes.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import truthheads as th
from truthheads.benchmarks.conflict import exact_match, first_line, plain_words
from truthheads.benchmarks.pope_questions import read_pope
from truthheads.data.questions import Question
from truthheads.evaluation.predictions import NAME, read_predictions
from truthheads.models.load import Model
from truthheads.models.prompts import has_chat_template
from truthheads.results.detector import Detector
from truthheads.storage.files import write_json

ROWS = 120

SCENES = 60


def source(name: str, folder: Path | None) -> str:
    """Return what a model of the figures is loaded by."""
    file = folder / f"{name}.gguf" if folder else None
    return str(file) if file is not None and file.is_file() else name


def measured(model: Model, rows: Sequence[Question], detector: Detector) -> dict[str, Any]:
    """Return how well a detector tells the supported answers of rows."""
    with tempfile.TemporaryDirectory() as out:
        found: dict[str, Any] = dict(th.evaluate_detector(model, rows, out=out, detector=detector, chat=detector.chat))
    return {key: found[key] for key in ("metrics", "baselines")} | {"rows": len(rows)}


def written(figures: Path, data: Path, writer: str) -> list[Question]:
    """Return the answers that a model wrote to NQ-Swap, labelled by whether they are the context's."""
    rows = {row.id: row for row in th.read_questions(data / "nqswap.parquet", limit=ROWS)}
    found = []
    for one in read_predictions(figures / writer / "conflict" / NAME).lines:
        if one["run"] != "none" or one["id"] not in rows or "answer" not in one:
            continue
        said, gold = first_line(one["answer"]), one["gold"]["context"]
        if said.strip(" ."):
            right = exact_match(said, gold, plain_words) or any(form.lower() in said.lower() for form in gold)
            sides = {"truthful": said, "untruthful": None} if right else {"truthful": None, "untruthful": said}
            found.append(replace(rows[one["id"]], aliases=(), untruthful_aliases=(), **sides))
    return found


def writers(figures: Path, data: Path, folder: Path | None) -> dict[str, Any]:
    """Let every model's detector judge the answers of every model."""
    names = [path.parent.parent.name for path in sorted(figures.glob(f"*/conflict/{NAME}"))]
    found: dict[str, Any] = {}
    for judge in names:
        model = th.load(source(judge, folder))
        detector = Detector.load(
            figures / judge / f"detector-{'chat' if has_chat_template(model) else 'plain'}.safetensors"
        )
        for writer in names:
            rows = written(figures, data, writer)
            key = f"{judge} on answers of {writer}"
            right = sum(row.truthful is not None for row in rows)
            found[key] = measured(model, rows, detector) | {"right": right}
            print(key, found[key]["metrics"]["auroc"], found[key]["baselines"]["log P"], flush=True)
    return found


def stranger(base: Model) -> Model:
    """Return a model of the base's shape that has learned nothing."""
    config = AutoConfig.for_model(**base.network.config.to_dict())
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=base.dtype)
    return th.load(network, base.tokenizer)


def family(figures: Path, data: Path, folder: Path | None) -> dict[str, Any]:
    """Put the base's detector on descendants, beside their own and a stranger's."""
    base = th.load("smollm2")
    foreign = th.fit_detector(stranger(base), chat=False, likelihoods=False)
    own_base = th.fit_detector(base, chat=False, likelihoods=False)
    rows = th.read_questions(data / "nqswap.parquet", limit=ROWS)
    found: dict[str, Any] = {}
    for name in ("smollm2", "smollm2:reader", "smollm2:vision"):
        model = th.load(name)
        own = own_base if name == "smollm2" else th.fit_detector(model, chat=False, likelihoods=False)
        for whose, detector in (("the base's", own_base), ("its own", own), ("a stranger's", foreign)):
            found[f"{name}, {whose}"] = measured(model, rows, detector)
            print(name, whose, found[f"{name}, {whose}"]["metrics"]["auroc"], flush=True)
    return found


def images(figures: Path, data: Path, folder: Path | None) -> dict[str, Any]:
    """Judge yes and no to questions about generated scenes, by detectors fitted on text and on other scenes."""
    model = th.load("smollm2:vision")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder_of_scenes:
        parts = {}
        for split, seed in (("dev", 0), ("test", 1)):
            made = th.make_scenes(SCENES, seed=seed, out=Path(folder_of_scenes) / split, split=split)
            parts[split] = asked(list(made.pope.values()))
        fitted = th.fit_detector(model, parts["dev"], chat=False)
        for name, detector in (("text", th.fit_detector(model, chat=False, likelihoods=False)), ("scenes", fitted)):
            found[f"fitted on {name}"] = measured(model, parts["test"], detector)
            print(name, found[f"fitted on {name}"], flush=True)
    return found


def asked(files: Sequence[Path]) -> list[Question]:
    """Return the questions of POPE files, each once, with both answers."""
    other, folder = {"yes": "no", "no": "yes"}, files[0].parent
    return [
        Question(key, "", row.text, row.gold, other[row.gold], image=str(folder / row.image), group=row.image)
        for key, row in {row.key: row for row in read_pope(files)}.items()
    ]


PARTS: dict[str, Callable[[Path, Path, Path | None], dict[str, Any]]] = {
    "writers": writers,
    "family": family,
    "images": images,
}


def main() -> None:
    """Parse the command line and do what is not there yet."""
    reading = argparse.ArgumentParser(prog="python -m bench.detectors", description=__doc__)
    reading.add_argument("figures", type=Path, help="--out of bench.models")
    reading.add_argument("--models", type=Path, help="folder of .gguf files")
    reading.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    reading.add_argument("--parts", default=",".join(PARTS), help="by comma")
    given = reading.parse_args()
    for part in given.parts.split(","):
        file = given.figures / f"detectors-{part}.json"
        if not file.is_file():
            write_json(file, PARTS[part](given.figures, given.data, given.models))


if __name__ == "__main__":
    main()
