"""Memory of ``score`` as rows grow: the whole command on a tiny model, its peak sampled from outside."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.inputs import random_llama
from bench.timing import Outcome
from truthheads.data.questions import write_questions
from truthheads.synthetic.text import make_text

NAME = "memory-vs-rows"
ROWS = (100, 1_000, 10_000, 100_000)
BATCH_TOKENS = "16384"
MB = 1 << 20


class Peak(NamedTuple):
    """What a process took at most, sampled fifty times a second.

    Attributes:
        anonymous: Bytes of memory that no file backs: what a process really holds.
        resident: Bytes with pages of files that are mapped, which the system takes back when it needs them.
        seconds: From start to end.
        disk: Bytes in ``--out``'s work folder.
    """

    anonymous: int
    resident: int
    seconds: float
    disk: int


def run(*, quick: bool) -> list[Outcome]:
    """Score 1,000, 10,000 and 100,000 generated rows with a model of 2 × 2 heads of width 16."""
    sizes = (300, 1_000) if quick else ROWS
    with tempfile.TemporaryDirectory(prefix="truthheads-bench-") as scratch:
        folder = Path(scratch)
        model = random_llama(2, 2)
        model.network.save_pretrained(folder / "model")
        model.tokenizer.save_pretrained(folder / "model")
        peaks = []
        for rows in sizes:
            write_rows(folder / f"{rows}.jsonl", rows)
            peaks.append(watch(["score", "model", "--data", f"{rows}.jsonl", "--out", f"{rows}.safetensors"], folder))
            (folder / f"{rows}.jsonl").unlink()
    detail: dict[str, Any] = {
        "rows": list(sizes),
        "anonymous_MB": [peak.anonymous / MB for peak in peaks],
        "resident_MB": [peak.resident / MB for peak in peaks],
        "activations_MB": [peak.disk / MB for peak in peaks],
        "seconds": [peak.seconds for peak in peaks],
        "bytes_a_row": (peaks[-1].anonymous - peaks[0].anonymous) / (sizes[-1] - sizes[0]),
    }
    ratio = peaks[-1].anonymous / peaks[0].anonymous
    return [Outcome(NAME, [ratio], "", f"rows {sizes[0]:,} → {sizes[-1]:,}", detail=detail)]


def chart(outcomes: Sequence[Outcome]) -> Any:
    """Return an Altair chart of memory, of activations on disk, and of seconds over rows."""
    import altair as alt

    detail = outcomes[0].detail

    def points(**columns: str) -> Any:
        return alt.Data(
            values=[
                {"rows": rows, "value": value, "what": what}
                for what, key in columns.items()
                for rows, value in zip(detail["rows"], detail[key], strict=True)
            ]
        )

    log = alt.Scale(type="log")
    panels = []
    for title, data in (
        ("MB at most", points(memory="anonymous_MB", **{"activations on disk": "activations_MB"})),
        ("seconds of the whole command", points(seconds="seconds")),
    ):
        panels.append(
            alt.Chart(data)
            .mark_line(point=True)
            .encode(
                alt.X("rows:Q", scale=log), alt.Y("value:Q", scale=log, title=title), alt.Color("what:N", title=None)
            )
            .properties(width=320, height=260)
        )
    return alt.hconcat(*panels, title="score over rows: memory, disk and time")


def write_rows(path: Path, rows: int) -> None:
    """Write generated rows: a thousand, again and again under new names."""
    some = path.with_suffix(".some.jsonl")
    write_questions(some, make_text(min(rows, 1_000), seed=0, facts=1))
    lines = [json.loads(line) for line in some.read_text(encoding="utf-8").splitlines()]
    some.unlink()
    with path.open("w", encoding="utf-8") as out:
        for number in range(rows):
            line = lines[number % len(lines)]
            out.write(json.dumps({**line, "id": str(number), "group": str(number)}) + "\n")


def watch(words: list[str], folder: Path) -> Peak:
    """Run a command of the package in a folder and return its peak."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "truthheads", *words, "--batch-tokens", BATCH_TOKENS, "--json"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seen = {"RssAnon": 0, "VmHWM": 0, "disk": 0}

    def sample() -> None:
        while process.poll() is None:
            for line in _status(process.pid):
                name, _, value = line.partition(":")
                if name in seen:
                    seen[name] = max(seen[name], int(value.split()[0]) * 1024)
            seen["disk"] = max(seen["disk"], sum(_size(one) for one in folder.glob("*.partial/window-*/*.bin")))
            time.sleep(0.02)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    _, told = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(told)
    return Peak(seen["RssAnon"], seen["VmHWM"], time.perf_counter() - begun, seen["disk"])


def _status(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
