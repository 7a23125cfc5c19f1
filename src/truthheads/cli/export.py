"""``truthheads export``: a gate or an adapter in the formats that servers read."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NotRequired, TypedDict

import typer

from truthheads.choices import ExportFormat
from truthheads.cli import console
from truthheads.cli.console import guarded
from truthheads.cli.help import DATA, OUTPUT
from truthheads.cli.options import Json, ModelName, Remote, seed_of

if TYPE_CHECKING:
    from truthheads.exporting.adapted import Exported
    from truthheads.exporting.gguf_adapter import Requantised
    from truthheads.results.gate import GateInfo
    from truthheads.results.head_adapter import AdapterInfo
    from truthheads.stats.figures import FigureJson

WORTH_A_WORD = 0.01
"""Nats a token; half of what ``tune`` allows a remedy to cost by default."""


class ExportResult(TypedDict):
    """What ``export --json`` prints.

    Attributes:
        model: As the user named it.
        to: The format.
        out: The folder or file.
        gate: The gate in figures.
        adapter: Or the adapter in figures.
        tensors: The tensors of a GGUF file that an adapter changed: each with its types before and after.
        rounding: What those types cost, nats a token on neutral text, with its interval; null: not measured.
        files: How many were written.
        bytes: Their size together.
        pushed_to: The repository that they were sent to.
        seed: Random seed.
    """

    model: str
    to: ExportFormat
    out: str
    gate: NotRequired["GateInfo"]
    adapter: NotRequired["AdapterInfo"]
    tensors: NotRequired["list[Requantised]"]
    rounding: NotRequired["FigureJson | None"]
    files: int
    bytes: int
    pushed_to: str | None
    seed: int


@guarded
def export(
    model: ModelName,
    to: Annotated[
        ExportFormat,
        typer.Option(
            metavar="NAME",
            rich_help_panel=OUTPUT,
            help="Format: adapter (PEFT folder), checkpoint (transformers), gguf or gguf-lora (for llama.cpp).",
        ),
    ],
    out: Annotated[Path, typer.Option(rich_help_panel=OUTPUT, help="New folder; for gguf and gguf-lora, new file.")],
    gate: Annotated[Path | None, typer.Option(rich_help_panel=DATA, help="Gate file that fits the model.")] = None,
    adapter: Annotated[
        Path | None, typer.Option(rich_help_panel=DATA, help="Instead: a head adapter, or any PEFT LoRA folder.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace an existing model or adapter folder.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            rich_help_panel=OUTPUT,
            help="For gguf with an adapter: measure what rounding to the file's types costs. Loads the model.",
        ),
    ] = True,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="NAME", rich_help_panel=OUTPUT, help="Hub repository to upload to."),
    ] = None,
    trust_remote_code: Remote = False,
    seed: Annotated[int, seed_of("the text that rounding is measured on")] = 0,
    json: Json = False,
) -> None:
    """Write the model with a gate or an adapter in a format that existing servers load."""
    from truthheads.exporting.export import write_export
    from truthheads.results.gate import Gate
    from truthheads.results.head_adapter import HeadAdapter
    from truthheads.storage.files import dumps

    scales = None if gate is None else Gate.load(gate)
    lora = None if adapter is None else HeadAdapter.load(adapter)
    with console.progress_bar(f"export to {out}") as progress:
        done = write_export(
            model,
            scales,
            adapter=lora,
            to=to,
            out=out,
            force=force,
            push_to_hub=push_to_hub,
            trust_remote_code=trust_remote_code,
            measure=measure,
            seed=seed,
            progress=progress,
        )
    files = sorted(file for file in out.rglob("*") if file.is_file()) if out.is_dir() else [out]
    size = sum(file.stat().st_size for file in files)
    result: ExportResult = {
        "model": model,
        "to": to,
        "out": str(out),
        "files": len(files),
        "bytes": size,
        "pushed_to": push_to_hub,
        "seed": seed,
    }
    if scales is not None:
        result["gate"] = figures = scales.describe()
        what = (
            f"{figures['moved']} of {figures['num_layers']} x {figures['num_heads']} heads scaled at site {scales.site}"
        )
    elif lora is not None:
        result["adapter"] = lora.describe()
        what = f"an update of rank {lora.rank} of {f'{len(lora.heads)} heads in ' if lora.heads else ''}"
        what += f"{len(lora.updates)} modules"
        if to == "gguf":
            result["tensors"] = list(done.tensors)
            result["rounding"] = None if done.rounding is None else done.rounding.json()
    if json:
        typer.echo(dumps(result))
    else:
        console.out.print(
            f"{to} of {model}: {what}, {len(files)} file{'s' * (len(files) != 1)}, {size / 1e6:,.1f} MB", markup=False
        )
        _show_types(done)
    if done.rounding is not None and done.rounding.high > WORTH_A_WORD:
        console.warn(
            f"rounding to these types costs up to {done.rounding.high:.2g} nats a token: base and adapter apart lose "
            "nothing (--to gguf-lora), or start from a GGUF file of more bits"
        )
    if json:
        return
    if push_to_hub is not None:
        console.out.print(f"sent to: {push_to_hub}", markup=False)
    console.written(out)


def _show_types(done: "Exported") -> None:
    """Print how the changed tensors of a GGUF file are stored, and what that costs."""
    if not done.tensors:
        return
    counts = Counter((one["before"], one["after"]) for one in done.tensors)
    rows = [[before, after, str(count)] for (before, after), count in sorted(counts.items())]
    console.out.print(console.grid("changed tensors", ["stored before", "stored now", "tensors"], rows))
    cost = done.rounding
    said = "not measured" if cost is None else f"{cost.value:.2g} [{cost.low:.2g}, {cost.high:.2g}] nats a token"
    console.out.print(f"cost of rounding to these types: {said} (KL on neutral text)", markup=False)
