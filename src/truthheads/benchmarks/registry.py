"""The benchmarks by name, one line each; a record is loaded when it is asked for."""

import difflib
import importlib

from truthheads.benchmarks.base import Benchmark
from truthheads.errors import DataError, TruthHeadsError

BENCHMARKS: dict[str, str] = {
    "halueval": "truthheads.benchmarks.halueval:HALUEVAL",
    "pope": "truthheads.benchmarks.pope:POPE",
    "chair": "truthheads.benchmarks.chair:CHAIR",
    "pairs": "truthheads.benchmarks.pairs:PAIRS",
    "conflict": "truthheads.benchmarks.conflict:CONFLICT",
    "lm-eval": "truthheads.benchmarks.lm_eval:LM_EVAL",
}
"""Where each benchmark's record stands, as ``module:NAME``."""


def benchmark(task: str) -> Benchmark:
    """Return the record of a task: a benchmark's name, or ``lm-eval:NAME``.

    Raises:
        DataError: There is no such benchmark.
        TruthHeadsError: It is registered by half.
    """
    name, colon, part = task.partition(":")
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=1)
        raise DataError(
            f"task {task!r} is not known",
            expected=", ".join(one if one != "lm-eval" else "lm-eval:NAME" for one in BENCHMARKS),
            got=repr(task),
            fix=f"did you mean {near[0]}?" if near else "choose one of them, or add its line to registry.BENCHMARKS",
        )
    record = record_of(name)
    harness = record.asks == "harness"
    if bool(part) != harness or (colon and not harness):
        raise DataError(
            f"task {task!r} is not known",
            expected=f"{name}:NAME, a task of that harness" if harness else name,
            got=repr(task),
            fix="name the harness's task" if harness else "leave the colon out",
        )
    return record


def record_of(name: str) -> Benchmark:
    """Return the record that a line leads to.

    Raises:
        TruthHeadsError: It leads to none, or to half of one.
    """
    module, _, attribute = BENCHMARKS[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise _half(name, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, Benchmark) or found.name != name:
        raise _half(name, f"a record called {found.name}" if isinstance(found, Benchmark) else type(found).__name__)
    return found


def _half(name: str, got: str) -> TruthHeadsError:
    return TruthHeadsError(
        f"the benchmark {name!r} is registered by half",
        expected=f"a record with this name at {BENCHMARKS[name]}",
        got=got,
        fix="correct its line in registry.BENCHMARKS, or its record (see truthheads.benchmarks.base.Benchmark)",
    )


def records() -> dict[str, Benchmark]:
    """Return every record by its name."""
    return {name: record_of(name) for name in BENCHMARKS}


def label(task: str) -> str:
    """Return a task's name as it is written; what is not registered here, or is the harness's, is called as it is."""
    return record_of(task).label if task in BENCHMARKS else task


def lower_is_better(task: str) -> bool:
    """Return whether less of a task's primary figure is better; of an unknown one, more is."""
    name = task.partition(":")[0]
    return name in BENCHMARKS and record_of(name).lower_is_better
