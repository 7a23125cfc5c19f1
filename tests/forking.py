"""Real commands in real processes without the seconds that imports cost: forked from one that has imported everything.

A helper process (this file, run as a program) imports the package, stays single-threaded, and forks once for each
request. The child sets up its environment (folder, variables, limits, user, clock), and runs ``truthheads.cli.main``;
it can be killed like any process.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from provoked import recorded

PERMISSIONS_BIND = not hasattr(os, "geteuid") or os.geteuid() != 0 or sys.platform == "linux"
"""Whether a process can be had for which the bits of files count, as they do not for root."""
HANG = 120.0
"""Seconds after which a child counts as hanging."""
TREES = Path(__file__).parents[1] / "src", Path(__file__).parent


class Ended(NamedTuple):
    """How a command ended: exit code (or minus a signal), what it printed, seconds that it took and computed."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    computed: float


class Child:
    """A command that runs."""

    def __init__(self, nursery: "Nursery", pid: int, files: tuple[Path, Path]) -> None:
        self.pid, self._nursery, self._files, self._begun = pid, nursery, files, time.monotonic()
        self._ended: Ended | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; the process stays known until :meth:`wait`, so that it cannot hit another."""
        os.kill(self.pid, number)

    def over(self) -> bool:
        """Return whether it has ended."""
        return self._ended is not None or bool(self._nursery.ask({"over": self.pid}))

    def wait(self) -> Ended:
        """Wait for its end; a command that hangs is killed, which the exit code then says."""
        if self._ended is None:
            guard = time.monotonic() + HANG
            while (found := self._nursery.ask({"wait": self.pid})) is None:
                if time.monotonic() > guard:
                    self.kill()
            seconds = time.monotonic() - self._begun
            out, err = (
                path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""
                for path in self._files
            )
            self._ended = Ended(os.waitstatus_to_exitcode(found[0]), out, err, seconds, found[1])
        return self._ended


class Nursery:
    """The helper process.

    Args:
        scratch: Folder for what commands print; other users can read it.
        variables: Environment from its start on, such as a locale.
    """

    def __init__(self, scratch: Path, variables: Mapping[str, str] | None = None) -> None:
        self._scratch, self._count = scratch, 0
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        threads["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow starts a thread of its own otherwise
        places = os.pathsep.join(str(tree) for tree in TREES)
        fixed = {"PYTHONPATH": places, "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", **threads}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **fixed, **(variables or {})},
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self.threads = int(self._answer()["threads"])

    def start(
        self,
        *words: object,
        folder: Path,
        variables: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
        spare: int | None = None,
        plain: bool = False,
        clock: float = 0.0,
        locale: str | None = None,
        first: str = "",
    ) -> Child:
        """Start ``truthheads WORDS``.

        Args:
            words: The command line.
            folder: Where it runs.
            variables: Added to its environment.
            limits: ``resource`` limits by name, in bytes: ``FSIZE`` …
            spare: Bytes of address space that it may take beyond what it has at its start.
            plain: Give up root's power to pass by permissions, where it has that; its owner's bits then bind it.
            clock: Seconds by which its clock is wrong.
            locale: Given to ``locale.setlocale`` for all categories.
            first: Python code that runs in it before the command.
        """
        self._count += 1
        files = tuple(self._scratch / f"{self._count}.{name}" for name in ("out", "err"))
        request = {
            "words": [os.fsencode(str(word)).hex() for word in words],
            "folder": str(folder),
            "files": [str(file) for file in files],
            "variables": dict(variables or {}),
            "limits": dict(limits or {}),
            "spare": spare,
            "plain": plain,
            "clock": clock,
            "locale": locale,
            "first": first,
        }
        return Child(self, int(self.ask(request)), (files[0], files[1]))

    def run(self, *words: object, **settings: Any) -> Ended:
        """Start a command and wait for its end."""
        return self.start(*words, **settings).wait()

    def ask(self, request: dict[str, Any]) -> Any:
        """Send one request and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(request)}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the helper process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], HANG)
        line = self._process.stdout.readline() if ready else ""
        assert line, "the helper process does not answer"
        return json.loads(line)


@contextlib.contextmanager
def nursery(scratch: Path, variables: Mapping[str, str] | None = None) -> Iterator[Nursery]:
    """Yield a helper process and end it."""
    scratch.mkdir(exist_ok=True)
    scratch.chmod(0o777)
    made = Nursery(scratch, variables)
    try:
        yield made
    finally:
        made.close()


# --- in the helper process -------------------------------------------------------------------------------------------


def _serve() -> None:
    # The child's own output goes elsewhere; requests and answers keep these two for themselves.
    requests, answers = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    _import_everything()
    _tell(answers, {"threads": len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1})
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            _tell(answers, _ended(request["wait"]))
        elif "over" in request:
            found = os.waitid(os.P_PID, request["over"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            _tell(answers, found is not None)
        else:
            pid = os.fork()
            if pid == 0:
                requests.close()
                answers.close()
                _child(request)
            _tell(answers, pid)


def _ended(pid: int) -> tuple[int, float] | None:
    """Return the status and the processor time of a child once it has ended, waiting a second at most."""
    guard = time.monotonic() + 1.0
    while time.monotonic() < guard:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            return status, used.ru_utime + used.ru_stime
        time.sleep(0.002)
    return None


def _tell(answers: Any, value: Any) -> None:
    answers.write(f"{json.dumps(value)}\n")
    answers.flush()


def _import_everything() -> None:
    """Import what commands import when they run, models of the tests among it; nothing is computed."""
    import importlib
    import pkgutil

    import altair
    import gguf
    import peft
    import transformers
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama

    import truthheads
    import truthheads.cli

    for found in pkgutil.walk_packages(truthheads.__path__, "truthheads."):
        if not found.name.endswith(("__main__", ".harness")):
            importlib.import_module(found.name)
    for name in ("AutoTokenizer", "AutoModelForCausalLM", "PreTrainedTokenizerFast", "GPT2LMHeadModel"):
        getattr(transformers, name)
    for name in ("IA3Config", "TaskType"):
        getattr(peft, name)
    assert altair.Chart and gguf.GGUFReader


def _child(request: dict[str, Any]) -> None:
    code = 1
    try:
        with recorded():
            _set_up(request)
            from truthheads.cli import main

            main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:  # what the interpreter does with what nobody has caught
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _set_up(request: dict[str, Any]) -> None:
    import locale
    import resource

    for number, file in enumerate(request["files"], start=1):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o022)
    os.chdir(request["folder"])
    os.environ.update(request["variables"])
    time.tzset()
    sys.argv = ["truthheads", *(os.fsdecode(bytes.fromhex(word)) for word in request["words"])]
    if request["clock"]:
        _move_clock(request["clock"])
    if request["locale"]:
        locale.setlocale(locale.LC_ALL, request["locale"])
    if request["first"]:
        exec(request["first"], {})
    for name, value in request["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if request["spare"] is not None:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        size = pages * resource.getpagesize() + request["spare"]
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    if request["plain"] and os.geteuid() == 0:
        _give_up_powers()


def _give_up_powers() -> None:
    """Drop every capability of this process: a user of its own could not read an interpreter below /root."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def _move_clock(seconds: float) -> None:
    """Let everything that asks Python for the time get another one; durations stay right."""
    import datetime

    now, now_ns, stamp = time.time, time.time_ns, datetime.datetime
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)
    for name in ("gmtime", "localtime"):
        plain = getattr(time, name)
        setattr(time, name, lambda at=None, plain=plain: plain(time.time() if at is None else at))

    class Moved(stamp):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return stamp.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return stamp.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

        today = now

    datetime.datetime = Moved  # type: ignore[misc]


if __name__ == "__main__":
    _serve()
