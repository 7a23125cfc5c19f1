"""The form probe: how far the mere form of an answer tells truthful from untruthful."""

import string
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from truthheads.scoring.probes import newton_probe, probe_metrics
from truthheads.stats.figures import Figure
from truthheads.stats.intervals import share_figure
from truthheads.stats.overlap import between, overlap_of
from truthheads.stats.thresholds import FORM_PROBE_WARNING_ACCURACY

FEATURES = (
    "characters",
    "words",
    "mean word length",
    "ends with a period",
    "ends with other punctuation",
    "capital letters",
    "starts with a capital",
    "digits",
    "commas",
)


class FormProbe(NamedTuple):
    """Accuracy of a probe that sees only the form of the answers.

    Attributes:
        accuracy: Out-of-fold accuracy of a logistic regression on :data:`FEATURES`, with its interval.
        best_feature: The feature that separates best on its own.
        best_accuracy: How well, at its best threshold (in sample, either direction).
    """

    accuracy: Figure
    best_feature: str
    best_accuracy: float

    @property
    def warns(self) -> bool:
        """True where scores on this data measure the answers' form at least in part."""
        return self.accuracy.value > FORM_PROBE_WARNING_ACCURACY


def form_features(text: str) -> list[float]:
    """Return :data:`FEATURES` of one answer."""
    text = text.strip()
    words = text.split()
    last = text[-1:]
    return [
        float(len(text)),
        float(len(words)),
        len(text) / max(len(words), 1),
        float(last == "."),
        float(last in string.punctuation and last not in (".", "")),
        float(sum(char.isupper() for char in text)),
        float(text[:1].isupper()),
        float(sum(char.isdigit() for char in text)),
        float(text.count(",")),
    ]


def probe_form(
    features: Float[np.ndarray, "n features"],
    label: Bool[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    pair: Int[np.ndarray, " n"],
) -> FormProbe:
    """Fit the probe of the heads on the form of the answers instead.

    Args:
        features: :func:`form_features` of each answer.
        label: True for truthful ones.
        fold: Fold of each answer, the same as the heads'.
        group: Group of each answer, the clusters of the interval.
        pair: Question of each answer.
    """
    mean, spread = features.mean(0, dtype=float), features.std(0, dtype=float)
    scaled = ((features - mean) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    fits = newton_probe(torch.from_numpy(scaled)[None], torch.from_numpy(label).float(), torch.from_numpy(fold))
    logit = fits.logit.numpy()
    right = ((logit[:, 0] > 0) == label).astype(float)
    overlap = overlap_of(fits.fold_logit, label, fold, group)
    share = float(probe_metrics(logit, label, fold, pair).accuracy[0])
    accuracy = share_figure(right, group, added=between(overlap.shift, overlap.fold), share=share)
    alone = [_best_threshold(features[:, i], label) for i in range(len(FEATURES))]
    best = int(np.argmax(alone))
    return FormProbe(accuracy, FEATURES[best], alone[best])


def _best_threshold(feature: Float[np.ndarray, " n"], label: Bool[np.ndarray, " n"]) -> float:
    """Return the accuracy of the best rule "feature > t" or its opposite."""
    order = np.argsort(feature, kind="stable")
    ordered, truthful = feature[order], label[order]
    below = np.concatenate([[0], np.cumsum(truthful)])
    cuts = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])
    count = np.arange(len(label) + 1)
    right_if_below = below + (len(label) - count) - (below[-1] - below)
    share = right_if_below[cuts] / len(label)
    return float(max(share.max(), 1 - share.min()))
