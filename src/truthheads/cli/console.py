"""What people see: errors in two lines, a progress bar for long work, short tables. JSON goes to stdout alone."""

import codecs
import contextlib
import functools
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from truthheads.errors import ActivationError, NotFirstRank, TruthHeadsError, out_of_memory
from truthheads.storage.distributed import check_launched, meet, ranks

if TYPE_CHECKING:
    from truthheads.stats.figures import FigureJson

P = ParamSpec("P")

R = TypeVar("R")

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that drive a terminal, turn the direction of writing, or are halves of one."""


class _Plain(Console):
    """A console that replaces control characters, so that text from files cannot move the cursor."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(UNPRINTABLE.sub("\ufffd", segment.text), segment.style)


out = _Plain(highlight=False, soft_wrap=True, emoji=False)

err = _Plain(stderr=True, highlight=False, soft_wrap=True, emoji=False)

BAR_AFTER_SECONDS = 2.0

MORE_MEMORY = "free memory, or give a smaller --batch-tokens, --limit or --dtype where the command has them"


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an error raised on purpose into two lines and exit code 2, and Ctrl-C into one line and 130.

    Lack of memory, anywhere, is reported in the same way. Of several processes, all but the first end here when their
    share is done.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TruthHeadsError as error:
            if out_of_memory(error) and not isinstance(error, ActivationError):  # it was taken for something else
                _refuse_for_memory(error)
            else:
                _refuse(f"{error.problem}: expected {error.expected}; got {error.got}", error.fix)
            raise typer.Exit(2) from error
        except NotFirstRank as error:
            raise typer.Exit(0) from error
        except KeyboardInterrupt as error:
            err.print("stopped; the same command goes on from here")
            raise typer.Exit(130) from error
        except (MemoryError, RuntimeError, OSError) as error:
            if not out_of_memory(error):
                raise
            _refuse_for_memory(error)
            raise typer.Exit(2) from error

    return run


def multi_process(command: Callable[P, R]) -> Callable[P, R]:
    """Let the processes of one command, if there are several, meet before it runs."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if ranks().several:
            meet()
        else:
            check_launched()
        return command(*args, **kwargs)

    return run


def _refuse_for_memory(error: BaseException) -> None:
    while error.__cause__ is not None:
        error = error.__cause__
    said = (str(error) or type(error).__name__).splitlines()[0][:200]
    try:
        _refuse(f"there is not enough memory: {said}", MORE_MEMORY)
    except MemoryError:  # not even for that
        os.write(2, f"error: there is not enough memory\ndo: {MORE_MEMORY}\n".encode())


def _refuse(problem: str, fix: str) -> None:
    err.print(f"[bold red]error:[/] {escape(' '.join(problem.split()))}")
    err.print(f"[bold]do:[/] {escape(' '.join(fix.split()))}")


def escape_unknown() -> None:
    """Print characters that standard output cannot encode as numeric escapes, as in JSON, instead of failing.

    This matters in a terminal that has only ASCII, and everywhere for file names that are not valid text.
    """
    codecs.register_error("truthheads", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="truthheads")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end


def exclusive_output(*beside: str, folder: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lock ``--out`` and the named files beside it against other commands while this one runs.

    Args:
        beside: Names of files that are written beside ``--out``.
        folder: Whether ``--out`` is a folder.
    """

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            from truthheads.storage.files import check_target
            from truthheads.storage.output_lock import locked_output

            out = Path(str(kwargs["out"]))
            if not folder:
                check_target(out)
            with locked_output(out, *(out.with_name(name) for name in beside)):
                return command(*args, **kwargs)

        return run

    return decorate


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that shows a bar on stderr once the work has taken two seconds."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal or not _first())
    task = bar.add_task(label)
    begun = time.monotonic()
    shown = False

    def advance(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - begun > BAR_AFTER_SECONDS:
            bar.start()
            shown = True
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


@contextlib.contextmanager
def stepwise(steps: Mapping[str, str]) -> Iterator[tuple[Callable[[str, bool], None], Callable[[int, int], None]]]:
    """Yield two callbacks for a chain of steps: one for a step that begins, one for its progress (done, total).

    Each step leaves a line on stderr, also one that is not among ``steps``; on a terminal a bar shows how far it is
    and the time left.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=err, transient=True, disable=not err.is_terminal or not _first())
    task = bar.add_task("", visible=False)
    names = list(steps)

    def tell(name: str, there: bool) -> None:
        place = f"{names.index(name) + 1}/{len(names)} " if name in steps else ""
        what = steps.get(name, name)
        err.print(f"{place}{escape(what)}{' (there already)' if there else ''}", style="dim")
        bar.reset(task, description=what, visible=not there, total=None)

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    with bar:
        yield tell, advance


def _first() -> bool:
    """Return whether this is the first, or the only, process of a command."""
    return ranks().rank == 0


def grid(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Return a short table: the first column on the left, numbers on the right."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def written(path: object) -> None:
    """Say where something was written."""
    out.print(f"written: {escape(str(path))}")


def warn(text: str) -> None:
    """Print a warning on standard error, so that it is seen beside ``--json``, too."""
    err.print(f"[bold yellow]warning:[/] {escape(text)}")


def number(value: float | None) -> str:
    """Return three decimals, or a dash where nothing was measured."""
    return "–" if value is None or value != value else f"{value:.3f}"


def figure(value: "FigureJson | None") -> str:
    """Return a figure with its interval."""
    from truthheads.stats.figures import Figure

    return str(Figure.of(value)) if value else "–"
