"""Probes on every head: against the paper's protocol written anew, against scikit-learn, and by their laws."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from torch import Tensor

from truthheads.errors import DataError, ShapeError
from truthheads.scoring import probes
from truthheads.scoring.probes import PROBES, grouped_folds, newton_probe, paper_folds, probe_metrics
from truthheads.stats.figures import (
    Figure,
    bootstrap_means,
    half_of,
    head_auroc,
    interval,
    mean_figure,
    pearson,
    spearman,
)

HEADS, WIDTH = 12, 16


class Data(NamedTuple):
    """Activations of heads with a signal that grows from none to plain."""

    z: Tensor
    label: Tensor


def graded(n: int, *, heads: int = HEADS, strongest: float = 2.0, seed: int = 0) -> Data:
    """Return z ``[heads, n, WIDTH]``: noise, plus a direction of each head's own times its strength times ±1."""
    generator = np.random.default_rng(seed)
    label = generator.permutation(np.arange(n) % 2)
    direction = generator.normal(size=(heads, 1, WIDTH))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    strength = np.linspace(0.0, strongest, heads)[:, None, None]
    z = generator.normal(size=(heads, n, WIDTH)) + strength * direction * (2 * label - 1)[None, :, None]
    return Data(torch.from_numpy(z).float(), torch.from_numpy(label).float())


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Newton's method run to the optimum, not only to where accuracies no longer move."""
    monkeypatch.setattr(probes, "TOLERANCE", 1e-7)
    yield


def accuracy_of(name: str, data: Data, fold: np.ndarray) -> np.ndarray:
    fits = PROBES[name](data.z, data.label, torch.from_numpy(fold))
    n = len(data.label)
    return probe_metrics(fits.logit.numpy(), data.label.numpy() == 1, fold, np.arange(n)).accuracy


# --- parity with the paper -------------------------------------------------------------------------------------------


def published_protocol(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Truth Scores of heads, from the paper's description alone (its section 2.1).

    All heads trained together on one loss, the mean of the binary cross-entropy over batch and heads; AdamW at 1e-2
    with weight decay 1e-3 on weights and biases; 200 epochs; batches of 512, in the same order every epoch; everything
    starts at 0; float32, not standardised; five folds of rows; probability above 0.5 counts as truthful; the score is
    the mean of the five validation accuracies. AdamW is written out, as Loshchilov and Hutter (2019) give it.

    Args:
        z: One row per answer, ``(n, heads, width)``.
        y: 1 truthful, 0 not.
    """
    scores = []
    for train, valid in KFold(5, shuffle=True, random_state=42).split(z):
        x, t = z[train].astype(np.float32), y[train].astype(np.float32)
        theta = np.zeros((z.shape[1], z.shape[2] + 1), np.float32)  # the last column is the bias
        first, second, step = np.zeros_like(theta), np.zeros_like(theta), 0
        for _ in range(200):
            for begin in range(0, len(x), 512):
                xb, tb = x[begin : begin + 512], t[begin : begin + 512]
                probability = 1 / (1 + np.exp(-(np.einsum("nhd,hd->nh", xb, theta[:, :-1]) + theta[:, -1])))
                residual = (probability - tb[:, None]) / (len(xb) * z.shape[1])
                gradient = np.concatenate([np.einsum("nh,nhd->hd", residual, xb), residual.sum(0)[:, None]], axis=1)
                step += 1
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                mean, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
                theta = theta - 1e-2 * 1e-3 * theta - 1e-2 * mean / (np.sqrt(spread) + 1e-8)
        logit = np.einsum("nhd,hd->nh", z[valid], theta[:, :-1]) + theta[:, -1]
        predicted = 1 / (1 + np.exp(-logit)) > 0.5
        scores.append((predicted == (y[valid, None] == 1)).mean(0))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize("n", [200, 700])  # one batch an epoch, and two
def test_the_paper_probe_is_the_published_protocol(n: int) -> None:
    data = graded(n)
    published = published_protocol(data.z.numpy().transpose(1, 0, 2), data.label.numpy())
    ours = accuracy_of("paper", data, paper_folds(n))
    assert published.max() - published.min() > 0.3  # there is something to agree about
    assert pearson(ours, published) >= 0.999
    np.testing.assert_allclose(ours, published, atol=2.5 / n)


def test_newton_agrees_with_the_paper_on_the_same_folds() -> None:
    data = graded(1000, heads=24)
    fold = paper_folds(1000)
    assert pearson(accuracy_of("newton", data, fold), accuracy_of("paper", data, fold)) >= 0.99


@pytest.mark.parametrize("n", [5, 6, 9, 200, 1001])
def test_paper_folds_are_scikit_learns(n: int) -> None:
    expected = np.empty(n, dtype=int)
    for number, (_, valid) in enumerate(KFold(5, shuffle=True, random_state=42).split(np.zeros(n))):
        expected[valid] = number
    np.testing.assert_array_equal(paper_folds(n), expected)


def test_paper_folds_need_a_row_for_each_fold() -> None:
    with pytest.raises(DataError, match="too few rows for cross-validation"):
        paper_folds(4)


# --- Newton's method -------------------------------------------------------------------------------------------------


def scaled(z: np.ndarray) -> np.ndarray:
    """Return one head's features, centred and divided by one number, their root mean square."""
    centred = z - z.mean(0)
    return centred / np.sqrt((centred**2).mean())


@pytest.mark.usefixtures("exact")
def test_newton_is_scikit_learns_logistic_regression() -> None:
    data = graded(200)
    fold = paper_folds(200)
    fits = newton_probe(data.z, data.label, torch.from_numpy(fold))
    for head in range(HEADS):
        z = data.z[head].double().numpy()
        x, y = scaled(z), data.label.numpy()
        whole = LogisticRegression(C=probes.C, tol=1e-10, max_iter=2000).fit(x, y)
        spread = np.sqrt(((z - z.mean(0)) ** 2).mean())
        np.testing.assert_allclose(fits.weight[head] * spread, whole.coef_[0], atol=1e-3)
        assert float(fits.bias[head]) == pytest.approx(
            whole.intercept_[0] - z.mean(0) @ whole.coef_[0] / spread, abs=1e-3
        )
        for k in range(5):
            part = LogisticRegression(C=probes.C, tol=1e-10, max_iter=2000).fit(x[fold != k], y[fold != k])
            expected = part.decision_function(x[fold == k])
            np.testing.assert_allclose(fits.logit[fold == k, head], expected, atol=5e-3)


def test_the_working_tolerance_moves_no_accuracy_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    data = graded(400)
    fold = paper_folds(400)
    quick = accuracy_of("newton", data, fold)
    monkeypatch.setattr(probes, "TOLERANCE", 1e-7)
    np.testing.assert_allclose(quick, accuracy_of("newton", data, fold), atol=0.005)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 0.0), (1e-3, 0.0), (1.0, 50.0), (7.0, -3.0)])
def test_shift_and_scale_of_a_head_leave_its_logits(factor: float, shift: float) -> None:
    data = graded(150, heads=4)
    fold = torch.from_numpy(paper_folds(150))
    plain = newton_probe(data.z, data.label, fold)
    moved = newton_probe(data.z * factor + shift, data.label, fold)
    torch.testing.assert_close(moved.logit, plain.logit, atol=5e-3, rtol=1e-3)


@pytest.mark.usefixtures("exact")
def test_swapped_labels_turn_the_logits_round() -> None:
    data = graded(150, heads=4)
    fold = torch.from_numpy(paper_folds(150))
    plain = newton_probe(data.z, data.label, fold)
    turned = newton_probe(data.z, 1 - data.label, fold)
    torch.testing.assert_close(turned.logit, -plain.logit, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", PROBES)
def test_planted_signal_is_recovered(name: str) -> None:
    data = graded(300, strongest=2.5)
    found = accuracy_of(name, data, paper_folds(300))
    assert int(np.argmax(found)) >= HEADS - 2
    assert found[-1] > 0.95
    assert abs(found[0] - 0.5) < 0.1
    assert spearman(found, np.arange(HEADS, dtype=float)) > 0.95


@pytest.mark.parametrize("name", PROBES)
def test_shuffled_labels_give_chance(name: str) -> None:
    data = graded(300, heads=24)
    order = np.random.default_rng(5).permutation(300)
    chance = accuracy_of(name, Data(data.z, data.label[order]), paper_folds(300))
    assert abs(chance.mean() - 0.5) < 0.03


@pytest.mark.parametrize("name", PROBES)
def test_separable_constant_and_repeated_features_do_no_harm(name: str) -> None:
    data = graded(100, heads=4)
    z = data.z.clone()
    z[0] = (2 * data.label - 1)[:, None] * 1e3  # separable, all columns the same
    z[1] = 3.0  # constant
    z[2] = 0.0
    z[3, :, 1:] = z[3, :, :1]  # rank one
    fits = PROBES[name](z, data.label, torch.from_numpy(paper_folds(100)))
    for values in fits:
        assert bool(torch.isfinite(values).all())
    right = ((fits.logit > 0) == (data.label[:, None] == 1)).float().mean(0)
    assert float(right[0]) == 1.0
    assert float(right[1]) == pytest.approx(0.5, abs=0.1)


# --- folds -----------------------------------------------------------------------------------------------------------

GROUPS = st.lists(st.integers(0, 25).map(str), min_size=1, max_size=80)


@settings(deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 3), num_folds=st.integers(2, 5), order=st.randoms(use_true_random=False))
def test_grouped_folds(groups: list[str], seed: int, num_folds: int, order: np.random.Generator) -> None:
    if len(set(groups)) < num_folds:
        with pytest.raises(DataError):
            grouped_folds(groups, num_folds=num_folds, seed=seed)
        return
    fold = grouped_folds(groups, num_folds=num_folds, seed=seed)
    fold_of = {group: {int(k) for g, k in zip(groups, fold, strict=True) if g == group} for group in groups}
    assert all(len(folds) == 1 for folds in fold_of.values())  # no group straddles
    sizes = np.bincount(fold, minlength=num_folds)
    assert sizes.min() > 0
    assert sizes.max() - sizes.min() <= max(groups.count(group) for group in groups)
    shuffled = list(groups)
    order.shuffle(shuffled)
    again = grouped_folds(shuffled, num_folds=num_folds, seed=seed)
    assert {g: {int(k)} for g, k in zip(shuffled, again, strict=True)} == fold_of  # order of rows is irrelevant


def test_folds_of_pairs_are_equal_and_another_seed_gives_others() -> None:
    groups = [f"question {i // 2}" for i in range(200)]
    fold = grouped_folds(groups, num_folds=5, seed=0)
    assert np.bincount(fold).tolist() == [40] * 5
    assert (fold != grouped_folds(groups, num_folds=5, seed=1)).any()


def test_fewer_groups_than_folds() -> None:
    with pytest.raises(DataError) as caught:
        grouped_folds(["a", "a", "b", "c", "d"], num_folds=5, seed=0)
    assert "too few groups for cross-validation" in str(caught.value)
    assert "at least 5 groups" in str(caught.value)
    assert "got: 4 in 5 answers" in str(caught.value)


# --- measures, worked by hand ----------------------------------------------------------------------------------------


def test_measure_worked_by_hand() -> None:
    # Head 0, by row:      0     1     2     3     4     5
    logit = np.array([[2.0], [-1.0], [0.5], [0.5], [-1.0], [-3.0]])
    label = np.array([True, False, True, False, True, False])
    fold = np.array([0, 0, 0, 0, 1, 1])
    pair = np.array([0, 0, 1, 1, 2, 2])
    found = probe_metrics(logit, label, fold, pair)
    # Fold 0: rows 0, 1, 2 right, row 3 (0.5 > 0, untruthful) wrong: 3/4. Fold 1: row 4 wrong, row 5 right: 1/2.
    assert found.fold_accuracy[:, 0].tolist() == [0.75, 0.5]
    assert found.accuracy[0] == pytest.approx((0.75 + 0.5) / 2)
    # Fold 0: pairs (2, -1) 1, (2, 0.5) 1, (0.5, -1) 1, (0.5, 0.5) 1/2: 3.5/4. Fold 1: (-1, -3) 1: 1.
    assert found.auroc[0] == pytest.approx((0.875 + 1.0) / 2)
    # Questions: 2 > -1 right, 0.5 = 0.5 one half, -1 > -3 right.
    assert found.pair_accuracy[0] == pytest.approx(2.5 / 3)


def test_a_logit_of_zero_says_untruthful() -> None:
    found = probe_metrics(np.zeros((4, 1)), np.array([True, False, False, False]), np.zeros(4, dtype=int), np.arange(4))
    assert found.accuracy[0] == 0.75


def test_measure_where_something_is_not_defined() -> None:
    logit = np.array([[1.0], [2.0], [-1.0], [3.0]])
    label = np.array([True, True, False, False])
    found = probe_metrics(logit, label, np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]))
    assert np.isnan(found.auroc[0])  # neither fold has both classes
    assert np.isnan(found.pair_accuracy[0])  # no question has both answers
    assert found.accuracy[0] == 0.75
    one = probe_metrics(logit, label, np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0]))
    assert one.auroc[0] == 0.5  # of fold 1 alone: 2 > -1, 2 < 3
    assert one.pair_accuracy[0] == 0.5  # 1 < 3, 2 > -1


# --- statistics, by definition ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(data=st.data(), n=st.integers(2, 30))
def test_auroc_is_scikit_learns(data: st.DataObject, n: int) -> None:
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    values = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n)), dtype=float)
    found = head_auroc(np.stack([values, -values], axis=1), labels)
    if labels.all() or not labels.any():
        assert np.isnan(found).all()
        return
    assert found[0] == pytest.approx(roc_auc_score(labels, values))
    assert found[0] + found[1] == pytest.approx(1.0)


@settings(deadline=None)
@given(data=st.data(), n=st.integers(3, 30))
def test_correlations_are_scipys(data: st.DataObject, n: int) -> None:
    a, b = (np.array(data.draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n)), dtype=float) for _ in range(2))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert np.isnan(pearson(a, b))
        assert np.isnan(spearman(a, b))
        return
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    with_gaps = np.append(a, np.nan), np.append(b, 1.0)
    assert pearson(*with_gaps) == pytest.approx(pearson(a, b))
    assert spearman(*with_gaps) == pytest.approx(spearman(a, b))


@pytest.mark.usefixtures("our_messages")
def test_correlation_of_different_lengths_is_refused() -> None:
    with pytest.raises(ShapeError, match="differ"):
        pearson(np.zeros(3), np.zeros(4))


@pytest.fixture
def our_messages() -> Iterator[None]:
    """Switch the annotations' own check off, which would speak first."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    """60 clusters of 3 equal values: an interval that took the 180 items for independent would cover 74 %."""
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = np.repeat(generator.normal(1.0, 1.0, size=60), 3)
        figure = mean_figure(values, np.repeat(np.arange(60), 3), seed=seed)
        assert figure.low <= figure.value <= figure.high
        hits += figure.low <= 1.0 <= figure.high
    assert 0.90 <= hits / 200 <= 0.98


def test_bootstrap_means_draw_whole_clusters() -> None:
    values = np.array([[0.0], [2.0], [10.0]])
    draws = bootstrap_means(values, np.array([7, 7, 9]), seed=0, resamples=300)
    # Two clusters, drawn twice: both the first (mean 1), both the second (10), or one of each (12 / 3 = 4).
    assert sorted(set(draws[:, 0].tolist())) == [1.0, 4.0, 10.0]
    np.testing.assert_array_equal(draws, bootstrap_means(values, np.array([7, 7, 9]), seed=0, resamples=300))


def test_intervals_and_figures() -> None:
    low, high = interval(np.arange(1001.0)[:, None].repeat(2, axis=1))
    np.testing.assert_allclose([low, high], [[25.0, 25.0], [975.0, 975.0]])
    low, _ = interval(np.array([[0.0, np.nan], [1.0, np.nan]]))
    assert np.isfinite(low[0])
    assert np.isnan(low[1])
    assert Figure(0.5, 0.25, 1.0).json() == {"value": 0.5, "low": 0.25, "high": 1.0}
    assert str(Figure(0.5, 0.25, 1.0)) == "0.500 [0.250, 1.000]"


def test_halves_keep_clusters_whole() -> None:
    clusters = np.repeat(np.arange(11), 3)
    half = half_of(clusters, seed=3)
    assert half.sum() == 15  # five of eleven clusters
    assert all(len(set(half[clusters == number])) == 1 for number in range(11))
