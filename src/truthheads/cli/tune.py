"""``truthheads tune``: a gate from dev questions, with the frontier that it was chosen from."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded
from truthheads.cli.options import (
    BatchTokens,
    Data,
    How,
    Json,
    Limit,
    ModelName,
    Seed,
    SiteName,
    SkipBadRows,
    SkipMissing,
    loads_model,
)


class TuneMethod(StrEnum):
    """How a gate is found."""

    grid = "grid"
    learn = "learn"


@guarded
@exclusive_output("tuning.json")
@loads_model
def tune(
    model: ModelName,
    data: Data,
    out: Annotated[Path, typer.Option(help="The gate; tuning.json is written beside it.")] = Path("gate.safetensors"),
    method: Annotated[
        TuneMethod, typer.Option(help="learn: one factor per head by gradient. grid: gates from --scores.")
    ] = TuneMethod.learn,
    scores: Annotated[Path | None, typer.Option(help="grid: score file of this model or of a relative.")] = None,
    base_gate: Annotated[
        Path | None, typer.Option(help="learn: gate to start from and to be pulled towards (--pull).")
    ] = None,
    neutral: Annotated[
        Path | None,
        typer.Option(help="Text that must stay: paragraphs, or .jsonl with text. Default: contexts, samples."),
    ] = None,
    guard: Annotated[float, typer.Option(help="Most harm on held-out neutral text, in nats a token.")] = 0.02,
    site: Annotated[SiteName, typer.Option(help="learn: each head's z, or blocks of the output.")] = SiteName.z,
    strengths: Annotated[str, typer.Option(help="grid: comma-separated.")] = "0.25,0.5,1,2,4.5",
    norms: Annotated[str, typer.Option(help="grid: comma-separated, of centred, minmax, signed.")] = "centred,minmax",
    sites: Annotated[str, typer.Option(help="grid: comma-separated, of z, output.")] = "z,output",
    standardise: Annotated[
        bool, typer.Option("--standardise", help="grid: strengths in standard deviations of the scores.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="learn: passes over the questions, at most.")] = 5,
    rate: Annotated[float, typer.Option(help="learn: step size, in units of a factor.")] = 0.05,
    pull: Annotated[
        float, typer.Option(min=0, help="learn: weight of the distance from the gate it starts at.")
    ] = 0.01,
    low: Annotated[float, typer.Option(help="learn: least factor.")] = 0.0,
    high: Annotated[float, typer.Option(help="learn: largest factor.")] = 2.0,
    dev_share: Annotated[float, typer.Option(help="learn: share of the questions that is judged on.")] = 0.25,
    plot: Annotated[Path | None, typer.Option(help="Chart of the frontier: .html, .png or .svg.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the tokenizer's chat template.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Drop the start of contexts that are too long.")] = False,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from; else the file's.")] = None,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    skip_missing: SkipMissing = False,
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Find the gate that gains most margin for the least harm."""
    from truthheads.data.readers import read_questions
    from truthheads.models.load import load
    from truthheads.models.prompts import missing_images
    from truthheads.plots.charts import check_suffix, save_chart
    from truthheads.results.gate import Gate
    from truthheads.results.scores import Scores
    from truthheads.storage.files import check_target, dumps
    from truthheads.tuning.learn import Schedule
    from truthheads.tuning.tune import tune as run

    check_target(out.with_name("tuning.json"))
    if plot is not None:
        check_suffix(plot)
        check_target(plot)
    questions = read_questions(data, limit=limit, skip_bad_rows=skip_bad_rows, images=images)
    given: dict[str, Any] = {
        "scores": Scores.load(scores) if scores is not None else None,
        "target": Gate.load(base_gate) if base_gate is not None else None,
        "strengths": numbers(strengths),
        "norms": words(norms),
        "sites": words(sites),
    }
    loaded = load(model, **how)
    if skip_missing:
        questions = questions.without(missing_images(loaded, questions))
    with console.progress_bar(f"{method.value} on {len(questions)} questions") as progress:
        tuning = run(
            loaded,
            questions,
            method=method.value,
            neutral=neutral,
            guard=guard,
            site=site.value,
            standardise=standardise,
            schedule=Schedule(epochs=epochs, rate=rate, pull=pull, low=low, high=high),
            dev_share=dev_share,
            chat=chat,
            truncate=truncate,
            batch_tokens=batch_tokens,
            seed=seed,
            progress=progress,
            **given,
        )
    tuning.save(out)
    if plot is not None:
        save_chart(tuning.chart(), plot)
    result = {**tuning.result, "gate": tuning.gate.describe(), "out": str(out)}
    for warning in result["warnings"]:
        console.warn(warning)
    if json:
        typer.echo(dumps(result))
        return
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
            "a strength is no number", expected="numbers with commas between them", got=text, fix="try 0.5,1,2"
        ) from error


def words(text: str) -> list[str]:
    """Return comma-separated words."""
    return [part.strip() for part in text.split(",") if part.strip()]


def show_path(result: dict[str, Any]) -> None:
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


def short(figure: dict[str, Any] | None) -> str:
    """Return a figure with its interval in two decimals."""
    return f"{figure['value']:+.2f} [{figure['low']:.2f}, {figure['high']:.2f}]" if figure else "–"
