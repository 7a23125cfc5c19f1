"""The options that commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A transformers folder, hub id, .gguf file, or smollm2[:reader|:vision].")
]
Data = Annotated[Path, typer.Option(help="Question file (.jsonl, .json, .csv, .parquet), or hf://datasets/OWNER/NAME.")]
Seed = Annotated[int, typer.Option(min=0, help="Of folds, splits and bootstraps.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[str, typer.Option(help="auto (bf16 where the hardware has it), bf16, fp16 or fp32.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read the first N rows.")]
BatchTokens = Annotated[int | None, typer.Option(min=1, help="Padded tokens in a batch; default by device.")]
Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the model.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")]
SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out and count rows whose image is not there.")]


class SiteName(StrEnum):
    """What a factor scales."""

    z = "z"
    output = "output"
