"""``truthheads inspect``, ``score`` and ``demo``: where the heads are and how truthful each is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truthheads.choices import Folds, Probe, ScoreMethod
from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded, multi_process, resumable
from truthheads.cli.help import OUTPUT, RUN
from truthheads.cli.options import (
    BatchTokens,
    Chat,
    Data,
    Encoding,
    Force,
    How,
    IdleSeed,
    Images,
    Json,
    LabelTrue,
    Limit,
    ModelName,
    Remote,
    SkipBadRows,
    SkipMissing,
    Top,
    Truncate,
    loads_model,
    seed_of,
)
from truthheads.cli.reading import all_at_once, tell_reading, usable

if TYPE_CHECKING:
    from truthheads.results.score_summary import DepthProfile, ScoreSummary


@guarded
def inspect_model(
    model: ModelName,
    out: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="File that gets the JSON result as well.")
    ] = None,
    force: Force = False,
    seed: IdleSeed = None,
    json: Json = False,
    trust_remote_code: Remote = False,
) -> None:
    """Show where a model's heads are, from its configuration alone."""
    from truthheads.models.inspection import inspect
    from truthheads.storage.files import check_new, dumps, write_json

    if out is not None:
        check_new(out, force=force)
    found = inspect(model, trust_remote_code=trust_remote_code).json()
    if out is not None:
        write_json(out, found)
    if json:
        typer.echo(dumps(found))
        return
    names = ("architecture", "num_layers", "num_heads", "head_dim", "num_kv_heads", "projection", "parameters", "dtype")
    facts = found.items()
    rows = [[name, f"{value:,}" if name == "parameters" else str(value)] for name, value in facts if name in names]
    if found["adapter"] is not None:
        rows.append(["adapter", found["adapter"]])
    rows += [["gates at", ", ".join(found["sites"])], ["exports to", ", ".join(found["exports"]) or "nothing"]]
    rows += [[f"not {what}", why] for what, why in found["refused"].items()]
    rows += [[f"layer {layer}", f"left alone: {why}"] for layer, why in found["skipped"].items()]
    console.out.print(console.grid(model, ["", ""], rows))


@guarded
@resumable
@multi_process
@exclusive_output(checks=True)
@loads_model
def score(
    model: ModelName,
    data: Data,
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="Score file to write.")] = Path(
        "scores.safetensors"
    ),
    method: Annotated[
        ScoreMethod,
        typer.Option(metavar="NAME", rich_help_panel=RUN, help="Method: probe, attribution or evidence."),
    ] = "probe",
    probe: Annotated[
        Probe, typer.Option(metavar="NAME", rich_help_panel=RUN, help="Solver: newton, or paper (as released).")
    ] = "newton",
    folds: Annotated[
        Folds, typer.Option(metavar="NAME", rich_help_panel=RUN, help="Folds: grouped, or paper (as released).")
    ] = "grouped",
    chat: Chat = False,
    truncate: Truncate = False,
    share_prefix: Annotated[
        bool, typer.Option("--share-prefix", hidden=True, help="Run a prompt once for all its answers (the default).")
    ] = True,
    no_share_prefix: Annotated[
        bool, typer.Option("--no-share-prefix", rich_help_panel=RUN, help="Run a prompt again for each answer.")
    ] = False,
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", rich_help_panel=RUN, help="Shuffle the labels, as a control.")
    ] = False,
    max_samples: Annotated[
        int, typer.Option(metavar="N", min=0, rich_help_panel=OUTPUT, help="Samples to keep for later intervals.")
    ] = 20_000,
    plot: Annotated[
        Path | None, typer.Option(rich_help_panel=OUTPUT, help="Heat map of the heads: .html, .png or .svg.")
    ] = None,
    top: Top = 10,
    images: Images = None,
    skip_missing: SkipMissing = False,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    encoding: Encoding = None,
    label_true: LabelTrue = None,
    batch_tokens: BatchTokens = None,
    seed: Annotated[int, seed_of("folds, intervals and shuffled labels")] = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Measure how context-truthful every attention head is (Truth Scores)."""
    import shutil

    from truthheads.models.load import load
    from truthheads.plots.charts import save_chart
    from truthheads.results.score_summary import summarise_scores
    from truthheads.scoring.score import score as run
    from truthheads.storage.files import dumps

    with all_at_once() as wrong:
        wrong.of_plot(plot)
        read = wrong.of_questions(
            data, limit=limit, skip_bad_rows=skip_bad_rows, images=images, encoding=encoding, label_true=label_true
        )
        wrong.of_model(model, how)
    assert read is not None
    loaded = load(model, **how)
    questions = usable(
        loaded, read, skip_bad_rows=skip_bad_rows, skip_missing=skip_missing, chat=chat, truncate=truncate
    )
    work = out.with_name(f"{out.name}.partial")
    with console.progress_bar(f"{len(questions)} questions through {model}") as progress:
        scores = run(
            loaded,
            questions,
            method=method,
            probe=probe,
            folds=folds,
            seed=seed,
            chat=chat,
            truncate=truncate,
            share_prefix=share_prefix and not no_share_prefix,
            batch_tokens=batch_tokens,
            shuffle_labels=shuffle_labels,
            max_samples=max_samples,
            work_dir=work,
            progress=progress,
        )
    scores.save(out)
    result, written = summarise_scores(scores, top=top), {"out": str(out)}
    if plot is not None:
        save_chart(scores.chart(), plot)
        written["plot"] = str(plot)
    shutil.rmtree(work, ignore_errors=True)  # last: while it is there, the same command goes on
    if json:
        typer.echo(dumps({**result, **written}))
    else:
        tell_reading(questions)
        _show_scores(result)
        for path in written.values():
            console.written(path)
    for warning in result["warnings"]:
        console.warn(warning)


def _show_scores(result: "ScoreSummary") -> None:
    unit, mean, half = result["unit"], result["mean"], result["split_half"]
    console.out.print(
        f"{unit} per head: mean over heads {console.figure(mean)}; "
        f"split-half rank correlation {console.figure(half and half['spearman'])}"
    )
    rows = [
        [
            row["head"],
            f"{console.number(row['score'])} [{console.number(row['low'])}, {console.number(row['high'])}]",
            console.number(row["auroc"]),
            console.number(row["pair_accuracy"]),
        ]
        for row in result["top"]
    ]
    title = (
        "\nTop heads" if result["ranked"] else f"\nTop heads (no ranking: {result['questions']} questions are too few)"
    )
    console.out.print(console.grid(title, ["head", f"{unit} [95 %]", "AUROC", "pairs"], rows))
    names = ["all rows", *result["kinds"]]
    profiles: list[DepthProfile] = [result, *result["kinds"].values()]
    layers = [
        [f"layer {layer}", *(console.number(profile["layers"][layer]) for profile in profiles)]
        for layer in range(len(result["layers"]))
    ]
    ends = [
        ["mean", *(console.number(profile["heads_mean"]) for profile in profiles)],
        [
            "best head" if result["ranked"] else "highest score",
            *(f"{p['best']['head']} {p['best']['score']:.3f}" if p["best"] else "–" for p in profiles),
        ],
    ]
    console.out.print(
        console.grid("\nDepth profile (means of layers), by kind of untruthful answer", ["", *names], layers + ends)
    )
