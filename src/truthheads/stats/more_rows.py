"""How many more rows would show a gain: the width of an interval shrinks with the square root of their number."""

import math

from truthheads.stats.figures import Figure

NEVER = 100_000
"""Rows beyond which nobody is told to collect more."""


def rows_to_show(gain: Figure, rows: int) -> int | None:
    """Estimate from how many rows on the interval of a gain would lie above 0, if the gain stays what it is.

    The distance from a figure to its lower end falls as 1/√rows; at ``rows · (distance / gain)²`` it is the gain.

    Args:
        gain: A gain with its 95 % interval.
        rows: How many rows it was measured on.

    Returns:
        A number of rows; ``rows`` itself where the interval lies above 0 already; None where the gain is not above 0,
        where there is no interval, or where it would take more than 100,000 rows.
    """
    if not (gain.value > 0 and math.isfinite(gain.low)):
        return None
    needed = max(rows, math.ceil(rows * ((gain.value - gain.low) / gain.value) ** 2))
    return needed if needed <= NEVER else None


def smallest_shown(gain: Figure) -> float:
    """Return the smallest gain whose interval would have lain above 0 on the same rows: half of the width."""
    return (gain.high - gain.low) / 2
