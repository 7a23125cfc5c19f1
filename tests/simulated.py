"""Score files with a known truth: simulated answers of two models whose heads correlate as asked."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm

from truthheads.results.scores import Scores
from truthheads.stats.figures import pearson

LAYERS, HEADS = 10, 9


class Simulated(NamedTuple):
    """Two score files and the true correlation of what they measure, within layers."""

    a: Scores
    b: Scores
    true: float


def simulated(
    seed: int, *, rho: float, questions: int, shared: bool = True, common: float = 0.7, spread: float = 0.06
) -> Simulated:
    """Return probe scores of 90 heads whose true accuracies correlate at ``rho``.

    Args:
        seed: Of everything.
        rho: Exact, in the sample of heads.
        questions: In each file.
        shared: The same questions in both files; ``common`` is then how much of their luck both models share.
        common: Correlation of the noise of one head in both models on one question.
        spread: Standard deviation of true accuracy over heads; 0 leaves nothing but chance.
    """
    random = np.random.default_rng(seed)
    u, v = (centred(random.normal(size=(LAYERS, HEADS))) for _ in range(2))
    v -= u * (u * v).sum() / (u * u).sum()
    u, v = (one / np.sqrt((one * one).mean()) for one in (u, v))
    accuracy = [np.clip(0.7 + spread * one, 0.02, 0.98) for one in (u, rho * u + np.sqrt(1 - rho**2) * v)]
    luck = random.normal(size=(questions, LAYERS, HEADS))
    other = common * luck + np.sqrt(1 - common**2) * random.normal(size=luck.shape)
    hard = [0.6 * random.normal(size=(questions, 1, 1)) for _ in range(2)]
    first = _right(accuracy[0], hard[0], luck)
    second = (
        _right(accuracy[1], hard[0], other) if shared else _right(accuracy[1], hard[1], random.normal(size=luck.shape))
    )
    ids = np.arange(questions)
    true = pearson(centred(accuracy[0]).ravel(), centred(accuracy[1]).ravel()) if spread else float("nan")
    return Simulated(_scores(first, ids), _scores(second, ids if shared else ids + 10**6), true)


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)


def _right(accuracy: np.ndarray, hard: np.ndarray, luck: np.ndarray) -> np.ndarray:
    return ((hard + luck) / np.sqrt(1.36) < norm.ppf(accuracy)).astype(float)


def _scores(right: np.ndarray, ids: np.ndarray) -> Scores:
    count = len(right)
    return Scores.of(
        "probe",
        torch.from_numpy(right.mean(0)),
        meta={},
        sample=torch.from_numpy(right * 2 - 1).half(),
        sample_label=torch.ones(count, dtype=torch.int64),
        sample_group=torch.arange(count),
        sample_question=torch.arange(count),
        sample_id=torch.from_numpy(ids),
    )
