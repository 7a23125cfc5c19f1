"""The family question, first answer: ``python experiments/inherited.py --rows 300 --out build/inherited``.

Truth Scores of ``smollm2``, ``smollm2:reader`` and ``smollm2:vision`` on the same generated text rows, of ``vision`` on
image rows too; how far they agree, over all rows and by kind, on the same and on disjoint questions; and how far the
attention weights moved, per head. Nothing is tuned here; the tables go into docs/family.md as they come.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

import truthheads as th
from truthheads.data.questions import write_questions
from truthheads.results.scores import Scores
from truthheads.stats.figures import Figure, half_of, layer_bootstrap, pearson
from truthheads.synthetic.scenes import make_scenes

MEMBERS = ("smollm2", "smollm2:reader", "smollm2:vision")


def within(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation after subtracting each layer's mean."""
    return pearson((a - a.mean(1, keepdims=True)).ravel(), (b - b.mean(1, keepdims=True)).ravel())


def accuracy_on(scores: Scores, chosen: np.ndarray) -> np.ndarray:
    """Return each head's out-of-fold accuracy on some of the samples."""
    right = (scores.sample.numpy() > 0) == (scores.sample_label.numpy() == 1)[:, None, None]
    result: np.ndarray = right[chosen].mean(0)
    return result


def disjoint(a: Scores, b: Scores, measure: object, *, splits: int = 10) -> float:
    """Return the correlation of A on one half of the questions with B on the other, averaged over splits and sides."""
    found = []
    for seed in range(splits):
        half = half_of(a.sample_group.numpy(), seed=seed)
        for first, second in ((half, ~half), (~half, half)):
            x, y = accuracy_on(a, first), accuracy_on(b, second)
            found.append(pearson(x.ravel(), y.ravel()) if measure is pearson else within(x, y))
    return float(np.mean(found))


def layers_resampled(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Figure:
    """Return the within-layer correlation with layers resampled for its interval."""
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(1000):
        rows = rng.integers(0, len(a), len(a))
        draws.append(within(a[rows], b[rows]))
    low, high = np.quantile(draws, (0.025, 0.975))
    return Figure(within(a, b), float(low), float(high))


def drift(base: th.Model, other: th.Model) -> dict[str, np.ndarray]:
    """Return ‖W − W₀‖ ÷ ‖W₀‖ of every head's slice of q, k, v and o, each ``[num_layers, heads or KV heads]``."""
    result: dict[str, list[np.ndarray]] = {name: [] for name in "qkvo"}
    for mine, theirs in zip(base.layout.layers, other.layout.layers, strict=True):
        for name in "qkvo":
            count = mine.num_heads if name in "qo" else mine.num_kv_heads
            pair = []
            for model, head in ((base, mine), (other, theirs)):
                path = f"{head.path.removesuffix('o_proj')}{name}_proj.weight"
                weight = model.network.get_parameter(path).float()
                weight = weight.T if name == "o" else weight
                pair.append(weight.reshape(count, -1))
            moved = (pair[1] - pair[0]).norm(dim=1) / pair[0].norm(dim=1)
            result[name].append(moved.numpy())
    return {name: np.stack(values) for name, values in result.items()}


def main() -> None:
    """Score, compare, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True, help="folder for questions, scores and the result")
    given = parser.parse_args()
    out: Path = given.out
    text = th.read_questions(
        write_questions(out / "text.jsonl", th.make_text(given.rows, seed=given.seed, split="test"))
    )
    scenes = th.read_questions(make_scenes(given.rows, seed=given.seed, out=out / "scenes", split="test").questions)
    scores: dict[str, Scores] = {}
    drifts: dict[str, dict[str, np.ndarray]] = {}
    base = th.load(MEMBERS[0], dtype="fp32")
    for name in MEMBERS:
        model = th.load(name)
        sets = {"text": text, "images": scenes} if model.processor is not None else {"text": text}
        for kind, questions in sets.items():
            path = out / f"{name.replace(':', '-')}-{kind}.safetensors"
            if not path.is_file():
                th.score(model, questions, work_dir=path.with_suffix(".partial")).save(path)
            scores[f"{name} {kind}"] = Scores.load(path)
            sys.stderr.write(f"{name} on {kind}: {scores[f'{name} {kind}'].meta['summary']['mean']}\n")
        if name != MEMBERS[0]:
            drifts[name] = drift(base, th.load(name, dtype="fp32"))
    result: dict[str, object] = {"rows": given.rows, "seed": given.seed}
    result["scores"] = {name: one.meta["summary"] for name, one in scores.items()}
    pairs = []
    for (left, a), (right, b) in combinations(scores.items(), 2):
        x, y = a.values.numpy(), b.values.numpy()
        pair = {"a": left, "b": right, "pearson": layer_bootstrap([(x, y)], pearson, seed=0).json()}
        pair["within"] = layers_resampled(x, y).json()
        if left.endswith("text") and right.endswith("text"):
            pair["disjoint"] = {"pearson": disjoint(a, b, pearson), "within": disjoint(a, b, within)}
            pair["kinds"] = {
                kind: {
                    "pearson": pearson(a.kind_values[i].numpy().ravel(), b.kind_values[i].numpy().ravel()),
                    "within": within(a.kind_values[i].numpy(), b.kind_values[i].numpy()),
                }
                for i, kind in enumerate(a.meta["kinds"])
            }
        pairs.append(pair)
    result["ceilings"] = {
        name: {"pearson": disjoint(one, one, pearson), "within": disjoint(one, one, within)}
        for name, one in scores.items()
    }
    result["pairs"] = pairs
    result["drift"] = {
        name: {
            part: {"mean": float(v.mean()), "min": float(v.min()), "max": float(v.max())} for part, v in parts.items()
        }
        for name, parts in drifts.items()
    }
    (out / "result.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
