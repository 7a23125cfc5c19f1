"""Ratios that say how fast truthheads is, each measured side by side with what it is compared to, in one run."""
