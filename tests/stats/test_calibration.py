"""Scores into probabilities: against scikit-learn, and against sums done by hand."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import auc, balanced_accuracy_score, brier_score_loss, roc_auc_score

from truthheads.stats.calibration import (
    best_threshold,
    brier,
    calibration_error,
    cuts_for,
    fit_platt,
    reliability,
    roc_points,
)


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    score = rng.normal(size=4000) * 3
    return score, rng.random(4000) < 1 / (1 + np.exp(-(0.7 * score - 0.4)))


def test_platt_is_logistic_regression(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    score, label = drawn
    found = fit_platt(score, label)
    wanted = LogisticRegression(C=1e6).fit(score[:, None], label)
    assert found.slope == pytest.approx(float(wanted.coef_[0, 0]), rel=0.01)
    assert found.intercept == pytest.approx(float(wanted.intercept_[0]), abs=0.01)
    assert calibration_error(found.probability(score), label) < 0.03


def test_platt_never_turns_the_order() -> None:
    score = np.array([0.0, 1.0, 2.0, 3.0])
    assert fit_platt(score, score < 1.5).slope == 0


def test_brier_and_reliability(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    score, label = drawn
    p = 1 / (1 + np.exp(-score))
    assert brier(p, label) == pytest.approx(brier_score_loss(label, p))
    share, mean = calibration_curve(label, p, n_bins=10, strategy="quantile")
    found = reliability(p, label)
    np.testing.assert_allclose(found.share, share, atol=1e-9)
    np.testing.assert_allclose(found.probability, mean, atol=1e-9)
    # 400 rows in each of ten bins, so the error is the plain mean of the gaps
    assert calibration_error(p, label) == pytest.approx(np.abs(share - mean).mean())


def test_the_roc_curve_has_the_area(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    score, label = drawn
    points = roc_points(score, label, most=5000)
    assert auc(points.false_positive, points.true_positive) == pytest.approx(roc_auc_score(label, score))
    few = roc_points(score, label)
    assert len(few.true_positive) <= 200
    assert (few.true_positive[0], few.true_positive[-1]) == (0, 1)
    assert roc_points(score, np.ones(len(score), dtype=bool)) == ([], [])


def test_the_best_threshold(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    score, label = drawn
    cut = best_threshold(score, label)
    own = balanced_accuracy_score(label, score >= cut)
    assert own == pytest.approx(
        max(balanced_accuracy_score(label, score >= one) for one in np.linspace(-3, 3, 601)), abs=2e-3
    )
    assert best_threshold(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == 0.5
    assert best_threshold(np.array([0.3, 0.4]), np.array([True, True])) == 0.5


def test_cuts_keep_the_precision() -> None:
    """Twenty rows: 10 of the upper 12 and 2 of the lower 8 are supported."""
    p = np.arange(20) / 20
    label = np.array([False] * 3 + [True] + [False] * 3 + [True] + [True, False] * 2 + [True] * 8)
    low, high = cuts_for(p, label, 0.9, 0.5, least=4)
    assert label[p >= high].mean() >= 0.9
    assert not low > high
    assert cuts_for(p, label, 1.0, 0.5, least=15).high == np.inf
    assert cuts_for(p, label, 0.5, 0.5, least=2) == (0.5, 0.5)
