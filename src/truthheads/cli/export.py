"""``truthheads export``: a gate as an adapter, a checkpoint or a GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from truthheads.choices import ExportFormat
from truthheads.cli import console
from truthheads.cli.console import guarded
from truthheads.cli.help import DATA, OUTPUT
from truthheads.cli.options import IdleSeed, Json, ModelName, Remote


@guarded
def export(
    model: ModelName,
    gate: Annotated[Path, typer.Option(rich_help_panel=DATA, help="Gate file that fits the model.")],
    to: Annotated[
        ExportFormat,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Format: adapter (PEFT IA³), checkpoint (transformers) or gguf.",
        ),
    ],
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="New folder; for gguf, new file.")],
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace an existing model or adapter folder.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="NAME", rich_help_panel=OUTPUT, help="Hub repository to upload to."),
    ] = None,
    trust_remote_code: Remote = False,
    seed: IdleSeed = None,
    json: Json = False,
) -> None:
    """Write the gated model in a standard format that existing servers load."""
    from truthheads.exporting.export import export as run
    from truthheads.results.gate import Gate
    from truthheads.storage.files import dumps

    loaded = Gate.load(gate)
    with console.progress_bar(f"export to {out}") as progress:
        run(
            model,
            loaded,
            to=to,
            out=out,
            force=force,
            push_to_hub=push_to_hub,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
    files = sorted(file for file in out.rglob("*") if file.is_file()) if out.is_dir() else [out]
    size = sum(file.stat().st_size for file in files)
    figures = loaded.describe()
    if json:
        result = {"model": model, "to": to, "out": str(out), "gate": figures, "files": len(files), "bytes": size}
        typer.echo(dumps({**result, "pushed_to": push_to_hub}))
        return
    console.out.print(
        f"{to} of {model}: {figures['moved']} of {figures['num_layers']} x {figures['num_heads']} heads scaled "
        f"at site {figures['site']}, {len(files)} files, {size / 1e6:,.1f} MB",
        markup=False,
    )
    if push_to_hub is not None:
        console.out.print(f"sent to: {push_to_hub}", markup=False)
    console.written(out)
