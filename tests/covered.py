"""Sets of questions whose true figures are known, to count how often intervals hold them."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from truthheads.data.answers import Answers
from truthheads.scoring.fit import Subset, fit_block
from truthheads.scoring.probes import dealt_folds, newton_probe
from truthheads.stats.intervals import auroc_spread, chosen_figure, probed_ends, share_figure, spread_of
from truthheads.stats.overlap import between

FIGURES = ("accuracy", "auroc", "pair_accuracy")


class Ends(NamedTuple):
    """A figure in every simulated set, with its interval, and with the interval of 0.1.0."""

    value: Float[np.ndarray, " sets"]
    low: Float[np.ndarray, " sets"]
    high: Float[np.ndarray, " sets"]
    before: Float[np.ndarray, "2 sets"] | None = None

    def covers(self, truth: float | None = None) -> float:
        """Return how often the interval holds the truth (None: the mean over sets, which is what it estimates)."""
        truth = float(self.value.mean()) if truth is None else truth
        return float(((self.low <= truth) & (truth <= self.high)).mean())

    def covered(self, truth: float | None = None) -> float | None:
        """Return the same of the interval of 0.1.0."""
        return None if self.before is None else Ends(self.value, *self.before).covers(truth)


def drawn(seed: int, *, sets: int, questions: int, width: int, gap: float, shared: float = 0.0) -> Tensor:
    """Return z ``[sets, 2 * questions, width]``: truthful answers lie ``gap`` standard deviations from the others.

    Args:
        seed: Of everything.
        sets: Each is one head on questions of its own.
        questions: With two answers each, the truthful one first.
        width: Of the head.
        gap: 0 is a head without signal.
        shared: Share of the variance that both answers of a question have in common.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(sets, 2 * questions, width, generator=generator)
    common = torch.randn(sets, questions, width, generator=generator).repeat_interleave(2, 1)
    z = (1 - shared) ** 0.5 * own + shared**0.5 * common
    z[:, :, 0] += gap * (0.5 - torch.arange(2 * questions) % 2)
    return z


def answers_of(questions: int) -> tuple[Answers, Int[np.ndarray, " n"]]:
    """Return the answers of so many pairs, and their folds."""
    question = np.repeat(np.arange(questions), 2)
    label = np.arange(2 * questions) % 2 == 0
    order = np.random.default_rng(questions).permutation(questions).astype(np.uint64)
    blank = dict.fromkeys(Answers._fields)
    answers = Answers(**{**blank, "label": label, "question": question, "group": question})  # type: ignore[arg-type]
    return answers, dealt_folds(question, order, num_folds=5)


def heads(z: Tensor) -> dict[str, Ends]:
    """Return accuracy, AUROC and pair accuracy of heads, each on questions of its own, as ``score`` finds them."""
    answers, fold = answers_of(z.shape[1] // 2)
    whole = Subset(np.arange(len(fold)), fold)
    block, logit, overlap = fit_block(z, answers, [whole], newton_probe)
    label, group = answers.label, answers.group
    right = ((logit > 0) == label[:, None]).astype(float)
    spread = spread_of(right, group)
    accuracy = block["accuracy"][0]
    plain = 1.959964 * np.sqrt(spread.variance)  # what resampling questions gives
    found = {
        "accuracy": Ends(
            accuracy,
            *probed_ends(accuracy, spread, float(len(label)), overlap.answers),
            np.stack([accuracy - plain, accuracy + plain]),
        )
    }
    spread, count = auroc_spread(logit.astype(float), label, group)
    found["auroc"] = Ends(block["auroc"], *probed_ends(block["auroc"], spread, count, overlap.answers))
    gap = logit[label] - logit[~label]
    spread = spread_of((gap > 0) + 0.5 * (gap == 0), group[label])
    share = block["pair_accuracy"]
    found["pair_accuracy"] = Ends(share, *probed_ends(share, spread, float(label.sum()), overlap.pairs))
    return found


def means(seed: int, *, sets: int, questions: int, width: int, gap: float, count: int = 8, alike: float = 0.5) -> Ends:
    """Return the mean accuracy of a layer of ``count`` heads, whose z have ``alike`` of their variance in common."""
    answers, fold = answers_of(questions)
    whole = Subset(np.arange(len(fold)), fold)
    rows = []
    for number in range(sets):
        own = drawn(seed + 2 * number, sets=count, questions=questions, width=width, gap=0.0)
        common = drawn(seed + 2 * number + 1, sets=1, questions=questions, width=width, gap=0.0)
        z = (1 - alike) ** 0.5 * own + alike**0.5 * common
        z[:, :, 0] += gap * (torch.from_numpy(answers.label).float() - 0.5)
        _, logit, overlap = fit_block(z, answers, [whole], newton_probe)
        right = ((logit > 0) == answers.label[:, None]).mean(1)
        figure = share_figure(right, answers.group, added=between(overlap.shift, overlap.fold) / count**2)
        plain = 1.959964 * float(spread_of(right[:, None], answers.group).variance[0] ** 0.5)
        rows.append((*figure, figure.value - plain, figure.value + plain))
    table = np.array(rows).T
    return Ends(table[0], table[1], table[2], table[3:])


def best(seed: int, *, sets: int, questions: int, width: int, count: int = 64) -> tuple[Ends, Ends]:
    """Return the best of ``count`` heads without signal: by its own interval, and measured on the other half."""
    answers, fold = answers_of(questions)
    half = answers.group % 2 == 0
    subsets = [Subset(np.arange(len(fold)), fold)]
    for mask in (half, ~half):
        rows = np.flatnonzero(mask)
        subsets.append(Subset(rows, np.unique(fold[rows], return_inverse=True)[1]))
    own, other = [], []
    for number in range(sets):
        z = drawn(seed + number, sets=count, questions=questions, width=width, gap=0.0)
        block, logit, overlap = fit_block(z, answers, subsets, newton_probe)
        whole, first, second = block["accuracy"]
        at = int(whole.argmax())
        spread = spread_of(((logit[:, [at]] > 0) == answers.label[:, None]).astype(float), answers.group)
        ends = probed_ends(whole[[at]], spread, float(len(fold)), overlap.answers[[at]])
        own.append((whole[at], float(ends[0][0]), float(ends[1][0])))
        other.append(chosen_figure(float((first[second.argmax()] + second[first.argmax()]) / 2), answers.group))
    return Ends(*np.array(own).T), Ends(*np.array(other).T)
