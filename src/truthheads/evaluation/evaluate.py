"""Evaluate a model as it is, with remedies and with their controls: predictions first, figures from them alone."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from truthheads.benchmarks.base import AskOptions, Items, Prediction
from truthheads.benchmarks.registry import benchmark
from truthheads.choices import CAD_ALPHA
from truthheads.data.answers import same_data
from truthheads.data.held import QuestionsLike, write_held
from truthheads.errors import ArtifactError
from truthheads.evaluation.adapters import AdaptersLike, adapter_notes, check_fits, read_adapters
from truthheads.evaluation.ask import PreparedBenchmark, prepare_benchmark, read_benchmark, without_unusable
from truthheads.evaluation.baselines import check_baselines, instruction_of, prepare_baseline
from truthheads.evaluation.lm_eval import Harness
from truthheads.evaluation.predictions import NAME, Journal, Key, files_of, gathered, key_of
from truthheads.evaluation.runs import Run, check_names, plan_runs, with_controls
from truthheads.evaluation.summary import BETTER, summarise_runs
from truthheads.models.context_aware import contrasted_logprobs
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import answer_logprobs, my_batches, prepare_tails, run_batches
from truthheads.models.generate import Contrast, SharedPrefix, answer, check_finite
from truthheads.models.held import ModelLike, as_model
from truthheads.models.hooks import Intervention
from truthheads.models.load import Model
from truthheads.models.neutral_text import LENGTH, NeutralTexts, measure_harm, neutral_ids
from truthheads.models.progress import Progress, WorkParts
from truthheads.models.prompts import Encoded
from truthheads.results.evaluation import (
    GUARD,
    PLAIN,
    SETTINGS,
    SUMMARY,
    AdapterMark,
    BaselineMark,
    Evaluation,
    GateMark,
)
from truthheads.results.gate import Gate, as_gate
from truthheads.storage.artifacts import named_alone, provenance
from truthheads.storage.distributed import barrier, ranks
from truthheads.storage.files import as_path, describe_file, distinct_names, dumps, write_json
from truthheads.storage.output_lock import lock_output

GUARD_TEXTS = 32

ROWS = "rows.jsonl"
"""Rows that were given in memory."""

if TYPE_CHECKING:
    FilesLike: TypeAlias = str | Path | Sequence[str | Path] | QuestionsLike
    GatesLike: TypeAlias = Gate | str | Path | Mapping[str, Gate] | Sequence[Gate | str | Path]
else:  # what is neither is answered in our words, not in those of a type checker at run time
    FilesLike = GatesLike = object

HARNESS_BATCH = 8


@lock_output("out")
def evaluate(
    model: ModelLike,
    task: str,
    data: FilesLike = (),
    *,
    out: str | Path,
    gates: GatesLike = (),
    adapters: AdaptersLike = (),
    baselines: str | Sequence[str] = (),
    prompt_text: str | None = None,
    cad_alpha: float = CAD_ALPHA,
    controls: int = 0,
    controls_where_better: bool = False,
    asking: AskOptions | Mapping[str, object] | None = None,
    neutral: Path | None = None,
    guard_texts: int = GUARD_TEXTS,
    batch_tokens: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
    read: Items | None = None,
    **options: object,
) -> Evaluation:
    """Run a benchmark on a model as it is, with each remedy and under its controls, and write the figures.

    ``predictions.jsonl`` grows as answers come; what is there already is not computed again, and a run that was
    killed and taken up again gives the same bytes. The untouched run is shared by all remedies. Several processes
    (``accelerate launch``) share the batches; the first puts the answers together, in the order of a single one.

    Args:
        model: From :func:`truthheads.load`, or a name that it takes.
        task: A benchmark of ``registry.BENCHMARKS`` (``halueval``, ``pope``, ``chair``, ``pairs``, ``conflict``), or
            ``lm-eval:NAME`` for a task of that harness.
        data: The benchmark's file; for POPE one for each split. For lm-eval folders of task files, or a file of rows.
            Or rows in memory (dictionaries, a DataFrame, a ``datasets.Dataset``, questions): they are kept in
            ``rows.jsonl`` of the folder.
        out: Folder for ``predictions.jsonl``, ``run.json`` and ``summary.json``.
        gates: Gates or their files: by name, in a list (files by their names, others ``gate-1`` …), or one.
        adapters: Head adapters or any PEFT LoRAs, or their folders: by name, in a list (folders by their names, others
            ``adapter-1`` …), or one.
        baselines: ``prompt`` puts an instruction before every prompt; ``cad`` decodes context-aware. Both need prompts
            that show a context: ``pairs``, ``conflict`` and ``halueval``.
        prompt_text: The instruction of ``prompt``; None: the benchmark's own.
        cad_alpha: Weight of what the context adds in ``cad``.
        controls: For each gate so many shuffled and so many random gates, and one constant gate; for each adapter so
            many of the random-head adapters that ``tune adapt --controls`` left in its folder; 0: none.
        controls_where_better: Run them only for a gate or an adapter whose own verdict is ``better``: most of the work
            is theirs, and all that they can do is take that away. For a single process.
        asking: How the benchmark is put before the model: its options by name, such as ``{"limit": 100}``, or as the
            dataclass that its record names.
        neutral: Neutral text for the guard; None: contexts of the data and the model's own samples.
        guard_texts: Texts of the guard; 0 leaves it out. There is none where nothing changes the network.
        batch_tokens: Padded tokens in a batch, at most; None: by device.
        seed: Random seed of controls, neutral text and intervals.
        force: Remove an earlier evaluation from the folder first, whatever it is of.
        progress: Called with the work done and the total, in tokens of a forward pass.
        read: What :func:`truthheads.evaluation.ask.read_benchmark` has read of ``data`` with these options already.
        options: Options of the benchmark by name, such as ``limit=100``, as in ``asking``; and ``gate``, ``adapter``,
            ``baseline``, which mean ``gates`` and so on, as on the command line.

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
    named = {**named_gates(gates), **named_gates(cast("GatesLike", options.pop("gate", ())))}
    tried = [*_several(baselines), *_several(cast("str | Sequence[str]", options.pop("baseline", ())))]
    asked_beside = check_baselines(record, tried, text=prompt_text, alpha=cad_alpha)
    learned = read_adapters(adapters, controls=controls)
    learned |= read_adapters(cast("AdaptersLike", options.pop("adapter", ())), controls=controls)
    check_names(list(named), [*learned, *asked_beside])
    how = record.ask_options(asking, seed=seed)
    record.ask_options(options)  # refuses a name that is none of its options
    changed: dict[str, Any] = dict(options)
    folder = as_path(out)
    if force:
        if ranks().rank == 0:
            remove_evaluation(folder)
        barrier()  # nobody looks at the folder before
    paths = _files(data, folder)
    if paths == [folder / ROWS] and getattr(how, "images", 0) is None:
        changed.setdefault("images", Path())  # of rows in memory, images start from the current folder
    how = replace(how, **changed)
    model = as_model(model)
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
        found = read or read_benchmark(record, paths, how)
        longest = instruction_of(record, asked_beside, prompt_text)
        found = without_unusable(model, record, found, how, instruction=longest)
        job = prepare_benchmark(model, record, found, how)
        for name in asked_beside:
            others[name], marks[name] = prepare_baseline(
                model, record, found, how, job, name, text=prompt_text, alpha=cad_alpha
            )
    at_work: dict[str, Intervention] = {**with_controls(named, controls, seed=seed)}
    for name, adapter in changing.items():
        at_work |= {name: adapter, **{key: one for key, one in random_heads.items() if key.startswith(f"{name}/")}}
    runs = plan_runs(model, at_work, job, others, batch_tokens=limit)
    parts = WorkParts(progress, _sizes(runs, guard_texts if at_work else 0))
    texts = NeutralTexts(model, [])
    if at_work and guard_texts:
        contexts, told_of = job.contexts if job else (), parts.part("neutral")
        rows = neutral_ids(model, contexts, path=neutral, texts=guard_texts, seed=seed, progress=told_of)
        texts = NeutralTexts(model, rows)
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
    first = ranks().rank == 0
    spared: dict[str, bool] = {}
    for number, run in enumerate(runs):
        of, control, _ = run.name.partition("/")
        if control and controls_where_better:
            if of not in spared:
                spared[of] = not _is_better(journal, of, seed)
            if spared[of]:
                continue
        if run.job:
            _run(model, run, run.job, journal, parts.part(run.name))
        elif harness and first:
            harness.run(run.name, run.at_work, journal)
        if run.at_work is not None and len(texts) and number % ranks().world == ranks().rank:
            _guard(model, run.name, run.at_work, texts, journal, parts.part(f"harm of {run.name}"))
    if ranks().several or len(files_of(folder / NAME)) > 1:  # a single process may come after several
        names = [run.name for run in runs]
        told_by_harness = [key_of(line) for line in journal.known if line["run"] in names] if harness else []
        keys = [*told_by_harness, *_keys(runs, len(texts))]
        journal = gathered(folder / NAME, sorted(keys, key=lambda key: names.index(key[1])))
    told += [f"the controls of {of} were not run: its own figures show no gain" for of in spared if spared[of]]
    write_json(folder / SETTINGS, {"settings": settings, "notes": told})
    summary = summarise_runs(journal.lines, seed=seed, settings=settings, notes=told)  # what was cut off is there again
    write_json(folder / SUMMARY, summary)
    return Evaluation(summary)


def _several(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def remove_evaluation(folder: Path) -> None:
    """Remove what an earlier evaluation wrote into a folder; other files stay."""
    for file in [*files_of(folder / NAME), folder / SETTINGS, folder / SUMMARY, folder / ROWS]:
        file.unlink(missing_ok=True)


def _files(data: FilesLike, folder: Path) -> list[Path]:
    """Return the files to read; rows in memory are written into the folder first."""
    if isinstance(data, str | Path):
        return [as_path(data)]
    if isinstance(data, Sequence) and all(isinstance(one, str | Path) for one in data):
        return [as_path(cast("str | Path", path)) for path in data]
    return [write_held(folder / ROWS, data)]


def named_gates(gates: GatesLike) -> dict[str, Gate]:
    """Return gates by name: as given, else that of the file, else ``gate-1`` and so on.

    Raises:
        GateError: Something given is no gate, nor a file of one.
        ArtifactError: A file cannot be read.
    """
    if isinstance(gates, Mapping):
        return {str(name): as_gate(one) for name, one in gates.items()}
    given = [gates] if isinstance(gates, Gate | str | Path) else list(cast("Iterable[Gate | str | Path]", gates))
    files = [as_path(one) for one in given if isinstance(one, str | Path)]
    names = iter(distinct_names(files, join="-"))
    return {
        next(names) if isinstance(one, str | Path) else f"gate-{at}": as_gate(one)
        for at, one in enumerate(given, start=1)
    }


def _is_better(journal: Journal, name: str, seed: int) -> bool:
    """Return whether a gate or an adapter alone, beside the untouched run, is better."""
    lines = [line for line in journal.lines if line["run"] in (PLAIN, name)]
    return summarise_runs(lines, seed=seed)["runs"][1]["verdict"] == BETTER


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
    now, before = named_alone(json.loads(dumps(settings))), named_alone(before)  # before 0.2 with their folders
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
            fix="choose another --out, or begin anew with --force",
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
        passes = max(1, job.new_tokens) * (2 if job.without else 1)
        run_batches(
            model, job.encoded, run.batches, step, done=done, complete=lambda _: None, progress=progress, passes=passes
        )


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


def _guard(
    model: Model, name: str, at_work: Intervention, texts: NeutralTexts, journal: Journal, progress: Progress | None
) -> None:
    """Measure what a gate or an adapter does to neutral text, unless it is there."""
    begun = _guard_lines(name, len(texts))
    if not all(_there(journal, line) for line in begun):
        harm = measure_harm(model, texts, at_work, progress=progress)
        values = zip(begun, harm.kl.tolist(), harm.loss.tolist(), strict=True)
        journal.add([{**line, "kl": kl, "loss": loss} for line, kl, loss in values])


def _sizes(runs: Sequence[Run], texts: int) -> dict[str, float]:
    """Estimate what each part of an evaluation costs, in tokens of a forward pass."""
    harm = {f"harm of {run.name}": 1.5 * LENGTH * texts for run in runs if run.at_work is not None}
    return {"neutral": float(LENGTH * texts), **{run.name: run.tokens for run in runs}, **harm}
