"""Benchmarks: what is asked, what the right answer is, and how answers are read. None of it knows how a model runs."""

TASKS = ("halueval", "pope", "chair", "pairs", "conflict")
"""The tasks that ``truthheads evaluate`` has of its own."""

LM_EVAL_PREFIX = "lm-eval:"
