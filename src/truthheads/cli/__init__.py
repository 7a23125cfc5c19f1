"""The command line. A command parses, calls one function and saves one artefact; heavy imports wait until it runs."""

import sys
from typing import Annotated

import typer

from truthheads.cli import (
    comparing,
    demonstrating,
    evaluating,
    exporting,
    gating,
    grounding,
    making,
    measuring,
    reporting,
    reproducing,
    tracing,
    tuning,
)
from truthheads.cli import console as console
from truthheads.launching import launch_all

app = typer.Typer(
    name="truthheads",
    help="Find, compare and gate the attention heads that keep a model with its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make question files.", no_args_is_help=True)
app.add_typer(data_app, name="data")


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


app.command("inspect")(measuring.inspect_model)
app.command("score")(measuring.score)
app.command("compare")(comparing.compare)
app.command("trace")(tracing.trace)
app.command("gate")(gating.gate)
app.command("tune")(tuning.tune)
app.command("export")(exporting.export)
app.command("evaluate")(evaluating.evaluate)
app.command("ground")(grounding.ground)
app.command("report")(reporting.report)
app.command("demo")(demonstrating.demo)
app.command("reproduce")(reproducing.reproduce)
data_app.command("make")(making.make)
data_app.command("pairs")(making.pairs)


def main() -> None:
    """Run the command line."""
    console.escape_unknown()
    launch_all(sys.argv[1:])
    app(prog_name="truthheads")
