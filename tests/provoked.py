"""Which errors the tests provoke: after a run of all tests, those that none of them raises are listed.

An error's `fix` is advice, and nobody knows whether it helps before the error was raised once. With
``TRUTHHEADS_PROVOKED_STRICT=1`` such an error fails the run. Every process of a run
(xdist's workers, forked commands) appends the places where it made an error to one file. ``python tests/provoked.py
FILE`` lists what is not in it; several runs of parts add up where ``TRUTHHEADS_PROVOKED`` names the file.
"""

import ast
import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).parents[1] / "src" / "truthheads"

RECORD, STRICT = "TRUTHHEADS_PROVOKED", "TRUTHHEADS_PROVOKED_STRICT"

ELSEWHERE: dict[str, str] = {}
"""Errors that not every machine's tests can provoke: a part of the problem's or fix's text, and the reason."""


class Site(NamedTuple):
    """A call that makes an error.

    Attributes:
        file: Below the package.
        first: The call's first line.
        last: Its last line.
        text: Its source.
    """

    file: str
    first: int
    last: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.first}: {' '.join(self.text.split())[:150]}"


def sites() -> list[Site]:
    """Return every call in the package that passes ``fix=`` to an error, but those that hand another error's on."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            fix = next((word.value for word in node.keywords if word.arg == "fix"), None)
            handed_on = isinstance(fix, ast.Attribute) and fix.attr == "fix"
            if fix is not None and not handed_on and not _names(node, "partial"):
                segment = ast.get_source_segment(text, node) or ""
                name = path.relative_to(SOURCE).as_posix()
                found.append(Site(name, node.lineno, node.end_lineno or node.lineno, segment))
    return found


def _names(call: ast.Call, name: str) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == name


def missing(every: Iterable[Site], lines: Iterable[str]) -> list[Site]:
    """Return the errors that nothing in a record (``file:line`` each) made, without those of ``ELSEWHERE``."""
    made: dict[str, set[int]] = {}
    for line in lines:
        file, _, number = line.strip().rpartition(":")
        made.setdefault(file, set()).add(int(number))
    return [
        site
        for site in every
        if not any(site.first <= number <= site.last for number in made.get(site.file, ()))
        and not any(words in " ".join(site.text.split()) for words in ELSEWHERE)
    ]


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Append the place of each error to the record while the block runs, once for each place and process."""
    from truthheads.errors import TruthHeadsError

    before, seen = TruthHeadsError.__init__, set[str]()
    record = os.environ.get(RECORD, os.devnull)

    @functools.wraps(before)
    def noted(self: TruthHeadsError, *args: Any, **words: Any) -> None:
        frame = sys._getframe(1)
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(SOURCE):
            place = f"{file.relative_to(SOURCE).as_posix()}:{frame.f_lineno}"
            if place not in seen:
                seen.add(place)
                # a forked command may be another user, or have no room on its disk
                with contextlib.suppress(OSError), open(record, "a", encoding="utf-8") as lines:
                    lines.write(place + "\n")
        before(self, *args, **words)

    TruthHeadsError.__init__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        TruthHeadsError.__init__ = before  # type: ignore[method-assign]


def pytest_configure(config: Any) -> None:
    """Name the record; workers and forked commands find the name in their environment."""
    if RECORD not in os.environ:
        handle, os.environ[RECORD] = tempfile.mkstemp(prefix="provoked-", text=True)
        os.close(handle)
        config.add_cleanup(lambda: Path(os.environ.pop(RECORD)).unlink(missing_ok=True))


def whole(config: Any) -> bool:
    """Return whether a run is of all tests: no path, no choice of tests, and in the process that sees its end."""
    chosen = any(
        config.getoption(name, None) for name in ("keyword", "markexpr", "deselect", "lf", "ignore", "maxfail")
    )
    return not hasattr(config, "workerinput") and config.args_source.name == "TESTPATHS" and not chosen


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """List the errors that a run of all tests leaves unprovoked, and fail it where that is asked for."""
    if exitstatus or not whole(session.config) or session.config.getoption("collectonly", False):
        return
    unseen = missing(sites(), Path(os.environ[RECORD]).read_text(encoding="utf-8").splitlines())
    if unseen:
        listed = "\n".join(f"  {site}" for site in unseen)
        print(f"\nno test provokes these errors, so nobody knows whether what they advise helps:\n{listed}")
        if os.environ.get(STRICT):
            session.exitstatus = 1


if __name__ == "__main__":
    unseen = missing(sites(), Path(sys.argv[1]).read_text(encoding="utf-8").splitlines())
    print(*unseen, f"{len(unseen)} of {len(sites())} are provoked by no test", sep="\n")
