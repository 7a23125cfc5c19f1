"""``python -m bench.simulated``: what a million rows of a 7B model would take on 1, 8 and 64 GPUs, on paper.

Nothing is measured here but what says so; every assumption is a field, and the formulas are the functions.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from truthheads.scoring.activations import WINDOW, WINDOW_BYTES, WINDOWS_EACH


@dataclass(frozen=True)
class Assumed:
    """What the table stands on.

    Attributes:
        rows: Questions, with two answers each.
        tokens: Unique tokens of a row: the context once, both answers.
        layers: Of the model; as heads and width.
        heads: In a layer.
        width: Of a head.
        parameters: That a token passes: those of the layers, since no language-model head runs.
        bytes_of_z: A bf16 number.
        peak: FLOP per second of an H100 in bf16, dense.
        use: Share of the peak that a pass over padded batches reaches.
        batch_tokens: ``--batch-tokens`` on accelerators.
        scanned: Seconds in which a row is read, checked and counted, by every process (measured).
        gpus_of_machine: GPUs that share one machine and its page cache.
        disk: Bytes per second of the shared disk, all machines together.
        link: Bytes per second that one process reads or writes.
        read: Tokens per second that one core encodes (measured: 153,000, ``encode`` on NQ-Swap, SmolLM2).
        measured: CPU seconds of ``measure`` per head and million answers (measured: 0.2).
        passes: Fits of every head in units of all answers: all, kinds, four halves.
        fitted: FLOP per second of the probe's fp32 products on one GPU.
        steps: Conjugate-gradient steps of a fit.
        begin: Seconds from the command to the model's first byte: imports, the meeting.
    """

    rows: int = 1_000_000
    tokens: int = 600
    layers: int = 32
    heads: int = 32
    width: int = 128
    parameters: float = 6.5e9
    bytes_of_z: int = 2
    peak: float = 989e12
    use: float = 0.4
    batch_tokens: int = 16_384
    scanned: float = 155e-6
    gpus_of_machine: int = 8
    disk: float = 5e9
    link: float = 2e9
    read: float = 153e3
    measured: float = 0.2
    passes: float = 4.0
    fitted: float = 20e12
    steps: int = 20
    begin: float = 15.0


class Times(NamedTuple):
    """Seconds of each part; all are shared by the processes but ``start``, ``scan`` and the first one's ``merge``."""

    start: float
    scan: float
    encode: float
    forward: float
    write: float
    merge: float
    fit: float
    measure: float

    @property
    def total(self) -> float:
        """All parts one after the other, as they run."""
        return sum(self)


def z_bytes(a: Assumed) -> float:
    """Return the bytes of z of all rows: rows · 2 answers · layers · heads · width · bytes."""
    return float(a.rows * 2 * a.layers * a.heads * a.width * a.bytes_of_z)


def token_rate(a: Assumed) -> float:
    """Return tokens per second of one GPU: peak · use / (2 · parameters)."""
    return a.peak * a.use / (2 * a.parameters)


def window(a: Assumed) -> int:
    """Return the questions of a window, as ``truthheads.scoring.activations.gather`` has it."""
    return min(WINDOW, max(64, WINDOW_BYTES // (4 * a.layers * a.heads * a.width)))


def by_window(a: Assumed, gpus: int) -> bool:
    """Return whether whole windows are dealt to the processes; else they share the batches of each window."""
    return gpus == 1 or math.ceil(a.rows / window(a)) >= WINDOWS_EACH * gpus


def balance(a: Assumed, gpus: int) -> float:
    """Return the share of the time in which all GPUs work, B / (N · ceil(B / N)), for B units dealt to N processes."""
    units = math.ceil(a.rows / window(a) if by_window(a, gpus) else window(a) * a.tokens / a.batch_tokens)
    return units / (gpus * math.ceil(units / gpus))


def times(a: Assumed, gpus: int) -> Times:
    """Return the seconds of each part, for so many processes with a GPU each."""
    weights = 2 * a.parameters
    machines = math.ceil(gpus / a.gpus_of_machine)
    dealt, even = by_window(a, gpus), balance(a, gpus)
    fitting = a.layers / math.ceil(a.layers / gpus)  # whole layers are dealt
    answers, features = 2 * a.rows, a.width + 1
    hessians = 2 * 2 * answers * features**2
    gradients = a.steps * 6 * 4 * answers * features  # all answers and five folds; two products a step
    return Times(
        start=a.begin + weights / min(a.link, a.disk / machines),
        scan=a.rows * a.scanned,
        encode=a.rows * a.tokens / a.read / (gpus * even if dealt else 1),
        forward=a.rows * a.tokens / token_rate(a) / (gpus * even),
        write=z_bytes(a) / min(gpus * a.link, a.disk) / even,
        merge=0.0 if dealt else 2 * z_bytes(a) / min(a.link, a.disk),
        fit=z_bytes(a) / min(fitting * a.link, a.disk)
        + a.passes * a.layers * a.heads * (hessians + gradients) / a.fitted / fitting,
        measure=a.passes * a.layers * a.heads * a.measured * answers / 1e6 / fitting,
    )


def main() -> None:
    """Print the assumptions that matter and the tables."""
    for rows in (1_000_000, 50_000):
        a = Assumed(rows=rows)
        print(f"{rows:,} rows; tokens per second and GPU: {token_rate(a):,.0f}; windows of {window(a):,} rows")
        print(f"z of a row: {z_bytes(a) / a.rows:,.0f} bytes; of all rows: {z_bytes(a) / 1e12:.3f} TB")
        print(f"writing beside a pass, per GPU: {z_bytes(a) / a.rows * token_rate(a) / a.tokens / 1e6:.0f} MB/s\n")
        print("| GPUs | shared | " + " | ".join(Times._fields) + " | total s | hours | speed-up | all busy |")
        print("|---" * (len(Times._fields) + 6) + "|")
        alone = times(a, 1).total
        for gpus in (1, 8, 64):
            found = times(a, gpus)
            cells = [f"{value:,.0f}" for value in (*found, found.total)]
            cells += [f"{found.total / 3600:.2f}", f"{alone / found.total:.1f}", f"{balance(a, gpus):.0%}"]
            print(f"| {gpus} | {'windows' if by_window(a, gpus) else 'batches'} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main()
