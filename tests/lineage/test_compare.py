"""``compare``: verdicts from intervals, three models in order, drift against change, files, bad input, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import truthheads as th
from simulated import HEADS, LAYERS, simulated
from truthheads.cli import app
from truthheads.errors import ArtifactError, DataError, ShapeError
from truthheads.lineage.agreement import relate, score_verdict
from truthheads.lineage.alignment import align
from truthheads.lineage.compare import compare, drift_score_correlation
from truthheads.results.comparison import Comparison
from truthheads.results.scores import Scores


def run(*words: object) -> Result:
    """Run the command line."""
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")


@pytest.mark.parametrize(
    ("rho", "word"), [(0.95, "inherited"), (0.4, "partly"), (0.0, "not related")], ids=["same", "some", "none"]
)
def test_verdicts_follow_the_truth(rho: float, word: str) -> None:
    words = [
        score_verdict(relate(*simulated(seed, rho=rho, questions=300)[:2], resamples=20)).word for seed in range(10)
    ]
    assert words.count(word) >= 8
    opposite = {"inherited": "not related", "not related": "inherited", "partly": "inherited"}[word]
    assert opposite not in words


def test_two_models_of_pure_chance_are_not_related() -> None:
    words = []
    for seed in range(20):
        a, b, _ = simulated(seed, rho=0.0, questions=200, spread=0.0, common=0.9)
        relation = relate(a, b, resamples=20)
        assert relation.pearson.value > 0.3  # they share the questions, and so their noise
        words.append(score_verdict(relation).word)
    assert words.count("not related") >= 18
    assert not {"inherited", "partly"} & set(words)


def test_few_heads_cannot_tell() -> None:
    few = Scores.of("probe", torch.tensor([[0.6, 0.7], [0.8, 0.9]]), meta={})
    assert score_verdict(relate(few, few)).word == "can't tell"  # four heads: chance does as well once in four


def test_a_permuted_copy_is_matched_head_by_head() -> None:
    a, b, _ = simulated(3, rho=0.99, questions=300, common=0.95)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(HEADS), (LAYERS, 1)), axis=1)

    def moved(values: torch.Tensor) -> torch.Tensor:
        index = torch.from_numpy(order).expand(values.shape)
        return values.gather(-1, index)

    permuted = Scores.of(
        "probe",
        moved(b.values),
        meta={},
        sample=moved(b.sample),
        **{name: getattr(b, name) for name in ("sample_label", "sample_group", "sample_question", "sample_id")},
    )
    found = align(a, permuted, permutations=20)
    assert found.basis == "samples"
    assert np.array_equal(
        np.take_along_axis(order, np.array(found.heads), axis=1), np.tile(np.arange(HEADS), (LAYERS, 1))
    )
    assert found.matched_held_out is not None
    assert found.matched_held_out.after > found.matched_held_out.chance.high


def test_alignment_of_strangers_is_what_any_two_models_give() -> None:
    inside = 0
    for seed in range(10):
        a, b, _ = simulated(seed, rho=0.0, questions=60, shared=False)
        found = align(a, b, permutations=40, seed=seed)
        assert found.rotated.after > 0.3  # a free rotation always finds something
        inside += found.held_out.p > 0.025
        inside += found.rotated.p > 0.025
    assert inside >= 17


def test_other_shapes_are_refused_and_aligned_when_asked(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    files = []
    for name, shape in (("a", (6, 4)), ("b", (9, 5))):
        np.save(tmp_path / f"{name}.npy", generator.uniform(0.5, 0.9, shape))
        files.append(tmp_path / f"{name}.npy")
    with pytest.raises(ShapeError, match="--align"):
        compare(*files)
    pair = compare(*files, align=True).pairs[0]
    assert pair["pearson"] is None
    assert pair["verdict"] == "can't tell"
    assert len(pair["alignment"]["layers"]) == 6
    assert -1 <= pair["depth_profile"] <= 1


def test_the_result_comes_back_from_its_file(tmp_path: Path) -> None:
    a, b, _ = simulated(1, rho=0.8, questions=100)
    other, _, _ = simulated(2, rho=0.8, questions=100)
    found = compare(a, b, other, names=["base", "tuned", "stranger"], reference=None)
    found.save(tmp_path / "comparison.json")
    again = Comparison.load(tmp_path / "comparison.json")
    assert again.result == json.loads((tmp_path / "comparison.json").read_text())
    assert [(p["a"], p["b"]) for p in again.pairs] == [("base", "tuned"), ("base", "stranger"), ("tuned", "stranger")]
    pinned = {"a", "b", "pearson", "spearman", "pearson_within_layer", "p_permutation", "noise_ceiling", "verdict"}
    assert pinned <= set(again.pairs[0])
    assert {"value", "low", "high"} == set(again.pairs[0]["pearson"])
    assert "vega" in again._repr_html_()
    first = (tmp_path / "comparison.json").read_bytes()
    compare(a, b, other, names=["base", "tuned", "stranger"]).save(tmp_path / "comparison.json")
    assert (tmp_path / "comparison.json").read_bytes() == first


def test_a_reference_must_be_of_one_of_the_models() -> None:
    a, b, _ = simulated(1, rho=0.8, questions=100)
    named = [
        Scores.of("probe", one.values, meta={"model": {"fingerprint": print_, "name": print_}})
        for one, print_ in ((a, "x"), (b, "y"), (b, "z"))
    ]
    assert compare(*named[:2], reference=named[1]).result["reference"]["of"] == "y"
    with pytest.raises(DataError, match="none of the models"):
        compare(*named[:2], reference=named[2])


def test_drift_that_foretells_change_is_seen_and_other_drift_is_not() -> None:
    generator = np.random.default_rng(0)
    moved = generator.uniform(0.01, 0.1, (LAYERS, HEADS))
    drift = th.Drift("a", "b", {part: torch.from_numpy(moved).float() for part in "qkvo"})
    seen = drift_score_correlation(drift, moved + generator.normal(0, 0.005, moved.shape))["all"]
    assert seen["within_layer"]["low"] > 0.8
    assert seen["p_permutation"] < 0.01
    chance = [
        drift_score_correlation(drift, generator.uniform(size=moved.shape), seed=s)["q"]["p_permutation"]
        for s in range(10)
    ]
    assert sum(p < 0.05 for p in chance) <= 3


def test_scores_and_weights_must_pair_up() -> None:
    a, b, _ = simulated(1, rho=0.8, questions=20)
    with pytest.raises(DataError, match="no pairs"):
        compare(a)
    with pytest.raises(DataError, match="no pairs"):
        compare(a, b, weights=["x", "y", "z"])


def test_the_command(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.5, 0.9, (8, 8))
    np.save(tmp_path / "base.npy", base)
    np.save(tmp_path / "tuned.npy", base + generator.normal(0, 0.01, base.shape))
    files = [str(tmp_path / f"{name}.npy") for name in ("base", "tuned")]
    out, plot = tmp_path / "c.json", tmp_path / "c.svg"
    done = run("compare", *files, "--out", str(out), "--plot", str(plot), "--json")
    assert done.exit_code == 0, done.output
    pair = json.loads(done.stdout)["pairs"][0]
    assert (pair["a"], pair["b"], pair["verdict"]) == ("base", "tuned", "inherited")
    assert plot.read_text().startswith("<svg")
    assert "inherited" in run("compare", *files, "--out", str(out), "--force").stdout


def test_a_model_without_weights_flag_is_told_so(tmp_path: Path) -> None:
    done = run("compare", "some/model", "other/model", "--out", str(tmp_path / "c.json"))
    assert done.exit_code == 2
    assert "--weights" in done.stderr
    with pytest.raises(ArtifactError):
        compare(tmp_path / "absent.npy", tmp_path / "absent2.npy")


def test_released_scores(reference_data: Path) -> None:
    folder = reference_data / "released_scores"
    names = ("llama2_7b__halueval292", "vicuna_7b_v15__halueval292", "llava15_7b__rlhfv2726")
    pairs = compare(*(folder / f"{name}.npy" for name in names)).pairs
    found = [(p["pearson"]["value"], p["pearson_within_layer"]["value"]) for p in pairs]
    assert np.round(found[0], 3).tolist() == [0.853, 0.835]
    assert np.round(found[2], 3).tolist() == [0.621, 0.549]
