"""Who looks at the evidence: measures by hand, places among tokens, the planted head, and the claim."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import truthheads as th
from planted import PLANTED_HEAD, planted_model, planted_questions
from truthheads.data.questions import Question
from truthheads.errors import ArtifactError, DataError, ModelError, ShapeError
from truthheads.models.load import Model
from truthheads.models.prompts import encode
from truthheads.results.scores import Scores
from truthheads.results.trace import MEASURES, Trace
from truthheads.stats.figures import head_auroc
from truthheads.tracing.evidence import TokenSpans, auroc, evidence_metrics, find_evidence, token_spans
from truthheads.tracing.score_correlation import score_correlations
from truthheads.tracing.trace import attention_of, trace
from zoo import MULTIMODAL, ROWS, ZooRow, build

LLAMA = next(row for row in ROWS if row.name == "llama")
LLAVA = next(row for row in MULTIMODAL if row.name == "llava")


@pytest.fixture(scope="module")
def planted(wrap: Callable[..., Model]) -> Model:
    made = planted_model()
    return wrap(made.network, made.tokenizer, "planted")


@pytest.fixture(scope="module")
def traced(planted: Model) -> Trace:
    return trace(planted, planted_questions(60), untruthful=True)


# The measures, by hand


def marks(*places: int, of: int = 6) -> Tensor:
    found = torch.zeros(of, dtype=torch.bool)
    found[list(places)] = True
    return found


def test_measures_by_hand() -> None:
    # Token 0 is a sink, 1-3 the context, 4 the query, 5 comes later. Evidence: 2, distractor: 3.
    weights = torch.tensor([[0.5, 0.1, 0.2, 0.1, 0.1, 0.0], [0.2, 0.1, 0.1, 0.4, 0.2, 0.0]])
    found = evidence_metrics(weights, 4, sink=marks(0), context=marks(1, 2, 3), evidence=marks(2), distractor=marks(3))
    by_name = dict(zip(MEASURES, found.tolist(), strict=True))
    # Evidence against 1 and 3: 0.2 beats both; 0.1 ties one and loses to the other: (0.5 + 0) / 2.
    assert by_name["auroc"] == pytest.approx([1.0, 0.25])
    # Four tokens are seen that are no sinks, so the share is 1/4: (0.2 / 0.5) / (1/4) and (0.1 / 0.8) / (1/4).
    assert by_name["lift"] == pytest.approx([1.6, 0.5])
    assert by_name["pointing"] == [1.0, 0.0]
    assert by_name["sink"] == pytest.approx([0.5, 0.2])
    assert by_name["distractor_auroc"] == pytest.approx([0.25, 1.0])
    assert by_name["distractor_lift"] == pytest.approx([0.8, 2.0])
    assert by_name["distractor_pointing"] == [0.0, 1.0]


def test_what_is_not_defined_is_nan() -> None:
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    found = evidence_metrics(weights, 4, sink=marks(0), context=marks(1), evidence=marks(1), distractor=marks())
    by_name = dict(zip(MEASURES, found[:, 0].tolist(), strict=True))
    assert np.isnan(by_name["auroc"])  # nothing else in the context
    assert by_name["lift"] == 1.0  # all attention on the sink: no preference
    assert by_name["pointing"] == 0.25  # four weights are largest alike
    assert by_name["sink"] == 1.0
    assert all(np.isnan(by_name[name]) for name in MEASURES if name.startswith("distractor"))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), inside=st.integers(1, 8), outside=st.integers(1, 30), grid=st.integers(1, 20))
def test_auroc_is_the_rank_sum(seed: int, inside: int, outside: int, grid: int) -> None:
    values = torch.randint(0, grid, (3, inside + outside), generator=torch.Generator().manual_seed(seed)).float()
    label = np.arange(inside + outside) < inside
    wanted = head_auroc(values.T.double().numpy(), label)
    assert auroc(values[:, :inside], values[:, inside:]).numpy() == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 0.9))
def test_moving_attention_to_a_sink_changes_the_sink_alone(seed: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, 12, generator=draw).softmax(1)
    masks = {
        "sink": marks(0, of=12),
        "context": marks(*range(1, 9), of=12),
        "evidence": marks(3, 4, of=12),
        "distractor": marks(6, of=12),
    }
    moved = weights * scale
    moved[:, 0] += 1 - scale
    before, after = evidence_metrics(weights, 11, **masks), evidence_metrics(moved, 11, **masks)
    at = MEASURES.index("sink")
    others = [i for i in range(len(MEASURES)) if i != at]
    assert torch.allclose(before[others], after[others], atol=1e-4)
    assert torch.allclose(after[at], before[at] * scale + 1 - scale, atol=1e-5)


def test_even_attention_is_chance() -> None:
    found = evidence_metrics(
        torch.full((1, 20), 0.05),
        19,
        sink=marks(0, of=20),
        context=marks(*range(1, 12), of=20),
        evidence=marks(3, 4, of=20),
        distractor=marks(7, of=20),
    )
    by_name = dict(zip(MEASURES, found[:, 0].tolist(), strict=True))
    assert by_name["auroc"] == 0.5 and by_name["lift"] == pytest.approx(1.0)
    assert by_name["pointing"] == pytest.approx(2 / 19)


# Places among tokens


def placed(model: Model, question: Question, **options: Any) -> tuple[TokenSpans, list[int]]:
    one = replace(question, untruthful=None)
    item = encode(model, [one], **options)[0]
    ids = [*item.prefix, *item.tails[0]]
    return token_spans(model, question, find_evidence(model, question), str(question.truthful), ids, **options), ids


def shown(places: TokenSpans, mask: Tensor) -> str:
    return "".join(places.text[a:b] for (a, b), here in zip(places.spans, mask.tolist(), strict=True) if here)


@pytest.fixture
def llama(model_of: Callable[[ZooRow], Model]) -> Model:
    return model_of(LLAMA)


@pytest.mark.parametrize("chat", [False, True])
def test_places_of_a_text(llama: Model, chat: bool) -> None:
    context = "  In Zürich, Ada met Bob.\nAda left.  "
    start = context.index("Bob")
    question = Question("a", context, "Whom did Ada meet?", "Bob", "Ada", evidence=((start, start + 3),))
    places, ids = placed(llama, question, chat=chat)
    assert len(places.spans) == len(ids)
    assert shown(places, places.evidence) == "Bob"
    assert shown(places, places.distractor) == "AdaAda"
    # The tiny tokenizer has a token for each byte: both bytes of "ü" are the one character.
    assert shown(places, places.context & ~places.sink).replace("üü", "ü") == "InZürichAdametBobAdaleft"
    assert bool(places.sink[0]) and not bool((places.sink & places.evidence).any())
    assert not places.image.any() and places.boxes is None


def test_the_context_is_not_mistaken_for_its_copy_in_the_question(llama: Model) -> None:
    question = Question("a", "Bob", "Context: Bob is who?", "Bob", None, evidence=((0, 3),))
    places, _ = placed(llama, question)
    assert shown(places, places.evidence) == "Bob"
    assert places.spans[int(places.evidence.nonzero()[0])][0] == len("Context:\n")


def test_without_evidence_the_answer_is_looked_for(llama: Model) -> None:
    question = Question("a", "Bob met Ada. Bobby and BOB left.", "Who?", "Bob", "Ada")
    located = find_evidence(llama, question)
    assert (located.source, located.evidence, located.distractor) == ("occurrences", ((0, 3), (23, 26)), ((8, 11),))
    assert find_evidence(llama, replace(question, truthful="nobody")).source == "none"


def test_a_distractor_inside_the_evidence_is_none(llama: Model) -> None:
    question = Question("a", "New York is new.", "Which?", "New York", "York", evidence=((0, 8),))
    assert find_evidence(llama, question).distractor == ()


def test_bad_places(llama: Model) -> None:
    question = Question("row 7", "Bob left.", "Who?", "Bob", "Ada", evidence=((5, 12),))
    with pytest.raises(
        DataError, match=r"row 'row 7': an evidence span lies outside the context\n.*0 to 9\n.*\[5, 12\)"
    ):
        trace(llama, [question])

    class Slow:
        is_fast = False

    slow = Model(llama.network, Slow(), None, llama.layout, "slow")
    item = encode(llama, [replace(question, evidence=())])[0]
    with pytest.raises(ModelError, match=r"tokenizer of slow gives no character offsets\n(.*\n)*.*got: Slow"):
        token_spans(slow, question, find_evidence(llama, replace(question, evidence=())), "Bob", item.tails[0])


@pytest.fixture
def seeing(wrap: Callable[..., Model]) -> Model:
    model = wrap(build(LLAVA))
    vision = model.network.config.vision_config
    shape = {"height": vision.image_size, "width": vision.image_size}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=shape, crop_size=shape, do_center_crop=False),
        tokenizer=model.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=model.network.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    return Model(model.network, model.tokenizer, processor, model.layout, "llava")


def picture(folder: Path) -> str:
    Image.new("RGB", (40, 20), "red").save(folder / "a.png")
    return str(folder / "a.png")


def test_places_in_an_image(seeing: Model, tmp_path: Path) -> None:
    # Two by two tokens over 40 x 20 pixels: each 20 x 10.
    question = Question("a", "", "What is there?", "a cat", "a dog", image=picture(tmp_path))
    cases = {
        ((0.0, 0.0, 20.0, 10.0),): [True, False, False, False],
        ((0.0, 0.0, 11.0, 20.0),): [True, False, True, False],  # 11 of 20 columns of two tokens
        ((22.0, 12.0, 25.0, 14.0),): [False, False, False, True],  # smaller than any token: the one in its middle
        ((0.0, 0.0, 3.0, 3.0), (21.0, 0.0, 40.0, 9.0)): [True, True, False, False],
    }
    for boxes, wanted in cases.items():
        places, ids = placed(seeing, replace(question, boxes=boxes))
        assert places.boxes is not None and places.boxes.tolist()[1] == [20.0, 0.0, 40.0, 10.0]
        assert [ids[i] for i in places.image.nonzero().flatten().tolist()] == [8] * 4
        assert places.evidence[places.image].tolist() == wanted
        assert torch.equal(places.context, places.image)
        assert shown(places, ~places.image & ~places.sink).startswith("Whatisthere")
    with pytest.raises(DataError, match=r"a box lies outside the image\n.*40 x 20\n.*\[30, 0, 50, 10\]"):
        placed(seeing, replace(question, boxes=((30.0, 0.0, 50.0, 10.0),)))


class Shouting(LlavaProcessor):
    """A processor that changes the text."""

    def __call__(self, images: Any = None, text: Any = None, **words: Any) -> Any:
        return super().__call__(images=images, text=[one.replace("What", "WHAT") for one in text], **words)


def test_a_processor_that_changes_the_text_is_refused(seeing: Model, tmp_path: Path) -> None:
    question = Question(
        "a", "", "What is there?", "a cat", "a dog", image=picture(tmp_path), boxes=((0.0, 0.0, 20.0, 10.0),)
    )
    own = seeing.processor
    shouting = Shouting(
        image_processor=own.image_processor,
        tokenizer=own.tokenizer,
        patch_size=own.patch_size,
        vision_feature_select_strategy=own.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        image_token="<image>",
    )
    with pytest.raises(ModelError, match="row 'a': the tokens cannot be told apart") as raised:
        trace(replace(seeing, processor=shouting), [question])
    assert raised.value.fix == "trace another model, or rows without images"


def test_an_image_beside_a_context(seeing: Model, tmp_path: Path) -> None:
    question = Question(
        "a",
        "Bob has a cat.",
        "Who?",
        "Bob",
        "Ada",
        evidence=((0, 3),),
        image=picture(tmp_path),
        boxes=((0.0, 0.0, 20.0, 10.0),),
    )
    places, _ = placed(seeing, question)
    assert shown(places, places.evidence) == "Bob" and int((places.evidence & places.image).sum()) == 1
    assert int((places.context & places.image).sum()) == 4
    found = trace(seeing, [question])
    assert torch.isfinite(found.auroc).all()


# The planted head


def test_the_planted_head_finds_the_evidence(traced: Trace) -> None:
    assert traced.top(1) == [PLANTED_HEAD]
    for position in ("answer", "question"):
        assert traced.array("auroc", position)[PLANTED_HEAD] >= 0.99
        assert traced.array("pointing", position)[PLANTED_HEAD] == 1
        others = traced.array("pointing", position).flatten().sort(descending=True).values
        assert others[1] < 0.9
    # Under an answer that does not stand in the context the head looks at the first token, as it was built to.
    assert traced.array("sink", "untruthful")[PLANTED_HEAD] > 0.99
    assert traced.array("pointing", "untruthful")[PLANTED_HEAD] == 0


def test_one_question_to_be_drawn(planted: Model) -> None:
    question = planted_questions(1)[0]
    for position in ("answer", "question"):
        found = attention_of(planted, question, [PLANTED_HEAD, (0, 0)], position=position)
        looked_at = found.weights[0] > 0.99
        assert shown(found.places, looked_at) == question.truthful
        assert torch.equal(looked_at, found.places.evidence)
        assert found.weights.sum(1).tolist() == pytest.approx([1, 1], abs=1e-4)
        assert not found.weights[:, found.query + 1 :].any()
    with pytest.raises(DataError, match=r"no attention of \[\(9, 0\)\]"):
        attention_of(planted, question, [(9, 0)])


def test_batches_and_both_answers_change_nothing(planted: Model, traced: Trace) -> None:
    one = trace(planted, planted_questions(60), batch_tokens=40)
    for position in one.positions:
        for name in MEASURES[:4]:
            assert torch.allclose(one.array(name, position), traced.array(name, position), atol=1e-4)


def test_a_run_that_was_stopped_goes_on(planted: Model, tmp_path: Path) -> None:
    questions = planted_questions(12)
    done = []

    def stop(through: int, total: int) -> None:
        done.append(through)
        if through > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(planted, questions, batch_tokens=80, work_dir=tmp_path / "w", progress=stop)
    assert len((tmp_path / "w" / "journal").read_text().split()) == len(done)
    again = trace(planted, questions, batch_tokens=80, work_dir=tmp_path / "w")
    assert torch.equal(again.values[:, :4], trace(planted, questions, batch_tokens=80).values[:, :4])


def test_rows_that_cannot_be_traced_are_counted(planted: Model) -> None:
    questions = planted_questions(4)
    questions[1] = replace(questions[1], evidence=(), truthful="Nowhere")
    questions[2] = replace(questions[2], truthful=None)
    questions[3] = replace(questions[3], evidence=())
    found = trace(planted, questions)
    assert found.meta["summary"]["left_out"] == {"no evidence": 1, "no truthful answer": 1}
    assert found.meta["summary"]["sources"] == {"occurrences": 1, "spans": 1}
    assert found.sample_question.tolist() == [0, 3]
    with pytest.raises(DataError, match=r"no question has evidence(.*\n)*.*1 rows with no evidence"):
        trace(planted, questions[1:3])
    with pytest.raises(DataError, match="unknown position 'end'"):
        trace(planted, questions, position="end")


def test_a_context_that_is_too_long_loses_its_start(wrap: Callable[..., Model]) -> None:
    model = wrap(build(LLAMA))
    model = replace(model, layout=replace(model.layout, max_positions=80))
    context = "Bob ran. " * 10 + "Ada left."
    spans = ((0, 3), (context.index("Ada"), context.index("Ada") + 3))
    question = Question("a", context, "Who left?", "Ada", None, evidence=spans)
    with pytest.raises(DataError, match="too long"):
        trace(model, [question])
    found = trace(model, [question], truncate=True)
    assert found.meta["summary"]["evidence_tokens"] == 3  # the first span is gone with the start
    with pytest.raises(DataError, match="no question has evidence"):
        trace(model, [replace(question, evidence=spans[:1])], truncate=True)


# The artefact


def test_save_load_and_bytes(traced: Trace, tmp_path: Path) -> None:
    traced.save(tmp_path / "a.safetensors")
    again = Trace.load(tmp_path / "a.safetensors")
    for name in ("values", "sample", "sample_group", "sample_question", "sample_id", "truth"):
        assert torch.equal(getattr(again, name).nan_to_num(-1), getattr(traced, name).nan_to_num(-1))
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert th.Trace is Trace and str(again.table(3)) == str(traced.table(3))  # NaN is equal to itself as text alone
    assert "vega" in again._repr_html_()
    scores = traced.as_scores()
    scores.save(tmp_path / "s.safetensors")
    with pytest.raises(ArtifactError, match="another kind"):
        Trace.load(tmp_path / "s.safetensors")
    with pytest.raises(DataError, match="glance at answer is not in the trace"):
        traced.array("glance")


def test_a_trace_is_a_score_file_of_its_own(traced: Trace) -> None:
    scores = traced.as_scores("auroc", "question")
    assert (scores.method, scores.unit, len(scores.sample)) == ("evidence", "AUROC", 60)
    assert torch.equal(scores.values, traced.array("auroc", "question"))
    assert scores.values.numpy() == pytest.approx(scores.sample.double().mean(0).numpy(), abs=1e-3)
    low, high = scores.intervals()
    assert (low <= scores.values.numpy() + 1e-3).all() and (scores.values.numpy() <= high + 1e-3).all()


def test_score_by_evidence(planted: Model) -> None:
    questions = planted_questions(30)
    scores = th.score(planted, questions, method="evidence", max_samples=20)
    assert torch.equal(scores.values, trace(planted, questions).auroc)
    assert len(scores.sample) == 20 and scores.meta["kinds"] == ["absent"]
    assert torch.allclose(scores.kind_values[0], scores.values, atol=1e-3)
    with pytest.raises(DataError, match="no labels to shuffle"):
        th.score(planted, questions, method="evidence", shuffle_labels=True)


def test_a_trace_without_samples_has_no_intervals(planted: Model) -> None:
    questions = planted_questions(12)
    found = trace(planted, questions, scores=th.score(planted, questions), max_samples=0)
    assert found.top(1) == [PLANTED_HEAD] and len(found.sample) == 0
    assert np.isnan(found.intervals("auroc")[0]).all()
    one = found.meta["claim"]["answer"]["auroc"]
    assert one["spearman"]["value"] > 0 and all(np.isnan(one[name]["low"]) for name in ("spearman", "equal_depth"))


@pytest.mark.parametrize("name", ["qwen3_next", "jamba", "gpt_oss", "gpt_neo", "falcon_alibi", "bloom", "deepseek_v3"])
def test_layers_with_heads_are_traced_and_others_stay_empty(name: str, model_of: Callable[[ZooRow], Model]) -> None:
    row = next(row for row in ROWS if row.name == name)
    question = Question("a", "Oslo is far from Rome.", "Which town?", "Oslo", "Rome", evidence=((0, 4),))
    found = trace(model_of(row), [question, replace(question, id="b", context="Oslo it was.")], untruthful=True)
    there = torch.isfinite(found.values[:, :4]).all(0).all(0)
    assert there.shape == (row.num_layers, row.num_heads)
    assert there.all(1).nonzero().flatten().tolist() == list(row.attending)
    assert torch.isfinite(found.values[:, :4]).any(0).any(0).equal(there)


# The claim


@cache
def simulated(relation: float, seed: int = 0) -> tuple[Trace, Scores]:
    """Return a trace and scores of 12 x 16 heads whose parts within layers are related by so much, over 80 questions.

    Both rise with depth, which alone makes them agree.
    """
    draw = np.random.default_rng(seed)
    layers, heads, questions = 12, 16, 80
    depth = np.linspace(0, 1, layers)[:, None]
    first = draw.standard_normal((layers, heads))
    second = relation * first + (1 - relation**2) ** 0.5 * draw.standard_normal((layers, heads))
    values = [0.5 + 0.3 * depth + 0.05 * part for part in (first, second)]
    noisy = [value + 0.1 * draw.standard_normal((questions, layers, heads)) for value in values]
    ids = torch.arange(questions)
    sample = torch.full((questions, 1, len(MEASURES), layers, heads), torch.nan)
    sample[:, 0, 0] = torch.from_numpy(noisy[0])
    meta = {"positions": ["answer"], "position": "answer"}
    found = Trace(
        sample.double().nanmean(0).float(), sample.half(), ids, ids, ids, torch.full((layers, heads), torch.nan), meta
    )
    scores = Scores.of(
        "attribution",
        torch.from_numpy(noisy[1].mean(0)),
        sample=torch.from_numpy(noisy[1]).half(),
        sample_label=torch.ones(questions, dtype=torch.int64),
        sample_group=ids,
        sample_question=ids,
        sample_id=ids + 1000,
        meta={},
    )
    return found, scores


def test_a_relation_within_layers_is_found() -> None:
    found = score_correlations(*simulated(0.7))["answer"]
    assert list(found) == ["auroc"]
    one = found["auroc"]
    assert 0.5 < one["within_layer"]["value"] < 0.85
    assert one["within_layer"]["low"] > 0.3 and one["p_permutation"] < 0.001
    assert one["spearman"]["value"] > one["within_layer"]["value"]
    assert one["equal_depth"]["low"] > 0
    assert (one["heads"], one["shared_questions"]) == (192, 0)


def test_a_shared_depth_profile_is_no_relation() -> None:
    one = score_correlations(*simulated(0.0))["answer"]["auroc"]
    assert one["spearman"]["value"] > 0.6 and one["depth_only"] == pytest.approx(one["spearman"]["value"], abs=0.1)
    assert abs(one["within_layer"]["value"]) < 0.2 and one["p_permutation"] > 0.05
    assert one["equal_depth"]["low"] < 0.01


def test_the_claim_of_a_measure_with_itself_is_one(traced: Trace) -> None:
    one = score_correlations(traced, traced.as_scores())["answer"]["auroc"]
    assert one["spearman"]["value"] == pytest.approx(1) and one["within_layer"]["value"] == pytest.approx(1)
    assert one["shared_questions"] == 60


def test_scores_without_samples_are_taken_as_they_are() -> None:
    found, scores = simulated(0.7)
    bare = Scores.of("probe", scores.values, meta={})
    one = score_correlations(found, bare)["answer"]["auroc"]
    assert one["within_layer"]["value"] == score_correlations(found, scores)["answer"]["auroc"]["within_layer"]["value"]
    assert one["within_layer"]["low"] < one["within_layer"]["value"] < one["within_layer"]["high"]


def test_scores_of_another_shape_are_refused(planted: Model) -> None:
    other = Scores.of("probe", torch.zeros(3, 4), meta={})
    with pytest.raises(ShapeError, match=r"2 layers x 4 heads\n.*3 x 4"):
        trace(planted, planted_questions(3), scores=other)
