"""The command line. A command parses, calls one function and saves one artefact; heavy imports wait until it runs."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from truthheads.cli import (
    cache,
    compare,
    console,
    data,
    detect,
    evaluate,
    evaluate_detect,
    export,
    gate,
    ground,
    report,
    reproduce,
    score,
    trace,
    tune,
)
from truthheads.cli.help import add_command
from truthheads.cli.old_forms import old_form
from truthheads.storage.distributed import ranks

app = typer.Typer(
    name="truthheads",
    help="Find, compare and gate the attention heads that keep a model with its context.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: truthheads demo --out demo",
    pretty_exceptions_enable=False,
)

data_app = typer.Typer(
    help="Make question files.",
    no_args_is_help=True,
    epilog="Example: truthheads data make text --rows 200 --out rows",
)

tune_app = typer.Typer(
    help="Find the gate or head adapter that gains most for the least harm.",
    no_args_is_help=True,
    epilog="Example: truthheads tune learn smollm2 --data questions.jsonl",
)

cache_app = typer.Typer(
    help="Show and remove models that were converted once and are kept.",
    no_args_is_help=True,
    epilog="Example: truthheads cache list",
)

app.add_typer(data_app, name="data")

app.add_typer(cache_app, name="cache")

app.add_typer(tune_app, name="tune")


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


add_command(app, "inspect", score.inspect_model, example="truthheads inspect smollm2")

add_command(app, "score", score.score, example="truthheads score smollm2 --data questions.jsonl --plot heads.html")

add_command(app, "compare", compare.compare, example="truthheads compare base.safetensors tuned.safetensors")

add_command(
    app,
    "trace",
    trace.trace,
    example="truthheads trace smollm2 --data questions.jsonl --scores scores.safetensors",
)

add_command(app, "detect", detect.detect, example="truthheads detect smollm2 --data answers.jsonl --html page.html")

add_command(app, "gate", gate.gate, example="truthheads gate scores.safetensors --strength 2 --for smollm2")

add_command(tune_app, "adapt", tune.adapt, example="truthheads tune adapt smollm2 --data questions.jsonl --out adapter")

add_command(tune_app, "learn", tune.learn, example="truthheads tune learn smollm2 --data questions.jsonl")

add_command(
    tune_app,
    "grid",
    tune.grid,
    example="truthheads tune grid smollm2 --data questions.jsonl --scores scores.safetensors",
)

add_command(
    app,
    "export",
    export.export,
    example="truthheads export smollm2 --gate gate.safetensors --to checkpoint --out gated",
)

app.add_typer(evaluate.app, name="evaluate")

add_command(
    evaluate.app,
    "detect",
    evaluate_detect.evaluate_detect,
    example="truthheads evaluate detect smollm2 --data rows.jsonl --detector detector.safetensors",
)

add_command(app, "ground", ground.ground, example="truthheads ground smollm2 --data rows.jsonl --out grounded")

add_command(app, "report", report.report, example="truthheads report demo --out report.html")

add_command(app, "demo", reproduce.demo, example="truthheads demo --out demo")

add_command(app, "reproduce", reproduce.reproduce, example="truthheads reproduce mistral --plan")

add_command(data_app, "make", data.make, example="truthheads data make text --rows 200 --out rows")

add_command(
    data_app, "pairs", data.pairs, example="truthheads data pairs rows.jsonl --model smollm2 --out questions.jsonl"
)

add_command(cache_app, "list", cache.list_cache, example="truthheads cache list")

add_command(cache_app, "clear", cache.clear, example="truthheads cache clear --unused-for 30")


def main() -> None:
    """Run the command line."""
    console.escape_unknown()
    console.announce_loading()
    argv, note = old_form(sys.argv[1:])
    if note is not None and ranks().rank == 0:
        console.err.print(f"note: {escape(note)}")
    app(args=argv, prog_name="truthheads")
