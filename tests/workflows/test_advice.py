"""What to do where nothing helped: the figures of the advice are those that the intervals give."""

from typing import Any

import pytest

from truthheads.results.grounding import GroundDecision
from truthheads.workflows.advice import ground_advice


def figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def decided(gain: dict[str, float], *, right: float = 0.8, moved: bool = True, better: bool = False) -> Any:
    made: dict[str, Any] = {
        "better": better,
        "moved": moved,
        "verdict": "no evidence",
        "primary": "pair_accuracy",
        "test_rows": 90,
        "ungated": {"pair_accuracy": figure(right, 0.7, 0.9)},
        "effect": {"pair_accuracy": gain},
        "controls": {},
        "guard": None,
        "exported": None,
    }
    assert made.keys() == GroundDecision.__annotations__.keys()
    return made


def tuned(*candidates: tuple[float, dict[str, float]]) -> dict[str, Any]:
    path = [{"harm": {"kl": figure(harm / 2, 0.0, harm)}, "effect": {"margin": gain}} for harm, gain in candidates]
    return {"path": path, "rows": {"dev": 15, "train": 45}}


def advice(told: Any, tuning: dict[str, Any] | None = None, rows: int = 150) -> str:
    return " ".join(ground_advice(told, tuning or tuned(), 0.02, rows, 0.6))


def test_a_gain_that_was_not_shown_says_how_many_rows_would_show_it() -> None:
    # The lower end is 0.08 below 0.04: 2² · 90 = 360 test rows, 240 to learn from, 450 more than the 150 there are.
    told = advice(decided(figure(0.04, -0.04, 0.12)))
    assert "about 360 test rows" in told and "give 450 more rows (600 in all)" in told


def test_no_more_than_400_rows_are_learned_from() -> None:
    # 3² · 90 = 810 test rows; two thirds of that would be 540 to learn from, of which 400 are.
    assert "give 1060 more rows (1210 in all)" in advice(decided(figure(0.04, -0.08, 0.16)))


def test_no_gain_says_what_the_rows_could_have_shown() -> None:
    # Half of the width is 0.06; a gain half as large shows on four times the rows: 360, and 240 to learn from.
    told = advice(decided(figure(-0.01, -0.07, 0.05)))
    assert "show a gain from about 0.060 on" in told and "give 450 more rows (600 in all)" in told


@pytest.mark.parametrize(
    ("told", "tuning", "said"),
    [
        (decided(figure(0, 0, 0), right=1.0), None, "nothing to gain"),
        (decided(figure(0.05, 0.01, 0.09)), None, "A control gate gained as much"),
        (
            decided(figure(0, 0, 0), moved=False),
            tuned((0.09, figure(1, 0.5, 1.5)), (0.05, figure(1, 0.5, 1.5))),
            "the least by 0.050 nats",
        ),
        # 15 dev rows, the lower end 1.5 times the gain away: 34 of them, 340 rows in all.
        (
            decided(figure(0, 0, 0), moved=False),
            tuned((0.01, figure(0.2, -0.1, 0.5)), (0.05, figure(3, 2, 4))),
            "34 such rows show it: give 190 more rows (340 in all)",
        ),
        (decided(figure(0, 0, 0), moved=False), tuned((0.01, figure(-0.2, -0.4, 0.1))), "no gate helps"),
        # 15 · 5² = 375 dev rows would be wanted; of 400 that are learned from, 100 are kept for choosing.
        (decided(figure(0, 0, 0), moved=False), tuned((0.01, figure(0.1, -0.4, 0.6))), "no gate helps"),
    ],
)
def test_other_reasons(told: Any, tuning: dict[str, Any] | None, said: str) -> None:
    assert said in advice(told, tuning)


def test_a_better_model_needs_no_advice() -> None:
    assert advice(decided(figure(0.05, 0.01, 0.09), better=True)) == ""
