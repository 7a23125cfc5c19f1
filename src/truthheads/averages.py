"""Scores that are means over questions of one number per head, and how far halves of the questions agree."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from truthheads.answers import digests, kept_samples
from truthheads.data import Question, kind_of
from truthheads.intervals import chosen_figure
from truthheads.scores import Scores
from truthheads.stats import half_of, layer_bootstrap, mean_figure, pearson, spearman

NUM_SPLITS = 2
"""Random splits of the questions into halves, over which reliability is averaged."""


def mean_scores(
    method: str,
    questions: Sequence[Question],
    values: Float[np.ndarray, "num_layers num_heads"],
    sample: Float[np.ndarray, "n num_layers num_heads"],
    rows: Int[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    meta: dict[str, Any],
    max_samples: int,
    **figures: Any,
) -> Scores:
    """Return scores that are means over questions of one number per head, row by row of ``questions``."""
    seed = int(meta["seed"])
    names = [kind_of(questions[row]) for row in rows]
    kinds = sorted({name for name in names if name is not None})
    halves = [half_of(group, seed=seed + split) for split in range(NUM_SPLITS)]
    pairs = [(sample[half].mean(0), sample[~half].mean(0)) for half in halves if half.any() and not half.all()]
    meta["kinds"] = kinds
    meta["summary"] = {
        "mean": mean_figure(np.nanmean(sample, axis=(1, 2)), group, seed=seed).json(),
        **figures,
        "split_half": split_half(pairs, seed),
        "form": None,
        "kinds": {name: {"rows": names.count(name)} for name in kinds},
    }
    by_kind = [sample[[name == kind for name in names]].mean(0) for kind in kinds]
    kept = kept_samples(rows, max_samples, seed)
    return Scores.of(
        method,
        torch.from_numpy(values),
        kind_values=torch.from_numpy(np.stack(by_kind)).float() if kinds else torch.zeros(0, *values.shape),
        sample=torch.from_numpy(sample[kept]).half(),
        sample_label=torch.ones(len(kept), dtype=torch.int64),
        sample_group=torch.from_numpy(group[kept]).long(),
        sample_question=torch.from_numpy(rows[kept]).long(),
        sample_id=digests(questions, rows[kept]),
        meta=meta,
    )


def chosen_best(
    pairs: list[tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]],
    group: Int[np.ndarray, " n"],
) -> dict[str, float] | None:
    """Return what the best head scores on questions that did not choose it, with its interval; None without halves.

    The head is the best of one half of the questions and measured on the other, whose probes never saw the first: each
    way round, averaged over splits. The score of the best of many heads on the questions that chose it is too high.

    Args:
        pairs: Accuracies of both halves, for each split.
        group: Group of each answer.
    """
    shares = []
    for pair in pairs:
        for chooser, judge in (pair, pair[::-1]):
            if np.isfinite(chooser).any() and np.isfinite(
                judge[np.unravel_index(np.nanargmax(chooser), chooser.shape)]
            ):
                shares.append(float(judge[np.unravel_index(np.nanargmax(chooser), chooser.shape)]))
    if not shares:
        return None
    return chosen_figure(float(np.mean(shares)), group).json()


def split_half(
    pairs: list[tuple[Float[np.ndarray, "layers heads"], Float[np.ndarray, "layers heads"]]], seed: int
) -> dict[str, Any]:
    """Return the reliability of scores: correlation between disjoint halves of the questions."""
    if not pairs or not any(np.isfinite(a).any() and np.isfinite(b).any() for a, b in pairs):
        return {"splits": 0, "pearson": None, "spearman": None}
    return {
        "splits": len(pairs),
        "pearson": layer_bootstrap(pairs, pearson, seed=seed).json(),
        "spearman": layer_bootstrap(pairs, spearman, seed=seed).json(),
    }
