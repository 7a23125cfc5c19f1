"""Truth Scores on disk and as tables: round trips, the released formats, and what top and intervals mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthheads.errors import ArtifactError
from truthheads.results.score_summary import NOT_BINDING, OCCURRENCE, summarise_scores
from truthheads.results.scores import TENSORS, Scores
from truthheads.storage.artifacts import save_artifact

NAN = float("nan")


def worked(**changed: Any) -> Scores:
    """Return scores of 2 layers × 2 heads from 4 answers of 2 questions; the last head has none."""
    logits = torch.tensor(
        [  # L0H0, L0H1, L1H0, L1H1
            [2.0, -1.0, 1.0, NAN],
            [-2.0, 1.0, 1.0, NAN],
            [1.0, -1.0, 1.0, NAN],
            [-3.0, 1.0, 1.0, NAN],
        ]
    )
    tensors: dict[str, Any] = {
        "accuracy": torch.tensor([[1.0, 0.0], [0.5, NAN]]),
        "auroc": torch.tensor([[1.0, 0.0], [0.5, NAN]]),
        "pair_accuracy": torch.tensor([[1.0, 0.25], [0.5, NAN]]),
        "fold_accuracy": torch.tensor([[[1.0, 0.0], [0.5, NAN]]] * 2),
        "kind_values": torch.tensor([[[0.9, 0.1], [0.5, NAN]]]),
        "sample": logits.reshape(4, 2, 2).half(),
        "sample_label": torch.tensor([1, 0, 1, 0]),
        "sample_group": torch.tensor([0, 0, 1, 1]),
        "sample_question": torch.tensor([0, 0, 1, 1]),
        "sample_id": torch.tensor([7, 7, -(2**63), -(2**63)]),
        "probe_weight": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)),
        "probe_bias": torch.tensor([[0.1, -0.0], [1e-30, NAN]]),
    }
    meta = {"kinds": ["absent"], "seed": 0, "data": {"rows": 2, "skipped": 0}, "settings": {"chat": False}}
    return Scores.of("probe", torch.tensor([[1.0, 0.0], [0.5, NAN]]), meta=meta, **(tensors | changed))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


# --- files -----------------------------------------------------------------------------------------------------------


def test_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    scores = worked()
    scores.save(tmp_path / "a.safetensors")
    found = Scores.load(tmp_path / "a.safetensors")
    assert (found.method, found.meta) == ("probe", scores.meta)
    for name in TENSORS:
        assert getattr(found, name).dtype == getattr(scores, name).dtype, name
        assert bits(getattr(found, name)) == bits(getattr(scores, name)), name
    found.save(str(tmp_path / "b.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["attribution", "evidence", "probe"])
def test_scores_with_nothing_but_values_are_saved_too(tmp_path: Path, method: str) -> None:
    Scores.of(method, torch.tensor([[0.5, -2.0]]), meta={}).save(tmp_path / "a")
    found = Scores.load(tmp_path / "a")
    assert (found.method, found.values.tolist()) == (method, [[0.5, -2.0]])
    assert bool(found.accuracy.isnan().all())
    assert found.sample.shape == (0, 1, 2)
    assert found.unit == {"attribution": "mean gradient (nats)", "evidence": "AUROC", "probe": "accuracy"}[method]


def test_a_score_file_with_a_tensor_missing(tmp_path: Path) -> None:
    tensors = {name: getattr(worked(), name) for name in TENSORS if name != "auroc"}
    save_artifact(tmp_path / "a", tensors, {"kind": "scores", "method": "probe"})
    with pytest.raises(ArtifactError, match="is not whole") as caught:
        Scores.load(tmp_path / "a")
    assert "without auroc" in str(caught.value)
    save_artifact(tmp_path / "b", tensors | {"auroc": torch.zeros(1), "values": torch.zeros(3)}, {"kind": "scores"})
    with pytest.raises(ArtifactError, match=r"values of shape \[3\]"):
        Scores.load(tmp_path / "b")


# --- released formats ------------------------------------------------------------------------------------------------


def test_a_released_array(tmp_path: Path) -> None:
    values = np.array([[0.5, 0.75, 1.0], [0.25, np.nan, 0.0]])
    np.save(tmp_path / "a.npy", values)
    scores = Scores.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(scores.values.numpy(), values.astype(np.float32))
    np.testing.assert_array_equal(scores.accuracy.numpy(), values.astype(np.float32))
    assert scores.meta == {"source": "a.npy"}
    assert scores.top(2) == [(0, 2), (0, 1)]
    scores.save(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(Scores.load(tmp_path / "a.safetensors").values.numpy(), values.astype(np.float32))


def test_a_released_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("layer,head,accuracy,f1\n1,0,0.5,0\n0,1,0.75,0\n0,0,0.25,0\n", encoding="utf-8-sig")
    values = Scores.load(path).values
    assert values[0].tolist() == [0.25, 0.75]
    assert values[1, 0] == 0.5
    assert bool(values[1, 1].isnan())  # a cell that is not there was not measured


RELEASED = [
    # name, shape, min, max, mean, best head, correlation with the CSV run: from the data's own description
    ("llama2_7b__halueval292", (32, 32), 0.5305, 0.9864, 0.8229, (9, 13), None),
    ("vicuna_7b_v15__halueval292", (32, 32), 0.4691, 0.9932, 0.8345, (13, 5), 0.903),
    ("llava15_7b__rlhfv2726", (32, 32), 0.4883, 0.6449, 0.5716, (12, 7), 0.999),
    ("qwen25_7b__halueval292", (28, 28), 0.4384, 0.9966, 0.9244, (15, 13), 0.933),
    ("qwen25_vl_7b_instruct__rlhfv2726", (28, 28), 0.5022, 0.7032, 0.6061, (18, 22), 0.997),
]


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "shape", "low", "high", "mean", "best", "agreement"), RELEASED)
def test_real_released_scores(
    reference_data: Path,
    name: str,
    shape: tuple[int, int],
    low: float,
    high: float,
    mean: float,
    best: tuple[int, int],
    agreement: float | None,
) -> None:
    folder = reference_data / "released_scores"
    scores = Scores.load(folder / f"{name}.npy")
    values = scores.values.numpy()
    assert values.shape == shape
    assert (values.min(), values.max(), values.mean()) == pytest.approx((low, high, mean), abs=6e-5)
    assert scores.top(1) == [best]
    if agreement is not None:
        again = Scores.load(folder / f"{name}__cv5_head_metrics.csv").values.numpy()
        assert again.shape == shape
        assert np.corrcoef(values.ravel(), again.ravel())[0, 1] == pytest.approx(agreement, abs=6e-4)


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        Scores.load(path)
    assert "cannot be read as scores" in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:numpy.*")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from([".npy", ".safetensors"]))
    good = tmp_path / f"good{suffix}"
    if not good.exists():
        np.save(tmp_path / "good.npy", np.full((2, 3), 0.5))
        worked().save(tmp_path / "good.safetensors")
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content)] * 3 + [10, 80, len(content) - 1]))]))
    try:
        assert Scores.load(path).values.ndim == 2
    except ArtifactError as error:
        assert str(path) in str(error)


def test_arrays_that_are_no_scores(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((2, 3)))
    path.write_bytes(path.read_bytes()[:-8])
    refusal(path)
    path.write_bytes(b"")
    refusal(path)
    refusal(tmp_path / "nowhere.npy")
    np.save(path, np.array([[{"a": 1}]], dtype=object), allow_pickle=True)  # may run code when it is read
    assert "Python objects" in refusal(path)
    for values in (np.zeros(4), np.zeros((2, 2, 2)), np.zeros((0, 4)), np.array([["a"]]), np.array([[1j]])):
        np.save(path, values)
        assert "an array of shape" in refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "layer,head\n0,0\n",
        "layer,head,accuracy\n",
        "layer,head,accuracy\n0,zero,0.5\n",
        "layer,head,accuracy\n0,0\n",
        "layer,head,accuracy\n-1,0,0.5\n",
        "layer,head,accuracy\n0,99999999,0.5\n",  # one cell would ask for 800 MB
        "\x00\x01",
    ],
)
def test_tables_that_are_no_scores(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    refusal(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"layer,head,accuracy\n0,0,\xff\n")
    refusal(tmp_path / "b.csv")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_top_is_best_first_in_order_of_place_and_without_gaps() -> None:
    scores = Scores.of("probe", torch.tensor([[0.5, NAN, 0.9], [0.9, 0.5, -1.0]]), meta={})
    assert scores.top() == [(0, 2), (1, 0), (0, 0), (1, 1), (1, 2)]
    assert scores.top(1) == [(0, 2)]
    assert Scores.of("probe", torch.full((1, 2), NAN), meta={}).top() == []


def test_intervals_worked_by_hand() -> None:
    low, high = worked().intervals()
    # L0H0 is right in all 4 answers of 2 groups: design effect (0 + .05 * 2) / (0 + .05) = 2. Two right and two wrong
    # added, p = 6 / 8, z = .6745, phi(z)^2 = .1010, and labels without meaning add .1010 / .1875 = .5386. That leaves
    # 4 / 2.5386 = 1.5757 answers; t of 4 degrees is 2.7764, so the lower end is 1 / (1 + 2.7764^2 / 1.5757) = .1697.
    np.testing.assert_allclose(low[0], [0.1697, 0.0], atol=1e-4)
    np.testing.assert_allclose(high[0], [1.0, 1 - 0.1697], atol=1e-4)
    # L1H0 is right in one of two in each group: effect (0 + .1) / (.25 + .05) = .3333, at p = .5 + .6366 = .9699; n is
    # 4.1240 and x = 2.7764^2 / 4.1240 = 1.8691: .5 -+ sqrt(1.8691 / 4 + 1.8691^2 / 4) / 2.8691 = .5 -+ .4036.
    np.testing.assert_allclose([low[1, 0], high[1, 0]], [0.0964, 0.9036], atol=1e-4)
    assert np.isnan([low[1, 1], high[1, 1]]).all()


def test_files_of_before_get_the_intervals_of_labels_without_meaning(tmp_path: Path) -> None:
    known = torch.tensor([[1.0, 1.0], [1.0, NAN]])
    now = worked(dependence=known, pair_dependence=known)
    now.save(tmp_path / "now.safetensors")
    np.testing.assert_array_equal(Scores.load(tmp_path / "now.safetensors").intervals(), now.intervals())
    tensors = {name: getattr(now, name) for name in TENSORS}  # without those that came later
    save_artifact(tmp_path / "before.safetensors", tensors, {**now.meta, "kind": "scores", "method": "probe"})
    before = Scores.load(tmp_path / "before.safetensors")
    assert torch.isnan(before.dependence).all()
    np.testing.assert_array_equal(before.intervals(), now.intervals())
    narrow = worked(dependence=torch.zeros(2, 2)).intervals()
    assert narrow[0][0, 0] > now.intervals()[0][0, 0]


def test_five_of_five_is_no_point() -> None:
    sample = torch.tensor([1.0, -1.0]).repeat(5).reshape(10, 1, 1).half()
    question = torch.arange(5).repeat_interleave(2)
    one = torch.ones(1, 1)
    scores = Scores.of(
        "probe", one, meta={}, auroc=one, pair_accuracy=one, sample=sample, sample_label=torch.tensor([1, 0]).repeat(5),
        sample_group=question, sample_question=question, sample_id=question,
    )  # fmt: skip
    (row,) = scores.table(1)
    for name in ("low", "auroc_low", "pair_accuracy_low"):
        assert 0.2 < row[name] < 0.75, name
    assert row["high"] == row["auroc_high"] == row["pair_accuracy_high"] == 1.0
    low, high = scores.layer_intervals()
    assert 0.2 < low[0] < 0.75 and high[0] == 1.0


def test_intervals_resample_groups() -> None:
    # Gradients 0 in one group and 1 in the other: two groups drawn twice give 0, 1/2 or 1, so the ends are 0 and 1.
    sample = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1).half()
    group = torch.tensor([0, 0, 1, 1])
    others = {name: torch.zeros_like(group) for name in ("sample_label", "sample_question", "sample_id")}
    scores = Scores.of("attribution", torch.tensor([[0.5]]), meta={}, sample=sample, sample_group=group, **others)
    low, high = scores.intervals()
    assert (low[0, 0], high[0, 0]) == (0.0, 1.0)
    bare = Scores.of("attribution", torch.tensor([[0.5]]), meta={})
    assert np.isnan(bare.intervals()).all()


def test_table() -> None:
    rows = worked().table(2)
    low, high = worked().intervals()
    for row, head, value in zip(rows, ("L0H0", "L1H0"), (1.0, 0.5), strict=True):
        at = int(head[1]), int(head[3])
        assert (row["head"], row["score"], row["low"], row["high"]) == (head, value, low[at], high[at])
        for name in ("auroc", "pair_accuracy"):
            assert row[name] == value
            assert row[f"{name}_low"] < row[f"{name}_high"]
            assert row[f"{name}_low"] <= value <= row[f"{name}_high"]


def test_summary() -> None:
    found = summarise_scores(worked(), top=1)
    assert [row["head"] for row in found["top"]] == ["L0H0"]
    row = found["top"][0]
    assert found["best"] == {"head": "L0H0", "score": 1.0, "low": row["low"], "high": row["high"], "chosen": None}
    assert all(
        ends["low"] < mean < ends["high"] for ends, mean in zip(found["layer_intervals"], (0.5, 0.5), strict=True)
    )
    assert found["heads_mean"] == pytest.approx(0.5)  # of 1, 0 and 0.5
    assert found["layers"] == [0.5, 0.5]
    assert found["kinds"]["absent"]["best"]["head"] == "L0H0"
    assert found["kinds"]["absent"]["layers"] == pytest.approx([0.5, 0.5])
    assert found["warnings"] == [NOT_BINDING]


def test_kinds_that_differ_are_said() -> None:
    one = worked()
    kinds = torch.stack([torch.full_like(one.values, 0.9), torch.full_like(one.values, 0.5)])
    both = Scores.of("probe", one.values, kind_values=kinds, meta={**one.meta, "kinds": ["absent", "distractor"]})
    (warning,) = summarise_scores(both)["warnings"]
    assert "0.900 (absent), 0.500 (distractor)" in warning
    assert warning.endswith(OCCURRENCE)


def test_summary_of_scores_from_elsewhere_and_of_nothing() -> None:
    found = summarise_scores(Scores.of("probe", torch.tensor([[0.5, NAN], [NAN, NAN]]), meta={"source": "a.npy"}))
    assert found["layers"] == [0.5, None]
    assert (found["kinds"], found["warnings"]) == ({}, [])
    nothing = summarise_scores(Scores.of("probe", torch.full((2, 2), NAN), meta={}))
    assert (nothing["best"], nothing["heads_mean"], nothing["layers"]) == (None, None, [None, None])


def test_notebook_view() -> None:
    page = worked()._repr_html_()
    assert "L0H0" in page
    assert "absent" not in page  # one kind is the whole
