"""The options that commands share."""

import functools
import inspect
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A transformers or PEFT adapter folder, hub id, .gguf file, or smollm2[:reader|:vision]."
    ),
]

Data = Annotated[Path, typer.Option(help="Question file (.jsonl, .json, .csv, .parquet), or hf://datasets/OWNER/NAME.")]

Seed = Annotated[int, typer.Option(min=0, help="Of folds, splits and bootstraps.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]

Dtype = Annotated[str, typer.Option(help="auto (bf16 where the hardware has it), bf16, fp16 or fp32.")]

Limit = Annotated[int | None, typer.Option(min=1, help="Read the first N rows.")]

BatchTokens = Annotated[int | None, typer.Option(min=1, help="Padded tokens in a batch; default by device.")]

DeviceMap = Annotated[
    str | None,
    typer.Option(help="Spread a large model: auto, balanced, sequential, or JSON (or its file) of module: device."),
]

MaxMemory = Annotated[
    str | None, typer.Option(help="What devices may hold of the model: cpu=2GiB,0=20GiB. Implies --device-map auto.")
]

OffloadFolder = Annotated[
    Path | None,
    typer.Option(help="For weights on disk that the checkpoint does not hold as they are; default: temporary."),
]

LoadIn = Annotated[
    str | None, typer.Option(help="Quantise while loading: 8bit or 4bit (bitsandbytes), int8 (torchao).")
]

Remote = Annotated[bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the model.")]

SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave bad rows out and count them.")]

SkipMissing = Annotated[bool, typer.Option("--skip-missing", help="Leave out and count rows whose image is not there.")]


class SiteName(StrEnum):
    """What a factor scales."""

    z = "z"
    output = "output"


How = dict[str, Any]
"""How a model is loaded: keyword arguments of ``truthheads.load``."""

LOADING: dict[str, tuple[Any, Any]] = {
    "device": (Device, "auto"),
    "dtype": (Dtype, "auto"),
    "device_map": (DeviceMap, None),
    "max_memory": (MaxMemory, None),
    "offload_folder": (OffloadFolder, None),
    "load_in": (LoadIn, None),
    "trust_remote_code": (Remote, False),
}

Command = TypeVar("Command", bound=Callable[..., Any])


def loads_model(command: Command) -> Command:
    """Give a command the options of loading in place of its parameter ``how``, which gets their values."""
    signature = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in LOADING.items()
    ]
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        own = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += options if name == "how" else [own]

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        how = {name: given.pop(name) for name in LOADING}
        return command(**given, how=how)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run  # type: ignore[return-value]
