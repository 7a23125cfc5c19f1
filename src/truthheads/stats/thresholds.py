"""Every decision threshold, in one place, named after the decision it makes."""

CONFIDENCE_LEVEL = 0.95

MIN_SHARED_QUESTIONS = 10
"""Shared questions below which two files are compared as if they shared none."""

TOP_HEADS_SHARE = 0.10

WEIGHT_COSINE_INHERITED = 0.5**0.5
"""Cosine from which on at least half of a descendant slice's squared norm lies along the base's."""

WEIGHT_COSINE_UNRELATED = 0.05
"""Cosine above which weights have something to do with each other; unrelated ones of a real model are within 0.01. In
tiny models chance reaches further, and the bound is ``WEIGHT_COSINE_CHANCE_SDS`` of its standard deviations."""

WEIGHT_COSINE_CHANCE_SDS = 6

HEAD_MATCH_LEAD = 0.2
"""How far matched heads must be more alike than the best pairing without them, for the match to mean anything."""

HEAD_MATCH_SIMILARITY = 0.5
"""Similarity of matched heads' products that stands for ``SCORE_CORRELATION_INHERITED`` in each of the two factors."""

SCORE_CORRELATION_INHERITED = 0.5
"""Within-layer correlation, noise taken off, from which on scores count as inherited: a quarter of their variance."""

SCORE_CORRELATION_UNRELATED = 0.15
"""Below this, agreement is of no use to anyone: a fiftieth of the variance."""

SCORE_PERMUTATION_P = 0.01
"""Permutation p from which on agreement is not chance."""

SCORE_MIN_NOISE_CEILING = 0.5
"""Noise ceiling below which scores are mostly chance, and a correlation divided by it means nothing."""

TRIPLE_RIGHT_ANGLE_COSINE = 0.2
"""Cosine below which two changes count as independent; an end's angle has the cosine near ‖its change‖ ÷ ‖both‖."""

SIGNIFICANCE_LEVEL = 1 - CONFIDENCE_LEVEL

BOX_COVERAGE = 0.5
"""Share of an image token's area inside a box from which on it is evidence; so is the token in a box's middle, whatever
its share, since a box may be smaller than any token."""

CHANCE_SCORE = {"probe": 0.5, "evidence": 0.5, "attribution": 0.0}

FORM_PROBE_WARNING_ACCURACY = 0.6

GATE_HARM_NATS = 0.02

GROUND_TEST_SHARE = 0.6
"""Of the groups. Few rows are enough to learn from (160 gave as much as 640, docs/log.md), not for an honest test."""

GROUND_MIN_TEST_GROUPS = 20

GROUND_LEARN_FROM = 400
"""Rows to learn and choose from, at most; the rest is left to the test."""
