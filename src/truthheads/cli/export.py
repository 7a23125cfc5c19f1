"""``truthheads export``: a gate as an adapter, a checkpoint or a GGUF file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from truthheads.cli import console
from truthheads.cli.console import guarded
from truthheads.cli.options import Json, ModelName, Remote, Seed


class FormatName(StrEnum):
    """What is written."""

    adapter = "adapter"
    checkpoint = "checkpoint"
    gguf = "gguf"


@guarded
def export(
    model: ModelName,
    gate: Annotated[Path, typer.Option(help="The gate, of the model's shape.")],
    to: Annotated[
        FormatName,
        typer.Option(help="adapter: PEFT IA³ folder. checkpoint: transformers folder. gguf: file, from a .gguf file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; a file for gguf. It must not exist.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a model or adapter folder of that name as a whole.")
    ] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="NAME", help="Send it to this repository of the Hugging Face hub.")
    ] = None,
    trust_remote_code: Remote = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write the gated model in a format that is served already, at no run-time cost."""
    from truthheads.exporting.export import export as run
    from truthheads.results.gate import Gate
    from truthheads.storage.files import dumps

    loaded = Gate.load(gate)
    with console.progress_bar(f"export to {out}") as progress:
        run(
            model,
            loaded,
            to=to.value,
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
        result = {"model": model, "to": to.value, "out": str(out), "gate": figures, "files": len(files), "bytes": size}
        typer.echo(dumps({**result, "pushed_to": push_to_hub, "seed": seed}))
        return
    console.out.print(
        f"{to.value} of {model}: {figures['moved']} of {figures['num_layers']} x {figures['num_heads']} heads scaled "
        f"at site {figures['site']}, {len(files)} files, {size / 1e6:,.1f} MB",
        markup=False,
    )
    if push_to_hub is not None:
        console.out.print(f"sent to: {push_to_hub}", markup=False)
    console.written(out)
