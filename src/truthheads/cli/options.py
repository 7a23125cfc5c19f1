"""The options that commands share."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from truthheads.cli.help import DATA, MODEL, OUTPUT, RUN
from truthheads.storage.distributed import ranks

# --- the model -------------------------------------------------------------------------------------------------------

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, adapter, hub id, .gguf or smollm2[:reader|:vision].")
]

Device = Annotated[str, typer.Option(rich_help_panel=MODEL, help="Device: auto, cpu, cuda, cuda:1 or mps.")]

Dtype = Annotated[str, typer.Option(rich_help_panel=MODEL, help="Precision: auto, bf16, fp16 or fp32.")]

DeviceMap = Annotated[
    str | None,
    typer.Option(rich_help_panel=MODEL, help="Spread the model: auto, balanced, sequential or JSON."),
]

MaxMemory = Annotated[
    str | None,
    typer.Option(rich_help_panel=MODEL, help="Memory per device: cpu=2GiB,0=20GiB; spreads the model."),
]

OffloadFolder = Annotated[
    Path | None,
    typer.Option(rich_help_panel=MODEL, help="Folder for offloaded weights (default: a temporary one)."),
]

LoadIn = Annotated[
    str | None,
    typer.Option(rich_help_panel=MODEL, help="Quantise to 8bit, 4bit (bitsandbytes) or int8 (torchao)."),
]

Remote = Annotated[
    bool,
    typer.Option("--trust-remote-code", rich_help_panel=MODEL, help="Run Python code that comes with the model."),
]

Processor = Annotated[
    str | None,
    typer.Option(metavar="BASE", hidden=True, help="Model whose processor prepares images (default: MODEL's own)."),
]
"""Not on the screen of ``--help``: the one error that it cures names it."""

# --- the data --------------------------------------------------------------------------------------------------------

Data = Annotated[
    Path,
    typer.Option(rich_help_panel=DATA, help="Question file, or hf://datasets/OWNER/NAME."),
]

Images = Annotated[
    Path | None,
    typer.Option(rich_help_panel=DATA, help="Base folder of image paths (default: that of the data file)."),
]

Limit = Annotated[int | None, typer.Option(metavar="N", min=1, rich_help_panel=DATA, help="Rows to read at most.")]

SkipBadRows = Annotated[
    bool,
    typer.Option(
        "--skip-bad-rows", rich_help_panel=DATA, help="Leave out rows with errors, or too long, and count them."
    ),
]

Encoding = Annotated[
    str | None, typer.Option(metavar="NAME", rich_help_panel=DATA, help="Encoding of a text file (default: utf-8).")
]

LabelTrue = Annotated[
    str | None, typer.Option(metavar="WORD", rich_help_panel=DATA, help="Label of truthful answers, in place of 1.")
]

QuietEncoding = Annotated[str | None, typer.Option(metavar="NAME", hidden=True, help="Encoding of a text file.")]

QuietLabelTrue = Annotated[str | None, typer.Option(metavar="WORD", hidden=True, help="Label of truthful answers.")]
"""For commands whose help is a whole screen; the errors that these options cure name them."""

SkipMissing = Annotated[
    bool,
    typer.Option("--skip-missing", rich_help_panel=DATA, help="Leave out rows without their image and count them."),
]

Chat = Annotated[
    bool, typer.Option("--chat", rich_help_panel=DATA, help="Use the tokenizer's chat template for the prompt.")
]

Truncate = Annotated[
    bool, typer.Option("--truncate", rich_help_panel=DATA, help="Drop the start of contexts that are too long.")
]

Neutral = Annotated[
    Path | None,
    typer.Option(rich_help_panel=DATA, help="Unrelated text, .txt or .jsonl (default: contexts, samples)."),
]

# --- the run ---------------------------------------------------------------------------------------------------------

BatchTokens = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, rich_help_panel=RUN, help="Tokens per batch (default: by device)."),
]


def seed_of(what: str) -> Any:
    """Return the option ``--seed`` of a command.

    Args:
        what: What the command draws at random.
    """
    return typer.Option(metavar="N", min=0, rich_help_panel=RUN, help=f"Random seed of {what}.")


def _unused(seed: int | None) -> int | None:
    if seed is not None and ranks().rank == 0:
        print("note: --seed has no effect here and was left out: nothing is drawn at random", file=sys.stderr)  # noqa: T201
    return seed


IdleSeed = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=0, hidden=True, callback=_unused, help="Random seed; this command draws nothing at random."
    ),
]
"""For commands without anything random: ``--seed`` is not shown, and still accepted, with a note."""

ChatByTemplate = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        show_default=False,
        rich_help_panel=RUN,
        help="Use the chat template (default: if there is one).",
    ),
]

Guard = Annotated[
    float,
    typer.Option(metavar="X", rich_help_panel=RUN, help="Largest KL on unrelated text, nats per token."),
]

# --- the output ------------------------------------------------------------------------------------------------------

Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print the result as one JSON object and nothing else.")
]

Force = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace what --out names, if it is there.")
]

Top = Annotated[int, typer.Option(metavar="N", min=1, rich_help_panel=OUTPUT, help="Heads to list in the table.")]

# --- groups of options -----------------------------------------------------------------------------------------------

How = dict[str, Any]
"""How a model is loaded: keyword arguments of ``truthheads.load``."""

Group = dict[str, tuple[Any, Any]]
"""Options by name: type and default."""

REQUIRED = inspect.Parameter.empty

LOADING: Group = {
    "device": (Device, "auto"),
    "dtype": (Dtype, "auto"),
    "device_map": (DeviceMap, None),
    "max_memory": (MaxMemory, None),
    "offload_folder": (OffloadFolder, None),
    "load_in": (LoadIn, None),
    "trust_remote_code": (Remote, False),
    "processor": (Processor, None),
}

Command = TypeVar("Command", bound=Callable[..., Any])


def takes(**groups: Group) -> Callable[[Command], Command]:
    """Give a command a group of options in place of a parameter, which then gets their values as a dictionary.

    Args:
        groups: Options by the name of the parameter that they replace.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            if name in groups:
                parameters += [
                    inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
                    for option, (kind, default) in groups[name].items()
                ]
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**given: Any) -> Any:
            taken = {name: {option: given.pop(option) for option in group} for name, group in groups.items()}
            return command(**given, **taken)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run  # type: ignore[return-value]

    return decorate


loads_model = takes(how=LOADING)
"""Give a command the options of loading in place of its parameter ``how``."""
