"""Candidates for a gate, measured on dev questions and on neutral text, and the rule that chooses one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from truthheads.data import Question
from truthheads.forward import shares_prefix
from truthheads.gates import Gate
from truthheads.margins import group_numbers, pair_effects, pair_logprobs
from truthheads.models import Model
from truthheads.neutral import measure_harm
from truthheads.prompts import Encoded, encode
from truthheads.stats import Figure, half_of, mean_figure

LEVELS = (0.003, 0.01, 0.03, 0.1)
"""Harm in nats a token at which a frontier is read."""


class Candidate(NamedTuple):
    """A gate to be judged: its name, and what else is to be written down of it."""

    name: str
    gate: Gate
    notes: dict[str, Any]


class Judge:
    """Measures candidates on dev questions and on neutral text that nothing is learned from."""

    def __init__(self, model: Model, questions: Sequence[Question], settings: dict[str, Any], neutral: list[list[int]]):
        self.model, self.neutral, self.seed = model, neutral, int(settings["seed"])
        self.batch_tokens = int(settings["batch_tokens"])
        self.groups = group_numbers(questions)
        self.encoded = encode_questions(model, questions, settings)
        self.plain = pair_logprobs(model, self.encoded, batch_tokens=self.batch_tokens)
        self.path: list[dict[str, Any]] = []
        self.gates: list[Gate] = []
        self.gains: list[Float[np.ndarray, " questions"]] = []

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        """Return a candidate's effect and harm as JSON, and keep both it and its gate."""
        harm = measure_harm(self.model, self.neutral, candidate.gate).figures(seed=self.seed)
        after = pair_logprobs(self.model, self.encoded, batch_tokens=self.batch_tokens, gate=candidate.gate)
        effect = pair_effects(self.plain, after, self.groups, seed=self.seed)
        entry = {
            "name": candidate.name,
            **candidate.notes,
            "gate": candidate.gate.describe(),
            "effect": {name: figure.json() for name, figure in effect.items()},
            "harm": {name: figure.json() for name, figure in harm.items()},
        }
        self.path.append(entry)
        self.gates.append(candidate.gate)
        self.gains.append((after[:, 0] - after[:, 1]) - (self.plain[:, 0] - self.plain[:, 1]))
        return entry


def encode_questions(model: Model, questions: Sequence[Question], settings: dict[str, Any]) -> list[Encoded]:
    """Return token ids of questions as the settings say."""
    chat, truncate = bool(settings["chat"]), bool(settings["truncate"])
    return encode(model, questions, chat=chat, truncate=truncate, share_prefix=shares_prefix(model))


def frontier(path: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each level of harm the candidate with the largest gain in margin whose mean KL is no higher."""
    rows = []
    for level in LEVELS:
        within = [entry for entry in path if entry["harm"]["kl"]["value"] <= level]
        best = max(within, key=lambda entry: entry["effect"]["margin"]["value"], default=None)
        rows.append({"harm": level, "name": best["name"] if best else None, "effect": best["effect"] if best else None})
    return rows


def choose(path: Sequence[dict[str, Any]], guard: float) -> int | None:
    """Return the number of the candidate that the rule chooses; None where none gains within the guard."""
    allowed = [
        at
        for at, entry in enumerate(path)
        if entry["harm"]["kl"]["high"] <= guard and entry["effect"]["margin"]["low"] > 0
    ]
    return max(allowed, key=lambda at: path[at]["effect"]["margin"]["value"], default=None)


def gain_elsewhere(
    gains: Sequence[Float[np.ndarray, " questions"]],
    allowed: Sequence[bool],
    groups: Int[np.ndarray, " questions"],
    *,
    seed: int,
) -> Figure | None:
    """Return the gain in margin on questions that did not choose the candidate; None where nothing can be chosen.

    Each half of the dev questions is judged by the candidate that gains most on the other half. The gain of the best
    of several candidates on the questions that chose it is too high.

    Args:
        gains: Of each candidate, question by question.
        allowed: Whether its harm is within the guard.
        groups: Group of each dev question.
        seed: Of halves and bootstrap.
    """
    half = half_of(groups, seed=seed)
    within = [gain for gain, may in zip(gains, allowed, strict=True) if may]
    if not within or not half.any() or half.all():
        return None
    found = np.empty(len(groups))
    for chooser in (half, ~half):
        found[~chooser] = max(within, key=lambda gain: float(gain[chooser].mean()))[~chooser]
    return mean_figure(found, groups, seed=seed)


def why(path: Sequence[dict[str, Any]], chosen: int | None, guard: float) -> str:
    """Return the choice in a sentence."""
    safe = sum(entry["harm"]["kl"]["high"] <= guard for entry in path)
    if chosen is not None:
        return (
            f"largest gain in margin on dev questions among the {safe} of {len(path)} candidates whose harm "
            f"(KL on held-out neutral text, upper end) is at most {guard:g} nats a token"
        )
    return (
        f"no gate: of the {safe} of {len(path)} candidates within {guard:g} nats a token "
        "none has a gain in margin whose interval lies above 0"
    )
