"""``th.detect`` and ``th.fit_detector`` take a model and rows as a person has them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import truthheads as th
from planted import planted_model, planted_questions, save_planted
from truthheads.errors import DataError, ModelError

ROWS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held")
    save_planted(folder / "model")
    return folder


def dictionaries() -> list[dict[str, Any]]:
    return [
        {"context": one.context, "question": one.question, "answer": answer, "label": label}
        for one in planted_questions(ROWS)
        for answer, label in ((one.truthful, 1), (one.untruthful, 0))
    ]


def as_file(folder: Path) -> Any:
    import json

    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in dictionaries()))
    return path


def as_frame(folder: Path) -> Any:
    return pytest.importorskip("pandas").DataFrame(dictionaries())


HELD: dict[str, Callable[[Path], Any]] = {
    "dictionaries": lambda folder: dictionaries(),
    "an iterator": lambda folder: iter(dictionaries()),
    "a path": as_file,
    "a path as text": lambda folder: str(as_file(folder)),
    "a DataFrame": as_frame,
    "questions": lambda folder: th.read_questions(as_file(folder)),
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_rows_as_they_are_held(held: Callable[[Path], Any], folder: Path) -> None:
    """All ways give one detector, and one probability for each answer."""
    made = th.fit_detector(folder / "model", held(folder), heads=1, chat=False)
    assert made.table() == [{"head": "L1H2", "auroc": 1.0}]
    assert (made.figures["rows"], made.figures["supported"]) == (2 * ROWS, ROWS)
    found = th.detect(folder / "model", held(folder), detector=made)
    assert [row.label for row in found] == [True, False] * ROWS
    assert ((found.probability > 0.5) == (np.arange(2 * ROWS) % 2 == 0)).all()


def test_a_network_in_memory_and_a_name_say_the_same(folder: Path) -> None:
    planted = planted_model()
    planted.network.train()
    model = th.load(planted.network, planted.tokenizer)
    rows = [replace(one, untruthful=None) for one in planted_questions(4)]
    made = th.fit_detector(model, planted_questions(ROWS), heads=1, chat=False)
    named = th.detect(str(folder / "model"), rows, detector=made).probability
    held = th.detect(model, rows, detector=made).probability
    np.testing.assert_allclose(held, named, atol=1e-2)  # the name may be loaded in bf16
    assert not planted.network.training


def test_what_is_no_model_or_no_rows_is_told(folder: Path) -> None:
    made = th.fit_detector(folder / "model", dictionaries(), heads=1, chat=False)
    with pytest.raises(ModelError, match="without its tokenizer"):
        th.detect(planted_model().network, dictionaries(), detector=made)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a single dictionary is no list of rows"):
        th.detect(folder / "model", dictionaries()[0], detector=made)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="row 2: field 'answer'"):
        th.detect(folder / "model", [dictionaries()[0], {"context": "c", "answer": " "}], detector=made)
