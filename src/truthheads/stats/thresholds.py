"""Every decision threshold, in one place, named after the decision it makes."""

from truthheads.stats.figures import LEVEL

ALPHA = 1 - LEVEL
