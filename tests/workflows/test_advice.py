"""What to do where nothing helped: the figures of the advice are those that the intervals give."""

from typing import Any

import pytest

from truthheads.results.grounding import GroundDecision
from truthheads.workflows.advice import ground_advice


def figure(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def tried(name: str, gain: dict[str, float], verdict: str = "no evidence", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "tested": True,
        "why": "it gained most",
        "effect": {"pair_accuracy": gain},
        "beyond_prompt": None,
        "harm": None,
        "controls": {},
        "verdict": verdict,
        "ships": False,
        **more,
    }


def decided(
    gain: dict[str, float],
    *,
    right: float = 0.8,
    moved: bool = True,
    better: bool = False,
    prompt: Any = None,
    **more: Any,
) -> Any:
    remedies = [tried("prompt", prompt or figure(0, -0.1, 0.1), "better" if prompt else "no evidence")]
    remedies += [tried("gate", gain, **more)] if moved else []
    made: dict[str, Any] = {
        "better": better,
        "moved": moved,
        "remedy": "gate" if moved else None,
        "remedies": remedies,
        "instruction": {"text": "Use the context.", "prompt_tokens": 5.2},
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
    return " ".join(ground_advice(told, {"gate": tuning or tuned()}, 0.02, rows, 0.6))


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
        (decided(figure(0.05, 0.01, 0.09), controls={"beaten": 2, "of": 5}), None, "A control gate gained as much"),
        (
            decided(figure(0.05, 0.01, 0.09), harm=figure(0.02, 0.01, 0.03)),
            None,
            "changed neutral text by 0.020 [0.010, 0.030] nats a token: raise --guard above 0.02",
        ),
        # The lower end is 0.08 below 0.04, as above: 360 test rows.
        (
            decided(figure(0.05, 0.01, 0.09), beyond_prompt=figure(0.04, -0.04, 0.12)),
            None,
            "0.040 [-0.040, 0.120] beyond an instruction to use the context, which costs no change of the model: 450",
        ),
        (
            decided(figure(0.05, 0.01, 0.09), prompt=figure(0.06, 0.02, 0.1), beyond_prompt=figure(-0.01, -0.05, 0.03)),
            None,
            "Begin every prompt with “Use the context.”: pair accuracy changes by 0.060 [0.020, 0.100] for 5",
        ),
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
        (decided(figure(0, 0, 0), moved=False), tuned((0.01, figure(-0.2, -0.4, 0.1))), "nothing helps"),
        # 15 · 5² = 375 dev rows would be wanted; of 400 that are learned from, 100 are kept for choosing.
        (decided(figure(0, 0, 0), moved=False), tuned((0.01, figure(0.1, -0.4, 0.6))), "nothing helps"),
    ],
)
def test_other_reasons(told: Any, tuning: dict[str, Any] | None, said: str) -> None:
    assert said in advice(told, tuning)


def test_a_better_model_needs_no_advice() -> None:
    assert advice(decided(figure(0.05, 0.01, 0.09), better=True)) == ""
