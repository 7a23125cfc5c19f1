"""``truthheads evaluate``: a benchmark with its intervals, its controls and a plain sentence.

There is one sub-command for each line of ``registry.BENCHMARKS``, made from its record when it is asked for.
"""

import inspect
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_origin

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from truthheads.cli import console
from truthheads.cli.console import guarded, multi_process, resumable
from truthheads.cli.help import DATA, OUTPUT, RUN, Command, add_command
from truthheads.cli.options import LOADING, BatchTokens, Force, Json, ModelName
from truthheads.cli.reading import all_at_once
from truthheads.storage.distributed import ranks

if TYPE_CHECKING:
    from truthheads.benchmarks.base import AnswerOptions, Benchmark
    from truthheads.results.evaluation import EvaluationResult, RunResult
    from truthheads.results.gate import Gate
    from truthheads.stats.figures import FigureJson

    Options = TypeVar("Options", bound=AnswerOptions)

ANSWERS, RESCORE = "answers", "rescore"

OneFile = Annotated[list[Path], typer.Option(metavar="FILE", rich_help_panel=DATA, help="The benchmark's file.")]

Files = Annotated[
    list[Path], typer.Option(metavar="FILE", rich_help_panel=DATA, help="The benchmark's file; repeatable.")
]

NoFiles = Annotated[
    list[Path] | None,
    typer.Option(rich_help_panel=DATA, help="Folder of task files, or a .jsonl of rows in place of the task's own."),
]

OutFolder = Annotated[
    Path, typer.Option(rich_help_panel=OUTPUT, metavar="DIR", help="Folder for predictions and summary.")
]

Restart = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Remove an earlier evaluation from --out first.")
]

HarnessTask = Annotated[str, typer.Argument(metavar="NAME", help="The task's name in lm-evaluation-harness.")]

AnswerFiles = Annotated[list[Path], typer.Argument(metavar="ANSWERS...", help="Files of answers.", show_default=False)]

COMMON: dict[str, tuple[Any, Any]] = {
    "out": (OutFolder, Path("evaluation")),
    "force": (Restart, False),
    "gate": (
        Annotated[list[Path] | None, typer.Option(rich_help_panel=RUN, metavar="FILE", help="Gate file; repeatable.")],
        None,
    ),
    "controls": (
        Annotated[
            int,
            typer.Option(
                rich_help_panel=RUN,
                min=0,
                metavar="N",
                help="Number of shuffled and of random control gates.",
            ),
        ],
        0,
    ),
    "neutral": (
        Annotated[
            Path | None,
            typer.Option(rich_help_panel=RUN, metavar="FILE", help="Unrelated text for the harm figures."),
        ],
        None,
    ),
    "guard_texts": (
        Annotated[
            int,
            typer.Option(
                rich_help_panel=RUN, min=0, metavar="N", help="Number of unrelated texts; 0 measures no harm."
            ),
        ],
        32,
    ),
    "batch_tokens": (BatchTokens, None),
}
"""The options of every benchmark that runs a model."""

OF_DATA = ("chat", "encoding", "images", "limit", "skip_bad_rows", "synonyms", "truncate")
"""Options of benchmarks that say what is read, and how it is shown."""

METAVARS: dict[Any, str] = {
    str | None: "NAME",
    int: "N",
    int | None: "N",
    Path: "FILE",
    Path | None: "FILE",
    str: "LIST",
}
"""How the value of a benchmark's option is shown in the help, by its type."""

OLD_OPTIONS = (
    "--data", "--out", "--gate", "--controls", "--images", "--instruction", "--shown", "--new-tokens", "--caps",
    "--synonyms", "--lemmatizer", "--neutral", "--guard-texts", "--limit", "--batch-tokens", "--seed", "--device",
    "--dtype", "--device-map", "--max-memory", "--offload-folder", "--load-in",
)  # fmt: skip
"""Options of ``evaluate`` in 0.1.0 that take a value, beside those that say what to evaluate."""

OLD_FLAGS = ("--knowledge", "--no-knowledge", "--chat", "--truncate", "--trust-remote-code", "--json")
"""Options of ``evaluate`` in 0.1.0 without a value. What had no effect on a task was accepted in silence."""

Parameters = dict[str, tuple[Any, Any]]


class EvaluateGroup(TyperGroup):
    """A sub-command for each benchmark, made when it is asked for, and the two that run no model."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all sub-commands."""
        from truthheads.benchmarks.registry import BENCHMARKS

        return [*BENCHMARKS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a sub-command, or None."""
        from truthheads.benchmarks.registry import BENCHMARKS

        if cmd_name not in BENCHMARKS:
            return super().get_command(ctx, cmd_name) or guarded(_unknown)(cmd_name)
        return guarded(lambda: _command(cmd_name, *_asked(_record(cmd_name))))()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the old form of a command line as the new one."""
        return super().parse_args(ctx, guarded(_new_form)(args))


class AnswersGroup(TyperGroup):
    """A sub-command for each benchmark that takes answers made elsewhere."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of these benchmarks."""
        from truthheads.benchmarks.registry import records

        return [name for name, record in records().items() if record.elsewhere is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a sub-command, or None."""
        from truthheads.benchmarks.registry import BENCHMARKS

        if cmd_name not in BENCHMARKS:
            return guarded(_unknown)(cmd_name)
        record = guarded(_record)(cmd_name)
        return None if record.elsewhere is None else _command(cmd_name, *_answered(record))


def _unknown(name: str) -> None:
    """Raise DataError for a word that is no benchmark: it names all of them, and the nearest."""
    from truthheads.benchmarks.registry import benchmark
    from truthheads.errors import DataError

    task = benchmark(name).name
    raise DataError(
        f"{name!r} is not the name of a sub-command",
        expected=f"{task} NAME",
        got=name,
        fix=f"write the harness's task after a blank: truthheads evaluate {name.replace(':', ' ', 1)} MODEL",
    )


app = typer.Typer(
    cls=EvaluateGroup,
    no_args_is_help=True,
    help="Run a benchmark on a model, ungated and gated, or score what was made elsewhere.",
)

app.add_typer(
    typer.Typer(
        cls=AnswersGroup,
        no_args_is_help=True,
        help="Score answers that were made elsewhere; no model runs.",
        callback=None,
    ),
    name=ANSWERS,
)


def _record(name: str) -> "Benchmark":
    from truthheads.benchmarks.registry import record_of

    return record_of(name)


def _command(name: str, run: Callable[..., None], parameters: Parameters, about: str, example: str) -> TyperCommand:
    """Make a command whose options are these parameters and whose help ends with an example."""

    def command(**given: Any) -> None:
        run(**given)

    command.__dict__.update(run.__dict__)  # whether it keeps what it has done
    own = [
        inspect.Parameter(one, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for one, (kind, default) in parameters.items()
    ]
    command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in own}
    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    made.command(name, cls=Command, help=about, epilog=f"Example: {escape(example)}")(guarded(multi_process(command)))
    found = typer.main.get_command(made)
    assert isinstance(found, TyperCommand)
    return found


def _own_options(options: "type[AnswerOptions]") -> Parameters:
    """Return a benchmark's options as those of a command."""
    found: Parameters = {}
    for one in fields(options):
        kind: Any = one.type
        default = one.default
        least: dict[str, Any] = {"min": 0} if one.name == "seed" else {"min": 1} if kind in (int, int | None) else {}
        if one.metadata["text_file"]:
            kind = Path | None
        elif isinstance(default, tuple):
            kind, default = str, ",".join(map(str, default))
        panel = DATA if one.name in OF_DATA else RUN
        names = [f"--{one.name.replace('_', '-')}"] if default is False else []  # without the name that changes nothing
        shown = "NAME" if get_origin(kind) is Literal else METAVARS.get(kind)
        option = typer.Option(*names, metavar=shown, rich_help_panel=panel, help=one.metadata["help"], **least)
        found[one.name] = (Annotated[kind, option], default)
    return found


def _options_given(options: "type[Options]", given: dict[str, object]) -> "Options":
    """Return a benchmark's options from the values of a command; they are taken out of ``given``."""
    found: dict[str, Any] = {}
    for one in fields(options):
        value: Any = given.pop(one.name)
        if one.metadata["text_file"]:
            value = read_instruction(value)
        elif isinstance(one.default, tuple):
            value = read_numbers(one.name, value)
        found[one.name] = value
    return options(**found)


def _data(record: "Benchmark") -> tuple[Any, Any]:
    if not record.needs_files:
        return NoFiles, None
    return Files if record.several_files else OneFile, inspect.Parameter.empty


def _asked(record: "Benchmark") -> tuple[Callable[..., None], Parameters, str, str]:
    """Make the function that asks a model, its parameters, its help and an example."""
    harness = record.asks == "harness"
    first: Parameters = {"name": (HarnessTask, inspect.Parameter.empty)} if harness else {}
    parameters = {
        **first,
        "model": (ModelName, inspect.Parameter.empty),
        "data": _data(record),
        **COMMON,
        **_own_options(record.options),
        **LOADING,
        "json": (Json, False),
    }

    def run(*, model: str, data: list[Path] | None, out: Path, json: bool, name: str = "", **given: Any) -> None:
        from truthheads.evaluation.ask import read_benchmark
        from truthheads.evaluation.evaluate import evaluate
        from truthheads.models.load import load

        how, named = {one: given.pop(one) for one in LOADING}, given.pop("gate") or []
        with all_at_once() as wrong:
            asking = wrong.of(lambda: _options_given(record.options, given))
            wrong.of_target(out / "predictions.jsonl")
            gates = wrong.of(lambda: read_gates(named))
            read = None if harness or not asking else wrong.of(lambda: read_benchmark(record, data or [], asking))
            wrong.of_neutral(given["neutral"])
            wrong.of_model(model, how)
        assert asking is not None and gates is not None
        task = f"{record.name}:{name}" if harness else record.name
        loaded = load(model, **how)
        with console.progress_bar(f"{task}: tokens read") as progress:
            summary = evaluate(
                loaded,
                task,
                data or [],
                out=out,
                gates=gates,
                asking=asking,
                seed=asking.seed,
                progress=progress,
                read=read,
                **given,
            )
        _tell(summary.result, out, json)

    resumable(run)
    if harness:
        return run, parameters, record.about, f"truthheads evaluate {record.name} arc_easy smollm2 --limit 100"
    return run, parameters, record.about, f"truthheads evaluate {record.name} smollm2 --data rows.jsonl --limit 100"


def _answered(record: "Benchmark") -> tuple[Callable[..., None], Parameters, str, str]:
    """Make the function that scores answers made elsewhere, its parameters, its help and an example."""
    elsewhere = record.elsewhere
    assert elsewhere is not None
    parameters: Parameters = {
        "answers": (AnswerFiles, inspect.Parameter.empty),
        "data": _data(record),
        "out": (OutFolder, Path("evaluation")),
        "force": (Force, False),
        **_own_options(elsewhere.options),
        "json": (Json, False),
    }

    def run(*, answers: list[Path], data: list[Path], out: Path, force: bool, json: bool, **given: Any) -> None:
        from truthheads.data.tables import check_there
        from truthheads.evaluation.external import score_answers

        with all_at_once() as wrong:
            how = wrong.of(lambda: _options_given(elsewhere.options, given))
            wrong.of_target(out / "predictions.jsonl")
            for path in (*answers, *data):
                wrong.of(lambda path=path: check_there(path))  # type: ignore[misc]
        assert how is not None
        _tell(score_answers(record.name, answers, data, out=out, how=how, seed=how.seed, force=force), out, json)

    example = f"truthheads evaluate {ANSWERS} {record.name} answers.jsonl --data rows.jsonl"
    return run, parameters, elsewhere.about, example


@guarded
def rescore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The --out of an earlier evaluation.")],
    seed: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=RUN, min=0, help="Random seed of the intervals (default: that of the evaluation)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compute every figure of a folder again from its predictions."""
    from truthheads.evaluation.summary import rescore as again

    _tell(again(folder, seed=seed), folder, json)


add_command(app, RESCORE, rescore, example="truthheads evaluate rescore evaluation")


def _tell(summary: "EvaluationResult", out: Path, json: bool) -> None:
    for note in summary["notes"]:
        console.err.print(f"note: {escape(note)}")
    if json:
        from truthheads.storage.files import dumps

        typer.echo(dumps(summary))
        return
    show(summary)
    console.written(out / "predictions.jsonl")
    console.written(out / "summary.json")


def _new_form(args: Sequence[str]) -> list[str]:
    """Return the words behind ``evaluate`` with the benchmark first; 0.1.0 had it as ``--task``. To go after 0.2."""
    from truthheads.errors import TruthHeadsError

    named: dict[str, list[str]] = {"--task": [], "--rescore": [], "--answers": [], "--captions": []}
    rest: list[list[str]] = []
    words = list(args)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            rest.append([word, *words])
            break
        if name in named:
            named[name].append(value if equals else words.pop(0) if words else "")
        else:
            rest.append([word, *words[: int(word in OLD_OPTIONS)]])
            del words[: len(rest[-1]) - 1]
    (task, folder), made = (
        (named[name][-1:] for name in ("--task", "--rescore")),
        named["--answers"] + named["--captions"],
    )
    if not task and not folder:
        return list(args)
    if (folder and made) or (named["--captions"] and task != ["chair"]) or (named["--answers"] and task != ["pope"]):
        raise TruthHeadsError(
            "it is not clear what to evaluate",
            expected="a benchmark and a model, `answers` with a benchmark, or `rescore` with a folder",
            got=f"evaluate {' '.join(args)}",
            fix="see `truthheads evaluate --help`",
        )
    known = _known_options(task[0].partition(":")[0] if task else "", rescored=bool(folder), made=bool(made))
    dropped = ["--task"] if task and folder else []
    kept: list[str] = []
    for piece in rest:
        name = piece[0].partition("=")[0]
        if known is not None and name in {*OLD_OPTIONS, *OLD_FLAGS} - known:
            dropped.append(name)
        else:
            kept += piece
    if folder:
        new = [RESCORE, *folder, *kept]
    elif made:
        new = [ANSWERS, *task, *kept, "--", *made]
    else:
        new = [*filter(None, task[0].partition(":")[::2]), *kept]
    if ranks().rank == 0:
        what = " ".join(new[: 1 + (not folder and bool(made))])
        left_out = f"; {', '.join(dict.fromkeys(dropped))} left out: no effect on {what}" if dropped else ""
        console.err.print(
            f"note: this form of evaluate will go; type: truthheads evaluate {escape(shlex.join(new) + left_out)}",
            style="dim",
        )
    return new


def _known_options(task: str, *, rescored: bool, made: bool) -> set[str] | None:
    """Return the names of the options that a sub-command has; None where there is no such sub-command."""
    from truthheads.benchmarks.registry import BENCHMARKS

    if rescored:
        return {"--seed", "--json", "--help"}
    if task not in BENCHMARKS:
        return None
    record = _record(task)
    command = _command(task, *(_answered(record) if made else _asked(record)))
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def read_instruction(path: Path | None) -> str | None:
    """Return the text of an instruction file.

    Raises:
        DataError: It cannot be read.
    """
    from truthheads.errors import DataError

    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read", expected="a text file in UTF-8", got=str(error), fix="check the path"
        ) from error


def read_numbers(name: str, text: str) -> tuple[int, ...]:
    """Return comma-separated whole numbers above 0.

    Args:
        name: Name of the option.
        text: What was given.

    Raises:
        DataError: One of them is no whole number above 0, or stands there twice.
    """
    from truthheads.errors import DataError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(parts)) < len(parts):
        raise DataError(
            f"--{name} cannot be read",
            expected="whole numbers above 0 with commas between, such as 64,512, none of them twice",
            got=text,
            fix=f"correct --{name}",
        )
    return tuple(map(int, parts))


def read_gates(paths: list[Path]) -> "dict[str, Gate]":
    """Return gates under their files' names, or those of folders where two files share one.

    Raises:
        ArtifactError, GateError: A file is no gate.
    """
    from truthheads.evaluation.evaluate import named_gates

    return named_gates(paths)


def show(summary: "EvaluationResult") -> None:
    """Print the ungated figures, and what each gate did."""
    from truthheads.benchmarks.registry import benchmark

    data = summary["settings"].get("data")
    if isinstance(data, dict) and data.get("read_as"):
        console.out.print(f"read: {'; '.join(data['read_as'])}", markup=False)
    plain, *others = summary["runs"]
    primary = summary["primary"]
    names = list(plain["metrics"])
    rows = [[name, console.figure(_whole(plain["metrics"][name]))] for name in names]
    told = [f"{summary['rows']} rows", "ungated", *filter(None, [summary["settings"].get("table_note")])]
    console.out.print(console.grid(f"{summary['task']}, {', '.join(map(str, told))}", ["", "95 %"], rows))
    gates = [run for run in others if run["kind"] == "gate"]
    if gates:
        beside = tuple(name for name in benchmark(summary["task"]).shown_beside if name in plain["metrics"])
        columns = ["effect", "p", "beaten", *beside, "perplexity"]
        rows = [_row(run, primary, beside) for run in gates]
        console.out.print(
            console.grid(f"\nGates: effect on {primary}, p by Holm, controls beaten", ["gate", *columns], rows)
        )
        for run in gates:
            console.out.print(f"{escape(run['name'])}: [bold]{run['verdict']}[/]")


def _row(run: "RunResult", primary: str, beside: tuple[str, ...]) -> list[str]:
    held = run.get("controls")
    guard = run.get("guard")
    return [
        run["name"],
        console.figure(_whole(run["effect"][primary])),
        console.number(run["p"]["holm"]),
        f"{held['beaten']}/{held['of']}" if held else "–",
        *(f"{run['effect'][name]['value']:+.3f}" for name in beside),
        f"x {guard['perplexity_ratio']['value']:.3f}" if guard else "–",
    ]


def _whole(figure: "FigureJson") -> "FigureJson | None":
    return figure if figure["value"] == figure["value"] else None
