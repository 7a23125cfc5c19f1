"""Which of the things that a user could do is best, at which cost of each token and at which harm, in one sentence."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from truthheads.results.evaluation import BETTER, REMEDIES, BaselineMark, BestRemedy, Cost, RunResult
from truthheads.stats.figures import Figure
from truthheads.stats.resampling import Draws
from truthheads.stats.thresholds import GATE_HARM_NATS

PASSES = {1: "one forward pass", 2: "two forward passes"}


def cost_of(mark: BaselineMark | None) -> Cost:
    """Tell what a remedy costs when the model is served; None stands for a gate or an adapter."""
    if mark is None:
        return {"passes": 1, "prompt_tokens": 0.0, "in_words": "no cost per token once it is exported"}
    passes, more = int(mark["passes"]), float(mark["prompt_tokens"])
    words = f"{PASSES.get(passes, f'{passes} forward passes')} per new token and {more:.0f} more tokens per prompt"
    return {"passes": passes, "prompt_tokens": more, "in_words": words}


class _Remedy(NamedTuple):
    """A run beside the untouched one.

    Attributes:
        run: The run.
        gain: Its change of the primary figure, positive where better.
        harmless: Whether its harm is within the guard, or it has none.
    """

    run: RunResult
    gain: float
    harmless: bool

    @property
    def better(self) -> bool:
        return self.run["verdict"] == BETTER


def best_remedy(primary: str, sign: int, runs: Sequence[RunResult], changes: Mapping[str, Draws]) -> BestRemedy | None:
    """Return the remedy that gains most in the primary figure, of those that are better than the untouched model.

    Those within the guard of harm come before all others, whatever they gain. A shift of the yes-rate is no gain.

    Args:
        primary: Name of the primary figure.
        sign: +1 where more of it is better.
        runs: All runs.
        changes: The change of the primary figure in each run that holds all items, resample by resample.

    Returns:
        None where no remedy was run.
    """
    remedies = [
        _Remedy(run, sign * (run["effect"][primary]["value"] or 0.0), _harmless(run))
        for run in runs
        if run["kind"] in REMEDIES
    ]
    if not remedies:
        return None
    ranked = sorted(remedies, key=lambda one: (one.better, one.harmless, one.gain), reverse=True)
    best = ranked[0] if ranked[0].better else max(remedies, key=lambda one: one.gain)
    ahead = {
        one.run["name"]: ahead_of(changes, best.run["name"], one.run["name"], sign)
        for one in ranked
        if one is not best and {best.run["name"], one.run["name"]} <= changes.keys()
    }
    told = _told(primary, best, ranked, ahead)
    name = best.run["name"] if best.better else None
    return {"run": name, "ahead": {other: figure.json() for other, figure in ahead.items()}, "in_words": told}


def ahead_of(changes: Mapping[str, Draws], one: str, other: str, sign: int) -> Figure:
    """Return how far one run is ahead of another on the same items, positive where better."""
    first, second = changes[one], changes[other]
    value, drawn = sign * (first.value - second.value), sign * (first.draws - second.draws)
    return Draws(value, drawn, first.clusters).figure()


def _harmless(run: RunResult) -> bool:
    high = run["guard"]["kl"]["high"] if "guard" in run else 0.0
    return high is not None and high <= GATE_HARM_NATS


def _told(primary: str, best: _Remedy, ranked: Sequence[_Remedy], ahead: Mapping[str, Figure]) -> str:
    name, figure = best.run["name"], primary.replace("_", " ")
    changed = _signed(Figure.of(best.run["effect"][primary]))
    if not best.better:
        who = (
            f"{name} did not help"
            if len(ranked) == 1
            else f"none of {_listed([one.run['name'] for one in ranked])} helped"
        )
        said = f" ({best.run['verdict']})" if str(best.run["verdict"]).startswith(BETTER) else ""
        return f"{who} measurably: {'its' if len(ranked) == 1 else 'the best'} change of {figure} is {changed}" + (
            f", by {name}{said}" if len(ranked) > 1 else said
        )
    text = f"{name} is best: {figure} changes by {changed}, with {best.run['cost']['in_words']} and {_harm(best)}"
    if not best.harmless:
        text += f", which is above {GATE_HARM_NATS:g}"
    others = [one for one in ranked if one is not best and one.better]
    for one in others[:3]:
        text += f"; {_beside(one, primary, best, ahead.get(one.run['name']))}"
    rest = [one.run["name"] for one in ranked if one is not best and one not in others[:3]]
    return text + (f"; {_listed(rest)} did not help measurably" if rest and len(others) <= 3 else "")


def _beside(one: _Remedy, primary: str, best: _Remedy, lead: Figure | None) -> str:
    """Return how another remedy that helps stands beside the best."""
    name, change = one.run["name"], _signed(Figure.of(one.run["effect"][primary]))
    price = f"{change}, {one.run['cost']['in_words']}, {_harm(one)}"
    if not one.harmless and best.harmless:
        return f"{name} ({price}) does more harm than {GATE_HARM_NATS:g} nats a token"
    if lead is None:
        return f"{name} helps, too ({price})"
    if lead.low > 0:
        return f"{name} ({price}) is behind by {lead}"
    return f"{name} ({price}) cannot be told from it: the difference is {_signed(lead)}"


def _harm(one: _Remedy) -> str:
    if one.run["kind"] == "baseline":
        return "no harm to other text"
    if "guard" not in one.run:
        return "harm not measured"
    return f"{Figure.of(one.run['guard']['kl'])} nats a token of harm"


def _signed(figure: Figure) -> str:
    return f"{figure.value:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}]"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
