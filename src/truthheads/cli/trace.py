"""``truthheads trace``: which heads look at the evidence, and whether they are the truthful ones."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truthheads.choices import Position
from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded, multi_process, resumable
from truthheads.cli.help import DATA, OUTPUT, RUN
from truthheads.cli.options import (
    BatchTokens,
    Chat,
    Data,
    Encoding,
    How,
    Images,
    Json,
    LabelTrue,
    Limit,
    ModelName,
    SkipBadRows,
    SkipMissing,
    Top,
    Truncate,
    loads_model,
    seed_of,
)
from truthheads.cli.reading import all_at_once, tell_reading, usable

if TYPE_CHECKING:
    from truthheads.data.questions import Question
    from truthheads.results.trace import ClaimResult, TraceSummary


@guarded
@resumable
@multi_process
@exclusive_output(checks=True)
@loads_model
def trace(
    model: ModelName,
    data: Data,
    scores: Annotated[
        Path | None,
        typer.Option(rich_help_panel=DATA, help="Truth Scores to compare with, of this model or a relative."),
    ] = None,
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="Trace file to write.")] = Path("trace.safetensors"),
    position: Annotated[
        Position,
        typer.Option(metavar="NAME", rich_help_panel=OUTPUT, help="Token to show: last of the answer or question."),
    ] = "answer",
    untruthful: Annotated[
        bool, typer.Option("--untruthful", rich_help_panel=RUN, help="Also trace the untruthful answer's last token.")
    ] = False,
    chat: Chat = False,
    truncate: Truncate = False,
    max_samples: Annotated[
        int, typer.Option(metavar="N", min=0, rich_help_panel=OUTPUT, help="Samples to keep for intervals.")
    ] = 5_000,
    plot: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Heat map of the heads' AUROC: .html, .png or .svg.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Page of rows with the attention drawn in: .html.")
    ] = None,
    picture_rows: Annotated[
        int, typer.Option(metavar="N", min=1, rich_help_panel=OUTPUT, help="Rows on the page of pictures.")
    ] = 4,
    top: Top = 10,
    images: Images = None,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    skip_missing: SkipMissing = False,
    encoding: Encoding = None,
    label_true: LabelTrue = None,
    batch_tokens: BatchTokens = None,
    seed: Annotated[int, seed_of("intervals and permutation tests")] = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Measure how well every head's attention finds the evidence in a context or an image."""
    import shutil

    from truthheads.models.load import load
    from truthheads.plots.charts import save_chart
    from truthheads.results.scores import Scores
    from truthheads.storage.files import dumps
    from truthheads.tracing.pictures import draw, write_pictures
    from truthheads.tracing.score_correlation import summarise_trace
    from truthheads.tracing.trace import trace as run

    with all_at_once() as wrong:
        wrong.of_plot(plot)
        wrong.of_target(pictures)
        read = wrong.of_questions(
            data, limit=limit, skip_bad_rows=skip_bad_rows, images=images, encoding=encoding, label_true=label_true
        )
        truth = None if scores is None else wrong.of(lambda: Scores.load(scores))
        wrong.of_model(model, how)
    assert read is not None
    loaded = load(model, **how)
    questions = usable(
        loaded,
        read,
        skip_bad_rows=skip_bad_rows,
        skip_missing=skip_missing,
        chat=chat,
        truncate=truncate,
        asked=None if untruthful else _truthful_alone,
    )
    work = out.with_name(f"{out.name}.partial")
    with console.progress_bar(f"{len(questions)} questions through {model}") as progress:
        found = run(
            loaded,
            questions,
            scores=truth,
            position=position,
            untruthful=untruthful,
            seed=seed,
            chat=chat,
            truncate=truncate,
            batch_tokens=batch_tokens,
            max_samples=max_samples,
            work_dir=work,
            progress=progress,
        )
    found.save(out)
    result, written = summarise_trace(found, top=top), {"out": str(out)}
    if plot is not None:
        save_chart(found.chart(), plot)
        written["plot"] = str(plot)
    if pictures is not None:
        drawn = draw(loaded, questions, found, rows=picture_rows, chat=chat, truncate=truncate)
        write_pictures(pictures, drawn)
        written["pictures"] = str(pictures)
    shutil.rmtree(work, ignore_errors=True)  # last: while it is there, the same command goes on
    if json:
        typer.echo(dumps({**result, **written}))
    else:
        tell_reading(questions)
        _show(result)
        for path in written.values():
            console.written(path)
    for warning in result["warnings"]:
        console.warn(warning)


def _truthful_alone(question: "Question") -> "Question":
    return replace(question, untruthful=None) if question.truthful is not None else question


def _show(result: "TraceSummary") -> None:
    data, number = result["data"] or {}, console.number
    console.out.print(
        f"traced: {result['rows']} of {data['rows']} rows; evidence from "
        f"{', '.join(f'{name} ({count})' for name, count in result['sources'].items())}, "
        f"{result['evidence_tokens']:.1f} tokens a row, {result['evidence_share']:.1%} of the positions; "
        f"distractors in {result['distractors']} rows"
    )
    for position, means in result["means"].items():
        console.out.print(
            f"mean over heads, {position}'s last token: AUROC {console.figure(means.get('auroc'))}, lift "
            f"{console.figure(means.get('lift'))}, on sinks {console.figure(means.get('sink'))}"
        )
    rows = [
        [
            row["head"],
            f"{number(row['auroc'])} [{number(row['low'])}, {number(row['high'])}]",
            number(row["lift"]),
            number(row["pointing"]),
            number(row["sink"]),
            number(row["distractor_auroc"]),
            number(row["truth_score"]),
        ]
        for row in result["top"]
    ]
    columns = ["head", "AUROC [95 %]", "lift", "points", "sinks", "distractor", "Truth Score"]
    few = "" if result["ranked"] else f" (no ranking: {result['questions']} questions are too few)"
    console.out.print(console.grid(f"\nTop heads, {result['position']}'s last token{few}", columns, rows))
    if result["claim"]:
        _show_claim(result["claim"][result["position"]])


def _show_claim(claim: "dict[str, ClaimResult]") -> None:
    rows = [
        [
            name.replace("_", " "),
            console.figure(found["spearman"]),
            console.figure(found["within_layer"]),
            f"{found['p_permutation']:.4f}",
        ]
        for name, found in claim.items()
    ]
    title = "\nDo heads with high Truth Scores look at the evidence? Rank correlations over heads"
    console.out.print(console.grid(title, ["measure", "all heads [95 %]", "within layers [95 %]", "p"], rows))
    for name in ("auroc", "lift", "pointing"):
        found = claim[name]
        console.out.print(
            f"{name}: best tenth by Truth Score less other heads of the same layers "
            f"{console.figure(found['equal_depth'])}; depth alone gives a rank correlation of "
            f"{console.number(found['depth_only'])}"
        )
