"""The command line. A command parses, calls one function and saves one artefact; heavy imports wait until it runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from truthheads.cli import console
from truthheads.cli.console import guarded

app = typer.Typer(
    name="truthheads",
    help="Find, compare and gate the attention heads that keep a model with its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make question files.", no_args_is_help=True)
app.add_typer(data_app, name="data")


class Method(StrEnum):
    """How a head is scored."""

    probe = "probe"
    attribution = "attribution"


class ProbeName(StrEnum):
    """Which solver fits the probes."""

    newton = "newton"
    paper = "paper"


class Folds(StrEnum):
    """How rows are dealt to folds."""

    grouped = "grouped"
    paper = "paper"


class Generated(StrEnum):
    """What can be generated."""

    text = "text"
    scenes = "scenes"


class Split(StrEnum):
    """Which part of the generators' names, facts and seeds."""

    train = "train"
    dev = "dev"
    test = "test"


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A transformers folder, hub id, .gguf file, or smollm2[:reader|:vision].")
]
Data = Annotated[Path, typer.Option(help="Question file: .jsonl, .json, .csv or .parquet.")]
Seed = Annotated[int, typer.Option(min=0, help="Of folds, splits and bootstraps.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[str, typer.Option(help="auto (bf16 where the hardware has it), bf16, fp16 or fp32.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read the first N rows.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Padded tokens in a batch; default by device.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the model.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")]


def _version(shown: bool) -> bool:
    if shown:
        from importlib.metadata import version

        typer.echo(f"truthheads {version('truthheads')}")
        raise typer.Exit
    return shown


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find, compare and gate the attention heads that keep a model with its context."""


@app.command("inspect")
@guarded
def inspect_command(
    model: ModelName,
    out: Annotated[Path | None, typer.Option(help="Write the JSON result here too.")] = None,
    seed: Seed = 0,
    json: Json = False,
    trust_remote_code: Remote = False,
) -> None:
    """Show where a model's heads are, from its configuration alone."""
    from truthheads.artifacts import dumps, write_json
    from truthheads.models import inspect

    found = inspect(model, trust_remote_code=trust_remote_code).json()
    if out is not None:
        write_json(out, found)
    if json:
        typer.echo(dumps(found))
        return
    names = ("architecture", "num_layers", "num_heads", "head_dim", "num_kv_heads", "projection", "parameters", "dtype")
    rows = [[name, f"{found[name]:,}" if name == "parameters" else str(found[name])] for name in names]
    rows += [[f"layer {layer}", f"left alone: {why}"] for layer, why in found["skipped"].items()]
    console.out.print(console.grid(model, ["", ""], rows))


@app.command()
@guarded
def score(
    model: ModelName,
    data: Data,
    out: Annotated[Path, typer.Option(help="The score file.")] = Path("scores.safetensors"),
    method: Annotated[
        Method, typer.Option(help="A linear probe, or the margin's gradient at each head's gate.")
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
    limit: Limit = None,
    skip_bad_rows: SkipBadRows = False,
    batch_tokens: BatchTokens = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Remote = False,
    json: Json = False,
) -> None:
    """Measure how context-truthful every attention head is (Truth Scores)."""
    import shutil

    from truthheads.artifacts import check_target, dumps
    from truthheads.models import load
    from truthheads.plots import check_suffix, save_chart
    from truthheads.readers import read_questions
    from truthheads.scoring import score as run
    from truthheads.summaries import summarise

    check_target(out)
    if plot is not None:
        check_suffix(plot)
        check_target(plot)
    questions = read_questions(data, limit=limit, skip_bad_rows=skip_bad_rows, images=images)
    loaded = load(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
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
    result: dict[str, Any] = {**summarise(scores, top=top), "out": str(out)}
    if plot is not None:
        save_chart(scores.chart(), plot)
        result["plot"] = str(plot)
    if json:
        typer.echo(dumps(result))
    else:
        _show_scores(result)


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
    console.out.print(console.grid("\nTop heads", ["head", f"{unit} [95 %]", "AUROC", "pairs"], rows))
    names = ["all rows", *result["kinds"]]
    profiles = [result, *result["kinds"].values()]
    layers = [
        [f"layer {layer}", *(console.number(profile["layers"][layer]) for profile in profiles)]
        for layer in range(len(result["layers"]))
    ]
    ends = [
        ["mean", *(console.number(profile["heads_mean"]) for profile in profiles)],
        ["best head", *(f"{p['best']['head']} {p['best']['score']:.3f}" if p["best"] else "–" for p in profiles)],
    ]
    console.out.print(
        console.grid("\nDepth profile (means of layers), by kind of untruthful answer", ["", *names], layers + ends)
    )
    for warning in result["warnings"]:
        console.warn(warning)
    for name in ("out", "plot"):
        if name in result:
            console.written(result[name])


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
    rows: Annotated[int, typer.Option(min=15, help="Generated questions.")] = 300,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score SmolLM2 on generated questions and draw its heads."""
    from truthheads.artifacts import dumps
    from truthheads.demo import run_demo
    from truthheads.summaries import summarise

    with console.progress_bar(f"{rows} questions through smollm2") as progress:
        made = run_demo(out, rows=rows, seed=seed, progress=progress)
    result = summarise(made.result)
    files = [str(path) for path in (made.questions, made.scores, *made.plots)]
    if json:
        typer.echo(dumps({**result, "files": files}))
        return
    _show_scores(result)
    for file in files:
        console.written(file)


@data_app.command("make")
@guarded
def make(
    what: Annotated[Generated, typer.Argument(help="What to generate.")],
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    seed: Seed = 0,
    kinds: Annotated[str | None, typer.Option(help="text: comma-separated, of absent, distractor, memory.")] = None,
    facts: Annotated[int, typer.Option(min=1, max=8, help="text: facts in each context.")] = 4,
    split: Annotated[Split, typer.Option(help="Names and facts of the three are disjoint.")] = Split.test,
    json: Json = False,
) -> None:
    """Generate questions about invented people, places and things, or scenes with their questions."""
    from truthheads.artifacts import dumps

    written: list[Path]
    if what is Generated.text:
        from truthheads.data import write_questions
        from truthheads.family.text import KINDS, make_text

        chosen = [kind.strip() for kind in kinds.split(",")] if kinds else list(KINDS)
        questions = make_text(rows, seed=seed, kinds=chosen, facts=facts, split=split.value)
        written = [write_questions(out / "questions.jsonl", questions)]
    else:
        from truthheads.family.scenes import make_scenes

        files = make_scenes(rows, seed=seed, out=out, split=split.value)
        written = [files.images, files.questions, *files.pope.values(), files.captions]
    if json:
        typer.echo(dumps({"files": [str(path) for path in written]}))
    else:
        for path in written:
            console.written(path)


def main() -> None:
    """Run the command line."""
    app(prog_name="truthheads")
