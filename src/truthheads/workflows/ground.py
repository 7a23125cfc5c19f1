"""From a user's own rows to a model that follows its context more closely: a learned gate, tested on held-out rows."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from truthheads.evaluation.evaluate import evaluate
from truthheads.evaluation.summary import BETTER
from truthheads.exporting.export import export
from truthheads.models.adapters import find_adapter
from truthheads.models.answer_logprobs import group_numbers
from truthheads.models.held import ModelLike, name_of
from truthheads.models.held import load as load_held
from truthheads.models.load import Loading, Model, load
from truthheads.models.progress import Progress
from truthheads.models.quantised import PACKAGES
from truthheads.models.row_lengths import unusable_rows
from truthheads.reporting.report import write_report
from truthheads.results.evaluation import SUMMARY, EvaluationResult
from truthheads.results.gate import Gate
from truthheads.results.grounding import GroundDecision, Grounding, GroundResult
from truthheads.stats.thresholds import GROUND_LEARN_FROM, GROUND_MIN_TEST_GROUPS, GROUND_TEST_SHARE
from truthheads.storage.artifacts import provenance, without_folder
from truthheads.storage.files import as_path, read_json, write_json
from truthheads.storage.output_lock import lock_output
from truthheads.tuning.learn import Schedule
from truthheads.tuning.tune import tune
from truthheads.workflows.advice import ground_advice
from truthheads.workflows.make_pairs import make_pairs
from truthheads.workflows.steps import Steps, Tell

GATE, RESULT, REPORT, WORK = "gate.safetensors", "ground.json", "report.html", "ground.partial"

RUN = "learned"

EPOCHS = 3
"""Passes over the rows that are learned from: docs/decisions/0017-ground-in-minutes.md."""


@dataclass(frozen=True)
class Settings:
    """How a model is grounded.

    Attributes:
        guard: Largest change allowed on unrelated text (KL, nats per token).
        test_share: Share of the groups that are only tested on.
        controls: Shuffled and random gates that the learned one has to beat, of each so many; and a constant one.
        neutral: Text that must stay as it is; None: contexts of the rows and the model's own samples.
        base_gate: A relative's gate to start from.
        export_anyway: Write the model also where the test gives no evidence.
        images: Folder that image paths start from; None: the file's own.
        chat: Use the tokenizer's chat template.
        truncate: Drop the start of contexts that are too long.
        limit: Rows, at most.
        skip_bad_rows: Leave rows out that are bad, or too long for the model, and count them.
        encoding: Encoding of text files; None: UTF-8.
        label_true: The label of truthful answers; see :func:`truthheads.read_questions`.
        batch_tokens: Padded tokens in a batch, at most; None: by device.
        seed: Random seed of split, learning, controls and intervals.
    """

    guard: float = 0.02
    test_share: float = GROUND_TEST_SHARE
    controls: int = 3
    neutral: Path | None = None
    base_gate: Path | None = None
    export_anyway: bool = False
    images: Path | None = None
    chat: bool = False
    truncate: bool = False
    limit: int | None = None
    skip_bad_rows: bool = False
    encoding: str | None = None
    label_true: str | None = None
    batch_tokens: int | None = None
    seed: int = 0


class Words(Loading, total=False):
    """What ``ground`` takes by name: the attributes of :class:`Settings`, and how the model is loaded."""

    guard: float
    test_share: float
    controls: int
    neutral: str | Path | None
    base_gate: str | Path | None
    export_anyway: bool
    images: str | Path | None
    chat: bool
    truncate: bool
    limit: int | None
    skip_bad_rows: bool
    encoding: str | None
    label_true: str | None
    batch_tokens: int | None
    seed: int


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

    Writes into ``out``: ``pairs.jsonl``, ``dev.jsonl`` and ``test.jsonl`` (no group is in both), ``gate.safetensors``
    and ``tuning.json`` (learned from dev alone), ``evaluation/`` (test rows, controls), ``model/``,
    ``model.gguf`` or ``adapter/`` where the test says so, ``report.html`` and ``ground.json``.

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
    how, loading = _told(settings, words)
    held, model = (model if isinstance(model, Model) else None), name_of(model)
    folder = as_path(out)
    steps = Steps(folder, tell)
    if held is not None:
        load_held(held, **loading)  # which refuses settings of loading beside what is loaded
    network = _LazyModel(lambda: held or load(model, **loading))
    load_in = held.load_in if held is not None and held.load_in in PACKAGES else loading.get("load_in")
    to, exported = _export_as(model, folder, load_in)
    rows, named = _rows(data, how), address(as_path(data)) if isinstance(data, str | Path) else "rows in memory"
    # The files of the steps name the same images, from another folder.
    how = replace(how, images=Path(named).parent if how.images is None else how.images)
    work = folder / WORK
    pairs, dev, test = (folder / f"{name}.jsonl" for name in ("pairs", "dev", "test"))
    made_by = {"model": model} if load_in is None else {"model": model, "load_in": load_in}
    base: dict[str, Any] = {**made_by, "rows": rows.sha256, "limit": how.limit, "seed": how.seed}
    if how.label_true is not None:
        base["label_true"] = how.label_true
    if how.skip_bad_rows:
        base |= {"chat": how.chat, "truncate": how.truncate}
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
    gate, tuning = folder / GATE, folder / "tuning.json"
    steps.run(
        "learn",
        {**common, "dev": dev, "guard": how.guard, "base": how.base_gate, "neutral": how.neutral, "epochs": EPOCHS},
        [gate, tuning],
        lambda: _learn(network(), dev, gate, how, work / "learn", progress),
    )
    tested = folder / "evaluation"
    steps.run(
        "test",
        {**common, "gate": gate, "test": test, "controls": how.controls, "neutral": how.neutral},
        [tested],
        lambda: _test(network(), test, gate, tested, how, progress),
    )
    tuned = read_json(tuning)
    decided = _judged(cast(EvaluationResult, read_json(tested / SUMMARY)), tuned)
    if decided["better"] or (how.export_anyway and decided["moved"]):
        steps.run(
            "export",
            {"model": model, "gate": gate},
            [exported],
            lambda: export(
                model,
                gate,
                to=to,
                out=exported,
                force=True,
                trust_remote_code=loading.get("trust_remote_code", False),
                progress=progress,
            ),
        )
        decided["exported"] = exported.name
    shutil.rmtree(work, ignore_errors=True)
    paired = len(read_questions(pairs, images=how.images))
    advice = ground_advice(decided, tuned, how.guard, paired, how.test_share)
    reasons = "no untruthful answer of the same form was found for them"
    reasons += ", or they are too long for the model" if how.skip_bad_rows else ""
    lost = [f"{len(rows) - paired} rows were left out: {reasons}."]
    few = cannot_choose(tuned["rows"].get("dev_groups", CHOSEN_FROM))
    result: GroundResult = {
        **decided,
        "model": without_folder(model),
        "data": without_folder(named),
        "anyway": how.export_anyway and not decided["better"],
        "warnings": [*rows.cautions, *(lost if paired < len(rows) else []), *([few] if few else [])],
        "advice": advice,
        **provenance(),
    }
    write_json(folder / RESULT, result)
    write_report(folder, folder / REPORT)
    return Grounding(result)


def _told(settings: Settings | None, words: Words) -> tuple[Settings, Loading]:
    """Return the settings and how the model is loaded; TypeError for a word that neither knows."""
    own = {one.name for one in fields(Settings)}
    strange = sorted(set(words) - own - set(Loading.__annotations__))
    if strange:
        raise TypeError(f"ground() got an unexpected keyword argument {strange[0]!r}")
    paths = ("neutral", "base_gate", "images")
    given: dict[str, Any] = {
        name: as_path(value) if name in paths and isinstance(value, str | Path) else value
        for name, value in words.items()
        if name in own
    }
    loading = {name: value for name, value in words.items() if name not in own}
    return replace(settings or Settings(), **given), cast(Loading, loading)


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


def _export_as(model: str, folder: Path, load_in: str | None) -> tuple[ExportFormat, Path]:
    """Choose format and path of the export that fit the model that the gate was tested on.

    Raises:
        ModelError: That base takes no export.
    """
    adapter = find_adapter(model)
    if adapter is not None:
        raise ModelError(
            f"a gate that is tested on {model} cannot be exported",
            expected="a model with whole weights",
            got=str(adapter),
            fix="merge the adapter into its base model first (merge_and_unload, then save_pretrained)",
        )
    if load_in is None:
        return ("gguf", folder / "model.gguf") if model.lower().endswith(".gguf") else ("checkpoint", folder / "model")
    if PACKAGES.get(load_in) == "torchao":
        raise ModelError(
            f"a gate that is tested in {load_in} cannot be exported",
            expected="8bit or 4bit, whose layers PEFT's IA³ wraps",
            got=load_in,
            fix="use --load-in 8bit, or none",
        )
    return "adapter", folder / "adapter"


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
        gone = {one.question.id for one in unusable_rows(model(), rows, chat=how.chat, truncate=how.truncate)}
        rows = [row for row in rows if row.id not in gone]
    halves = [row for row in rows if len(row.answers) != 2]
    if not halves:
        return list(rows)
    made = make_pairs(halves, model(), seed=how.seed, work_dir=work_dir, progress=progress).questions
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


def _learn(model: Model, dev: Path, gate: Path, how: Settings, work_dir: Path, progress: Progress | None) -> None:
    start = Gate.load(how.base_gate) if how.base_gate is not None else None
    tune(
        model,
        read_questions(dev, images=how.images),
        method="learn",
        base_gate=start,
        neutral=how.neutral,
        guard=how.guard,
        schedule=Schedule(epochs=EPOCHS),
        chat=how.chat,
        truncate=how.truncate,
        batch_tokens=how.batch_tokens,
        seed=how.seed,
        work_dir=work_dir,
        progress=progress,
    ).save(gate)


def _test(model: Model, test: Path, gate: Path, out: Path, how: Settings, progress: Progress | None) -> None:
    evaluate(
        model,
        "pairs",
        test,
        out=out,
        gates={RUN: Gate.load(gate)},
        controls=how.controls,
        controls_where_better=True,
        asking={"images": how.images, "chat": how.chat, "truncate": how.truncate, "seed": how.seed},
        neutral=how.neutral,
        batch_tokens=how.batch_tokens,
        seed=how.seed,
        progress=progress,
    )


def _judged(summary: EvaluationResult, tuning: Mapping[str, Any]) -> GroundDecision:
    """Return whether the model is better: the verdict says so, and the gate beats every control."""
    plain, learned = (next(run for run in summary["runs"] if run["name"] == name) for name in ("none", RUN))
    held = learned.get("controls")
    moved = tuning["chosen"] is not None
    every = held is None or held["beaten"] == held["of"]
    return {
        "better": moved and learned["verdict"] == BETTER and every,
        "moved": moved,
        "verdict": learned["verdict"] if moved else "no gate helped within the guard",
        "primary": summary["primary"],
        "test_rows": summary["rows"],
        "ungated": plain["metrics"],
        "effect": learned["effect"],
        "controls": {**held} if held is not None else {},
        "guard": learned.get("guard"),
        "exported": None,
    }
