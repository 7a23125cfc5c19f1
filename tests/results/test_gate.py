"""Gates: norms against worked sums, controls, files, and the figures that the released scores give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from truthheads.cli import app
from truthheads.errors import ArtifactError, GateError, TruthHeadsError
from truthheads.results.gate import Gate
from truthheads.results.scores import Scores
from truthheads.storage.artifacts import save_artifact

NAN = float("nan")
VALUES = [[0.5, 0.7, 0.9], [0.6, 0.6, 0.6], [NAN, 0.4, 0.8]]


def scores_of(values: list[list[float]]) -> Scores:
    return Scores.of("probe", torch.tensor(values), meta={"model": {"name": "m"}})


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="truthheads")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_centred_is_the_distance_from_the_layers_mean() -> None:
    # layer means .7, .6, .6; twice the distance: -.4 0 .4 | 0 0 0 | - -.4 .4
    gate = Gate.from_scores(scores_of(VALUES), strength=2.0)
    torch.testing.assert_close(gate.gate, torch.tensor([[0.6, 1.0, 1.4], [1.0, 1.0, 1.0], [1.0, 0.6, 1.4]]))
    assert gate.absent == ((2, 0),)


def test_minmax_runs_from_0_to_1_in_each_layer() -> None:
    gate = Gate.from_scores(scores_of(VALUES), strength=0.3, norm="minmax").gate
    torch.testing.assert_close(gate[0], torch.tensor([1.0, 1.15, 1.3]), atol=1e-5, rtol=0)
    assert gate[1].tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(gate[2], torch.tensor([1.0, 1.0, 1.3]), atol=1e-5, rtol=0)


def test_signed_divides_by_the_largest_magnitude_of_all() -> None:
    gate = Gate.from_scores(scores_of([[0.2, -0.4], [0.1, NAN]]), strength=0.5, norm="signed").gate
    torch.testing.assert_close(gate, torch.tensor([[1.25, 0.5], [1.125, 1.0]]))


def test_the_floor_clips_and_counts_and_none_lets_heads_turn_round() -> None:
    low = Gate.from_scores(scores_of(VALUES), strength=10.0)
    assert low.clipped == 2 and float(low.gate.min()) == 0.0
    free = Gate.from_scores(scores_of(VALUES), strength=10.0, floor=None)
    assert free.clipped == 0 and float(free.gate.min()) == pytest.approx(-1.0)
    assert free.describe()["negative"] == 2


def test_a_standardised_strength_means_the_same_for_scores_of_any_spread() -> None:
    narrow = [[0.5 + (value - 0.5) / 10 for value in row] for row in VALUES]
    one, other = (
        Gate.from_scores(scores_of(values), strength=0.2, standardise=True).gate for values in (VALUES, narrow)
    )
    torch.testing.assert_close(one, other)
    # finite scores .5 .7 .9 .6 .6 .6 .4 .8: mean .6375, variance .0223, sd .1495; (.9 - .7) / .1495 * .2 = .2675
    assert float(one[0, 2]) == pytest.approx(1.2675, abs=1e-3)


def test_a_control_keeps_what_its_name_says() -> None:
    gate = Gate.from_scores(scores_of(VALUES), strength=2.0)
    constant, shuffled, random = (gate.control(kind, seed=3) for kind in ("constant", "shuffled", "random"))
    there = torch.isfinite(torch.tensor(VALUES))
    assert constant.gate[there].unique().tolist() == pytest.approx([float(gate.gate[there].mean())])
    for layer in range(3):
        assert sorted(shuffled.gate[layer, there[layer]].tolist()) == sorted(gate.gate[layer, there[layer]].tolist())
    sizes = [sorted((made.gate[there] - 1).abs().tolist()) for made in (gate, random)]
    assert sizes[0] == pytest.approx(sizes[1], abs=1e-6)
    assert all(made.gate[2, 0] == 1 for made in (constant, shuffled, random))
    assert shuffled.meta["control"] == {"kind": "shuffled", "seed": 3, "of": gate.digest}


def test_controls_follow_their_seed() -> None:
    gate = Gate(1 + torch.arange(40.0).view(4, 10) / 100)
    for kind in ("shuffled", "random"):
        same = [gate.control(kind, seed=1).digest for _ in range(2)]
        assert same[0] == same[1] != gate.control(kind, seed=2).digest


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5),
    strength=st.floats(-10, 10),
    norm=st.sampled_from(["centred", "minmax", "signed"]),
)
def test_laws_of_gates_from_scores(values: list[list[float]], strength: float, norm: Any) -> None:
    scores = scores_of(values)
    gate = Gate.from_scores(scores, strength=strength, norm=norm, floor=None)
    assert bool(torch.isfinite(gate.gate).all())
    if norm == "centred":
        torch.testing.assert_close(gate.gate.mean(1), torch.ones(len(values)), atol=1e-4, rtol=0)
    if norm == "minmax":
        assert float((gate.gate - 1).abs().max()) <= abs(strength) + 1e-5
    assert bool((Gate.from_scores(scores, strength=0.0, norm=norm).gate == 1).all())
    assert float(Gate.from_scores(scores, strength=strength, norm=norm).gate.min()) >= 0
    torch.testing.assert_close(gate.scaled(1.0).gate, gate.gate, atol=1e-5, rtol=1e-5)
    assert bool((gate.scaled(0.0).gate == 1).all())


def test_a_gate_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    gate = Gate.from_scores(scores_of(VALUES), strength=2.0, site="output")
    for name in ("a", "b"):
        gate.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = Gate.load(tmp_path / "a")
    assert torch.equal(found.gate, gate.gate)
    assert (found.site, found.absent, found.clipped) == ("output", ((2, 0),), 0)
    assert found.meta["strength"] == 2.0 and found.digest == gate.digest
    assert found.table() == gate.table() and "vega" in found._repr_html_()


@pytest.mark.parametrize(
    "meta",
    [{"absent": [[5, 0]]}, {"absent": "x"}, {"absent": [[0]]}, {"clipped": "many"}, {"site": "nowhere"}],
)
def test_a_damaged_gate_file_is_one_error(tmp_path: Path, meta: dict[str, Any]) -> None:
    path = tmp_path / "gate.safetensors"
    save_artifact(path, {"gate": torch.ones(2, 2)}, {"kind": "gate", **meta})
    with pytest.raises(TruthHeadsError):
        Gate.load(path)


def test_other_files_are_no_gates(tmp_path: Path) -> None:
    path = tmp_path / "gate.safetensors"
    save_artifact(path, {"values": torch.ones(2, 2)}, {"kind": "gate"})
    with pytest.raises(ArtifactError, match="not whole"):
        Gate.load(path)
    save_artifact(path, {"gate": torch.ones(2, 2)}, {"kind": "scores"})
    with pytest.raises(ArtifactError, match="another kind"):
        Gate.load(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ArtifactError, match="cannot be read"):
        Gate.load(path)


def test_bad_settings_are_one_error() -> None:
    scores = scores_of(VALUES)
    gate = Gate.from_scores(scores)
    attempts: list[tuple[str, Callable[[], object]]] = [
        ("not finite", lambda: Gate(torch.tensor([[1.0, NAN]]))),
        ("not finite", lambda: Gate(torch.tensor([[1.0, float("inf")]]))),
        ("one factor per head", lambda: Gate(torch.ones(0, 3))),
        ("strength", lambda: Gate.from_scores(scores, strength=NAN)),
        ("floor", lambda: Gate.from_scores(scores, floor=2.0)),
        ("no score", lambda: Gate.from_scores(scores_of([[NAN, NAN]]))),
    ]
    for words, attempt in attempts:
        with pytest.raises(GateError, match=words):
            attempt()
    jaxtyping.config.update("jaxtyping_disable", True)  # that check fires before ours
    try:
        with pytest.raises(GateError, match="unknown norm"):
            Gate.from_scores(scores, norm="other")  # type: ignore[arg-type]
        with pytest.raises(GateError, match="unknown control"):
            gate.control("other")  # type: ignore[arg-type]
        with pytest.raises(GateError, match="unknown site"):
            Gate(torch.ones(2, 2), site="other")  # type: ignore[arg-type]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "strength", "least", "most", "sd", "negative", "below_half"),
    [  # from the released arrays, computed apart from this package
        ("vicuna_7b_v15__halueval292.npy", 4.5, -0.47, 2.08, 0.43, 0.017, 0.14),
        ("llama2_7b__halueval292.npy", 6.0, -0.80, 2.64, 0.60, 0.050, 0.21),
        ("qwen25_7b__halueval292.npy", 6.0, -1.80, 2.00, 0.35, 0.010, 0.08),
        ("vicuna_7b_v15__halueval292.npy", 7.5, -1.45, 2.79, 0.71, 0.098, 0.23),
        ("llava15_7b__rlhfv2726.npy", 4.5, 0.67, 1.37, 0.12, 0.0, 0.0),
    ],
)
def test_released_scores_give_the_papers_gates(
    reference_data: Path,
    file: str,
    strength: float,
    least: float,
    most: float,
    sd: float,
    negative: float,
    below_half: float,
) -> None:
    scores = Scores.load(reference_data / "released_scores" / file)
    gate = Gate.from_scores(scores, strength=strength, floor=None).gate
    assert float(gate.min()) == pytest.approx(least, abs=0.006)
    assert float(gate.max()) == pytest.approx(most, abs=0.006)
    assert float(gate.std(correction=0)) == pytest.approx(sd, abs=0.006)
    assert float((gate < 0).float().mean()) == pytest.approx(negative, abs=0.0006)
    assert float((gate < 0.5).float().mean()) == pytest.approx(below_half, abs=0.006)


def test_the_command_makes_a_gate_and_says_what_it_clipped(tmp_path: Path) -> None:
    scores_of(VALUES).save(tmp_path / "scores.safetensors")
    out = tmp_path / "gate.safetensors"
    result = run("gate", tmp_path / "scores.safetensors", "--strength", 10, "--out", out)
    assert result.exit_code == 0 and "2 of 8 factors were below the floor" in result.output
    assert float(Gate.load(out).gate.min()) == 0.0
    words = ("--strength", 2, "--control", "shuffled", "--seed", 4, "--json", "--plot", tmp_path / "gate.html")
    found = json.loads(run("gate", tmp_path / "scores.safetensors", "--out", out, "--force", *words).stdout)
    assert found["mean"] == pytest.approx(1.0) and Path(found["plot"]).stat().st_size > 1000
    assert Gate.load(out).meta["control"]["kind"] == "shuffled"
    free = run("gate", tmp_path / "scores.safetensors", "--strength", 10, "--floor", "none", "--out", out, "--force")
    assert "2 factors are below 0" in free.output


@pytest.mark.parametrize(
    ("words", "problem"),
    [(("--floor", "low"), "floor"), (("--floor", "nan"), "floor"), (("--strength", "nan"), "strength")],
)
def test_bad_input_of_the_command_is_two_lines(tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    scores_of(VALUES).save(tmp_path / "scores.safetensors")
    result = run("gate", tmp_path / "scores.safetensors", "--out", tmp_path / "gate.safetensors", *words)
    assert result.exit_code == 2 and problem in result.stderr
    assert not (tmp_path / "gate.safetensors").exists()


def test_released_formats_make_gates_too(tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.array(VALUES[:2]))
    (tmp_path / "scores.csv").write_text("layer,head,accuracy\n0,0,0.5\n0,1,0.7\n", encoding="utf-8")
    for name, shape in (("scores.npy", [2, 3]), ("scores.csv", [1, 2])):
        assert run("gate", tmp_path / name, "--out", tmp_path / "gate.safetensors", "--force").exit_code == 0
        assert list(Gate.load(tmp_path / "gate.safetensors").gate.shape) == shape
