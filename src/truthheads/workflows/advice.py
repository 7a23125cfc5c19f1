"""What to do where nothing helped: how many rows would show the gain, or why more rows would not."""

from collections.abc import Mapping
from typing import Any

from truthheads.results.grounding import GroundDecision
from truthheads.stats.figures import Figure, FigureJson
from truthheads.stats.more_rows import rows_to_show, smallest_shown
from truthheads.stats.thresholds import GROUND_LEARN_FROM


def ground_advice(
    decided: GroundDecision, tuning: Mapping[str, Any], guard: float, rows: int, test_share: float
) -> list[str]:
    """Say what would help where no model is better; nothing where one is.

    Args:
        decided: What the test rows say.
        tuning: The result of tuning, with every candidate that was judged.
        guard: Largest harm allowed.
        rows: All rows, learned from and tested on.
        test_share: Share of them that is tested on.
    """
    if decided["better"]:
        return []
    right = Figure.of(decided["ungated"][decided["primary"]])
    if right.value == 1:
        return ["The model prefers the right answer in every test row already: there is nothing to gain on such rows."]
    if not decided["moved"]:
        return [_not_chosen(tuning, guard, rows)]
    gain = Figure.of(decided["effect"][decided["primary"]])
    if gain.low > 0:
        return [
            "A control gate gained as much, so the gain does not come from these heads. More rows measure the "
            "difference more closely; they do not make it larger."
        ]
    tested = decided["test_rows"]
    needed = rows_to_show(gain, tested)
    if needed is not None:
        return [
            f"The gain was {gain}, on {tested} test rows. If it stays {gain.value:.3f}, its interval lies above 0 from "
            f"about {needed} test rows on: give {_whole_file(needed, test_share) - rows} more rows "
            f"({_whole_file(needed, test_share)} in all)."
        ]
    seen = smallest_shown(gain)
    return [
        f"The gain was {gain}, on {tested} test rows, which show a gain from about {seen:.3f} on. To show one half as "
        f"large, give {_whole_file(4 * tested, test_share) - rows} more rows ({_whole_file(4 * tested, test_share)} in "
        f"all). A --guard above {guard:g} allows stronger gates."
    ]


def _not_chosen(tuning: Mapping[str, Any], guard: float, rows: int) -> str:
    """Say why tuning chose no gate: too much harm, or a gain that its few dev rows do not show."""
    within = [entry for entry in tuning["path"] if _of(entry["harm"]["kl"]).high <= guard]
    if not within:
        least = min((_of(entry["harm"]["kl"]).high for entry in tuning["path"]), default=float("nan"))
        return (
            f"Every gate changed neutral text by more than --guard {guard:g} (the least by {least:.3f} nats a token): "
            "raise --guard, or give --neutral a file of text like that which must stay."
        )
    best = max((_of(entry["effect"]["margin"]) for entry in within), key=lambda gain: gain.value)
    dev = tuning["rows"]["dev"]
    needed = rows_to_show(best, dev)
    learned = tuning["rows"]["train"] + dev
    if needed is None or needed * learned > dev * GROUND_LEARN_FROM:  # no more than that is ever chosen on
        return (
            f"On {dev} rows kept for choosing, the best gate within --guard {guard:g} changed the margin by {best} "
            "nats: no gate helps, and more rows would hardly change that. A larger --guard allows stronger gates."
        )
    whole = round(rows * needed / dev)
    return (
        f"On {dev} rows kept for choosing, the best gate within --guard {guard:g} gained {best} nats of margin. If it "
        f"stays {best.value:.3f}, {needed} such rows show it: give {whole - rows} more rows ({whole} in all)."
    )


def _whole_file(tested: int, test_share: float) -> int:
    """Return how many rows a file needs for so many test rows: at most a fixed number is learned from."""
    learned = min(GROUND_LEARN_FROM, round(tested * (1 - test_share) / test_share))
    return tested + learned


def _of(figure: FigureJson) -> Figure:
    return Figure.of(figure)
