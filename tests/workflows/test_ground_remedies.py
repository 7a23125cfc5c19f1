"""Which remedy ``ground`` ships: better than the untouched model and than an instruction, within the guard."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from planted import planted_model, planted_questions
from truthheads.evaluation.summary import summarise_runs
from truthheads.results.grounding import GroundDecision
from truthheads.storage.files import dumps, write_json
from truthheads.workflows.ground_remedies import Tuned, affordable, decide
from truthheads.workflows.ground_settings import Settings

if TYPE_CHECKING:
    from truthheads.models.load import Model

ROWS = 200


def decided(
    folder: Path, right: Mapping[str, float], *, harm: Mapping[str, float] | None = None, guard: float = 0.02
) -> GroundDecision:
    """Decide on runs that are right in so many of the first rows each; one is right in half without any."""
    lines: list[dict[str, Any]] = []
    for run, share in {"none": 0.5, **right}.items():
        for row in range(ROWS):
            margin = 1.0 if row < share * ROWS else -1.0
            about = {"id": f"r{row}", "group": f"g{row}", "split": "", "question": "", "prompt": f"p{row}", "gold": "a"}
            lines.append({"task": "pairs", "run": run, **about, "logp": [margin, 0.0]})
        if run in ("gate", "adapter"):
            kl = (harm or {}).get(run, 0.001)
            lines += [{"task": "neutral", "run": run, "id": f"t{at}", "kl": kl, "loss": kl} for at in range(8)]
    mark = {"text": "Use the context.", "passes": 1, "prompt_tokens": 5.0}
    settings = {"adapters": {"adapter": {}}, "baselines": {"prompt": mark}}
    out = folder / "evaluation"
    out.mkdir()
    (out / "predictions.jsonl").write_text("".join(dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_json(out / "summary.json", summarise_runs(lines, settings=settings))
    (folder / "head-adapter").mkdir()
    for path, name in ((folder, "gate"), (folder / "head-adapter", "adapter")):
        write_json(path / "tuning.json", {"chosen": 0 if name in right else None, "why": "told"})
    return decide(out, Tuned(folder / "gate.safetensors", folder / "head-adapter"), guard)


def test_the_best_of_those_that_are_better_than_both_is_shipped(tmp_path: Path) -> None:
    found = decided(tmp_path, {"gate": 0.65, "adapter": 0.8, "prompt": 0.5})
    assert found["better"] and found["remedy"] == "adapter" and found["verdict"] == "better"
    tried = {one["name"]: one for one in found["remedies"]}
    assert tried["gate"]["ships"] and tried["adapter"]["ships"] and not tried["prompt"]["ships"]
    assert tried["adapter"]["beyond_prompt"] is not None
    assert tried["adapter"]["beyond_prompt"]["value"] == pytest.approx(0.3)
    assert found["effect"]["pair_accuracy"]["value"] == pytest.approx(0.3)


def test_what_is_no_better_than_an_instruction_is_not_shipped(tmp_path: Path) -> None:
    found = decided(tmp_path, {"gate": 0.7, "adapter": 0.75, "prompt": 0.75})
    assert not found["better"] and found["moved"] and found["verdict"] == "an instruction does as much"
    assert found["remedy"] == "adapter" and found["effect"]["pair_accuracy"]["low"] is not None
    assert found["instruction"] == {"text": "Use the context.", "prompt_tokens": 5.0}


def test_beyond_a_prompt_that_helps_too_the_adapter_is_shipped(tmp_path: Path) -> None:
    found = decided(tmp_path, {"gate": 0.6, "adapter": 0.9, "prompt": 0.65})
    assert found["better"] and found["remedy"] == "adapter"
    assert [one["ships"] for one in found["remedies"]] == [False, False, True]  # the gate is behind the prompt


def test_an_instruction_that_harms_does_not_make_up_for_no_gain(tmp_path: Path) -> None:
    found = decided(tmp_path, {"gate": 0.5, "adapter": 0.505, "prompt": 0.3})
    assert not found["better"] and found["verdict"] == "no evidence"


def test_too_much_harm_leaves_it_to_the_other(tmp_path: Path) -> None:
    found = decided(tmp_path, {"gate": 0.7, "adapter": 0.8, "prompt": 0.5}, harm={"adapter": 0.03})
    assert found["better"] and found["remedy"] == "gate"


def test_too_much_harm_of_all_is_said(tmp_path: Path) -> None:
    found = decided(tmp_path, {"adapter": 0.8, "prompt": 0.5}, harm={"adapter": 0.03})
    assert not found["better"]
    assert found["verdict"] == "better, but it changes neutral text by more than 0.02 nats a token"
    assert [one["tested"] for one in found["remedies"]] == [True, False, True]


def test_a_gate_that_a_control_equals_is_not_shipped_and_the_adapter_is(tmp_path: Path) -> None:
    found = decided(tmp_path, {"gate": 0.8, "gate/shuffled-0": 0.8, "adapter": 0.7, "prompt": 0.5})
    assert found["better"] and found["remedy"] == "adapter"


def test_random_heads_that_do_as_well_do_not_keep_an_adapter_back(tmp_path: Path) -> None:
    # They are trained too: that they do as well says that the choice of heads adds nothing, not that it does not help.
    found = decided(tmp_path, {"adapter": 0.8, "adapter/random-1": 0.8, "prompt": 0.5})
    assert found["better"] and found["remedy"] == "adapter" and found["controls"]["beaten"] == 0


def test_where_tuning_found_nothing_the_instruction_may_still_help(tmp_path: Path) -> None:
    found = decided(tmp_path, {"prompt": 0.8})
    assert not found["better"] and not found["moved"] and found["verdict"] == "an instruction does as much"
    assert found["remedy"] is None and found["effect"] == {}


def test_the_longest_rows_are_left_out_first_then_there_are_fewer_passes(
    wrap: "Callable[..., Model]", monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planted_model()
    model, rows = wrap(made.network, made.tokenizer, "planted"), planted_questions(60)
    rows[3] = replace(rows[3], context=" ".join([rows[3].context] * 2))
    from truthheads.models.prompts import encode

    weights = sum(one.numel() for one in made.network.parameters())
    tokens = [one.unique_tokens for one in encode(model, rows)]
    monkeypatch.setattr("truthheads.workflows.ground_remedies.LEARNING", float(weights * 4 * sum(tokens)))
    assert affordable(model, rows, 4, False) == (rows, 4)
    monkeypatch.setattr("truthheads.workflows.ground_remedies.LEARNING", float(weights * 4 * (sum(tokens) - 1)))
    assert affordable(model, rows, 4, False) == ([*rows[:3], *rows[4:]], 4)
    shortest = sum(sorted(tokens)[:40])
    for budget, times in ((0.5, 2), (2.5, 2), (3.5, 3)):
        monkeypatch.setattr("truthheads.workflows.ground_remedies.LEARNING", float(weights * budget * shortest))
        kept, found = affordable(model, rows, 4, False)
        assert len(kept) == 40 and found == times
    assert Settings().chat is None and Settings().controls is None
