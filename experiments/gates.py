"""Every gate's effect and harm, on rows never seen: ``python experiments/gates.py smollm2 --nqswap FILE …``.

Gates: learned, from scores (the grid's best), from attribution, constant, shuffled. Each direction is made as strong as
0.003, 0.01, 0.03 and 0.1 nats a token allow on neutral text (mean KL in fp32 on passages of Wikipedia, none of which
any gate was tuned on), then measured on test rows. Figures that are in the output file are not measured again.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import truthheads as th
from truthheads.data.questions import Question
from truthheads.models.answer_logprobs import group_numbers, pair_effects, pair_figures, pair_logprobs
from truthheads.models.load import Model
from truthheads.models.neutral_text import measure_harm
from truthheads.models.prompts import encode
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.results.tuning import Tuning
from truthheads.storage.files import write_json
from truthheads.tuning.tune import LEVELS, tune

BATCH_TOKENS = 1024
SHARES = (0.0, 32.0)


class Bench:
    """Measures gates of one model on several sets of test rows and on neutral passages."""

    def __init__(self, model: Model, exact: Model, sets: dict[str, Sequence[Question]], passages: list[str], out: Path):
        self.model, self.exact, self.out = model, exact, out
        self.encoded = {name: encode(model, rows, truncate=True) for name, rows in sets.items()}
        self.groups = {name: group_numbers(rows) for name, rows in sets.items()}
        self.neutral = [list(model.tokenizer(text)["input_ids"])[:64] for text in passages]
        self.known: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return a figure from the file, or measure it and write it down."""
        if key not in self.known:
            begun = time.monotonic()
            self.known[key] = measure()
            write_json(self.out, self.known)
            seconds = time.monotonic() - begun
            print(f"{seconds:6.1f} s  {key}: {json.dumps(self.known[key])[:160]}", flush=True)
        return self.known[key]

    def logprobs(self, gate: Gate | None, name: str) -> np.ndarray:
        """Return both log-probabilities of every test row."""
        key = f"logprobs {name} {gate.digest if gate else 'none'}"
        path = self.out.with_suffix(".rows") / f"{key.replace(' ', '-')}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            np.save(path, pair_logprobs(self.model, self.encoded[name], batch_tokens=BATCH_TOKENS, gate=gate))
        return np.load(path)

    def harm(self, gate: Gate) -> dict[str, Any]:
        """Return KL and rise of loss on the passages, in fp32."""

        def measure() -> dict[str, Any]:
            figures = measure_harm(self.exact, self.neutral, gate).figures(seed=0)
            return {name: figure.json() for name, figure in figures.items()}

        return self.once(f"harm {gate.digest}", measure)

    def effect(self, gate: Gate, name: str) -> dict[str, Any]:
        """Return what a gate gains on a set of test rows."""
        return self.once(f"effect {name} {gate.digest}", lambda: self._effect(gate, name))

    def _effect(self, gate: Gate, name: str) -> dict[str, Any]:
        before, after = self.logprobs(None, name), self.logprobs(gate, name)
        groups = self.groups[name]
        figures = pair_effects(before, after, groups, seed=0)
        level = pair_figures(after, groups, seed=0)
        return {
            "gained": {key: figure.json() for key, figure in figures.items()},
            "reached": {key: figure.json() for key, figure in level.items()},
        }

    def at_level(self, gate: Gate, level: float) -> Gate:
        """Return the gate this way whose KL is within a twentieth of the level; 32 times the gate at most."""

        def search() -> float:
            low, high = SHARES
            share = 1.0
            for _ in range(12):
                found = measure_harm(self.exact, self.neutral, gate.scaled(share)).kl.mean()
                if abs(found - level) < 0.05 * level:
                    return share
                low, high = (share, high) if found < level else (low, share)
                guess = share * float(np.sqrt(level / max(found, 1e-9)))
                share = guess if low < guess < high else (low + high) / 2
                if share > 0.98 * SHARES[1]:
                    return SHARES[1]
            return share

        return gate.scaled(self.once(f"share {gate.digest} {level}", search))


def report(bench: Bench, name: str, gate: Gate, sets: Sequence[str], levels: Sequence[float] = LEVELS) -> None:
    """Measure a direction at every level and write its lines."""
    rows = []
    for level in levels:
        at = bench.at_level(gate, level)
        effects = {key: bench.effect(at, key) for key in sets}
        rows.append({"level": level, "gate": at.describe(), "harm": bench.harm(at), "effect": effects})
    bench.known[f"frontier {name}"] = rows
    write_json(bench.out, bench.known)
    for row in rows:
        for key, effect in row["effect"].items():
            gained = effect["gained"]
            words = ", ".join(f"{k} {v['value']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]" for k, v in gained.items())
            print(f"{name} at {row['level']} nats on {key}: {words}", flush=True)


def nqswap(path: Path, seed: int = 0) -> list[Question]:
    """Return NQ-Swap rows below 1,500 characters in an order drawn by seed."""
    rows = [row for row in th.read_questions(path) if len(row.context) < 1500]
    return [rows[at] for at in np.random.default_rng(seed).permutation(len(rows))]


def split_groups(rows: Sequence[Question], count: int) -> tuple[list[Question], list[Question]]:
    """Return the first ``count`` rows, and the rows whose group is in none of them."""
    first = list(rows[:count])
    taken = {row.group for row in first}
    return first, [row for row in rows[count:] if row.group not in taken]


def passages_of(path: Path, taken: set[str]) -> list[str]:
    """Return 48 of NQ-Swap's original passages, of questions that no gate is tuned or tested on."""
    import pyarrow.parquet as pq

    found = [row["org_context"] for row in pq.read_table(path).to_pylist() if row["question"] not in taken]
    found = list(dict.fromkeys(text for text in found if len(text) > 400))
    return [found[at] for at in np.random.default_rng(5).permutation(len(found))[:48]]


def learned(model: Model, rows: Sequence[Question], path: Path, **settings: Any) -> Gate:
    """Return the learned gate from its file, or learn it. The direction is the strongest point of its path."""
    if not path.exists():
        begun = time.monotonic()
        tuning: Tuning = tune(model, rows, method="learn", seed=0, **settings)
        tuning.save(path)
        print(f"{path}: learned in {time.monotonic() - begun:.0f} s; {tuning.result['why']}", flush=True)
    return Gate.load(path)


def unrelated(layers_of: Model, rows: Sequence[Question], folder: Path) -> Gate:
    """Return the attribution gate of a model of the same shape with random weights: a stranger by birth."""
    from transformers import AutoModelForCausalLM

    path = folder / "unrelated.safetensors"
    if not path.exists():
        config = layers_of.network.config.get_text_config(decoder=True)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(1)
            network = AutoModelForCausalLM.from_config(config)
        network.save_pretrained(folder / "unrelated")
        layers_of.tokenizer.save_pretrained(folder / "unrelated")
        th.score(th.load(str(folder / "unrelated")), rows[:60], method="attribution").save(path)
    return Gate.from_scores(Scores.load(path), strength=1.0, norm="signed", floor=None)


def family(model: Model, bench: Bench, train: Sequence[Question], given: argparse.Namespace) -> None:
    """Measure a descendant: gates learned here, gates of its base, shuffled ones of the same size, a stranger's."""
    levels = (0.03, LEVELS[-1])
    sets = list(bench.encoded)
    own = learned(model, train, given.out / "own" / "gate.safetensors", guard=0.1)
    report(bench, "learned here", own, sets, levels)
    for path in given.relatives:
        base = Gate.load(path)
        report(bench, f"learned on {path.parent.name}", base, sets, levels)
        at = bench.at_level(base, levels[-1])
        for seed in range(given.shuffled):
            report(bench, f"its shuffle {seed}", at.control("shuffled", seed=seed), sets, levels[-1:])
    report(bench, "of a stranger", unrelated(model, train, given.out), sets, levels)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="smollm2, smollm2:reader or smollm2:vision")
    parser.add_argument("--nqswap", type=Path, required=True)
    parser.add_argument("--halueval", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for gates and figures")
    parser.add_argument(
        "--relatives", type=Path, nargs="*", default=[], help="gates learned elsewhere, to be tried here"
    )
    parser.add_argument("--rows", type=int, default=500, help="test rows of each set")
    parser.add_argument("--shuffled", type=int, default=20)
    parser.add_argument("--family", action="store_true", help="a descendant: only generated rows, and --questions")
    parser.add_argument("--questions", type=Path, help="with --family: more test rows, scenes for instance")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    model, exact = th.load(given.model), th.load(given.model, dtype="fp32")
    swap_train, swap_rest = split_groups(nqswap(given.nqswap), 160)
    train = th.make_text(160, seed=11, split="train")
    sets: dict[str, Sequence[Question]] = {
        "generated": th.make_text(given.rows, seed=13, split="test"),
        "nqswap": swap_rest[: given.rows],
        "halueval": th.read_questions(given.halueval, limit=given.rows),
    }
    if given.family:
        sets = {"generated": sets["generated"]}
        if given.questions is not None:
            sets["more"] = th.read_questions(given.questions, limit=given.rows)
    taken = {row.question for rows in (swap_train, sets.get("nqswap", ())) for row in rows}
    bench = Bench(model, exact, sets, passages_of(given.nqswap, taken), given.out / "figures.json")
    for name in sets:
        figures = pair_figures(bench.logprobs(None, name), bench.groups[name], seed=0)
        bench.known[f"ungated {name}"] = {key: figure.json() for key, figure in figures.items()}
        print(f"ungated {name}: " + ", ".join(f"{key} {figure}" for key, figure in figures.items()), flush=True)
    if given.family:
        family(model, bench, train, given)
        return
    own = learned(model, train, given.out / "learned.safetensors", guard=0.02)
    bench.effect(own, "generated")
    print("own gate as shipped:", bench.harm(own), bench.effect(own, "generated"), flush=True)
    strong = learned(model, train, given.out / "learned-strong.safetensors", guard=0.1)
    report(bench, "learned", strong, ["generated"])
    for name in ("nqswap", "halueval"):
        report(bench, f"learned, on {name}", strong, [name], (0.01, 0.1))
    scored = {}
    for method, norm in (("probe", "centred"), ("attribution", "signed")):
        path = given.out / f"{method}.safetensors"
        if not path.exists():
            th.score(model, train, method=method, seed=0).save(path)  # type: ignore[arg-type]
        gate = Gate.from_scores(Scores.load(path), strength=1.0, norm=norm, floor=None)  # type: ignore[arg-type]
        scored[method] = gate
        report(bench, f"{method}, {norm}", gate, ["generated"])
    level = LEVELS[-1]
    best = bench.at_level(strong, level)
    report(bench, "constant", best.control("constant"), ["generated"], (0.01, level))
    for seed in range(given.shuffled):
        control = best.control("shuffled", seed=seed)
        bench.once(f"shuffled {seed}", lambda at=control: {"harm": bench.harm(at), **bench.effect(at, "generated")})
    for path in given.relatives:
        report(bench, f"of {path.parent.name}", Gate.load(path), ["generated"], (0.01, 0.03, level))
    swap = learned(model, swap_train, given.out / "learned-nqswap.safetensors", guard=0.1)
    report(bench, "learned on nqswap", swap, ["nqswap"], (0.01, 0.03, level))
    report(bench, "learned on nqswap, on generated", swap, ["generated"], (level,))


if __name__ == "__main__":
    main()
