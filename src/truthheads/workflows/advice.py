"""What to do where nothing helped: how many rows would show the gain, or why more rows would not."""

from collections.abc import Mapping

from truthheads.results.evaluation import BETTER
from truthheads.results.grounding import GroundDecision, RemedyName, RemedyTried
from truthheads.results.tuning import CandidateResult, TuningResult
from truthheads.stats.figures import Figure, FigureJson
from truthheads.stats.more_rows import rows_to_show, smallest_shown
from truthheads.stats.thresholds import GROUND_LEARN_FROM


def ground_advice(
    decided: GroundDecision, tunings: Mapping[RemedyName, TuningResult], guard: float, rows: int, test_share: float
) -> list[str]:
    """Say what would help where no model is better; nothing where one is.

    Args:
        decided: What the test rows say.
        tunings: The results of tuning, with every candidate that was judged.
        guard: Largest harm allowed.
        rows: All rows, learned from and tested on.
        test_share: Share of them that is tested on.
    """
    if decided["better"]:
        return []
    right = Figure.of(decided["ungated"][decided["primary"]])
    if right.value == 1:
        return ["The model prefers the right answer in every test row already: there is nothing to gain on such rows."]
    tried = {one["name"]: one for one in decided["remedies"]}
    instruction, remedy = decided["instruction"], tried.get(decided["remedy"] or "prompt")
    if instruction is not None and tried["prompt"]["verdict"] == BETTER:
        return [_instructed(decided, tried["prompt"], remedy)]
    if not decided["moved"] or remedy is None:
        return [_not_chosen(tunings, guard, rows)]
    gain = Figure.of(decided["effect"][decided["primary"]])
    harm, beyond, tested = remedy["harm"], remedy["beyond_prompt"], decided["test_rows"]
    if gain.low > 0 and harm is not None and Figure.of(harm).high > guard:
        return [
            f"The {remedy['name']} gained {gain}, but changed neutral text by {Figure.of(harm)} nats a token: raise "
            f"--guard above {guard:g}, or give --neutral a file of text like that which must stay."
        ]
    if gain.low > 0 and beyond is not None and Figure.of(beyond).low <= 0:
        ahead = Figure.of(beyond)
        needed, told = rows_to_show(ahead, tested), f"The {remedy['name']} gained {gain}, but {ahead} beyond an "
        told += "instruction to use the context, which costs no change of the model"
        more = _whole_file(needed, test_share) - rows if needed is not None else None
        return [told + (f": {more} more rows would show that difference." if more is not None and more > 0 else ".")]
    if gain.low > 0 and remedy["name"] == "gate" and remedy["controls"]:
        return [
            "A control gate gained as much, so the gain does not come from these heads. More rows measure the "
            "difference more closely; they do not make it larger."
        ]
    needed = rows_to_show(gain, tested)
    if needed is not None:
        needed = max(needed, tested + max(1, tested // 10))  # an interval that touches 0 is not above it
        whole = max(_whole_file(needed, test_share), rows + 1)
        return [
            f"The gain was {gain}, on {tested} test rows. If it stays {gain.value:.3f}, its interval lies above 0 from "
            f"about {needed} test rows on: give {whole - rows} more rows ({whole} in all)."
        ]
    seen = smallest_shown(gain)
    return [
        f"The gain was {gain}, on {tested} test rows, which show a gain from about {seen:.3f} on. To show one half as "
        f"large, give {_whole_file(4 * tested, test_share) - rows} more rows ({_whole_file(4 * tested, test_share)} in "
        f"all). A --guard above {guard:g} allows stronger changes."
    ]


def _instructed(decided: GroundDecision, prompt: RemedyTried, remedy: RemedyTried | None) -> str:
    """Say what the instruction does, word for word, and why nothing is shipped beside it."""
    used, primary = decided["instruction"], decided["primary"]
    assert used is not None
    told = (
        f"Begin every prompt with “{used['text']}”: {primary.replace('_', ' ')} changes by "
        f"{Figure.of(prompt['effect'][primary])} for {used['prompt_tokens']:.0f} more tokens a prompt"
    )
    beyond = remedy["beyond_prompt"] if remedy is not None else None
    if remedy is None or beyond is None:
        return f"{told}, and tuning found no gate and no adapter that helps within the guard."
    return f"{told}. The {remedy['name']} is not better by enough: {Figure.of(beyond)} beyond the instruction."


def _not_chosen(tunings: Mapping[RemedyName, TuningResult], guard: float, rows: int) -> str:
    """Say why tuning chose nothing: too much harm, or a gain that its few dev rows do not show."""
    path: list[CandidateResult] = [entry for tuning in tunings.values() for entry in tuning["path"]]
    split = next(iter(tunings.values()))["rows"]  # the same for all
    within = [entry for entry in path if _of(entry["harm"]["kl"]).high <= guard]
    if not within:
        least = min((_of(entry["harm"]["kl"]).high for entry in path), default=float("nan"))
        return (
            f"Every gate and adapter changed neutral text by more than --guard {guard:g} (the least by {least:.3f} "
            "nats a token): raise --guard, or give --neutral a file of text like that which must stay."
        )
    best = max((_of(entry["effect"]["margin"]) for entry in within), key=lambda gain: gain.value)
    dev = split["dev"]
    needed = rows_to_show(best, dev)
    learned = split["train"] + dev
    if needed is None or needed * learned > dev * GROUND_LEARN_FROM:  # no more than that is ever chosen on
        return (
            f"On {dev} rows kept for choosing, the best change within --guard {guard:g} moved the margin by {best} "
            "nats: nothing helps, and more rows would hardly change that. A larger --guard allows stronger changes."
        )
    whole = round(rows * needed / dev)
    return (
        f"On {dev} rows kept for choosing, the best change within --guard {guard:g} gained {best} nats of margin. If "
        f"it stays {best.value:.3f}, {needed} such rows show it: give {whole - rows} more rows ({whole} in all)."
    )


def _whole_file(tested: int, test_share: float) -> int:
    """Return how many rows a file needs for so many test rows: at most a fixed number is learned from."""
    learned = min(GROUND_LEARN_FROM, round(tested * (1 - test_share) / test_share))
    return tested + learned


def _of(figure: FigureJson) -> Figure:
    return Figure.of(figure)
