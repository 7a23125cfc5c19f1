"""What a user could do instead of a gate: an adapter, an instruction, context-aware decoding; each as it is defined."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import truthheads as th
from shaped import misfits
from truthheads.benchmarks.base import CONTEXT_ALONE, Prediction
from truthheads.benchmarks.halueval import SHOWN_ALONE, read_halueval
from truthheads.benchmarks.registry import BENCHMARKS, record_of
from truthheads.data.questions import Question, write_questions
from truthheads.errors import ArtifactError, DataError, ShapeError, TruthHeadsError
from truthheads.evaluation.ask import yes_no_tokens
from truthheads.evaluation.evaluate import evaluate
from truthheads.evaluation.predictions import NAME, read_predictions
from truthheads.evaluation.summary import rescore, summarise_runs
from truthheads.models.context_aware import same_answers
from truthheads.models.head_modules import locate_places
from truthheads.models.hooks import LowRank
from truthheads.models.prompts import Encoded, encode, framed
from truthheads.results.evaluation import BETTER, EvaluationResult
from truthheads.results.gate import Gate
from truthheads.results.head_adapter import HeadAdapter
from truthheads.storage.files import dumps
from zoo import MULTIMODAL, ROWS, ZooRow, tiny_tokenizer

if TYPE_CHECKING:
    from truthheads.models.load import Model

BY_NAME = {row.name: row for row in (*ROWS, *MULTIMODAL)}
ALPHA = 0.7
WORDS = ("Yes", "No", "yes", "no", "Rome", "Paris", "Where", "is", "in", "Italy", "France", "Answer", "Question",
         "Context", ":", "the", "answer", "a", "city", "Knowledge")  # fmt: skip


@pytest.fixture
def model(wrap: "Callable[..., Model]", model_of: "Callable[[ZooRow], Model]") -> "Model":
    return wrap(model_of(BY_NAME["llama"]).network, tiny_tokenizer(WORDS))


QUESTIONS = [
    Question(str(at), "Rome is in " + "Italy " * at, f"Where is Rome {at}", "Italy a city", "France")
    for at in range(1, 7)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "pairs.jsonl", QUESTIONS)


@pytest.fixture
def qa(tmp_path: Path) -> Path:
    path = tmp_path / "qa.jsonl"
    rows = [
        {"knowledge": "Rome is in Italy " * (1 + at % 2), "question": "Where " + "Rome " * at,
         "right_answer": "Italy " * (at % 3 + 1), "hallucinated_answer": "France a city"}
        for at in range(5)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gate(seed: int = 0) -> Gate:
    return Gate(gate=1 + 0.5 * torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))


def adapter(model: "Model", *, head: int = 1, seed: int = 0, size: float = 0.3) -> HeadAdapter:
    """Return an adapter of one head in every layer, with random numbers in the places that are its own."""
    generator = torch.Generator().manual_seed(seed)
    places = [place for place in locate_places(model.network, model.layout) if place.head == head]
    updates = {}
    for place in places:
        for span, rows in ((place.query, True), (place.output, False)):
            out, wide = model.network.get_submodule(span.module).weight.shape
            a, b = (torch.randn(*shape, generator=generator) * size for shape in ((3, wide), (out, 3)))
            kept = torch.zeros(out if rows else wide)
            kept[span.start : span.start + span.width] = 1
            updates[span.module] = LowRank(a, b * kept[:, None]) if rows else LowRank(a * kept, b)
    about = {"shape": model.layout.shape, "model": {"name": model.name, "fingerprint": model.fingerprint}}
    return HeadAdapter(updates, model.name, tuple(places), False, about)


def lines_of(folder: Path, run: str) -> list[Prediction]:
    return [line for line in read_predictions(folder / NAME).lines if line["run"] == run and line["task"] != "neutral"]


def next_logits(model: "Model", ids: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.network(torch.tensor([ids])).logits[0].float()
    return logits


def contrasted(model: "Model", full: list[int], bare: list[int], answer: list[int]) -> Tensor:
    """Log-probabilities that predict an answer's tokens and what comes after, straight from the definition."""
    sides = [next_logits(model, [*prompt, *answer])[len(prompt) - 1 :] for prompt in (full, bare)]
    return ((1 + ALPHA) * sides[0] - ALPHA * sides[1]).log_softmax(-1)


# --- context-aware decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "lfm2"])
def test_cad_scores_answers_as_it_is_defined(
    name: str, wrap: "Callable[..., Model]", model_of: "Callable[[ZooRow], Model]", pairs: Path, tmp_path: Path
) -> None:
    model = wrap(model_of(BY_NAME[name]).network, tiny_tokenizer(WORDS))
    evaluate(model, "pairs", pairs, out=tmp_path / "e", baselines=["cad"], cad_alpha=ALPHA, batch_tokens=90)
    tokens = lambda text: list(model.tokenizer(text)["input_ids"])  # noqa: E731
    for question, line in zip(
        QUESTIONS, sorted(lines_of(tmp_path / "e", "cad"), key=lambda one: one["id"]), strict=True
    ):
        asked = f"Question: {question.question.strip()}\nAnswer:"
        full, bare = tokens(f"Context:\n{question.context.strip()}\n\n{asked}"), tokens(asked)
        for text, found in zip((question.truthful, question.untruthful), line["logp"], strict=True):
            answer = tokens(f"{asked} {text}")[len(bare) :]
            logp = contrasted(model, full, bare, answer)
            expected = sum(float(logp[at, token]) for at, token in enumerate(answer))
            assert found == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_cad_writes_what_is_most_likely_under_it(
    name: str, wrap: "Callable[..., Model]", model_of: "Callable[[ZooRow], Model]", pairs: Path, tmp_path: Path
) -> None:
    model = wrap(model_of(BY_NAME[name]).network, tiny_tokenizer(WORDS))
    how = {"baselines": ["cad"], "cad_alpha": ALPHA, "asking": {"new_tokens": 5}, "batch_tokens": 90}
    evaluate(model, "conflict", pairs, out=tmp_path / "e", **how)
    ends = {model.tokenizer.eos_token_id, getattr(model.network.generation_config, "eos_token_id", None)}
    for question, line in zip(
        QUESTIONS, sorted(lines_of(tmp_path / "e", "cad"), key=lambda one: one["id"]), strict=True
    ):
        asked = f"Question: {question.question.strip()}\nAnswer:"
        full, bare = (
            list(model.tokenizer(text)["input_ids"])
            for text in (f"Context:\n{question.context.strip()}\n\n{asked}", asked)
        )
        answer: list[int] = []
        while len(answer) < 5 and not ends & set(answer):
            answer.append(int(contrasted(model, full, bare, answer)[-1].argmax()))
        written = [token for token in answer if token not in ends]
        assert line["answer"] == model.tokenizer.decode(written, skip_special_tokens=True)
    plain, cad = (lines_of(tmp_path / "e", run) for run in ("none", "cad"))
    assert [line["answer"] for line in plain] != [line["answer"] for line in cad]


@pytest.mark.parametrize("new_tokens", [1, 3])
def test_cad_judges_by_yes_and_no_as_it_is_defined(new_tokens: int, model: "Model", qa: Path, tmp_path: Path) -> None:
    how = {"baselines": ["cad"], "cad_alpha": ALPHA, "asking": {"new_tokens": new_tokens}, "batch_tokens": 400}
    evaluate(model, "halueval", qa, out=tmp_path / "e", **how)
    words, found = yes_no_tokens(model), {line["id"]: line for line in lines_of(tmp_path / "e", "cad")}
    _, judged = read_halueval(qa)
    assert len(judged) == len(found) == 10
    for one in judged:
        assert one.without is not None and "Knowledge:" in one.prompt and "Knowledge:" not in one.without
        full, bare = (list(model.tokenizer(text)["input_ids"]) for text in (one.prompt, one.without))
        logp = contrasted(model, full, bare, [])[0]
        for word in ("yes", "no"):
            assert found[one.id][word] == pytest.approx(float(logp[words[word]].logsumexp(0)), abs=1e-4)


def test_what_has_no_context_is_the_same_under_cad(model: "Model") -> None:
    """Why there is no harm to measure: both passes are one, and (1 + a) x - a x is x."""
    logits = next_logits(model, [20, 21, 22])
    from truthheads.models.context_aware import contrasted as combined

    torch.testing.assert_close(combined(logits, logits, 0.5), logits, atol=1e-6, rtol=1e-6)


def test_both_passes_predict_the_same_tokens() -> None:
    full = Encoded(0, (1, 2, 3), ((4, 5, 90, 91), (4, 5, 92)), (2, 2))
    bare = Encoded(0, (1,), ((5, 70), (5, 92)), (1, 1))  # the first answer is cut otherwise behind these words
    assert same_answers(full, bare) == Encoded(0, (1,), ((5, 90, 91), (5, 92)), (1, 1))


def test_a_summary_is_judged_without_its_document(tmp_path: Path) -> None:
    path = tmp_path / "summarization.json"
    path.write_text(
        json.dumps({"document": "Rome grew.", "right_summary": "It grew.", "hallucinated_summary": "It fell."})
    )
    for instruction in (None, "I judge."):
        _, (one, _) = read_halueval(path, instruction=instruction)
        assert "Rome grew." in one.prompt and one.without is not None
        assert "Rome grew." not in one.without and "document" not in one.without.lower()
        assert one.without.endswith(one.ending)
    (tmp_path / "qa.json").write_text(
        json.dumps({"knowledge": "k", "question": "q?", "right_answer": "r", "hallucinated_answer": "h"})
    )
    assert read_halueval(tmp_path / "qa.json", knowledge=False)[1][0].without is None


# --- the instruction -------------------------------------------------------------------------------------------------


def test_the_instruction_comes_before_the_prompt(model: "Model", pairs: Path, qa: Path, tmp_path: Path) -> None:
    for task, data, text in (("pairs", pairs, None), ("halueval", qa, None), ("pairs", pairs, "Rome is in Italy :")):
        folder = tmp_path / f"{task}-{text}"
        summary = evaluate(model, task, data, out=folder, baselines=["prompt"], prompt_text=text)
        used = text or {"pairs": CONTEXT_ALONE, "halueval": SHOWN_ALONE}[task]
        mark = summary["settings"]["baselines"]["prompt"]
        assert mark["text"] == used
        more = len(model.tokenizer(f"{used}\n\nx")["input_ids"]) - len(model.tokenizer("x")["input_ids"])
        assert mark["prompt_tokens"] == pytest.approx(more)
    question = QUESTIONS[2]
    (one,) = encode(model, [question], instruction=" Italy \n")
    ids = (*one.prefix, *one.tails[1])
    whole = "Italy\n\nContext:\nRome is in Italy Italy Italy\n\nQuestion: Where is Rome 3\nAnswer: France"
    assert list(ids) == model.tokenizer(whole)["input_ids"]


def test_in_a_chat_the_instruction_is_the_users(model: "Model") -> None:
    tokenizer = tiny_tokenizer(WORDS)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    chatty = type(model)(model.network, tokenizer, None, model.layout, "chatty")
    text = framed(chatty, QUESTIONS[0], chat=True, instruction="Use it.")
    assert text == "<user>Use it.\n\nContext:\nRome is in Italy\n\nQuestion: Where is Rome 1</>"


def test_the_answers_under_the_instruction_are_those_to_the_longer_prompt(
    model: "Model", pairs: Path, tmp_path: Path
) -> None:
    evaluate(model, "pairs", pairs, out=tmp_path / "e", baselines=["prompt"], prompt_text="Paris is a city")
    for question, line in zip(
        QUESTIONS, sorted(lines_of(tmp_path / "e", "prompt"), key=lambda one: one["id"]), strict=True
    ):
        prompt = (
            f"Paris is a city\n\nContext:\n{question.context.strip()}\n\nQuestion: {question.question.strip()}\nAnswer:"
        )
        begun = len(model.tokenizer(prompt)["input_ids"])
        for text, found in zip((question.truthful, question.untruthful), line["logp"], strict=True):
            ids = list(model.tokenizer(f"{prompt} {text}")["input_ids"])
            logp = next_logits(model, ids).log_softmax(-1)
            assert found == pytest.approx(sum(float(logp[at - 1, ids[at]]) for at in range(begun, len(ids))), abs=1e-4)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [name for name in BENCHMARKS if name not in ("pairs", "conflict", "halueval")])
def test_a_benchmark_without_a_context_has_no_baselines(task: str, model: "Model", pairs: Path, tmp_path: Path) -> None:
    assert record_of(task).context_instruction is None
    name = "lm-eval:arc_easy" if task == "lm-eval" else task
    with pytest.raises(TruthHeadsError, match=r"show no context[\s\S]*halueval, pairs, conflict"):
        evaluate(model, name, pairs, out=tmp_path / "e", baselines=["cad"])
    assert not (tmp_path / "e" / NAME).exists()


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"baselines": ["rag"]}, "prompt or cad"),
        ({"baselines": ["cad"], "cad_alpha": 0.0}, "--cad-alpha must be a number above 0"),
        ({"baselines": ["cad"], "cad_alpha": float("nan")}, "--cad-alpha must be a number above 0"),
        ({"baselines": ["prompt"], "prompt_text": " \n"}, "--prompt-text is empty"),
        ({"baselines": ["prompt"], "gates": {"prompt": gate()}}, "two runs would be called 'prompt'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    how: dict[str, Any], match: str, model: "Model", pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(TruthHeadsError, match=match):
        evaluate(model, "pairs", pairs, out=tmp_path / "e", **how)


@pytest.mark.parametrize("baseline", ["prompt", "cad"])
def test_rows_without_a_context_are_refused(baseline: Any, model: "Model", qa: Path, tmp_path: Path) -> None:
    bare = write_questions(tmp_path / "bare.jsonl", [*QUESTIONS, Question("x", "", "Where is Paris", "a", "the")])
    with pytest.raises(DataError, match=r"1 of 7 rows show no context[\s\S]*row 'x'"):
        evaluate(model, "pairs", bare, out=tmp_path / "e", baselines=[baseline])
    with pytest.raises(DataError, match="10 of 10 rows show no context"):
        evaluate(model, "halueval", qa, out=tmp_path / "f", baselines=[baseline], asking={"knowledge": False})


# --- one folder, many runs -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(model: "Model", tmp_path: Path) -> Path:
    """Return the folder of an adapter with eleven controls beside it, as ``tune adapt --controls`` leaves them."""
    adapter(model).save(tmp_path / "own")
    for at in (1, 2, 10):
        adapter(model, head=at % 4, seed=at).save(tmp_path / "own" / "controls" / f"random-{at}")
    return tmp_path / "own"


@pytest.mark.parametrize("task", ["halueval", "pairs", "conflict"])
def test_killed_and_taken_up_again_gives_the_same_bytes(
    task: str, model: "Model", qa: Path, pairs: Path, folder: Path, tmp_path: Path
) -> None:
    data = qa if task == "halueval" else pairs
    how: dict[str, Any] = {
        "gates": {"g": gate()}, "adapters": [folder], "baselines": ["cad", "prompt"], "controls": 2, "guard_texts": 3,
        "batch_tokens": 400,
    }  # fmt: skip
    whole = evaluate(model, task, data, out=tmp_path / "a", **how)
    lines = (tmp_path / "a" / NAME).read_bytes()
    kinds = {run["name"]: run["kind"] for run in whole["runs"]}
    assert list(kinds) == [
        "none", "g", "g/constant-0", "g/shuffled-0", "g/shuffled-1", "g/random-0", "g/random-1",
        "own", "own/random-1", "own/random-2", "prompt", "cad",
    ]  # fmt: skip
    assert {name: kind for name, kind in kinds.items() if "/" not in name} == {
        "none": "none", "g": "gate", "own": "adapter", "prompt": "baseline", "cad": "baseline"
    }  # fmt: skip
    assert {kind for name, kind in kinds.items() if "/" in name} == {"control"}
    for share in (0.3, 0.9):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / NAME).write_bytes(lines[: int(share * len(lines))])
        shutil.copy(tmp_path / "a" / "run.json", tmp_path / "b" / "run.json")
        again = evaluate(model, task, data, out=tmp_path / "b", **how)
        assert (tmp_path / "b" / NAME).read_bytes() == lines
        assert dumps(again["runs"]) == dumps(whole["runs"])
    written = (tmp_path / "a" / "summary.json").read_bytes()
    rescore(tmp_path / "a")
    assert (tmp_path / "a" / "summary.json").read_bytes() == written
    assert misfits(json.loads(written), EvaluationResult) == []
    assert [text for one in lines.splitlines() for text in misfits(json.loads(one), Prediction)] == []
    own, prompt, cad = (run for run in whole["runs"] if run["name"] in ("own", "prompt", "cad"))
    assert own["guard"]["kl"]["value"] > 0 and own["ahead"].keys() == {"own/random-1", "own/random-2"}
    assert own["controls"]["of"] == 2 and own["controls"]["by_kind"].keys() == {"random"}
    assert "guard" not in prompt and "guard" not in cad
    assert (own["cost"]["passes"], prompt["cost"]["passes"], cad["cost"]["passes"]) == (1, 1, 2)
    assert own["cost"]["prompt_tokens"] == 0 < min(prompt["cost"]["prompt_tokens"], cad["cost"]["prompt_tokens"])


def test_what_is_there_is_kept_and_another_remedy_of_one_name_refused(
    model: "Model", pairs: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "e"
    evaluate(model, "pairs", pairs, out=out, baselines=["cad"])
    before = (out / NAME).read_bytes()
    summary = evaluate(model, "pairs", pairs, out=out, baselines=["prompt"], adapters=[folder], guard_texts=2)
    assert (out / NAME).read_bytes().startswith(before)
    assert {run["name"]: run["kind"] for run in summary["runs"]} == {
        "none": "none", "cad": "baseline", "prompt": "baseline", "own": "adapter"
    }  # fmt: skip
    more = evaluate(model, "pairs", pairs, out=out, adapters=[folder], controls=3, guard_texts=2)
    assert [run["name"] for run in more["runs"]][-3:] == ["own/random-1", "own/random-2", "own/random-10"]
    for other in (
        {"baselines": ["prompt"], "prompt_text": "another"},
        {"baselines": ["cad"], "cad_alpha": 0.9},
        {"adapters": {"own": adapter(model, seed=5)}},
        {"gates": {"own": gate()}},
    ):
        with pytest.raises(ArtifactError, match=r"another (baseline|adapter)"):
            evaluate(model, "pairs", pairs, out=out, **other)


# --- adapters --------------------------------------------------------------------------------------------------------


def test_a_run_under_an_adapter_is_the_model_under_it(model: "Model", pairs: Path, tmp_path: Path) -> None:
    own = adapter(model)
    plain = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    evaluate(model, "pairs", pairs, out=tmp_path / "e", adapters=[own], guard_texts=0)
    with th.adapted(model, own):
        evaluate(model, "pairs", pairs, out=tmp_path / "f")
    under, alone = lines_of(tmp_path / "e", "adapter-1"), lines_of(tmp_path / "f", "none")
    assert [line["logp"] for line in under] == [line["logp"] for line in alone]
    assert [line["logp"] for line in under] != [line["logp"] for line in lines_of(tmp_path / "e", "none")]
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.network.state_dict().items())


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_users_own_lora_is_evaluated_as_peft_runs_it(
    model_of: "Callable[[ZooRow], Model]", wrap: "Callable[..., Model]", pairs: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    model = wrap(model_of(BY_NAME["llama"]).network, tiny_tokenizer(WORDS))
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["v_proj", "down_proj"], init_lora_weights=False)
    wrapped: Any = get_peft_model(model_of(BY_NAME["llama"]).network, config)
    wrapped.save_pretrained(tmp_path / "mine")
    summary = evaluate(model, "pairs", pairs, out=tmp_path / "e", adapters=[tmp_path / "mine"], controls=1)
    merged = wrap(wrapped.merge_and_unload(), tiny_tokenizer(WORDS))
    evaluate(merged, "pairs", pairs, out=tmp_path / "f")
    found, expected = lines_of(tmp_path / "e", "mine"), lines_of(tmp_path / "f", "none")
    np.testing.assert_allclose([one["logp"] for one in found], [one["logp"] for one in expected], atol=1e-4)
    assert any("0 of 1 random-head adapters" in note for note in summary["notes"])
    assert summary["runs"][1]["kind"] == "adapter" and "controls" not in summary["runs"][1]


def test_two_folders_of_one_name_are_told_apart(model: "Model", pairs: Path, tmp_path: Path) -> None:
    for at in (1, 2):
        adapter(model, seed=at).save(tmp_path / f"run{at}" / "adapter")
    folders = [tmp_path / "run1" / "adapter", tmp_path / "run2" / "adapter"]
    summary = evaluate(model, "pairs", pairs, out=tmp_path / "e", adapters=folders, guard_texts=0)
    assert [run["name"] for run in summary["runs"]] == ["none", "run1-adapter", "run2-adapter"]


# --- transfer to a descendant ----------------------------------------------------------------------------------------


def test_an_adapter_of_a_base_works_in_its_multimodal_descendant(
    model_of: "Callable[[ZooRow], Model]", wrap: "Callable[..., Model]", pairs: Path, tmp_path: Path
) -> None:
    """The decoder lies deeper there: what is added has to reach the same layers."""
    seeing = wrap(model_of(BY_NAME["llava"]).network, tiny_tokenizer(WORDS), "seeing")
    model = wrap(LlamaForCausalLM(seeing.network.config.get_text_config()).eval(), tiny_tokenizer(WORDS), "text")
    model.network.model.load_state_dict(seeing.network.model.language_model.state_dict())
    model.network.lm_head.load_state_dict(seeing.network.lm_head.state_dict())
    adapter(model).save(tmp_path / "own")
    for network, out in ((model, "e"), (seeing, "f")):
        evaluate(network, "pairs", pairs, out=tmp_path / out, adapters=[tmp_path / "own"], guard_texts=2)
    for run in ("none", "own"):
        base, descendant = (lines_of(tmp_path / out, run) for out in ("e", "f"))
        np.testing.assert_allclose([one["logp"] for one in base], [one["logp"] for one in descendant], atol=1e-5)
    notes = json.loads((tmp_path / "f" / "summary.json").read_text())["notes"]
    assert "adapter own was made on another model (text) and is applied to seeing unchanged" in notes


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4}, "8 heads"),
        ({"num_hidden_layers": 4}, "4 layers"),
        ({"num_hidden_layers": 2}, "2 layers"),
        ({"head_dim": 16}, "16 head_dim"),
    ],
    ids=str,
)
def test_an_adapter_of_another_shape_is_refused_with_both_shapes(
    settings: dict[str, int], differs: str, model: "Model", wrap: "Callable[..., Model]", pairs: Path, tmp_path: Path
) -> None:
    """Eight heads of 4 are as wide as four of 8, and two layers are also the first two of four: modules alone fit."""
    config = type(model.network.config)(**{**model.network.config.to_dict(), **settings})
    other = wrap(type(model.network)(config).eval(), tiny_tokenizer(WORDS), "other")
    match = rf"the adapter adapter-1 does not fit other[\s\S]*{differs}[\s\S]*3 layers, 4 heads, 8 head_dim"
    with pytest.raises(ShapeError, match=match):
        evaluate(other, "pairs", pairs, out=tmp_path / "e", adapters=[adapter(model)])
    assert not (tmp_path / "e" / NAME).exists()


def test_an_update_of_another_tower_is_not_brought_to_the_text(model: "Model", pairs: Path, tmp_path: Path) -> None:
    update = adapter(model).updates["model.layers.0.self_attn.q_proj"]
    for tower in ("model.vision_tower.encoder", "model.visual", "audio_tower"):
        odd = HeadAdapter({f"{tower}.layers.0.self_attn.q_proj": update}, "base")
        with pytest.raises(ShapeError, match=r"no such module"):
            evaluate(model, "pairs", pairs, out=tmp_path / "e", adapters=[odd])


# --- which is best ---------------------------------------------------------------------------------------------------


def planted(run: str, right: float, *, seed: int = 0, rows: int = 200) -> list[Prediction]:
    """Lines of one run in which a known share of pairs is right."""
    margin = np.where(np.random.default_rng(seed).permutation(rows) < right * rows, 1.0, -1.0)
    return [
        {"task": "pairs", "run": run, "id": str(at), "group": str(at), "logp": [float(value), 0.0]}
        for at, value in enumerate(margin)
    ]


def neutral(run: str, kl: float) -> list[Prediction]:
    return [{"task": "neutral", "run": run, "id": f"text-{at}", "kl": kl, "loss": 0.0} for at in range(8)]


MARKS = {
    "adapters": {"own": {"digest": "d"}},
    "baselines": {
        "prompt": {"text": "t", "passes": 1, "prompt_tokens": 31.0},
        "cad": {"alpha": 0.5, "passes": 2, "prompt_tokens": 12.0},
    },
}


def best(*lines: list[Prediction]) -> tuple[str | None, str, EvaluationResult]:
    summary = summarise_runs([line for run in lines for line in run], settings=MARKS)
    return summary["best"]["run"], summary["best"]["in_words"], summary


def test_the_best_remedy_is_named_with_its_cost_its_harm_and_what_equals_it() -> None:
    plain = planted("none", 0.5)
    run, said, summary = best(
        plain, planted("own", 0.7), neutral("own", 0.004), planted("prompt", 0.51), planted("cad", 0.71, seed=3)
    )
    assert run == "cad"
    assert said.startswith("cad is best: pair accuracy changes by +0.210 [")
    assert "with two forward passes per new token and 12 more tokens per prompt and no harm to other text" in said
    assert (
        "own (+0.200 [" in said and "no cost per token once it is exported, 0.004 [0.004, 0.004] nats a token" in said
    )
    assert "cannot be told from it: the difference is +0.010 [" in said and said.endswith(
        "prompt did not help measurably"
    )
    ahead = summary["best"]["ahead"]
    assert ahead["prompt"]["value"] == pytest.approx(0.2) and ahead["prompt"]["low"] > 0 > ahead["own"]["low"]
    assert misfits(summary, EvaluationResult) == []


def test_what_does_too_much_harm_is_not_the_best() -> None:
    run, said, _ = best(planted("none", 0.5), planted("own", 0.9), neutral("own", 0.3), planted("prompt", 0.7))
    assert run == "prompt" and "own (+0.400 [" in said and "does more harm than 0.02 nats a token" in said
    run, said, _ = best(planted("none", 0.5), planted("own", 0.9), neutral("own", 0.3))
    assert run == "own" and said.endswith("0.300 [0.300, 0.300] nats a token of harm, which is above 0.02")


def test_where_nothing_helps_that_is_said() -> None:
    run, said, summary = best(planted("none", 0.5), planted("prompt", 0.505), planted("cad", 0.4))
    assert run is None and summary["runs"][1]["verdict"] != BETTER
    assert said.startswith("none of prompt and cad helped measurably: the best change of pair accuracy is +0.005 [")
    assert best(planted("none", 0.5), planted("prompt", 0.5))[1].startswith(
        "prompt did not help measurably: its change"
    )
    assert "best" not in summarise_runs(planted("none", 0.5))


def test_the_lead_over_each_control_is_paired() -> None:
    lines = [planted("none", 0.5), planted("own", 0.7), planted("own/random-1", 0.7), planted("own/random-2", 0.6)]
    summary = summarise_runs([line for run in lines for line in run], settings=MARKS)
    ahead = summary["runs"][1]["ahead"]
    assert ahead["own/random-1"] == {"value": 0.0, "low": 0.0, "high": 0.0}  # the very same rows are right
    assert ahead["own/random-2"]["value"] == pytest.approx(0.1) and ahead["own/random-2"]["low"] > 0
