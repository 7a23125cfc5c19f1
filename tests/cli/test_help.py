"""What ``--help`` shows: one screen, options by panel, plain phrases, an example that can be typed."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from truthheads.cli import app
from truthheads.cli.help import PANELS

WIDTH, HEIGHT = 100, 50


def walk(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(group, "list_commands"):
        yield words, group
        return
    for name in group.list_commands(None):  # the sub-commands of evaluate are made when they are asked for
        yield from walk(group.get_command(None, name), (*words, name))


COMMANDS = dict(walk(typer.main.get_command(app)))


def shown(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, width: int = WIDTH) -> str:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="truthheads")
    assert result.exit_code == 0
    return result.stdout


def test_all_commands_are_looked_at() -> None:
    assert {("inspect",), ("tune", "learn"), ("data", "make"), ("evaluate", "pope")} <= COMMANDS.keys()
    assert {("evaluate", "answers", "chair"), ("evaluate", "rescore")} <= COMMANDS.keys()
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_fits_a_screen_and_cuts_nothing_off(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(words, monkeypatch)
    assert len(text.splitlines()) <= HEIGHT
    assert max(map(len, text.splitlines())) <= WIDTH
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"(?<![\w-]){name}(?![\w-])", text), name


def test_a_narrow_screen_is_told_from_a_wide_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: at 60 columns the longest help needs more lines than a screen has."""
    assert len(shown(("tune", "learn"), monkeypatch, width=60).splitlines()) > HEIGHT


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_stands_in_one_of_the_four_panels(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            assert parameter.rich_help_panel in PANELS, parameter.name
    titles = re.findall(r"^╭─ (\w+) ─", shown(words, monkeypatch), re.MULTILINE)
    assert [title for title in titles if title != "Arguments"] == [name for name in PANELS if name in titles]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_ends_with_an_example_that_can_be_typed(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = shown(words, monkeypatch).strip().splitlines()[-1].strip()
    begin = f"Example: truthheads {' '.join(words)} "
    assert f"{last} ".startswith(begin)
    context = COMMANDS[words].make_context("truthheads", shlex.split(f"{last} ".removeprefix(begin)))
    assert context.params


NOT_ALONE = re.compile(
    r"^(?:Of|For so|As for|Whether|Whose|Most|Least|What|Where|Text that)\b|^[a-z]+: |\bagain and again\b"
)
"""How a phrase begins that needs the option's name to be understood, or that speaks in riddles."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_an_option_stands_alone(words: tuple[str, ...]) -> None:
    for parameter in COMMANDS[words].params:
        said = parameter.help
        assert said, parameter.name
        assert not NOT_ALONE.search(said), f"{parameter.name}: {said}"
        assert said.endswith("."), f"{parameter.name}: {said}"


@pytest.mark.parametrize(
    "said",
    [
        "Of folds, splits and bootstraps.",
        "Least factor, or none; factors below 0 turn a head round.",
        "Most harm on text that must stay, in nats a token: what the gate may cost.",
        "A gate; again and again for several.",
        "learn: least factor.",
        "As for every command; none with --answers, --captions.",
        "Whose closed-book answers are taken; not for swap.",
    ],
)
def test_earlier_texts_would_not_pass(said: str) -> None:
    assert NOT_ALONE.search(said)
