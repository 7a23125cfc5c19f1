"""``python -m bench [NAME ...]``: run benchmarks and print one table."""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait by spinning would count as CPU seconds
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.table import Table

from bench import (
    adapting,
    coverage,
    detecting,
    disk,
    drift,
    dtype,
    evaluating,
    exporting,
    forward,
    generating,
    growth,
    kinship,
    probing,
    processes,
    released,
    rows,
    tracing,
)
from bench.timing import Outcome
from truthheads.plots.charts import save_chart

PROMISED = (
    forward,
    detecting,
    probing,
    released,
    adapting,
    generating,
    exporting,
    drift,
    rows,
    disk,
    processes,
    growth,
)
"""What the design promises (its section on speed and memory), and what a default run prints."""
OTHERS = (tracing, evaluating, dtype, coverage, kinship)
DEFAULT = "those whose figures the design promises"
BENCHMARKS = {module.NAME: module for module in (*PROMISED, *OTHERS)}


def main() -> None:
    """Parse the command line, run what it names, print and write the result."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"any of {', '.join(BENCHMARKS)}, or all; default: {DEFAULT}")
    parser.add_argument("--quick", action="store_true", help="few rows, to see that it runs; the ratios mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the charts of growth and memory")
    options = parser.parse_args()
    if options.name == ["all"]:
        options.name = list(BENCHMARKS)
    unknown = [name for name in options.name if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    notes, machine = Console(stderr=True), describe_machine()
    outcomes: dict[str, list[Outcome]] = {}
    load: dict[str, Any] = {}
    for name in options.name or [module.NAME for module in PROMISED]:
        notes.print(f"[dim]{name} …")
        before = os.getloadavg()[0]
        outcomes[name] = BENCHMARKS[name].run(quick=options.quick)
        load[name] = [before, os.getloadavg()[0]]
        if options.json is not None:  # after each: all of them take an hour, and one that is stopped keeps the others
            write(options.json, {"quick": options.quick, "machine": machine, "load": load}, outcomes)
    console = Console() if Console().is_terminal else Console(width=220)
    console.print(table(outcomes, quick=options.quick))
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), style="dim", highlight=False)
    for name, lines in outcomes.items():
        for outcome in lines:
            print_detail(console, outcome)
        console.print(f"load while {name} ran: {load[name][0]:.1f} → {load[name][1]:.1f}", style="dim", highlight=False)
    if options.plots is not None:
        options.plots.mkdir(parents=True, exist_ok=True)
        for module, name in ((growth, "growth"), (rows, "memory")):
            if module.NAME in outcomes:
                save_chart(module.chart(outcomes[module.NAME]), options.plots / f"{name}.svg")


def write(path: Path, about: dict[str, Any], outcomes: dict[str, list[Outcome]]) -> None:
    """Write everything that was measured so far."""
    found = {name: [outcome.json() for outcome in lines] for name, lines in outcomes.items()}
    text = json.dumps({**about, "benchmarks": found}, indent=1, sort_keys=True, allow_nan=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def describe_machine() -> dict[str, Any]:
    """Return what the ratios depend on."""
    return {
        "machine": cpu_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": getattr(torch.backends.cpu, "get_cpu_capability", platform.machine)(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def cpu_name() -> str:
    """Return what the processor calls itself, with what of bf16 it has."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    told = dict(line.split("\t: ", 1) for line in reversed(lines) if "\t: " in line)
    told = {key.strip(): value for key, value in told.items()}
    has = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in told.get("flags", "").split()]
    return " ".join([told.get("model name", platform.processor() or platform.machine()), *has])


def table(outcomes: dict[str, list[Outcome]], *, quick: bool) -> Table:
    """Return one line for each outcome; the ratio is the median of the turns, the range their extremes."""
    title = f"truthheads, ratios on {cpu_name()}" + (" (--quick: they mean little)" if quick else "")
    result = Table(title=title)
    for column in ("benchmark", "ratio", "range", "in CPU s", "target", "met", "n", "command"):
        result.add_column(column, justify="right" if column in ("ratio", "range", "in CPU s") else "left", no_wrap=True)
    for name, lines in outcomes.items():
        for outcome in lines:
            low, high = min(outcome.ratios), max(outcome.ratios)
            cpu = sorted(outcome.cpu_ratios)[len(outcome.cpu_ratios) // 2] if outcome.cpu_ratios else None
            result.add_row(
                outcome.name,
                f"{number(outcome.value)}{outcome.unit}",
                f"{number(low)}–{number(high)}" if len(outcome.ratios) > 1 else "–",
                "–" if cpu is None else f"{number(cpu)}{outcome.unit}",
                outcome.target,
                {True: "yes", False: "no", None: "–"}[outcome.met],
                outcome.n,
                f"python -m bench {name}" + (" --quick" if quick else ""),
            )
    return result


def print_detail(console: Console, outcome: Outcome) -> None:
    """Print what stands behind a line: the parts of a time, the seconds at each size."""
    for key, value in outcome.detail.items():
        if isinstance(value, dict):
            text = ", ".join(f"{part} {number(v)}" for part, v in value.items())
        elif isinstance(value, list):
            text = ", ".join(number(v) for v in value)
        else:
            text = value if isinstance(value, str) else number(value)
        console.print(f"{outcome.name}: {key.replace('_', ' ')}: {text}", style="dim", highlight=False, soft_wrap=True)


def number(value: float) -> str:
    """Return a number in three significant digits or so; whole numbers as they are."""
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3f}"


if __name__ == "__main__":
    main()
