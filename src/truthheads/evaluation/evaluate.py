"""Evaluate a model, ungated and under gates and their controls: predictions first, figures from them alone."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from truthheads.benchmarks.base import AskOptions, Items, Prediction
from truthheads.benchmarks.registry import benchmark
from truthheads.data.answers import same_data
from truthheads.data.held import QuestionsLike, write_held
from truthheads.errors import ArtifactError, GateError
from truthheads.evaluation.ask import PreparedBenchmark, prepare_benchmark, read_benchmark
from truthheads.evaluation.lm_eval import Harness
from truthheads.evaluation.predictions import NAME, Journal, Key, files_of, gathered, key_of
from truthheads.evaluation.summary import BETTER, summarise_runs
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import (
    answer_logprobs,
    my_batches,
    plan_batches,
    prepare_tails,
    run_batches,
    shares_prefix,
)
from truthheads.models.generate import SharedPrefix, answer, check_finite
from truthheads.models.held import ModelLike, as_model
from truthheads.models.load import Model
from truthheads.models.neutral_text import LENGTH, measure_harm, neutral_ids
from truthheads.models.progress import Progress, WorkParts
from truthheads.models.prompts import Encoded
from truthheads.results.evaluation import GUARD, PLAIN, SETTINGS, SUMMARY, Evaluation, GateMark
from truthheads.results.gate import Control, Gate, as_gate
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
    """Run a benchmark on a model as it is, under each gate and under its controls, and write the figures.

    ``predictions.jsonl`` grows as answers come; what is there already is not computed again, and a run that was
    killed and taken up again gives the same bytes. The ungated run is shared by all gates. Several processes
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
        controls: For each gate so many shuffled and so many random gates, and one constant gate; 0: none.
        controls_where_better: Run them only for a gate whose own verdict is ``better``: most of the work is theirs, and
            all that they can do is take that away. For a single process.
        asking: How the benchmark is put before the model: its options by name, such as ``{"limit": 100}``, or as the
            dataclass that its record names.
        neutral: Neutral text for the guard; None: contexts of the data and the model's own samples.
        guard_texts: Texts of the guard; 0 leaves it out. Without gates there is none.
        batch_tokens: Padded tokens in a batch, at most; None: by device.
        seed: Random seed of controls, neutral text and intervals.
        force: Remove an earlier evaluation from the folder first, whatever it is of.
        progress: Called with the work done and the total, in tokens of a forward pass.
        read: What :func:`truthheads.evaluation.ask.read_benchmark` has read of ``data`` with these options already.
        options: Options of the benchmark by name, such as ``limit=100``, as in ``asking``; and ``gate``, which means
            ``gates``, as on the command line.

    Returns:
        What ``summary.json`` holds.

    Raises:
        DataError: The task is not known, or a file cannot be used.
        TruthHeadsError: ``asking`` names an option that the benchmark does not have.
        GateError: A gate belongs to another model's shape, or two share a name.
        ArtifactError: The folder holds the predictions of another evaluation, is in use, or cannot be written to.
    """
    record = benchmark(task)
    named = {**named_gates(gates), **named_gates(cast("GatesLike", options.pop("gate", ())))}
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
    _check_gates(model, named)
    limit = batch_tokens or pick_batch_tokens(model.device)
    harness, job = None, None
    if record.asks == "harness":
        harness = Harness(model, task, paths, limit=how.limit, batch=HARNESS_BATCH, chat=how.chat)
    else:
        job = prepare_benchmark(model, record, read or read_benchmark(record, paths, how), how)
    runs = with_controls(named, controls, seed=seed)
    parts = WorkParts(progress, _sizes([PLAIN, *runs], job, guard_texts if named else 0))
    texts: list[list[int]] = []
    if named and guard_texts:
        contexts, told_of = job.contexts if job else (), parts.part("neutral")
        texts = neutral_ids(model, contexts, path=neutral, texts=guard_texts, seed=seed, progress=told_of)
    marks: dict[str, GateMark] = {name: {"digest": gate.digest, "site": gate.site} for name, gate in named.items()}
    settings: dict[str, Any] = {
        "model": {**model.describe(), "dtype": str(model.dtype)},
        "task": task,
        **(job.settings if job else harness.settings if harness else {}),
        "files": [describe_file(path) for path in paths if path.is_file()],
        "gates": marks,
        "controls": controls,
        "chat": how.chat,
        "batch_tokens": limit,
        "guard_texts": len(texts),
        "seed": seed,
        **provenance(),
    }
    settings["gates"] = {**_check_folder(folder, settings), **marks}
    told = [*(job.notes if job else []), *_relatives(model, named)]
    write_json(folder / SETTINGS, {"settings": settings, "notes": told})
    barrier()  # the first process holds the folder for all: nobody writes before it does
    journal = Journal(folder / NAME)
    batches = _batches(model, job, limit) if job else []
    first = ranks().rank == 0
    spared: dict[str, bool] = {}
    for number, (name, gate) in enumerate([(PLAIN, None), *runs.items()]):
        of, control, _ = name.partition("/")
        if control and controls_where_better:
            if of not in spared:
                spared[of] = not _is_better(journal, of, seed)
            if spared[of]:
                continue
        if job:
            _run(model, job, name, gate, batches, journal, parts.part(name))
        elif harness and first:
            harness.run(name, gate, journal)
        if gate is not None and texts and number % ranks().world == ranks().rank:
            _guard(model, name, gate, texts, journal, parts.part(f"harm of {name}"))
    if ranks().several or len(files_of(folder / NAME)) > 1:  # a single process may come after several
        names = [PLAIN, *runs]
        told_by_harness = [key_of(line) for line in journal.known if line["run"] in names] if harness else []
        keys = [*told_by_harness, *_keys(names, job, batches, len(texts))]
        journal = gathered(folder / NAME, sorted(keys, key=lambda key: names.index(key[1])))
    told += [f"the controls of gate {of} were not run: its own figures show no gain" for of in spared if spared[of]]
    write_json(folder / SETTINGS, {"settings": settings, "notes": told})
    summary = summarise_runs(journal.lines, seed=seed, settings=settings, notes=told)  # what was cut off is there again
    write_json(folder / SUMMARY, summary)
    return Evaluation(summary)


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


def _is_better(journal: Journal, gate: str, seed: int) -> bool:
    """Return whether a gate alone, beside the ungated run, is better."""
    lines = [line for line in journal.lines if line["run"] in (PLAIN, gate)]
    return summarise_runs(lines, seed=seed)["runs"][1]["verdict"] == BETTER


def with_controls(gates: Mapping[str, Gate], controls: int, *, seed: int) -> dict[str, Gate]:
    """Return gates by name, each followed by its controls: ``GATE/constant-0``, ``GATE/shuffled-3``."""
    runs: dict[str, Gate] = {}
    for name, gate in gates.items():
        runs[name] = gate
        kinds: list[tuple[Control, int]] = [
            ("constant", min(1, controls)),
            ("shuffled", controls),
            ("random", controls),
        ]
        for kind, count in kinds:
            for at in range(count):
                runs[f"{name}/{kind}-{at}"] = gate.control(kind, seed=seed + at)
    return runs


def _relatives(model: Model, gates: Mapping[str, Gate]) -> list[str]:
    """Return a sentence for each gate that was made on another model, a base usually."""
    notes = []
    for name, gate in gates.items():
        made = gate.meta.get("model") or (gate.meta.get("scores") or {}).get("model") or {}
        if made.get("fingerprint") not in (None, model.fingerprint):
            rounded = f" in {made['load_in']}" if made.get("load_in") else ""
            notes.append(f"gate {name} was made on another model: {made.get('name')}{rounded}")
    return notes


def _check_gates(model: Model, gates: Mapping[str, Gate]) -> None:
    for name, gate in gates.items():
        if name == PLAIN or "/" in name or not name:
            raise GateError(
                f"a gate cannot be called {name!r}",
                expected=f"a name other than {PLAIN!r}, without a slash",
                got=repr(name),
                fix="rename the file",
            )
        gate.apply(model).remove()


def _check_folder(folder: Path, settings: Mapping[str, object]) -> dict[str, GateMark]:
    """Return the gates that a folder holds; raise ArtifactError where its predictions were made another way."""
    there = folder / SETTINGS
    if not files_of(folder / NAME):
        return {}
    try:
        before = json.loads(there.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    free = ("gates", "controls", "guard_texts", "packages", "command")
    now, before = named_alone(json.loads(dumps(settings))), named_alone(before)  # before 0.2 with their folders
    differ = (key for key in {*now, *before} - {*free} if now.get(key) != before.get(key))
    changed = sorted(key for key in differ if key != "data" or not same_data(now.get(key), before.get(key)))
    gates = {name: told for name, told in (before.get("gates") or {}).items() if now["gates"].get(name, told) != told}
    if changed or gates:
        raise ArtifactError(
            f"{folder} holds the predictions of another evaluation",
            expected="an empty folder, or one of the same model, data and settings",
            got=f"another {', '.join([*changed, *(f'gate {name}' for name in gates)])}",
            fix="choose another --out, or begin anew with --force",
        )
    return dict(before.get("gates") or {})


def _batches(model: Model, job: PreparedBenchmark, batch_tokens: int) -> list[list[int]]:
    if job.new_tokens > 1 and not shares_prefix(model):  # a state cannot skip padding
        return [[at] for at in range(len(job.encoded))]
    return plan_batches(job.encoded, batch_tokens=batch_tokens)


def _run(
    model: Model,
    job: PreparedBenchmark,
    name: str,
    gate: Gate | None,
    batches: Sequence[Sequence[int]],
    journal: Journal,
    progress: Progress | None,
) -> None:
    """Fill in the lines of one run that are not there yet."""
    place = {id(item): at for at, item in enumerate(job.encoded)}
    begun: list[list[Prediction]] = [
        [{**line, "run": name} for lines in group for line in lines] for group in job.lines
    ]
    done = {
        number
        for number, batch in enumerate(batches)
        if all(_there(journal, line) for at in batch for line in begun[at])
    }

    def step(batch: Sequence[Encoded]) -> None:
        if job.new_tokens:
            given: Any = answer(model, batch, new_tokens=job.new_tokens, words=job.words, head=head)
        else:
            with torch.inference_mode():
                values = answer_logprobs(model, prepare_tails(model, batch)).view(len(batch), 2)
            check_finite(values, batch)
            given = values.tolist()
        lines, row = [], 0
        for item in batch:
            for tail in job.lines[place[id(item)]]:
                lines += [job.finish({**line, "run": name}, given, row) for line in tail]
                row += 1
        journal.add(lines)

    done |= set(range(len(batches))) - my_batches(job.encoded, batches)
    with gate.apply(model) if gate is not None else nullcontext():
        head = SharedPrefix(model, job.head) if job.head and len(done) < len(batches) else None
        passes = max(1, job.new_tokens)
        run_batches(
            model, job.encoded, batches, step, done=done, complete=lambda _: None, progress=progress, passes=passes
        )


def _keys(
    names: Sequence[str], job: PreparedBenchmark | None, batches: Sequence[Sequence[int]], texts: int
) -> Iterator[Key]:
    """Yield the keys of all lines in the order in which a single process writes them."""
    for name in names:
        for batch in batches if job else ():
            for at in batch:
                yield from (key_of({**line, "run": name}) for tail in job.lines[at] for line in tail) if job else ()
        if name != PLAIN:
            yield from (key_of(line) for line in _guard_lines(name, texts))


def _guard_lines(name: str, texts: int) -> list[Prediction]:
    return [{"task": GUARD, "run": name, "id": f"text-{at}"} for at in range(texts)]


def _there(journal: Journal, line: Prediction) -> bool:
    return key_of(line) in journal.done


def _guard(
    model: Model, name: str, gate: Gate, texts: list[list[int]], journal: Journal, progress: Progress | None
) -> None:
    """Measure what a gate does to neutral text, unless it is there."""
    begun = _guard_lines(name, len(texts))
    if not all(_there(journal, line) for line in begun):
        harm = measure_harm(model, texts, gate, progress=progress)
        values = zip(begun, harm.kl.tolist(), harm.loss.tolist(), strict=True)
        journal.add([{**line, "kl": kl, "loss": loss} for line, kl, loss in values])


def _sizes(runs: Sequence[str], job: PreparedBenchmark | None, texts: int) -> dict[str, float]:
    """Estimate what each part of an evaluation costs, in tokens of a forward pass."""
    tokens = float(sum(item.unique_tokens + job.new_tokens * len(item.tails) for item in job.encoded)) if job else 1.0
    harm = {f"harm of {name}": 2.0 * LENGTH * texts for name in runs if name != PLAIN}
    return {"neutral": float(LENGTH * texts), **dict.fromkeys(runs, tokens), **harm}
