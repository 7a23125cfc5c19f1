"""Two score files against each other: the formulas worked out, known truths recovered, noise told from kinship."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from simulated import centred, simulated
from truthheads.errors import ShapeError
from truthheads.lineage import agreement
from truthheads.lineage.agreement import Relation, relate
from truthheads.results.scores import Scores


def test_raw_and_within_are_pearsons_correlation() -> None:
    a, b, _ = simulated(0, rho=0.6, questions=50)
    found = relate(a, b, resamples=50)
    x, y = a.values.numpy().astype(float), b.values.numpy().astype(float)
    assert found.pearson.value == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1], abs=1e-6)
    within = np.corrcoef(centred(x).ravel(), centred(y).ravel())[0, 1]
    assert found.within.value == pytest.approx(within, abs=1e-6)


def test_disjoint_is_the_average_over_all_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    # 6 questions have 20 ordered ways into halves; covariances are averaged over them, then divided.
    a, b, _ = simulated(1, rho=0.5, questions=6)
    items = [(one.sample.float().numpy() > 0).astype(float).reshape(6, -1) for one in (a, b)]
    cross, own = [], [[], []]
    for half in combinations(range(6), 3):
        rest = [question for question in range(6) if question not in half]
        first, second = items[0][list(half)].mean(0), items[1][rest].mean(0)
        cross.append(np.cov(first, second)[0, 1])
        own[0].append(first.var(ddof=1))
        own[1].append(second.var(ddof=1))
    wanted = np.mean(cross) / np.sqrt(np.mean(own[0]) * np.mean(own[1]))
    monkeypatch.setattr(agreement, "MIN_SHARED_QUESTIONS", 2)
    found = relate(a, b, resamples=20).disjoint
    assert found is not None and found.value == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("rho", "shared"), [(0.0, True), (0.5, True), (0.5, False), (0.9, True)])
def test_the_true_correlation_lies_in_the_interval_as_often_as_it_should(rho: float, shared: bool) -> None:
    inside, errors = 0, []
    for seed in range(60):
        a, b, true = simulated(seed, rho=rho, questions=200, shared=shared)
        figure = relate(a, b, seed=seed, resamples=200).corrected_within
        assert figure is not None
        inside += figure.low <= true <= figure.high
        errors.append(figure.value - true)
    # 60 runs at 95 %: fewer than 51 has a chance of 0.1 %
    assert inside >= 51
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(60) + 0.01


def test_chance_on_shared_questions_looks_like_kinship_and_is_seen_through() -> None:
    found: list[Relation] = []
    for seed in range(12):
        a, b, _ = simulated(seed, rho=0.0, questions=150, common=0.9, spread=0.0)
        found.append(relate(a, b, seed=seed, resamples=200))
    assert np.mean([one.within.value for one in found]) > 0.5
    halves = [one.disjoint_within for one in found]
    assert abs(np.mean([half.value for half in halves if half])) < 0.1
    assert sum(half is not None and half.low > 0 for half in halves) <= 2


def test_a_model_is_itself() -> None:
    a, _, _ = simulated(3, rho=0.5, questions=200)
    found = relate(a, a)
    assert found.pearson.value == pytest.approx(1.0)
    assert found.corrected_within is not None and found.corrected_within.value == pytest.approx(1.0)
    assert found.p_permutation < 0.001
    assert all(overlap.overlap == 1 for overlap in found.overlaps)


def test_a_shared_depth_profile_is_not_kinship() -> None:
    random = np.random.default_rng(5)
    depth = np.linspace(0.5, 0.9, 12)[:, None]
    files = [
        Scores.of("probe", torch.from_numpy(depth + 0.02 * random.normal(size=(12, 16))), meta={}) for _ in range(2)
    ]
    found = relate(*files)
    assert found.pearson.value > 0.9 and found.depth_only > 0.9
    assert abs(found.within.value) < 0.25 and found.p_permutation > 0.01
    assert found.basis == "layers" and found.corrected is None


def test_heads_without_a_score_are_left_out() -> None:
    a, b, _ = simulated(4, rho=0.7, questions=100)
    values = a.values.clone()
    values[2, 3] = float("nan")
    sample = a.sample.clone()
    sample[:, 2, 3] = float("nan")
    holed = Scores.of(
        "probe", values, meta={}, sample=sample, **{n: getattr(a, n) for n in ("sample_label", "sample_group")},
        sample_question=a.sample_question, sample_id=a.sample_id,
    )  # fmt: skip
    found = relate(holed, b, resamples=50)
    assert found.shared == 100 and np.isfinite(found.within.value)


def test_overlap_of_the_best_heads_counts() -> None:
    first = torch.arange(20.0).view(2, 10)
    second = first.clone()
    second[1, 9], second[0, 0] = 0.0, 19.0  # the best head of one is the worst of the other
    found = relate(Scores.of("probe", first, meta={}), Scores.of("probe", second, meta={})).overlaps
    assert [one.overlap for one in found] == [0.0, 0.5, 0.75]
    assert [one.chance for one in found] == pytest.approx([0.05, 0.1, 0.2])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="different shape"):
        relate(Scores.of("probe", torch.rand(2, 3), meta={}), Scores.of("probe", torch.rand(3, 3), meta={}))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("a", "b", "raw", "within", "top"),
    [
        ("vicuna_7b_v15__halueval292", "llava15_7b__rlhfv2726", 0.621, 0.549, 0.33),
        ("llama2_7b__halueval292", "vicuna_7b_v15__halueval292", 0.853, 0.835, 0.73),
        ("qwen25_7b__halueval292", "qwen25_vl_7b_instruct__rlhfv2726", 0.318, 0.351, 0.32),
    ],
)
def test_released_scores_give_the_known_correlations(
    reference_data: Path, a: str, b: str, raw: float, within: float, top: float
) -> None:
    files = [Scores.load(reference_data / "released_scores" / f"{name}.npy") for name in (a, b)]
    found = relate(*files)
    assert found.pearson.value == pytest.approx(raw, abs=0.0006)
    assert found.within.value == pytest.approx(within, abs=0.0006)
    # Accuracies on 292 rows tie at the border: 23 to 28 of 78 heads by the way ties are broken. Ours are averaged.
    assert found.overlaps[1].overlap == pytest.approx(top, abs=0.03)
    assert found.pearson.low < raw < found.pearson.high
