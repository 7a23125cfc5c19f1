"""What people see: errors in two lines, a progress bar for long work, short tables. JSON goes to stdout alone."""

import codecs
import contextlib
import datetime
import functools
import inspect
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table

from truthheads.cli.options import Force
from truthheads.errors import ActivationError, NotFirstRank, SeveralErrors, TruthHeadsError, out_of_memory
from truthheads.storage.distributed import check_launched, meet, ranks
from truthheads.storage.files import as_path

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

LINE_AFTER_SECONDS = 10.0

MORE_MEMORY = "free memory, or give a smaller --batch-tokens, --limit or --dtype where the command has them"


GOES_ON = "stopped; the same command goes on from here"

BEGINS_AGAIN = "stopped; nothing was kept: the same command begins again"

KEEPS = "keeps_what_is_done"


def resumable(command: Callable[P, R]) -> Callable[P, R]:
    """Mark a command that keeps what it has done: stopped and started again, it goes on from there."""
    setattr(command, KEEPS, True)
    return command


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an error raised on purpose into two lines and exit code 2, and Ctrl-C into one line and 130.

    Lack of memory, anywhere, is reported in the same way. Of several processes, all but the first end here when their
    share is done. In what is given, ``~`` at the beginning becomes the home folder: shells leave it in ``--out=~/x``.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **{name: _at_home(value) for name, value in kwargs.items()})  # type: ignore[arg-type]
        except TruthHeadsError as error:
            if isinstance(error, SeveralErrors):
                told = [f"{one.problem}: expected {one.expected}; got {one.got}" for one in error.found]
                _refuse(f"{len(told)} things are wrong: {_numbered(told)}", _numbered([one.fix for one in error.found]))
            elif out_of_memory(error) and not isinstance(error, ActivationError):  # it was taken for something else
                _refuse_for_memory(error)
            else:
                _refuse(f"{error.problem}: expected {error.expected}; got {error.got}", error.fix)
            raise typer.Exit(2) from error
        except NotFirstRank as error:
            raise typer.Exit(0) from error
        except KeyboardInterrupt as error:
            err.print(GOES_ON if getattr(command, KEEPS, False) else BEGINS_AGAIN)
            raise typer.Exit(130) from error
        except (MemoryError, RuntimeError, OSError) as error:
            if not out_of_memory(error):
                raise
            _refuse_for_memory(error)
            raise typer.Exit(2) from error

    return run


def _at_home(value: object) -> object:
    """Return a value of an option with ``~`` at its beginning as the home folder; also in a list."""
    if isinstance(value, list):
        return [_at_home(one) for one in value]
    if isinstance(value, Path):
        return as_path(value)
    return str(as_path(value)) if isinstance(value, str) and value.startswith("~/") else value


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


def _numbered(texts: Iterable[str]) -> str:
    return "; ".join(f"({number}) {text}" for number, text in enumerate(texts, start=1))


def _refuse(problem: str, fix: str) -> None:
    err.print(f"[bold red]error:[/] {escape(' '.join(problem.split()))}")
    err.print(f"[bold]do:[/] {escape(' '.join(fix.split()))}")


class _Announced(MetaPathFinder):
    """Says that libraries are being loaded at the moment when the first large one is asked for; finds nothing."""

    said = False

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in HEAVY and not self.said:
            self.said = True
            if _first() and err.is_terminal:  # where standard error is read by a program, an error is two lines
                err.print("loading …", style="dim")


HEAVY = ("torch", "transformers", "scipy")
"""Libraries whose import takes seconds on a machine that has not just read them."""


def announce_loading() -> None:
    """Print a line when large libraries begin to load, so that nobody waits for seconds before an empty screen."""
    if not any(name in sys.modules for name in HEAVY) and "_TRUTHHEADS_COMPLETE" not in os.environ:
        sys.meta_path.insert(0, _Announced())


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


_PUT_OFF: ContextVar[list[TruthHeadsError] | None] = ContextVar("put_off", default=None)


def put_off() -> list[TruthHeadsError]:
    """Return the complaints that wait for the others of their command, which is then to raise them."""
    found = _PUT_OFF.get() or []
    _PUT_OFF.set(None)
    return list(found)


def exclusive_output(
    *beside: str,
    checks: bool = False,
    folder: bool = False,
    unnamed: Callable[[Mapping[str, object]], Path] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Lock ``--out`` and the named files beside it against other commands while this one runs.

    The command gets the option ``--force``: without it, what is there already is not replaced.

    Args:
        beside: Names of files that are written beside ``--out``.
        checks: The command begins with ``cli.reading.all_at_once``: where ``--out`` cannot be written, that is said
            there together with what else is wrong.
        folder: Whether ``--out`` is a folder.
        unnamed: From all other options to ``--out``, for a command that names it by what it makes.
    """

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(command)
        own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in signature.parameters.values()]
        at = 1 + next(at for at, one in enumerate(own) if one.name == "out")
        force = inspect.Parameter("force", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Force)

        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            from truthheads.storage.files import check_around, check_new, check_target
            from truthheads.storage.output_lock import locked_output

            if kwargs["out"] is None and unnamed is not None:
                kwargs["out"] = unnamed(kwargs)
            out, forced = Path(str(kwargs["out"])), bool(kwargs.pop("force", False))
            with contextlib.ExitStack() as held:
                try:
                    (check_around if folder else check_target)(out)
                    held.enter_context(locked_output(out, *(out.with_name(name) for name in beside)))
                    check_new(out, force=forced, unfinished=out.with_name(f"{out.name}.partial"))
                except TruthHeadsError as error:
                    if not checks:
                        raise
                    _PUT_OFF.set([error])
                    command(*args, **kwargs)
                    raise
                return command(*args, **kwargs)

        run.__signature__ = signature.replace(parameters=[*own[:at], force, *own[at:]])  # type: ignore[attr-defined]
        run.__annotations__ = {**command.__annotations__, "force": Force}
        return run

    return decorate


class _Shown:
    """How far some work is: a bar on a terminal; elsewhere, a log or a pipe, a line every ten seconds."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        hidden = not err.is_terminal or not _first()
        left = TimeRemainingColumn()
        self.bar = Progress(*columns, left, console=err, transient=True, disable=hidden, speed_estimate_period=60)
        self.task = self.bar.add_task("", visible=False)
        self.lines = not err.is_terminal and _first()
        self._next = 0.0

    def begin(self, label: str, *, visible: bool = True) -> None:
        """Begin a piece of work; what was counted before belongs to another one."""
        self.bar.reset(self.task, description=label, visible=visible, total=None)
        self._next = time.monotonic() + LINE_AFTER_SECONDS

    def advance(self, done: int, total: int) -> None:
        """Show that so much is done."""
        self.bar.update(self.task, completed=done, total=total)
        now = time.monotonic()
        if self.lines and now >= self._next and done < total:
            self._next = now + LINE_AFTER_SECONDS
            one = self.bar.tasks[0]
            seconds = one.time_remaining
            left = "" if seconds is None else f", {datetime.timedelta(seconds=math.ceil(seconds))} left"
            err.print(f"{escape(one.description)}: {done:,} of {total:,} ({done / total:.0%}){left}", style="dim")


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that shows, on stderr, how far long work is, and the time left.

    A terminal gets a bar once the work has taken two seconds, a pipe a line every ten seconds.
    """
    progress = _Shown()
    progress.begin(label)
    begun = time.monotonic()
    shown = False

    def advance(done: int, total: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - begun > BAR_AFTER_SECONDS:
            progress.bar.start()
            shown = True
        progress.advance(done, total)

    try:
        yield advance
    finally:
        if shown:
            progress.bar.stop()


@contextlib.contextmanager
def stepwise(steps: Mapping[str, str]) -> Iterator[tuple[Callable[[str, bool], None], Callable[[int, int], None]]]:
    """Yield two callbacks for a chain of steps: one for a step that begins, one for its progress (done, total).

    Each step leaves a line on stderr, also one that is not among ``steps``; how far it is, and the time left, is shown
    as by :func:`progress_bar`.
    """
    progress = _Shown()
    names = list(steps)

    def tell(name: str, there: bool) -> None:
        place = f"{names.index(name) + 1}/{len(names)} " if name in steps else ""
        what = steps.get(name, name)
        err.print(f"{place}{escape(what)}{' (there already)' if there else ''}", style="dim")
        progress.begin(f"{place}{what}" if progress.lines else what, visible=not there)

    with progress.bar:
        yield tell, progress.advance


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


def note(text: str) -> None:
    """Print a remark on standard error, so that it does not stand in what ``--json`` prints."""
    if _first():
        err.print(f"note: {escape(text)}", style="dim")


def number(value: float | None) -> str:
    """Return three decimals, or a dash where nothing was measured."""
    return "–" if value is None or value != value else f"{value:.3f}"


def figure(value: "FigureJson | None") -> str:
    """Return a figure with its interval."""
    from truthheads.stats.figures import Figure

    return str(Figure.of(value)) if value else "–"
