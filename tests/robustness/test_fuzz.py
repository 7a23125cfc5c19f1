"""Readers given 12,000 damaged files: what comes is a result or an error raised on purpose, soon, in bounded memory."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzed import QUESTIONS, Target, targets
from fuzzing import JUNK, survives
from truthheads.benchmarks.halueval import read_halueval
from truthheads.benchmarks.pope_questions import read_pope
from truthheads.data.readers import read_questions
from truthheads.data.tables import read_rows
from truthheads.errors import DataError

SEED = 20260
LEAST = 10_000
NAMES = [
    "questions .jsonl by bytes",
    "questions .jsonl by fields",
    "questions .json",
    "questions .csv",
    "questions .parquet",
    "HaluEval",
    "POPE",
    "answers to POPE",
    "answers scored",
    "objects of images",
    "objects, gzipped",
    "scenes",
    "captions",
    "captions scored",
    "synonyms",
    "predictions",
    "predictions scored again",
    "neutral text",
    "neutral .jsonl",
    "steps",
    "recipe",
    "scores",
    "scores .npy",
    "scores .csv",
    "gate",
    "trace",
    "drift",
    "comparison",
    "a shard",
    "a header",
    "an index",
    "a GGUF header",
    "a GGUF export",
    "a configuration",
    "an image",
    "report: comparison",
    "report: tuning",
    "report: summary",
    "report: ground",
    "report: scores",
    "report: trace",
    "report: gate",
    "report: drift",
    "report: array",
    "report: pictures",
]


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return {one.name: one for one in targets(tmp_path_factory.mktemp("seeds"))}


def test_ten_thousand_files_are_read(every: dict[str, Target]) -> None:
    assert list(every) == NAMES
    assert sum(one.count for one in every.values()) >= LEAST


@pytest.mark.parametrize("name", NAMES)
def test_only_errors_raised_on_purpose(every: dict[str, Target], tmp_path: Path, name: str) -> None:
    target = every[name]
    (tmp_path / target.file).parent.mkdir(exist_ok=True)
    read = sum(target.run(tmp_path, SEED, at) for at in range(target.count))
    # A target that refuses everything would look at nothing but its own front door.
    assert read > 0 or name in ("report: array", "report: trace"), "no damaged file was whole enough to be read"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=12)
    | st.sampled_from([one for one in JUNK if not isinstance(one, float)]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.sampled_from(QUESTIONS),
    changed=st.dictionaries(st.sampled_from(sorted({name for row in QUESTIONS for name in row})), VALUES, max_size=3),
    ends=st.sampled_from(["\n", "\r\n", "\r", "\u2028", ""]),
    mark=st.booleans(),
)
def test_any_value_in_any_field(tmp_path: Path, seed: dict[str, Any], changed: Any, ends: str, mark: bool) -> None:
    text = ("\ufeff" if mark else "") + json.dumps({**seed, **changed}) + ends + json.dumps(seed) + ends
    path = tmp_path / "q.jsonl"
    path.write_bytes(text.encode())
    for read in (
        read_questions,
        lambda at: read_questions(at, skip_bad_rows=True),
        read_halueval,
        lambda at: read_pope([at]),
    ):
        survives(lambda: read(path), DataError, lambda: repr(text))  # noqa: B023


def test_a_reading_that_hangs_or_reserves_too_much_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guards themselves: each must be able to fail."""

    def slow() -> None:
        while True:
            pass

    monkeypatch.setattr("fuzzing.PATIENCE", 0.2)
    with pytest.raises(AssertionError, match="Hang"):
        survives(slow, Exception, lambda: "x")
    with pytest.raises(AssertionError, match="MemoryError"):
        survives(lambda: bytearray(2**40), DataError, lambda: "x")
    with pytest.raises(AssertionError, match="KeyError"):
        survives(lambda: {}["a"], DataError, lambda: "x")


# --- what fuzzing has found, each with the least file that showed it


def test_a_parquet_file_whose_column_entry_is_damaged_does_not_end_the_process(tmp_path: Path) -> None:
    """pyarrow ends the process where one column's entry is asked for; read in a child, lest it take pytest along."""
    path = Path(__file__).with_name("damaged.parquet")
    child = os.fork()
    if not child:
        try:
            list(read_rows(path))
        except DataError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
