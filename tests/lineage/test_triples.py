"""Which of three related models stands in the middle: siblings, chains, strangers."""

from itertools import combinations
from pathlib import Path

import pytest
import torch

from truthheads.lineage.compare import compare
from truthheads.lineage.weight_drift import middle, weight_drift
from truthheads.results.drift import Drift
from zoo import ROWS, build, tiny_tokenizer

LLAMA = next(row for row in ROWS if row.name == "llama")


def moved(base: Path, folder: Path, share: float, seed: int) -> Path:
    """Write a copy with independent noise of a share of each weight's norm."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += share * noise * weight.norm() / noise.norm()
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a base, two children of it, a grandchild by the first, and a stranger."""
    home = tmp_path_factory.mktemp("family")
    for name, seed in (("base", 0), ("stranger", 1)):
        build(LLAMA, seed=seed).save_pretrained(home / name)
        tiny_tokenizer().save_pretrained(home / name)
    moved(home / "base", home / "first", 0.05, 1)
    moved(home / "base", home / "second", 0.08, 2)
    moved(home / "first", home / "grandchild", 0.05, 3)
    return {name: home / name for name in ("base", "first", "second", "grandchild", "stranger")}


def drifts(family: dict[str, Path], names: tuple[str, ...]) -> dict[tuple[str, str], Drift]:
    return {pair: weight_drift(str(family[pair[0]]), str(family[pair[1]])) for pair in combinations(names, 2)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("base", "first", "second"), "base"),
        (("first", "base", "second"), "base"),
        (("second", "first", "base"), "base"),
        (("base", "first", "grandchild"), "first"),
        (("grandchild", "base", "first"), "first"),
        (("grandchild", "base", "second"), "base"),
        (("base", "first", "stranger"), None),
    ],
)
def test_the_middle_is_found_in_any_order(
    family: dict[str, Path], names: tuple[str, str, str], expected: str | None
) -> None:
    found = middle(names, drifts(family, names))
    assert found.middle == expected
    assert (expected or "none") in found.in_words()


def test_angles_are_those_of_the_changes(family: dict[str, Path]) -> None:
    """Changes of .05 and .08 at a right angle: at the first child cos = .05 / √(.05² + .08²)."""
    names = ("base", "first", "second")
    found = middle(names, drifts(family, names)).cosines
    assert found[0].value == pytest.approx(0, abs=0.1)
    assert found[1].value == pytest.approx(0.05 / (0.05**2 + 0.08**2) ** 0.5, abs=0.05)
    assert found[2].value == pytest.approx(0.08 / (0.05**2 + 0.08**2) ** 0.5, abs=0.05)


def test_compare_says_so(family: dict[str, Path]) -> None:
    names = ("base", "first", "second")
    found = compare(weights=[str(family[name]) for name in names], names=names)
    assert [triple["middle"] for triple in found.result["triples"]] == ["base"]
    assert {pair["verdict"] for pair in found.pairs} == {"inherited"}
    assert all(pair["pearson"] is None for pair in found.pairs)
