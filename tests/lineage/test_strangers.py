"""The two strangers have learned something, each on its own, and their weights have nothing in common."""

import numpy as np
import torch

from strangers import stranger
from truthheads.stats.figures import pearson


def test_strangers_learn() -> None:
    for seed in (1, 2):
        one = stranger(seed)
        assert one.before > 4.0  # near log 271: it knew nothing
        assert one.after < 3.0  # the frequencies of letters at least


def test_the_same_seed_is_the_same_model() -> None:
    first = stranger.__wrapped__(1, steps=3).network.state_dict()
    second = stranger.__wrapped__(1, steps=3).network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strangers_are_unrelated() -> None:
    one, other = stranger(1).network.state_dict(), stranger(2).network.state_dict()
    projections = [name for name in one if name.endswith("_proj.weight")]
    for name in projections:
        a, b = one[name].numpy().ravel(), other[name].numpy().ravel()
        assert abs(pearson(a, b)) < 0.2  # 512 weights or more: chance stays below 4.5 / sqrt(512)
        moved = np.linalg.norm(a - b) / np.linalg.norm(a)
        ratio = np.linalg.norm(b) / np.linalg.norm(a)
        assert abs(moved / np.sqrt(1 + ratio**2) - 1) < 0.1  # what two matrices with nothing in common give
