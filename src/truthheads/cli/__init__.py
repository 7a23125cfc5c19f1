"""The command line. A command parses, calls one function and saves one artefact; heavy imports wait until it runs."""

from typing import Annotated

import typer

from truthheads.cli import compare, console, data, evaluate, export, gate, ground, report, reproduce, score, trace, tune

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


app.command("inspect")(score.inspect_model)

app.command("score")(score.score)

app.command("compare")(compare.compare)

app.command("trace")(trace.trace)

app.command("gate")(gate.gate)

app.command("tune")(tune.tune)

app.command("export")(export.export)

app.add_typer(evaluate.app, name="evaluate")

app.command("ground")(ground.ground)

app.command("report")(report.report)

app.command("demo")(reproduce.demo)

app.command("reproduce")(reproduce.reproduce)

data_app.command("make")(data.make)

data_app.command("pairs")(data.pairs)


def main() -> None:
    """Run the command line."""
    console.escape_unknown()
    app(prog_name="truthheads")
