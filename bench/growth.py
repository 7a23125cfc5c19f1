"""Seconds of ``score``, and of its probes alone, as rows and heads grow."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.forward import fresh_score
from bench.inputs import embedded, random_llama
from bench.timing import Outcome, Parts, timed
from truthheads.data.questions import Question
from truthheads.models.load import Model
from truthheads.scoring.probes import PROBES

NAME = "growth"
ROWS = (30, 100, 300, 1_000, 3_000, 10_000, 30_000)
OFTEN = 3_000
"""Sizes above are run once."""
SIDES = ((2, 2), (4, 4), (8, 8), (16, 16), (32, 32), (64, 64))


def run(*, quick: bool) -> list[Outcome]:
    """Grow one and hold the other: rows with 4 × 4 heads, heads with 100 rows; models with random weights."""
    rows, sides = (ROWS[1:3], SIDES[:3]) if quick else (ROWS, SIDES)
    turns = 2 if quick else 3
    some = embedded(min(rows[-1], 1_000))
    everything = [replace(some[at % len(some)], id=str(at), group=str(at)) for at in range(rows[-1])]
    model = random_llama(4, 4)
    outcomes = _grow("rows", [(n, model, everything[:n]) for n in rows], turns)
    few = everything[:100]
    sized = [(layers * heads, random_llama(layers, heads), few) for layers, heads in sides]
    return outcomes + _grow("layers x heads", sized, turns)


def _grow(axis: str, cases: list[tuple[int, Model, Sequence[Question]]], turns: int) -> list[Outcome]:
    """Return how the seconds per unit change over the last decade: 1 is linear, less is better than linear."""
    for _, model, questions in cases[:1]:
        fresh_score(model, questions)  # start warm
    seconds: dict[str, np.ndarray] = {part: np.empty((turns, len(cases))) for part in ("score", "probes")}
    for turn in range(turns):
        for i, (size, model, questions) in enumerate(cases):
            if turn and size > OFTEN and axis == "rows":
                for table in seconds.values():
                    table[turn, i] = table[0, i]
                continue
            parts = Parts()
            with parts.watch(("probes", PROBES, "newton")):
                seconds["score"][turn, i] = timed(lambda m=model, q=questions: fresh_score(m, q)).wall
            seconds["probes"][turn, i] = parts.seconds["probes"]
    sizes = np.array([size for size, _, _ in cases])
    first = max(i for i in range(len(sizes)) if i == 0 or sizes[-1] / sizes[i] >= 10)
    outcomes = []
    for part, table in seconds.items():
        per_unit = table / sizes
        detail: dict[str, Any] = {
            "sizes": sizes.tolist(),
            "seconds": np.median(table, axis=0).tolist(),
            "low": table.min(0).tolist(),
            "high": table.max(0).tolist(),
        }
        ratios = (per_unit[:, -1] / per_unit[:, first]).tolist()
        n = f"{axis} {sizes[first]:,} → {sizes[-1]:,}"
        outcomes.append(Outcome(f"{NAME} of {part} in {axis}", ratios, "<= 1.1", n, detail=detail))
    return outcomes


def chart(outcomes: Sequence[Outcome]) -> Any:
    """Return an Altair chart of seconds over size, both logarithmic; dashed lines are linear growth."""
    import altair as alt

    panels = []
    for axis in ("rows", "layers x heads"):
        points, lines = [], []
        for outcome in outcomes:
            if not outcome.name.endswith(f" in {axis}"):
                continue
            part, detail = outcome.name.split()[2], outcome.detail
            sizes, seconds = detail["sizes"], detail["seconds"]
            points += [
                {"size": size, "seconds": s, "low": low, "high": high, "part": part}
                for size, s, low, high in zip(sizes, seconds, detail["low"], detail["high"], strict=True)
            ]
            # through the largest size, where fixed costs matter least
            lines += [{"size": size, "seconds": seconds[-1] * size / sizes[-1], "part": part} for size in sizes]
        x = alt.X("size:Q", title=axis, scale=alt.Scale(type="log"))
        y = alt.Y("seconds:Q", title="seconds", scale=alt.Scale(type="log"))
        colour = alt.Color("part:N", title=None)
        data = alt.Chart(alt.Data(values=points))
        panels.append(
            alt.layer(
                alt.Chart(alt.Data(values=lines)).mark_line(strokeDash=[4, 4], opacity=0.6).encode(x, y, colour),
                data.mark_rule().encode(x, alt.Y("low:Q", scale=alt.Scale(type="log")), colour, y2="high:Q"),
                data.mark_line(point=True).encode(x, y, colour),
            ).properties(width=320, height=260)
        )
    return alt.hconcat(*panels, title="Cost of score (dashed: linear)")
