"""From a user's own rows to a model that follows its context more closely: the best of three remedies, tested."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np

from truthheads.choices import ExportFormat
from truthheads.data.answers import describe_data
from truthheads.data.cautions import CHOSEN_FROM, cannot_choose
from truthheads.data.held import QuestionsLike, RowsLike
from truthheads.data.hub import address
from truthheads.data.questions import Question, Questions, write_questions
from truthheads.data.readers import read_questions
from truthheads.errors import DataError, ModelError
from truthheads.evaluation.summary import BETTER
from truthheads.exporting.export import export
from truthheads.models.adapters import find_adapter
from truthheads.models.answer_logprobs import group_numbers
from truthheads.models.held import ModelLike, name_of
from truthheads.models.held import load as load_held
from truthheads.models.load import Model, load
from truthheads.models.progress import Progress
from truthheads.models.quantised import PACKAGES
from truthheads.models.row_lengths import unusable_rows
from truthheads.reporting.report import write_report
from truthheads.results.gate import Gate
from truthheads.results.grounding import GroundAnswers, GroundDecision, Grounding, GroundResult, RemedyName
from truthheads.results.head_adapter import HeadAdapter
from truthheads.results.tuning import TUNING
from truthheads.stats.thresholds import GROUND_LEARN_FROM, GROUND_MIN_TEST_GROUPS
from truthheads.storage.artifacts import provenance, without_folder
from truthheads.storage.files import as_path, write_json
from truthheads.storage.output_lock import lock_output
from truthheads.workflows.advice import ground_advice
from truthheads.workflows.ground_answers import read_answers, write_answers
from truthheads.workflows.ground_remedies import (
    ADAPTER,
    EPOCHS,
    GATE,
    PROMPT,
    Tuned,
    decide,
    evaluate_remedies,
    in_chat,
    learn_remedy,
    left_aside,
)
from truthheads.workflows.ground_settings import Settings as Settings
from truthheads.workflows.ground_settings import Words, settings_of
from truthheads.workflows.make_pairs import make_pairs
from truthheads.workflows.steps import Steps, Tell

GATE_FILE, HEAD_ADAPTER, ANSWERS = "gate.safetensors", "head-adapter", "answers.jsonl"

RESULT, REPORT, WORK = "ground.json", "report.html", "ground.partial"

PATHS: dict[ExportFormat, str] = {
    "adapter": "adapter",
    "checkpoint": "model",
    "gguf": "model.gguf",
    "gguf-lora": "adapter.gguf",
}
"""What is called how in the folder."""


@lock_output("out")
def ground(
    model: ModelLike,
    data: QuestionsLike,
    *,
    out: str | Path,
    settings: Settings | None = None,
    tell: Tell | None = None,
    progress: Progress | None = None,
    **words: Unpack[Words],
) -> Grounding:
    """Pair, split, learn, test, export and report; every step is done once, also when the run was killed.

    An instruction, a gate and a head adapter are tried. Gate and adapter are learned from the same rows and chosen by
    the same rule; all three are tested once, on rows that nothing was learned from. The best gate or adapter is shipped
    if it is better than the untouched model and than the instruction, within the guard.

    Writes into ``out``: ``pairs.jsonl``, ``dev.jsonl`` and ``test.jsonl`` (no group is in both), ``gate.safetensors``
    and ``tuning.json``, ``head-adapter/`` (learned from dev alone), ``evaluation/`` (test rows, controls),
    ``answers.jsonl`` (before and after), ``model/``, ``model.gguf``, ``adapter/`` or ``adapter.gguf`` where the test
    says so, ``report.html`` and ``ground.json``.

    Args:
        model: Name or folder as for :func:`truthheads.load`, or a Model that was loaded by its name; a ``.gguf`` file
            is exported as one.
        data: Question file, or rows in memory (dictionaries, a DataFrame, a ``datasets.Dataset``, questions); rows
            without an untruthful answer get one (:func:`truthheads.make_pairs`).
        out: The folder.
        settings: None: the defaults, and what ``words`` say.
        tell: Called with each step.
        progress: Called with the work done and the total, within a step.
        words: Any attribute of :class:`Settings`, such as ``guard=0.01``, and what ``load`` takes. What is learned and
            tested in 8 or 4 bits is exported as an adapter: it belongs to a base that is loaded in the same way.

    Returns:
        What ``ground.json`` holds: ``better``, ``verdict``, the effect on the test rows with intervals, ``exported``.

    Raises:
        DataError: The file cannot be used, or its rows are too few to be split and tested.
        ModelError: The model cannot be loaded, or exported (before anything is learned, where that is known).
        ArtifactError: The folder cannot be written to.
    """
    how, loading = settings_of(settings, words)
    held, model = (model if isinstance(model, Model) else None), name_of(model)
    folder = as_path(out)
    steps = Steps(folder, tell)
    if held is not None:
        load_held(held, **loading)  # which refuses settings of loading beside what is loaded
    network = _LazyModel(lambda: held or load(model, **loading))
    load_in = held.load_in if held is not None and held.load_in in PACKAGES else loading.get("load_in")
    _export_as(model, folder, load_in, how.to, ADAPTER)  # which refuses what cannot be exported before anything else
    rows, named = _rows(data, how), address(as_path(data)) if isinstance(data, str | Path) else "rows in memory"
    # The files of the steps name the same images, from another folder.
    how = replace(how, images=Path(named).parent if how.images is None else how.images)
    work = folder / WORK
    pairs, dev, test = (folder / f"{name}.jsonl" for name in ("pairs", "dev", "test"))
    made_by = {"model": model} if load_in is None else {"model": model, "load_in": load_in}
    base: dict[str, Any] = {**made_by, "rows": rows.sha256, "limit": how.limit, "chat": how.chat, "seed": how.seed}
    if how.label_true is not None:
        base["label_true"] = how.label_true
    if how.skip_bad_rows:
        base["truncate"] = how.truncate
    steps.run(
        "pair", base, [pairs], lambda: write_questions(pairs, _paired(rows, network, how, work / "pair", progress))
    )
    steps.run(
        "split",
        {"pairs": pairs, "share": how.test_share, "seed": how.seed},
        [dev, test],
        lambda: _split(read_questions(pairs, images=how.images), how, dev, test),
    )
    dtype = loading.get("dtype", "auto")
    common = {**made_by, "dtype": dtype, "chat": how.chat, "truncate": how.truncate, "seed": how.seed}
    tuned = Tuned(folder / GATE_FILE, folder / HEAD_ADAPTER)
    learning = {**common, "dev": dev, "guard": how.guard, "neutral": how.neutral}
    steps.run(
        "learn",
        {**learning, "base": how.base_gate, "epochs": EPOCHS[GATE]},
        [tuned.gate, folder / TUNING],
        lambda: learn_remedy(GATE, network(), dev, tuned.gate, how, work / "learn", progress),
    )
    steps.run(
        "adapt",
        {**learning, "controls": how.controls or 0, "epochs": EPOCHS[ADAPTER]},
        [tuned.adapter],
        lambda: learn_remedy(ADAPTER, network(), dev, tuned.adapter, how, work / "adapt", progress),
    )
    tested = folder / "evaluation"
    made = {"gate": tuned.gate, "adapter": tuned.adapter}
    steps.run(
        "test",
        {**common, **made, "test": test, "guard": how.guard, "controls": how.controls, "neutral": how.neutral},
        [tested],
        lambda: evaluate_remedies(network(), test, tuned, tested, how, progress),
    )
    decided = decide(tested, tuned, how.guard)
    answers = _answers(steps, folder / ANSWERS, decided, tuned, test, network, how, {**common, **made}, progress)
    if decided["better"] or (how.export_anyway and decided["moved"]):
        shipped = decided["remedy"]
        assert shipped is not None
        to, exported = _export_as(model, folder, load_in, how.to, shipped)
        steps.run(
            "export",
            {"model": model, "to": to, shipped: tuned.chosen[shipped]},
            [exported],
            lambda: export(
                model,
                tuned.gate if shipped == GATE else None,
                adapter=tuned.adapter if shipped == ADAPTER else None,
                to=to,
                out=exported,
                force=True,
                measure=False,
                trust_remote_code=loading.get("trust_remote_code", False),
                progress=progress,
            ),
        )
        decided["exported"] = exported.name
    shutil.rmtree(work, ignore_errors=True)
    paired, results = len(read_questions(pairs, images=how.images)), tuned.results
    reasons = "no untruthful answer of the same form was found for them"
    reasons += ", or they are too long for the model" if how.skip_bad_rows else ""
    lost = [f"{len(rows) - paired} rows were left out: {reasons}."]
    few = cannot_choose(results[GATE]["rows"].get("dev_groups", CHOSEN_FROM))
    result: GroundResult = {
        **decided,
        "model": without_folder(model),
        "data": without_folder(named),
        "anyway": how.export_anyway and not decided["better"],
        "warnings": [
            *rows.cautions,
            *(lost if paired < len(rows) else []),
            *([few] if few else []),
            *left_aside(tuned, decided, len(read_questions(dev, images=how.images))),
        ],
        "chat": bool(results[GATE]["settings"]["chat"]),
        "answers": answers,
        "advice": ground_advice(decided, results, how.guard, paired, how.test_share),
        **provenance(),
    }
    write_json(folder / RESULT, result)
    write_report(folder, folder / REPORT)
    return Grounding(result)


def _answers(
    steps: Steps,
    out: Path,
    decided: GroundDecision,
    tuned: Tuned,
    test: Path,
    network: "_LazyModel",
    how: Settings,
    given: Mapping[str, object],
    progress: Progress | None,
) -> GroundAnswers | None:
    """Write answers before and after: with what is shipped, else the instruction if it helps, else the best tried."""
    helps = any(one["name"] == PROMPT and one["verdict"] == BETTER for one in decided["remedies"])
    used = decided["remedy"] if decided["better"] or (decided["moved"] and not helps) else PROMPT
    instruction = decided["instruction"]
    if used is None or (used == PROMPT and instruction is None):
        return None
    change: Gate | HeadAdapter | None = None
    if used != PROMPT:
        path = tuned.chosen[used]
        change = Gate.load(path) if used == GATE else HeadAdapter.load(path)
    text = instruction["text"] if used == PROMPT and instruction is not None else ""

    def work() -> None:
        model = network()
        write_answers(
            model,
            read_questions(test, images=how.images),
            change,
            out,
            instruction=text,
            chat=in_chat(model, how),
            truncate=how.truncate,
            batch_tokens=how.batch_tokens,
            work_dir=out.parent / WORK / "answers",
            progress=progress,
        )

    steps.run("answers", {**given, "test": test, "remedy": used, "instruction": text}, [out], work)
    return read_answers(out, used)


def _rows(data: QuestionsLike, how: Settings) -> Questions:
    """Return the rows, as many as are wanted, with what they were read from."""
    if isinstance(data, Sequence) and not isinstance(data, str) and all(isinstance(one, Question) for one in data):
        given = cast("Sequence[Question]", data)
        found = given if isinstance(given, Questions) else Questions(given, sha256=describe_data(given)["rows_sha256"])
        return found if how.limit is None else Questions(found[: how.limit], layout=found.layout, sha256=found.sha256)
    table = cast("RowsLike", data)
    return read_questions(
        table,
        limit=how.limit,
        skip_bad_rows=how.skip_bad_rows,
        images=how.images,
        halves=True,
        encoding=how.encoding,
        label_true=how.label_true,
    )


def _export_as(
    model: str, folder: Path, load_in: str | None, wanted: ExportFormat | None, remedy: RemedyName
) -> tuple[ExportFormat, Path]:
    """Choose format and path of the export that fit the model that the remedies were tested on.

    Raises:
        ModelError: That base takes no export, or not this one.
    """
    adapter = find_adapter(model)
    if adapter is not None:
        raise ModelError(
            f"what is tested on {model} cannot be exported",
            expected="a model with whole weights",
            got=str(adapter),
            fix="merge the adapter into its base model first (merge_and_unload, then save_pretrained)",
        )
    if load_in is not None and PACKAGES.get(load_in) == "torchao":
        raise ModelError(
            f"a gate that is tested in {load_in} cannot be exported",
            expected="8bit or 4bit, whose layers PEFT's IA³ wraps",
            got=load_in,
            fix="use --load-in 8bit, or none",
        )
    file = model.lower().endswith(".gguf")
    whole: ExportFormat = "gguf" if file else "checkpoint"
    fits: ExportFormat = whole if load_in is None else "adapter"
    able = [one for one in PATHS if (one != "gguf" or file) and (load_in is None or one.startswith("adapter"))]
    if wanted is not None and wanted not in able:
        raise ModelError(
            f"--to {wanted} cannot be made of {model}" + (f" in {load_in}" if load_in else ""),
            expected=" or ".join(able),
            got=wanted,
            fix="leave --to out, or give one of these",
        )
    # A gate multiplies weights: it has no LoRA file.
    to = fits if wanted is None or (wanted == "gguf-lora" and remedy == GATE) else wanted
    return to, folder / PATHS[to]


class _LazyModel:
    """A model that is loaded when a step first needs it: a run with nothing left to do needs none."""

    def __init__(self, loading: Callable[[], Model]) -> None:
        self.loading = loading
        self.model: Model | None = None

    def __call__(self) -> Model:
        self.model = self.model or self.loading()
        return self.model


def _paired(
    rows: Sequence[Question], model: _LazyModel, how: Settings, work_dir: Path, progress: Progress | None
) -> list[Question]:
    """Return rows with both answers, in their order; what is missing is made.

    Of bad rows that are to be left out, those are too that the model cannot take.
    """
    if how.skip_bad_rows:
        gone = {
            one.question.id for one in unusable_rows(model(), rows, chat=in_chat(model(), how), truncate=how.truncate)
        }
        rows = [row for row in rows if row.id not in gone]
    halves = [row for row in rows if len(row.answers) != 2]
    if not halves:
        return list(rows)
    chat = in_chat(model(), how)
    made = make_pairs(halves, model(), chat=chat, seed=how.seed, work_dir=work_dir, progress=progress).questions
    paired = {one.id: one for one in made}
    return [one for row in rows if (one := paired.get(row.id, row if len(row.answers) == 2 else None)) is not None]


def _split(rows: Sequence[Question], how: Settings, dev: Path, test: Path) -> None:
    """Write the rows to learn from and the rows to test on; a group is on one side."""
    groups = group_numbers(rows)
    members = np.random.default_rng(how.seed).permutation(np.unique(groups))
    share = max(how.test_share, 1 - GROUND_LEARN_FROM / len(rows)) if rows else how.test_share
    count = round(share * len(members))
    if (
        not 0 < how.test_share < 1
        or count < GROUND_MIN_TEST_GROUPS
        or len(members) - count < GROUND_MIN_TEST_GROUPS / 2
    ):
        raise DataError(
            "there are too few questions to learn from and to test on",
            expected=f"{GROUND_MIN_TEST_GROUPS} groups or more to test on, {GROUND_MIN_TEST_GROUPS // 2} to learn from",
            got=f"{len(members)} groups, test share {how.test_share:g}",
            fix="give more rows; rows of one `group`, one question or, where all ask the same, one context count once",
        )
    tested = set(members[:count].tolist())
    for path, side in ((dev, False), (test, True)):
        chosen = [row for row, group in zip(rows, groups, strict=True) if (group in tested) is side]
        write_questions(path, chosen)
