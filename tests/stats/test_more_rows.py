"""How many more rows would show a gain: the right numbers, and the number that a simulated test then bears out."""

import numpy as np
import pytest

from truthheads.stats.figures import Figure, mean_figure
from truthheads.stats.more_rows import rows_to_show, smallest_shown


@pytest.mark.parametrize(
    ("gain", "rows", "needed"),
    [
        (Figure(0.05, -0.05, 0.15), 90, 360),  # the lower end is twice the gain away: four times the rows
        (Figure(0.04, -0.02, 0.10), 100, 225),  # one and a half times: 2.25
        (Figure(0.05, 0.01, 0.09), 90, 90),  # shown already
        (Figure(0.0, -0.1, 0.1), 90, None),
        (Figure(-0.02, -0.1, 0.06), 90, None),
        (Figure(0.05, float("nan"), float("nan")), 90, None),
        (Figure(0.0001, -0.1, 0.1), 90, None),  # 90 million
    ],
)
def test_rows_to_show(gain: Figure, rows: int, needed: int | None) -> None:
    assert rows_to_show(gain, rows) == needed


def test_so_many_rows_do_show_it() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.1, 1.0, 100)
    values += 0.1 - values.mean()
    needed = rows_to_show(mean_figure(values, np.arange(100), seed=0), 100)
    assert needed is not None and 300 < needed < 480  # 1.96 or a little more, ten times over: 384 and more
    for rows, shown in ((int(1.2 * needed), True), (int(0.8 * needed), False)):
        more = np.resize(values, rows // 100 * 100)
        assert (mean_figure(more, np.arange(len(more)), seed=0).low > 0) is shown


def test_the_smallest_gain_that_would_have_been_seen() -> None:
    assert smallest_shown(Figure(-0.01, -0.06, 0.04)) == pytest.approx(0.05)
