"""What 0.1.0 promised: every public name with its parameters, and every command with its options, is still there."""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

import truthheads
from truthheads.cli import app

FIRST: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("first_release.json").read_text("utf-8"))
"""Parameters: ``name=`` has a default, ``*``: by name alone, ``@``: any number; null: not a function."""

REWRITTEN = {"tune": {"--method"}, "evaluate": {"--task", "--answers", "--captions", "--rescore"}}
"""Options that became words of a sub-command; ``old_forms`` still takes them, which its own tests hold."""


def parameters(found: Any) -> list[str]:
    marks = {
        inspect.Parameter.KEYWORD_ONLY: "*",
        inspect.Parameter.VAR_POSITIONAL: "@",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    own = [
        f"{marks.get(one.kind, '')}{one.name}{'' if one.default is one.empty else '='}"
        for one in inspect.signature(found).parameters.values()
    ]
    return own + [f"*{old}=" for old in getattr(found, "renamed", ())]  # taken for one release, with a warning


def broken(first: list[str], now: list[str]) -> list[str]:
    """Return why calls of the first release no longer work: a parameter is gone, moved, or newly required."""
    by_place = [name for name in first if not name.startswith("*")]
    places = [name if old.endswith("=") else name.removesuffix("=") for name, old in zip(now, by_place, strict=False)]
    moved = [] if places == by_place else [f"{by_place} by place are {now[: len(by_place)]}"]
    anything = any(name.startswith("**") for name in now)
    gone = [
        name
        for name in first
        if name.startswith("*")
        and name not in now
        and name.lstrip("*") not in now
        and not (anything and name.startswith("**"))
    ]
    needed = [
        name for name in now if not name.endswith("=") and name[:1] != "@" and name[:2] != "**" and name not in first
    ]
    return [*moved, *(f"{name} is gone" for name in gone), *(f"{name} is needed" for name in needed)]


@pytest.mark.parametrize("name", [name for name in FIRST["names"] if "." not in name])
def test_a_public_name_and_its_members_are_called_as_before(name: str) -> None:
    assert name in truthheads.__all__
    owner = getattr(truthheads, name)
    for each, first in FIRST["names"].items():
        if each.partition(".")[0] == name:
            found = getattr(owner, each.partition(".")[2]) if "." in each else owner
            assert first is None or broken(first.split(), parameters(found)) == [], each


def test_what_would_break_a_call_is_seen() -> None:
    assert broken(["a", "*b="], ["a", "*b=", "*c=", "**d"]) == []
    assert broken(["a", "b="], ["b=", "a"]) == ["['a', 'b='] by place are ['b=', 'a']"]
    assert broken(["a", "*b="], ["a", "*c"]) == ["*b= is gone", "*c is needed"]
    assert broken(["a", "**b"], ["a=", "**c"]) == []
    assert broken(["a="], ["a"]) == ["['a='] by place are ['a']", "a is needed"]


def options(command: Any) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        with typer.Context(command) as context:
            for name in command.list_commands(context):
                yield from options(command.get_command(context, name))
    else:
        for one in command.params:
            yield from (*one.opts, *one.secondary_opts)


@pytest.mark.parametrize("name", FIRST["commands"])
def test_a_command_has_every_option_that_it_had(name: str) -> None:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.get_command(typer.Context(command), word)
    first = {one for each in FIRST["commands"][name].split() for one in each.split("/")}
    assert first - set(options(command)) == REWRITTEN.get(name, set())
