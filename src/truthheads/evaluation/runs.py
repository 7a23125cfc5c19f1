"""The runs of an evaluation: the untouched model first, then every remedy, each followed by its controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from truthheads.errors import GateError, TruthHeadsError
from truthheads.evaluation.ask import PreparedBenchmark
from truthheads.models.forward import plan_batches, shares_prefix
from truthheads.models.hooks import Intervention
from truthheads.models.load import Model
from truthheads.results.evaluation import PLAIN
from truthheads.results.gate import Control, Gate


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        name: ``none``, a remedy's name, or ``REMEDY/KIND-SEED`` for a control.
        at_work: What is at work on the network: a gate, an adapter; None leaves it as it is.
        job: How the benchmark is asked; None where lm-evaluation-harness asks.
        batches: What of ``job`` is run together.
    """

    name: str
    at_work: Intervention | None = None
    job: PreparedBenchmark | None = None
    batches: Sequence[Sequence[int]] = field(default_factory=list)

    @property
    def tokens(self) -> float:
        """Cost of the run, roughly, in tokens of a forward pass."""
        if self.job is None:
            return 1.0
        asked = (*self.job.encoded, *self.job.without)
        return float(sum(one.unique_tokens + self.job.new_tokens * len(one.tails) for one in asked))


def plan_runs(
    model: Model,
    at_work: Mapping[str, Intervention],
    plain: PreparedBenchmark | None,
    baselines: Mapping[str, PreparedBenchmark],
    *,
    batch_tokens: int,
) -> list[Run]:
    """Return the runs in the order in which they are made and shown.

    Args:
        model: The model.
        at_work: Gates, adapters and their controls, by the names of their runs.
        plain: The benchmark as it is asked; None where lm-evaluation-harness asks.
        baselines: The benchmark as each baseline asks it.
        batch_tokens: Padded tokens in a batch, at most.
    """
    batches = _batches(model, plain, batch_tokens) if plain else []
    runs = [Run(PLAIN, None, plain, batches)]
    runs += [Run(name, one, plain, batches) for name, one in at_work.items()]
    runs += [Run(name, None, job, _batches(model, job, batch_tokens)) for name, job in baselines.items()]
    return runs


def _batches(model: Model, job: PreparedBenchmark, batch_tokens: int) -> list[list[int]]:
    if job.new_tokens > 1 and not shares_prefix(model):  # a state cannot skip padding
        return [[at] for at in range(len(job.encoded))]
    return plan_batches(job.encoded, batch_tokens=batch_tokens)


def with_controls(gates: Mapping[str, Gate], controls: int, *, seed: int) -> dict[str, Gate]:
    """Return gates by name, each followed by its controls: ``GATE/constant-0``, ``GATE/shuffled-3``."""
    runs: dict[str, Gate] = {}
    for name, gate in gates.items():
        runs[name] = gate
        kinds: list[tuple[Control, int]] = [
            ("constant", min(1, controls)),
            ("shuffled", controls),
            ("random", controls),
        ]
        for kind, count in kinds:
            for at in range(count):
                runs[f"{name}/{kind}-{at}"] = gate.control(kind, seed=seed + at)
    return runs


def check_names(gates: Sequence[str], others: Sequence[str]) -> None:
    """Raise where a run cannot be called so, or two share a name.

    Raises:
        GateError: The name of a gate cannot be used.
        TruthHeadsError: That of an adapter cannot, or two remedies share one.
    """
    every = [*gates, *others]
    for name in every:
        if name == PLAIN or "/" in name or not name:
            what = "a gate" if name in gates else "an adapter"
            raise (GateError if name in gates else TruthHeadsError)(
                f"{what} cannot be called {name!r}",
                expected=f"a name other than {PLAIN!r}, without a slash",
                got=repr(name),
                fix="rename the file or folder",
            )
    twice = sorted({name for name in every if every.count(name) > 1})
    if twice:
        raise TruthHeadsError(
            f"two runs would be called {twice[0]!r}",
            expected="gates, adapters and baselines with names that differ",
            got=", ".join(every),
            fix="rename the file or folder",
        )
