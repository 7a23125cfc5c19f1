"""``python -m bench.models FOLDER --data DATA --out OUT``: the figures of docs/results.md, for every model in a folder.

FOLDER holds ``.gguf`` files or model folders; SmolLM2 is measured too. Each part of each model is a file
``OUT/MODEL/PART.json``: what is there is not done again, so that a run that was stopped goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

import truthheads as th
from truthheads.data.questions import Question
from truthheads.models.answer_logprobs import group_numbers
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.head_modules import HeadPlace, ModuleSpan, locate_places
from truthheads.models.load import Model
from truthheads.models.neutral_text import neutral_ids
from truthheads.models.progress import WorkParts
from truthheads.models.prompts import has_chat_template
from truthheads.models.sources import reference
from truthheads.results.head_adapter import HeadAdapter
from truthheads.results.score_summary import summarise_scores
from truthheads.stats.figures import half_of
from truthheads.storage.files import write_json
from truthheads.storage.kept_results import KeptResults
from truthheads.tuning.adapt import AdaptSchedule, adapt
from truthheads.tuning.candidates import CandidateEvaluator, RunSettings, choose_candidate, encode_questions, judge_path
from truthheads.tuning.heads import drawn, largest
from truthheads.tuning.training_state import AdapterPoint

KINDS = ("absent", "distractor", "memory")

GUARDS = (0.005, 0.01, 0.02)
"""Harm allowed, in nats a token, at which every remedy is taken."""

ONE_HARM = 0.01
"""Harm allowed at which ways to choose heads are compared."""

SHARE, RANDOM = 0.1, 5


class Arm(NamedTuple):
    """One way to choose what an adapter changes.

    Attributes:
        name: Its name.
        choose: What :func:`truthheads.tune` calls it; ``lora`` for a plain LoRA on queries and values of every layer.
        seed: Random seed of the choice.
    """

    name: str
    choose: str
    seed: int = 0


ARMS = (
    Arm("attribution", "attribution"),
    Arm("truth", "truth"),
    *(Arm(f"random-{i}", "random", i) for i in range(1, RANDOM + 1)),
    Arm("all", "all"),
    Arm("lora", "lora"),
)


class Job(NamedTuple):
    """One model, where its rows lie and where its figures go."""

    name: str
    source: str
    data: Path
    out: Path
    rows: int
    schedule: AdaptSchedule
    judged: int


def load(job: Job) -> Model:
    """Return the job's model."""
    return th.load(job.source)


def prepare(job: Job) -> dict[str, Any]:
    """Sample the neutral text that all arms share, and measure by what heads are chosen, on the rows learned from."""
    model = load(job)
    dev, train = parted(job)
    texts = neutral_ids(model, [*dev, *train], texts=64, seed=0)
    th.score(model, train, method="attribution").save(job.out / "attribution.safetensors")
    th.score(model, train).save(job.out / "truth.safetensors")
    return {"neutral": texts}


def parted(job: Job) -> tuple[list[Question], list[Question]]:
    """Return the rows that candidates are judged on, and those that are learned from."""
    rows = th.make_text(job.rows, seed=0, split="dev")
    dev = half_of(group_numbers(rows), seed=0) & half_of(group_numbers(rows), seed=1)  # a quarter of the groups
    return [row for row, is_dev in zip(rows, dev, strict=True) if is_dev], [
        row for row, is_dev in zip(rows, dev, strict=True) if not is_dev
    ]


def parameters(places: Sequence[HeadPlace], widths: dict[str, tuple[int, int]], rank: int) -> int:
    """Return how many numbers an adapter of these places may move."""
    total = 0
    for side in (0, 1):
        spans = [place.query if side == 0 else place.output for place in places]
        for module in {span.module for span in spans}:
            own = sum({span[1:]: span.width for span in spans if span.module == module}.values())
            total += rank * (own + widths[module][side == 0])
    return total


def everywhere(model: Model) -> list[HeadPlace]:
    """Return all rows of queries and all rows of values of every layer, as a plain LoRA changes them."""
    found = []
    for layer in model.layout.layers:
        attention = layer.path.rpartition(".")[0]
        query, value = (model.network.get_submodule(f"{attention}.{name}") for name in ("q_proj", "v_proj"))
        places = (
            ModuleSpan(f"{attention}.q_proj", 0, query.out_features),
            ModuleSpan(f"{attention}.v_proj", 0, value.in_features),
        )
        found.append(HeadPlace(layer.index, 0, *places))
    return found


def chosen(job: Job, model: Model, arm: Arm) -> list[HeadPlace]:
    """Return what an arm changes."""
    places = locate_places(model.network, model.layout)
    match arm.choose:
        case "lora":
            return everywhere(model)
        case "all":
            return list(places)
        case "random":
            return drawn(places, SHARE, seed=0, turn=arm.seed)
        case name:
            return largest(places, th.Scores.load(job.out / f"{name}.safetensors").values.float().abs(), SHARE)


def train(job: Job, arm: Arm) -> dict[str, Any]:
    """Train an arm with as many parameters as the chosen heads have, and keep the best version at each harm."""
    model = load(job)
    dev, rows = parted(job)
    texts = json.loads((job.out / "prepare.json").read_text())["neutral"]
    held, taught = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    places, most = chosen(job, model, arm), locate_places(model.network, model.layout)
    modules = {span.module for place in [*places, *most] for span in (place.query, place.output)}
    widths = {name: tuple(model.network.get_submodule(name).weight.shape) for name in modules}
    budget = parameters(drawn(most, SHARE, seed=0, turn=0), widths, job.schedule.rank)
    rank = (
        job.schedule.rank
        if arm.choose not in ("all", "lora")
        else max(1, round(budget / parameters(places, widths, 1)))
    )
    settings: RunSettings = {
        "chat": False,
        "truncate": False,
        "batch_tokens": pick_batch_tokens(model.device),
        "seed": 0,
    }
    parts = WorkParts(None, {"ungated": 1, "harm": 1, "judging": 1})
    judge = CandidateEvaluator(model, dev, settings, held, KeptResults(None, {}), parts, 1)
    began = time.perf_counter()
    points = adapt(
        model, encode_questions(model, rows, settings), taught, places,
        schedule=replace(job.schedule, rank=rank), batch_tokens=settings["batch_tokens"], seed=0,
    )  # fmt: skip
    took = time.perf_counter() - began
    own = () if arm.choose == "lora" else tuple(places)

    def made(point: AdapterPoint, share: float) -> HeadAdapter:
        whole = HeadAdapter(point.updates, reference(model.name), own, False, {"shape": model.layout.shape})
        return whole if share == 1 else whole.scaled(share)

    judge_path(judge, points, made, max(GUARDS))
    kept = {}
    for guard in GUARDS:
        at = choose_candidate(judge.path, guard)
        if at is not None:
            judge.changes[at].save(job.out / "adapters" / f"{arm.name}@{guard:g}")
            kept[f"{guard:g}"] = judge.path[at]
    return {"rank": rank, "parameters": parameters(places, widths, rank), "seconds": took, "heads": len(own),
            "layers": len({place.layer for place in places}), "path": judge.path, "kept": kept}  # fmt: skip


def learned_gate(job: Job) -> dict[str, Any]:
    """Learn one factor per head from the same rows, for each harm."""
    model, kept = load(job), {}
    for guard in GUARDS:
        tuned = th.tune(model, th.make_text(job.rows, seed=0, split="dev"), method="learn", guard=guard)
        if tuned.result["chosen"] is not None:
            (job.out / "gates").mkdir(parents=True, exist_ok=True)
            tuned.gate.save(job.out / "gates" / f"gate@{guard:g}.safetensors")
            kept[f"{guard:g}"] = tuned.result["path"][tuned.result["chosen"]]
    return {"kept": kept}


def scores(job: Job) -> dict[str, Any]:
    """Measure Truth Scores on every data set and every kind of generated rows."""
    model, found = load(job), {}
    sets: dict[str, Sequence[Question]] = {kind: th.make_text(300, seed=0, kinds=(kind,)) for kind in KINDS}
    for name, file in FILES.items():
        sets[name] = th.read_questions(job.data / file, limit=300)
    for name, rows in sets.items():
        measured = th.score(model, rows)
        measured.save(job.out / f"score-{name}.safetensors")
        found[name] = summarise_scores(measured)
    return found


FILES = {"nqswap": "nqswap.parquet", "halueval": "halueval_qa_1000.jsonl", "truthfulqa": "truthfulqa.csv"}


def judged(job: Job, task: str, rows: Sequence[Question] | Path, guards: Sequence[float], **how: Any) -> dict[str, Any]:
    """Put every remedy beside the untouched model."""
    model = load(job)
    # Ways to choose heads are compared at one harm; what is chosen by default also at the others.
    made = [(arm, guard) for arm in ARMS for guard in guards if arm is ARMS[0] or guard == ONE_HARM]
    adapters = [job.out / "adapters" / f"{arm.name}@{guard:g}" for arm, guard in made]
    gates = [job.out / "gates" / f"gate@{guard:g}.safetensors" for guard in guards]
    out = job.out / how.pop("folder")
    th.evaluate(
        model, task, rows, out=out,
        adapters={path.name: path for path in adapters if path.is_dir()},
        gates={path.stem: path for path in gates if path.is_file()},
        baselines=("prompt", "cad"), **how,
    )  # fmt: skip
    return json.loads((out / "summary.json").read_text())  # type: ignore[no-any-return]


def on_generated(job: Job) -> dict[str, Any]:
    """Judge every remedy on generated pairs of names and facts that nothing was learned from."""
    rows = th.make_text(400, seed=1, split="test")
    return judged(job, "pairs", rows, GUARDS, folder="pairs-generated")


def on_nqswap(job: Job) -> dict[str, Any]:
    """Judge every remedy on pairs of NQ-Swap."""
    return judged(job, "pairs", job.data / FILES["nqswap"], GUARDS[1:], folder="pairs-nqswap", limit=job.judged)


def on_conflict(job: Job) -> dict[str, Any]:
    """Judge every remedy by greedy answers on NQ-Swap."""
    return judged(job, "conflict", job.data / FILES["nqswap"], GUARDS[1:], folder="conflict", limit=job.judged // 2)


def matched(rows: Sequence[Question]) -> list[Question]:
    """Return the rows whose two answers differ by two words at most, without the answers' final periods."""
    bare = [
        replace(row, truthful=str(row.truthful).rstrip(". "), untruthful=str(row.untruthful).rstrip(". "))
        for row in rows
    ]
    return [row for row in bare if abs(len(str(row.truthful).split()) - len(str(row.untruthful).split())) <= 2]


def detection(job: Job) -> dict[str, Any]:
    """Fit a detector on generated rows alone, and judge it on rows of other kinds, with and without chat template."""
    model, found = load(job), {}
    sets = {"generated": th.make_text(400, seed=1, split="test")}
    files = {**FILES, "faithbench": "faithbench_dev.jsonl"}
    sets |= {
        name: th.read_questions(job.data / file, answers=True, columns=True, limit=600) for name, file in files.items()
    }
    sets["halueval-matched"] = matched(sets["halueval"])
    for way in ("plain", "chat")[: 1 + has_chat_template(model)]:
        detector = th.fit_detector(model, chat=way == "chat")
        detector.save(job.out / f"detector-{way}.safetensors")
        found[f"fitted, {way}"] = detector.summary()
        for name, rows in sets.items():
            out = job.out / f"detect-{name}-{way}"
            found[f"{name}, {way}"] = th.evaluate_detector(model, rows, out=out, detector=detector, chat=way == "chat")
    return found


FIRST: dict[str, Callable[[Job], Any]] = {"prepare": prepare}
SECOND: dict[str, Callable[[Job], Any]] = {
    **{f"adapter-{arm.name}": lambda job, arm=arm: train(job, arm) for arm in ARMS},
    "gate": learned_gate,
    "scores": scores,
    "detect": detection,
}
THIRD: dict[str, Callable[[Job], Any]] = {"generated": on_generated, "nqswap": on_nqswap, "conflict": on_conflict}
PARTS = FIRST | SECOND | THIRD


def run(job: Job, part: str) -> None:
    """Do one part, unless its figures are there."""
    file = job.out / f"{part}.json"
    if file.is_file():
        return
    job.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    found = PARTS[part](job)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    made = {"seconds of work": time.perf_counter() - began, "device": device, **found}
    write_json(file, made)
    print(f"{job.name} {part}: {made['seconds of work']:.0f} s", flush=True)


def main() -> None:
    """Parse the command line and do what is not there yet."""
    reading = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    reading.add_argument("folder", type=Path, help="folder of .gguf files or model folders")
    reading.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    reading.add_argument("--out", type=Path, default=Path("build/models"), help="folder of the figures")
    reading.add_argument("--models", help="names, by comma; default: all")
    reading.add_argument("--parts", help=f"by comma, of {', '.join(PARTS)}; default: all")
    reading.add_argument("--rows", type=int, default=160, help="generated rows to learn from")
    reading.add_argument("--judged", type=int, default=400, help="rows of NQ-Swap to judge pairs on, half for answers")
    reading.add_argument("--schedule", default="{}", help="JSON: settings of AdaptSchedule that differ")
    reading.add_argument("--jobs", type=int, default=0, help="processes side by side; 0: none but this one")
    given = reading.parse_args()
    sources = {"smollm2": "smollm2"} | {path.stem: str(path) for path in sorted(given.folder.iterdir())}
    names = given.models.split(",") if given.models else list(sources)
    wanted = given.parts.split(",") if given.parts else list(PARTS)
    schedule = AdaptSchedule(**json.loads(given.schedule))
    jobs = [
        Job(name, sources[name], given.data, given.out / name, given.rows, schedule, given.judged) for name in names
    ]
    failed = []
    for stage in (FIRST, SECOND, THIRD):
        tasks = [(job, part) for part in stage for job in jobs if part in wanted]
        if not given.jobs:
            for job, part in tasks:
                run(job, part)
            continue
        with ThreadPoolExecutor(given.jobs) as pool:
            failed += [code for code in pool.map(lambda task: apart(*task), tasks) if code]
    sys.exit(bool(failed))


def apart(job: Job, part: str) -> int:
    """Do one part in a process of its own."""
    own = ["--models", job.name, "--parts", part, "--jobs", "0"]  # what is said last counts
    return subprocess.run([sys.executable, "-m", "bench.models", *sys.argv[1:], *own], check=False).returncode


if __name__ == "__main__":
    main()
