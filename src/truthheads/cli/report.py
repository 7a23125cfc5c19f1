"""``truthheads report``: one page of all results in a folder."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from truthheads.cli import console
from truthheads.cli.console import guarded
from truthheads.cli.help import OUTPUT
from truthheads.cli.options import Force, IdleSeed, Json


@guarded
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of results, searched with its subfolders.")],
    out: Annotated[
        Path, typer.Option(rich_help_panel=OUTPUT, help="HTML page to write: one self-contained file.")
    ] = Path("report.html"),
    force: Force = False,
    seed: IdleSeed = None,
    json: Json = False,
) -> None:
    """Write one HTML page, readable offline, of all results in a folder."""
    from truthheads.storage.files import check_new, dumps

    check_new(out, force=force)
    from truthheads.reporting.report import write_report

    made = write_report(folder, out)
    for warning in made.warnings:
        console.err.print(f"[bold yellow]warning:[/] {escape(warning)}")
    if json:
        result = {**made._asdict(), "out": str(made.out)}
        typer.echo(dumps(result))
        return
    for at, sentence in enumerate(made.summary, start=1):
        console.out.print(escape(f"{at}. {sentence}"))
    rows = [[kind, str(count)] for kind, count in made.artefacts.items()]
    console.out.print(console.grid("", ["shown", "files"], rows))
    console.written(f"{made.out} ({made.size / 2**20:.1f} MB)")
