"""How help is laid out: options in four panels, one example at the end."""

from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

MODEL, DATA, RUN, OUTPUT = PANELS = ("Model", "Data", "Run", "Output")
"""The panels that options are shown in, in this order: name one as ``rich_help_panel`` of each option."""


class Command(TyperCommand):
    """A command that shows its options panel by panel; ``--help`` itself, which whoever reads it has found, is not."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List the parameters in the order of their panels; arguments come first."""
        found = super().get_params(ctx)
        for parameter in found:
            if parameter.name == "help":
                parameter.hidden = True  # type: ignore[attr-defined]
        return sorted(found, key=_place)


def _place(parameter: Any) -> int:
    panel = getattr(parameter, "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else -1


def add_command(group: typer.Typer, name: str, command: Callable[..., Any], *, example: str) -> None:
    """Add a command to a group.

    Args:
        group: The group that gets it.
        name: What people type.
        command: The function that runs.
        example: A command line, shown at the end of the help.
    """
    group.command(name, cls=Command, epilog=f"Example: {escape(example)}")(command)
