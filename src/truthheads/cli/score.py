"""``truthheads inspect``, ``score`` and ``demo``: where the heads are and how truthful each is."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from truthheads.cli import console
from truthheads.cli.console import exclusive_output, guarded, multi_process
from truthheads.cli.options import (
    BatchTokens,
    Data,
    How,
    Json,
    Limit,
    ModelName,
    Remote,
    Seed,
    SkipBadRows,
    SkipMissing,
    loads_model,
)


class Method(StrEnum):
    """How a head is scored."""

    probe = "probe"
    attribution = "attribution"
    evidence = "evidence"


class ProbeName(StrEnum):
    """Which solver fits the probes."""

    newton = "newton"
    paper = "paper"


class Folds(StrEnum):
    """How rows are dealt to folds."""

    grouped = "grouped"
    paper = "paper"


@guarded
def inspect_model(
    model: ModelName,
    out: Annotated[Path | None, typer.Option(help="Write the JSON result here too.")] = None,
    seed: Seed = 0,
    json: Json = False,
    trust_remote_code: Remote = False,
) -> None:
    """Show where a model's heads are, from its configuration alone."""
    from truthheads.models.load import inspect
    from truthheads.storage.files import dumps, write_json

    found = inspect(model, trust_remote_code=trust_remote_code).json()
    if out is not None:
        write_json(out, found)
    if json:
        typer.echo(dumps(found))
        return
    names = ("architecture", "num_layers", "num_heads", "head_dim", "num_kv_heads", "projection", "parameters", "dtype")
    rows = [[name, f"{found[name]:,}" if name == "parameters" else str(found[name])] for name in names]
    if found["adapter"] is not None:
        rows.append(["adapter", found["adapter"]])
    rows += [["gates at", ", ".join(found["sites"])], ["exports to", ", ".join(found["exports"]) or "nothing"]]
    rows += [[f"not {what}", why] for what, why in found["refused"].items()]
    rows += [[f"layer {layer}", f"left alone: {why}"] for layer, why in found["skipped"].items()]
    console.out.print(console.grid(model, ["", ""], rows))


@guarded
@multi_process
@exclusive_output()
@loads_model
def score(
    model: ModelName,
    data: Data,
    out: Annotated[Path, typer.Option(help="The score file.")] = Path("scores.safetensors"),
    method: Annotated[
        Method,
        typer.Option(help="A linear probe, the margin's gradient at each head's gate, or attention to the evidence."),
    ] = Method.probe,
    probe: Annotated[ProbeName, typer.Option(help="newton, or the released protocol for parity.")] = ProbeName.newton,
    folds: Annotated[Folds, typer.Option(help="grouped by question, or the released split.")] = Folds.grouped,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the tokenizer's chat template.")] = False,
    truncate: Annotated[bool, typer.Option("--truncate", help="Drop the start of contexts that are too long.")] = False,
    share_prefix: Annotated[bool, typer.Option(help="Compute what two answers share once.")] = True,
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="Control: scores must fall to chance.")
    ] = False,
    max_samples: Annotated[int, typer.Option(min=0, help="Samples kept for later bootstraps, at most.")] = 20_000,
    plot: Annotated[Path | None, typer.Option(help="Heat map of the heads: .html, .png or .svg.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Heads in the table.")] = 10,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths start from; else the file's.")] = None,
    skip_missing: SkipMissing = False,
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    *,
    how: How,
    json: Json = False,
) -> None:
    """Measure how context-truthful every attention head is (Truth Scores)."""
    import shutil

    from truthheads.data.readers import read_questions
    from truthheads.models.load import load
    from truthheads.models.prompts import missing_images
    from truthheads.plots.charts import check_suffix, save_chart
    from truthheads.results.scores import summarise_scores
    from truthheads.scoring.score import score as run
    from truthheads.storage.files import check_target, dumps

    if plot is not None:
        check_suffix(plot)
        check_target(plot)
    questions = read_questions(data, limit=limit, skip_bad_rows=skip_bad_rows, images=images)
    loaded = load(model, **how)
    if skip_missing:
        questions = questions.without(missing_images(loaded, questions))
    work = out.with_name(f"{out.name}.partial")
    with console.progress_bar(f"{len(questions)} questions through {model}") as progress:
        scores = run(
            loaded,
            questions,
            method=method.value,
            probe=probe.value,
            folds=folds.value,
            seed=seed,
            chat=chat,
            truncate=truncate,
            share_prefix=share_prefix,
            batch_tokens=batch_tokens,
            shuffle_labels=shuffle_labels,
            max_samples=max_samples,
            work_dir=work,
            progress=progress,
        )
    scores.save(out)
    shutil.rmtree(work, ignore_errors=True)
    result: dict[str, Any] = {**summarise_scores(scores, top=top), "out": str(out)}
    if plot is not None:
        save_chart(scores.chart(), plot)
        result["plot"] = str(plot)
    if json:
        typer.echo(dumps(result))
    else:
        _show_scores(result)
    for warning in result["warnings"]:
        console.warn(warning)


def _show_scores(result: dict[str, Any]) -> None:
    data = result["data"]
    unit, mean, half = result["unit"], result["mean"], result["split_half"]
    console.out.print(
        f"{data['rows']} rows ({data['layout'] or 'questions'}), {unit} per head; mean over heads "
        f"{console.figure(mean)}; split-half rank correlation {console.figure(half['spearman'])}"
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
    profiles = [result, *result["kinds"].values()]
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
    for name in ("out", "plot"):
        if name in result:
            console.written(result[name])
