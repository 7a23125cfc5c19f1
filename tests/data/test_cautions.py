"""Few rows: heads are not ranked and gates not chosen without a word."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.fewrows import CARRYING, HEADS, ranked

from invoked import run
from planted import planted_questions, save_planted
from truthheads.data.cautions import (
    CHOSEN_FROM,
    LUCKIEST,
    RANKED_FROM,
    cannot_choose,
    cannot_rank,
    luckiest,
    ranked_from,
)
from truthheads.data.questions import write_questions
from truthheads.lineage.compare import compare
from truthheads.reporting.report import write_report
from truthheads.results.scores import Scores
from truthheads.results.trace import Trace
from truthheads.tracing.score_correlation import summarise_trace


def test_the_limit_worked_by_hand() -> None:
    # The largest of 270 normal numbers is expected at 2.83; 2.83 * 1.2 / 2 / sqrt(2 n) is a sixth from n = 52 on.
    assert ranked_from(270) == 52
    assert luckiest(52, 270) <= LUCKIEST < luckiest(51, 270)
    assert luckiest(5, 270) == 1.0 and luckiest(100, 1) == 0.5
    assert (ranked_from(1), ranked_from(8), ranked_from(1024)) == (RANKED_FROM, RANKED_FROM, 68)


@pytest.mark.parametrize("questions", [20, 50])
def test_the_luckiest_of_simulated_heads_is_where_the_limit_says(questions: int) -> None:
    found = ranked(questions, 0.8, sets=4, seed=1)
    assert found.luckiest == pytest.approx(luckiest(questions, HEADS - CARRYING), abs=0.04)
    assert (found.carrying > 0.95) == (questions == 50)


def test_the_words() -> None:
    assert cannot_rank(None, 270) is None and cannot_rank(52, 270) is None and cannot_choose(CHOSEN_FROM) is None
    said = str(cannot_rank(5, 270))
    assert (
        said.startswith("Heads cannot be ranked: 5 questions are too few") and "100%" in said and "52 questions" in said
    )
    assert "1 question is too few" in str(cannot_rank(1, 2))
    assert "4 dev questions are too few" in str(cannot_choose(4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, scores and a trace on five questions, and scores on thirty."""
    at = tmp_path_factory.mktemp("few")
    save_planted(at / "model")
    for name, rows in (("five", 5), ("many", 30)):
        write_questions(at / f"{name}.jsonl", planted_questions(rows))
        out = at / f"{name}.safetensors"
        result = run("score", at / "model", "--data", at / f"{name}.jsonl", "--out", out, "--dtype", "fp32", "--json")
        (at / f"{name}.json").write_text(result.stdout)
        (at / f"{name}.txt").write_text(result.stderr)
    return at


def test_score_says_so_everywhere(folder: Path) -> None:
    few, many = (json.loads((folder / f"{name}.json").read_text()) for name in ("five", "many"))
    assert (few["questions"], few["ranked"]) == (5, False) and (many["questions"], many["ranked"]) == (30, True)
    assert few["warnings"][0].startswith("Heads cannot be ranked: 5 questions")
    assert not any("ranked" in text for text in many["warnings"])
    assert "Heads cannot be ranked" in (folder / "five.txt").read_text()
    assert "Heads cannot be ranked" not in (folder / "many.txt").read_text()
    scores, more = Scores.load(folder / "five.safetensors"), Scores.load(folder / "many.safetensors")
    assert str(scores.caution).startswith("Heads cannot be ranked") and more.caution is None
    assert all(row["ranked"] is False for row in scores.table()) and "ranked" not in more.table()[0]


def test_rows_of_one_group_count_once(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "many.jsonl").read_text().splitlines()]
    rows = [{**row, "group": f"text {at % 6}"} for at, row in enumerate(rows)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "s.safetensors"
    run("score", folder / "model", "--data", tmp_path / "q.jsonl", "--out", out, "--max-samples", 0, "--dtype", "fp32")
    assert Scores.load(out).questions == 6


def test_samples_that_were_not_kept_are_not_missing_questions(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    run("score", folder / "model", "--data", folder / "many.jsonl", "--out", out, "--max-samples", 8, "--dtype", "fp32")
    found = Scores.load(out)
    assert len(torch.unique(found.sample_group)) == 4 and found.questions == 30 and found.caution is None


def test_the_table_for_people_names_no_best_head(folder: Path, tmp_path: Path) -> None:
    words = ("--data", folder / "five.jsonl", "--out", tmp_path / "s.safetensors", "--dtype", "fp32")
    shown = run("score", folder / "model", *words).stdout
    assert "no ranking: 5 questions are too few" in shown and "best head" not in shown


def test_trace_says_so(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    words = ("--data", folder / "five.jsonl", "--scores", folder / "five.safetensors", "--out", out, "--dtype", "fp32")
    result = run("trace", folder / "model", *words)
    found = Trace.load(out)
    assert found.questions == 5 and all(row["ranked"] is False for row in found.table())
    warnings = summarise_trace(found)["warnings"]
    assert warnings[0].startswith("Heads cannot be ranked: 5 questions")
    assert any(text.startswith("Of the Truth Scores: Heads cannot be ranked") for text in warnings)
    assert "Heads cannot be ranked" in result.stderr and "no ranking" in result.stdout


def test_compare_cannot_tell(folder: Path) -> None:
    pair = compare(folder / "five.safetensors", folder / "many.safetensors").pairs[0]
    assert pair["verdict"] == "can't tell" and "Heads cannot be ranked: 5 questions" in pair["evidence"]
    assert "Heads cannot be ranked: 5 questions" in pair["notes"][0]
    assert not any("ranked" in note for note in compare(*[folder / "many.safetensors"] * 2).pairs[0]["notes"])


def test_gates_made_from_few_questions(folder: Path, tmp_path: Path) -> None:
    result = run("gate", folder / "five.safetensors", "--out", tmp_path / "g.safetensors", "--json")
    (said,) = json.loads(result.stdout)["warnings"]
    assert said.startswith("Heads cannot be ranked") and "Heads cannot be ranked" in result.stderr


def test_tune_says_on_how_few_it_chooses(folder: Path, tmp_path: Path) -> None:
    words = ("--out", tmp_path / "g.safetensors", "--dtype", "fp32", "--json")
    learned = run("tune", "learn", folder / "model", "--data", folder / "many.jsonl", "--epochs", 1, *words)
    found = json.loads(learned.stdout)
    assert found["rows"]["dev_groups"] == found["rows"]["dev"] < CHOSEN_FROM
    assert found["warnings"][0].startswith("Gates cannot be told apart safely: ")
    assert "Gates cannot be told apart safely" in learned.stderr
    grid = ("--strengths", "1", "--norms", "centred", "--sites", "z")
    scored = ("--scores", folder / "five.safetensors")
    tried = json.loads(
        run("tune", "grid", folder / "model", "--data", folder / "many.jsonl", *grid, *scored, *words, "--force").stdout
    )
    assert len(tried["warnings"]) == 1 and "Of the scores that the gates are made from: Heads" in tried["warnings"][0]


def test_the_report_names_no_best_head(folder: Path, tmp_path: Path) -> None:
    for name in ("five", "many"):
        (tmp_path / name).mkdir()
        Scores.load(folder / f"{name}.safetensors").save(tmp_path / name / "s.safetensors")
    few, many = (write_report(tmp_path / name, tmp_path / f"{name}.html").summary[0] for name in ("five", "many"))
    assert "scored on 5 questions, too few to rank them" in few and "the best" not in few
    assert "the best, L" in many


def test_a_file_that_does_not_tell_is_taken_as_it_is() -> None:
    assert Scores.of("probe", torch.tensor(np.full((2, 2), 0.5)), meta={}).caution is None
