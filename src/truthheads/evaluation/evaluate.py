"""Evaluate a model as it is, with remedies and with their controls: predictions first, figures from them alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from truthheads.benchmarks.base import AskOptions, Prediction
from truthheads.benchmarks.registry import benchmark
from truthheads.choices import CAD_ALPHA
from truthheads.data.answers import same_data
from truthheads.errors import ArtifactError
from truthheads.evaluation.adapters import AdapterGiven, adapter_notes, check_fits, read_adapters
from truthheads.evaluation.ask import PreparedBenchmark, prepare_benchmark, read_benchmark
from truthheads.evaluation.baselines import check_baselines, prepare_baseline
from truthheads.evaluation.lm_eval import Harness
from truthheads.evaluation.predictions import NAME, Journal, Key, files_of, gathered, key_of
from truthheads.evaluation.runs import Run, check_names, plan_runs, with_controls
from truthheads.evaluation.summary import summarise_runs
from truthheads.models.context_aware import contrasted_logprobs
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import Progress, answer_logprobs, my_batches, prepare_tails, run_batches
from truthheads.models.generate import Contrast, SharedPrefix, answer, check_finite
from truthheads.models.hooks import Intervention
from truthheads.models.load import Model
from truthheads.models.neutral_text import measure_harm, neutral_ids
from truthheads.models.prompts import Encoded
from truthheads.results.evaluation import (
    GUARD,
    SETTINGS,
    SUMMARY,
    AdapterMark,
    BaselineMark,
    EvaluationResult,
    GateMark,
)
from truthheads.results.gate import Gate
from truthheads.storage.artifacts import provenance
from truthheads.storage.distributed import barrier, ranks
from truthheads.storage.files import describe_file, dumps, write_json
from truthheads.storage.output_lock import lock_output

GUARD_TEXTS = 32

HARNESS_BATCH = 8


@lock_output("out")
def evaluate(
    model: Model,
    task: str,
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    gates: Mapping[str, Gate] | Sequence[Gate] = (),
    adapters: Mapping[str, AdapterGiven] | Sequence[AdapterGiven] = (),
    baselines: Sequence[str] = (),
    prompt_text: str | None = None,
    cad_alpha: float = CAD_ALPHA,
    controls: int = 0,
    asking: AskOptions | Mapping[str, object] | None = None,
    neutral: Path | None = None,
    guard_texts: int = GUARD_TEXTS,
    batch_tokens: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Run a benchmark on a model as it is, with each remedy and under its controls, and write the figures.

    ``predictions.jsonl`` grows as answers come; what is there already is not computed again, and a run that was
    killed and taken up again gives the same bytes. The untouched run is shared by all remedies. Several processes
    (``accelerate launch``) share the batches; the first puts the answers together, in the order of a single one.

    Args:
        model: The model.
        task: A benchmark of ``registry.BENCHMARKS`` (``halueval``, ``pope``, ``chair``, ``pairs``, ``conflict``), or
            ``lm-eval:NAME`` for a task of that harness.
        data: The benchmark's file; for POPE one for each split. For lm-eval folders of task files, or a file of rows.
        out: Folder for ``predictions.jsonl``, ``run.json`` and ``summary.json``.
        gates: By name, or in a list (``gate-1`` …).
        adapters: Head adapters or any PEFT LoRAs, or their folders, by name or in a list (then called as their folders,
            or ``adapter-1`` …).
        baselines: ``prompt`` puts an instruction before every prompt; ``cad`` decodes context-aware. Both need prompts
            that show a context: ``pairs``, ``conflict`` and ``halueval``.
        prompt_text: The instruction of ``prompt``; None: the benchmark's own.
        cad_alpha: Weight of what the context adds in ``cad``.
        controls: For each gate so many shuffled and so many random gates, and one constant gate; for each adapter so
            many of the random-head adapters that ``tune adapt --controls`` left in its folder; 0: none.
        asking: How the benchmark is put before the model: its options by name, such as ``{"limit": 100}``, or as the
            dataclass that its record names.
        neutral: Neutral text for the guard; None: contexts of the data and the model's own samples.
        guard_texts: Texts of the guard; 0 leaves it out. There is none where nothing changes the network.
        batch_tokens: Padded tokens in a batch, at most; None: by device.
        seed: Random seed of controls, neutral text and intervals.
        progress: Called with the tokens done and in all.

    Returns:
        What ``summary.json`` holds.

    Raises:
        DataError: The task is not known, or a file cannot be used.
        TruthHeadsError: ``asking`` names an option that the benchmark does not have, a baseline cannot be used, or two
            runs share a name.
        GateError: A gate cannot be called so.
        ShapeError: A gate or an adapter was made for a model of another shape.
        ArtifactError: The folder holds the predictions of another evaluation, is in use, or cannot be written to.
    """
    record = benchmark(task)
    how = record.ask_options(asking, seed=seed)
    folder = Path(out)
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]
    named = dict(gates) if isinstance(gates, Mapping) else {f"gate-{at}": gate for at, gate in enumerate(gates, 1)}
    asked_beside = check_baselines(record, baselines, text=prompt_text, alpha=cad_alpha)
    learned = read_adapters(adapters, controls=controls)
    check_names(list(named), [*learned, *asked_beside])
    for gate in named.values():
        gate.apply(model).remove()
    changing = {name: one.adapter for name, one in learned.items()}
    random_heads = {f"{name}/{other}": each for name, one in learned.items() for other, each in one.controls.items()}
    for name, adapter in {**changing, **random_heads}.items():
        check_fits(model, name, adapter)
    limit = batch_tokens or pick_batch_tokens(model.device)
    harness, job = None, None
    others: dict[str, PreparedBenchmark] = {}
    marks: dict[str, BaselineMark] = {}
    if record.asks == "harness":
        harness = Harness(model, task, paths, limit=how.limit, batch=HARNESS_BATCH, chat=how.chat)
    else:
        found = read_benchmark(record, paths, how)
        job = prepare_benchmark(model, record, found, how)
        for name in asked_beside:
            others[name], marks[name] = prepare_baseline(
                model, record, found, how, job, name, text=prompt_text, alpha=cad_alpha
            )
    at_work: dict[str, Intervention] = {**with_controls(named, controls, seed=seed)}
    for name, adapter in changing.items():
        at_work |= {name: adapter, **{key: one for key, one in random_heads.items() if key.startswith(f"{name}/")}}
    runs = plan_runs(model, at_work, job, others, batch_tokens=limit)
    texts: list[list[int]] = []
    if at_work and guard_texts:
        texts = neutral_ids(model, job.contexts if job else (), path=neutral, texts=guard_texts, seed=seed)
    settings: dict[str, Any] = {
        "model": {**model.describe(), "dtype": str(model.dtype)},
        "task": task,
        **(job.settings if job else harness.settings if harness else {}),
        "files": [describe_file(path) for path in paths if path.is_file()],
        "gates": {name: GateMark(digest=gate.digest, site=gate.site) for name, gate in named.items()},
        "adapters": {name: AdapterMark(digest=one.digest) for name, one in changing.items()},
        "adapter_controls": {name: AdapterMark(digest=one.digest) for name, one in random_heads.items()},
        "baselines": marks,
        "controls": controls,
        "chat": how.chat,
        "batch_tokens": limit,
        "guard_texts": len(texts),
        "seed": seed,
        **provenance(),
    }
    for kind, before in _check_folder(folder, settings).items():
        settings[kind] = {**before, **settings[kind]}
    told = [*(job.notes if job else []), *_relatives(model, named)]
    told += adapter_notes(model, learned, controls=controls)
    write_json(folder / SETTINGS, {"settings": settings, "notes": told})
    barrier()  # the first process holds the folder for all: nobody writes before it does
    journal = Journal(folder / NAME)
    first, through, total = ranks().rank == 0, 0, sum(run.tokens for run in runs)
    for number, run in enumerate(runs):
        if run.job:
            _run(model, run, run.job, journal, _part(progress, through, total))
        elif harness and first:
            harness.run(run.name, run.at_work, journal)
        if run.at_work is not None and texts and number % ranks().world == ranks().rank:
            _guard(model, run.name, run.at_work, texts, journal)
        through += run.tokens
    if ranks().several or len(files_of(folder / NAME)) > 1:  # a single process may come after several
        names = [run.name for run in runs]
        told_by_harness = [key_of(line) for line in journal.known if line["run"] in names] if harness else []
        keys = [*told_by_harness, *_keys(runs, len(texts))]
        journal = gathered(folder / NAME, sorted(keys, key=lambda key: names.index(key[1])))
    summary = summarise_runs(journal.lines, seed=seed, settings=settings, notes=told)  # what was cut off is there again
    write_json(folder / SUMMARY, summary)
    return summary


def _relatives(model: Model, gates: Mapping[str, Gate]) -> list[str]:
    """Return a sentence for each gate that was made on another model, a base usually."""
    notes = []
    for name, gate in gates.items():
        made = gate.meta.get("model") or (gate.meta.get("scores") or {}).get("model") or {}
        if made.get("fingerprint") not in (None, model.fingerprint):
            rounded = f" in {made['load_in']}" if made.get("load_in") else ""
            notes.append(f"gate {name} was made on another model: {made.get('name')}{rounded}")
    return notes


REMEMBERED = {"gates": "gate", "adapters": "adapter", "adapter_controls": "control", "baselines": "baseline"}
"""What a folder remembers of runs that a later command may leave out, and what one of each is called."""


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Return the remedies that a folder holds; raise ArtifactError where its predictions were made another way."""
    there = folder / SETTINGS
    if not files_of(folder / NAME):
        return {}
    try:
        before = json.loads(there.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    free = (*REMEMBERED, "controls", "guard_texts", "packages", "command")
    now = json.loads(dumps(settings))
    differ = (key for key in {*now, *before} - {*free} if now.get(key) != before.get(key))
    changed = sorted(key for key in differ if key != "data" or not same_data(now.get(key), before.get(key)))
    held = {kind: dict(before.get(kind) or {}) for kind in REMEMBERED if kind in now}
    others = [
        f"{REMEMBERED[kind]} {name}"
        for kind, marks in held.items()
        for name, mark in marks.items()
        if now[kind].get(name, mark) != mark or any(name in now[other] for other in held if other != kind)
    ]
    if changed or others:
        raise ArtifactError(
            f"{folder} holds the predictions of another evaluation",
            expected="an empty folder, or one of the same model, data and settings",
            got=f"another {', '.join([*changed, *others])}",
            fix="choose another --out, or remove the folder",
        )
    return held


def _run(model: Model, run: Run, job: PreparedBenchmark, journal: Journal, progress: Progress | None) -> None:
    """Fill in the lines of one run that are not there yet."""
    place = {id(item): at for at, item in enumerate(job.encoded)}
    done = {
        number
        for number, batch in enumerate(run.batches)
        if all(_there(journal, line) for at in batch for line in _begun(run, job, at))
    }

    def step(batch: Sequence[Encoded]) -> None:
        given = _asked(model, job, batch, [job.without[place[id(item)]] for item in batch if job.without], head)
        lines, row = [], 0
        for item in batch:
            for tail in job.lines[place[id(item)]]:
                lines += [job.finish({**line, "run": run.name}, given, row) for line in tail]
                row += 1
        journal.add(lines)

    done |= set(range(len(run.batches))) - my_batches(job.encoded, run.batches)
    with run.at_work.apply(model) if run.at_work is not None else nullcontext():
        head = SharedPrefix(model, job.head) if job.head and len(done) < len(run.batches) else None
        run_batches(model, job.encoded, run.batches, step, done=done, complete=lambda _: None, progress=progress)


def _asked(
    model: Model,
    job: PreparedBenchmark,
    batch: Sequence[Encoded],
    without: Sequence[Encoded],
    head: SharedPrefix | None,
) -> Any:
    """Ask the model about a batch; the answers are what the job's ``finish`` takes."""
    if job.new_tokens:
        contrast = Contrast(without, job.alpha) if without else None
        return answer(model, batch, new_tokens=job.new_tokens, words=job.words, head=head, contrast=contrast)
    with torch.inference_mode():
        if without:
            values = contrasted_logprobs(model, batch, without, job.alpha)
        else:
            values = answer_logprobs(model, prepare_tails(model, batch))
    check_finite(values, batch)
    return values.view(len(batch), 2).tolist()


def _begun(run: Run, job: PreparedBenchmark, at: int) -> list[Prediction]:
    """Return the lines of one of the job's prompts, as far as they are known before it is asked."""
    return [{**line, "run": run.name} for tail in job.lines[at] for line in tail]


def _keys(runs: Sequence[Run], texts: int) -> Iterator[Key]:
    """Yield the keys of all lines in the order in which a single process writes them."""
    for run in runs:
        for batch in run.batches if run.job else ():
            for at in batch:
                yield from (key_of(line) for line in _begun(run, run.job, at)) if run.job else ()
        if run.at_work is not None:
            yield from (key_of(line) for line in _guard_lines(run.name, texts))


def _guard_lines(name: str, texts: int) -> list[Prediction]:
    return [{"task": GUARD, "run": name, "id": f"text-{at}"} for at in range(texts)]


def _there(journal: Journal, line: Prediction) -> bool:
    return key_of(line) in journal.done


def _guard(model: Model, name: str, at_work: Intervention, texts: list[list[int]], journal: Journal) -> None:
    """Measure what a gate or an adapter does to neutral text, unless it is there."""
    begun = _guard_lines(name, len(texts))
    if not all(_there(journal, line) for line in begun):
        harm = measure_harm(model, texts, at_work)
        values = zip(begun, harm.kl.tolist(), harm.loss.tolist(), strict=True)
        journal.add([{**line, "kl": kl, "loss": loss} for line, kl, loss in values])


def _part(progress: Progress | None, through: int, total: int) -> Progress | None:
    """Return the progress of one run as a part of that of all."""
    if progress is None:
        return None
    told = progress
    return lambda done, _: told(through + done, total)
