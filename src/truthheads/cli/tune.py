"""``truthheads tune``: a gate from dev questions, with the frontier that it was chosen from."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

import typer

from truthheads.choices import Norm, Site, TuneMethod
from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded, resumable
from truthheads.cli.help import DATA, OUTPUT, RUN
from truthheads.cli.options import (
    LOADING,
    REQUIRED,
    BatchTokens,
    Chat,
    Data,
    Group,
    Guard,
    How,
    Images,
    Json,
    Limit,
    ModelName,
    Neutral,
    QuietEncoding,
    QuietLabelTrue,
    SkipBadRows,
    SkipMissing,
    Truncate,
    seed_of,
    takes,
)
from truthheads.cli.reading import all_at_once, tell_reading, usable
from truthheads.stats.thresholds import GATE_HARM_NATS

if TYPE_CHECKING:
    from truthheads.results.gate import Gate
    from truthheads.results.scores import Scores
    from truthheads.results.tuning import TuningOutput
    from truthheads.stats.figures import FigureJson
    from truthheads.tuning.learn import Schedule

Out = Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="Gate file, with tuning.json beside it.")]

Plot = Annotated[Path | None, typer.Option(rich_help_panel=OUTPUT, help="Chart of the frontier: .html, .png or .svg.")]

COMMON: Group = {
    "data": (Data, REQUIRED),
    "out": (Out, Path("gate.safetensors")),
    "neutral": (Neutral, None),
    "guard": (Guard, GATE_HARM_NATS),
    "plot": (Plot, None),
    "chat": (Chat, False),
    "truncate": (Truncate, False),
    "images": (Images, None),
    "limit": (Limit, None),
    "skip_bad_rows": (SkipBadRows, False),
    "skip_missing": (SkipMissing, False),
    "encoding": (QuietEncoding, None),
    "label_true": (QuietLabelTrue, None),
    "batch_tokens": (BatchTokens, None),
    "seed": (Annotated[int, seed_of("split, order, samples and intervals")], 0),
    "json": (Json, False),
}
"""What every way of tuning takes."""


class Common(TypedDict):
    """The values of those options."""

    data: Path
    out: Path
    neutral: Path | None
    guard: float
    plot: Path | None
    chat: bool
    truncate: bool
    images: Path | None
    limit: int | None
    skip_bad_rows: bool
    skip_missing: bool
    encoding: str | None
    label_true: str | None
    batch_tokens: int | None
    seed: int
    json: bool


class Own(TypedDict, total=False):
    """What one way of tuning takes for itself; see :func:`truthheads.tune`."""

    base_gate: "Gate | None"
    schedule: "Schedule"
    site: Site
    dev_share: float
    scores: "Scores"
    strengths: list[float]
    norms: list[Norm]
    sites: list[Site]
    standardise: bool


@guarded
@resumable
@exclusive_output("tuning.json", checks=True)
@takes(how=LOADING, common=COMMON)
def learn(
    model: ModelName,
    *,
    common: Common,
    base_gate: Annotated[
        Path | None, typer.Option(rich_help_panel=RUN, help="Gate to start from and to stay close to (--pull).")
    ] = None,
    site: Annotated[
        Site,
        typer.Option(metavar="NAME", rich_help_panel=RUN, help="Site: z (the heads' own outputs) or output."),
    ] = "z",
    epochs: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=RUN, help="Passes over the questions at most.")
    ] = 5,
    rate: Annotated[float, typer.Option(metavar="X", rich_help_panel=RUN, help="Step size of a factor.")] = 0.05,
    pull: Annotated[
        float, typer.Option(metavar="X", min=0, rich_help_panel=RUN, help="Penalty on distance from the first gate.")
    ] = 0.01,
    low: Annotated[float, typer.Option(metavar="X", rich_help_panel=RUN, help="Smallest factor allowed.")] = 0.0,
    high: Annotated[float, typer.Option(metavar="X", rich_help_panel=RUN, help="Largest factor allowed.")] = 2.0,
    dev_share: Annotated[
        float, typer.Option(metavar="X", rich_help_panel=DATA, help="Share of the questions kept for judging.")
    ] = 0.25,
    how: How,
) -> None:
    """Learn one factor per head by gradient, within the harm allowed on unrelated text."""
    from truthheads.results.gate import Gate
    from truthheads.tuning.learn import Schedule

    _tune(
        model,
        how,
        "learn",
        lambda: {
            "base_gate": None if base_gate is None else Gate.load(base_gate),
            "site": site,
            "schedule": Schedule(epochs=epochs, rate=rate, pull=pull, low=low, high=high),
            "dev_share": dev_share,
        },
        common,
    )


@guarded
@resumable
@exclusive_output("tuning.json", checks=True)
@takes(how=LOADING, common=COMMON)
def grid(
    model: ModelName,
    *,
    common: Common,
    scores: Annotated[Path, typer.Option(rich_help_panel=DATA, help="Score file of this model or of a relative.")],
    strengths: Annotated[
        str, typer.Option(rich_help_panel=RUN, help="Strengths to try, comma-separated.")
    ] = "0.25,0.5,1,2,4.5",
    norms: Annotated[
        str, typer.Option(rich_help_panel=RUN, help="Norms to try: centred, minmax, signed.")
    ] = "centred,minmax",
    sites: Annotated[str, typer.Option(rich_help_panel=RUN, help="Sites to try: z, output.")] = "z,output",
    standardise: Annotated[
        bool,
        typer.Option(
            "--standardise", rich_help_panel=RUN, help="Count strengths in standard deviations of the scores."
        ),
    ] = False,
    how: How,
) -> None:
    """Try gates made from Truth Scores: every strength, norm and site."""
    from truthheads.results.scores import Scores

    _tune(
        model,
        how,
        "grid",
        lambda: {
            "strengths": numbers(strengths),
            "norms": cast(list[Norm], words(norms)),  # checked where gates are made
            "sites": cast(list[Site], words(sites)),
            "scores": Scores.load(scores),
            "standardise": standardise,
        },
        common,
    )


def _tune(
    model: str,
    how: How,
    method: TuneMethod,
    read: Callable[[], Own],
    common: Common,
) -> None:
    """Tune and save; ``read`` gives the method's own settings, once the files to write are known to be writable."""
    from truthheads.models.load import load
    from truthheads.plots.charts import save_chart
    from truthheads.storage.files import dumps
    from truthheads.tuning.tune import tune

    out, plot, skip_bad_rows = common["out"], common["plot"], common["skip_bad_rows"]
    with all_at_once() as wrong:
        if not wrong.found:  # what is wrong with --out is so of what stands beside it
            wrong.of_target(out.with_name("tuning.json"))
        wrong.of_plot(plot)
        found = wrong.of_questions(
            common["data"],
            limit=common["limit"],
            skip_bad_rows=skip_bad_rows,
            images=common["images"],
            encoding=common["encoding"],
            label_true=common["label_true"],
        )
        given = wrong.of(read)
        wrong.of_neutral(common["neutral"])
        wrong.of_model(model, how)
    assert found is not None and given is not None
    loaded = load(model, **how)
    questions = usable(
        loaded,
        found,
        skip_bad_rows=skip_bad_rows,
        skip_missing=common["skip_missing"],
        chat=common["chat"],
        truncate=common["truncate"],
    )
    work = out.with_name(f"{out.name}.partial")
    with console.progress_bar(f"{method} on {len(questions)} questions") as progress:
        tuning = tune(
            loaded,
            questions,
            method=method,
            neutral=common["neutral"],
            guard=common["guard"],
            chat=common["chat"],
            truncate=common["truncate"],
            batch_tokens=common["batch_tokens"],
            seed=common["seed"],
            work_dir=work,
            progress=progress,
            **given,
        )
    tuning.save(out)
    if plot is not None:
        save_chart(tuning.chart(), plot)
    shutil.rmtree(work, ignore_errors=True)  # last: while it is there, the same command goes on
    result: TuningOutput = {**tuning.result, "gate": tuning.gate.describe(), "out": str(out)}
    for warning in result["warnings"]:
        console.warn(warning)
    if common["json"]:
        typer.echo(dumps(result))
        return
    tell_reading(questions)
    show_path(result)
    console.written(out)
    console.written(out.with_name("tuning.json"))
    if plot is not None:
        console.written(plot)


def numbers(text: str) -> list[float]:
    """Return comma-separated numbers.

    Raises:
        GateError: One of them is no number.
    """
    from truthheads.errors import GateError

    try:
        return [float(part) for part in words(text)]
    except ValueError as error:
        raise GateError(
            "--strengths must be numbers", expected="numbers with commas between them", got=text, fix="try 0.5,1,2"
        ) from error


def words(text: str) -> list[str]:
    """Return comma-separated words."""
    return [part.strip() for part in text.split(",") if part.strip()]


def show_path(result: "TuningOutput") -> None:
    """Print the candidates, the frontier and the choice."""
    ungated = result["ungated"]
    console.out.print(
        f"ungated, {result['rows']['dev']} dev questions: pair accuracy {console.figure(ungated['pair_accuracy'])}, "
        f"margin {console.figure(ungated['margin'])} nats"
    )
    rows = [
        [
            ("* " if at == result["chosen"] else "  ") + entry["name"],
            f"{entry['harm']['kl']['value']:.3f} ({entry['harm']['kl']['high']:.3f})",
            *(short(entry["effect"][name]) for name in ("margin", "pair_accuracy")),
        ]
        for at, entry in enumerate(result["path"])
    ]
    columns = ["", "nats a token", "margin", "pairs"]
    console.out.print(console.grid("\nCandidates (* chosen): lost on neutral text (upper end), gained", columns, rows))
    levels = [
        [
            f"{row['harm']:g}",
            row["name"] or "–",
            *(short((row["effect"] or {}).get(n)) for n in ("margin", "pair_accuracy")),
        ]
        for row in result["frontier"]
    ]
    columns = ["nats a token", "best candidate", "margin", "pairs"]
    console.out.print(console.grid("\nFrontier: gained at most so many nats a token", columns, levels))
    console.out.print(f"\n{result['why']}")
    if result["chosen"] is None:
        console.warn("the gate written is all ones: it changes nothing")


def short(figure: "FigureJson | None") -> str:
    """Return a figure with its interval in two decimals."""
    return f"{figure['value']:+.2f} [{figure['low']:.2f}, {figure['high']:.2f}]" if figure else "–"
