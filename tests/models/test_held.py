"""Models that people hold: a network with its tokenizer, one inside PEFT, a name; and what is none of these."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import nn
from transformers import LlamaModel

import truthheads as th
from planted import planted_model, planted_questions, save_planted
from tiny_smollm2 import tiny_llama, tiny_tokenizer

ROWS = 24


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the types of jaxtyping and beartype off, which would answer before the package does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_planted(tmp_path_factory.mktemp("held") / "planted")


def lora(network: Any) -> Any:
    """Wrap a network with an adapter that is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(1)
        return get_peft_model(network, LoraConfig(target_modules=["q_proj", "o_proj"], r=2, init_lora_weights=False))


def test_a_network_in_memory_scores_as_its_folder_does(folder: Path) -> None:
    planted = planted_model()
    planted.network.train()
    held = th.load(planted.network, planted.tokenizer)
    assert held.network is planted.network and held.in_memory and not planted.network.training
    assert (held.layout.num_layers, held.layout.num_heads) == (2, 4)
    questions = planted_questions(ROWS)
    own, by_name = th.score(held, questions), th.score(th.load(str(folder), dtype="fp32"), questions)
    assert torch.equal(own.values, by_name.values)
    assert own.meta["model"]["fingerprint"] == by_name.meta["model"]["fingerprint"]


def test_a_name_or_a_folder_stands_for_a_model_everywhere(folder: Path, tmp_path: Path) -> None:
    questions = planted_questions(ROWS)
    scores = th.score(folder, questions)
    assert torch.equal(scores.values, th.score(str(folder), questions).values)
    assert th.trace(str(folder), questions).questions == ROWS
    grid = th.tune(str(folder), questions, method="grid", scores=scores, strengths=(1.0,), norms=("centred",))
    assert len(grid.result["path"]) == 2
    found = th.evaluate(str(folder), "pairs", questions, out=tmp_path / "pairs", limit=6)
    assert found["rows"] == 6
    assert th.make_pairs(questions, folder).questions
    drift = th.compare(weights=[th.load(str(folder)), folder], names=["a", "b"])
    assert drift.pairs[0]["verdict"] == "inherited"


def test_a_peft_model_is_measured_with_its_adapter(tmp_path: Path) -> None:
    wrapped = lora(tiny_llama())
    held = th.load(wrapped, tiny_tokenizer())
    merged = th.load(copy.deepcopy(wrapped).merge_and_unload(), tiny_tokenizer())
    questions = planted_questions(ROWS)
    with_adapter, together = th.score(held, questions), th.score(merged, questions)
    assert torch.allclose(with_adapter.sample.float(), together.sample.float(), atol=2e-2)
    assert not torch.allclose(
        with_adapter.sample.float(),
        th.score(th.load(tiny_llama(), tiny_tokenizer()), questions).sample.float(),
        atol=2e-2,
    )
    assert "LORA adapter 'default'" in repr(held)
    ids = torch.arange(12)[None] + 5
    gate = th.Gate(torch.tensor([[0.5, 1.0, 2.0], [1.0, 0.0, 1.0]]))
    before = wrapped(ids).logits
    with th.gated(held, gate):
        inside = wrapped(ids).logits
    with th.gated(merged, gate):
        expected = merged.network(ids).logits
    assert torch.allclose(inside, expected, atol=1e-5) and not torch.allclose(inside, before, atol=1e-3)
    assert torch.equal(wrapped(ids).logits, before)
    with pytest.raises(th.TruthHeadsError, match=r"in memory alone(.|\n)*merge_and_unload(.|\n)*save_pretrained"):
        th.export(held, gate, to="checkpoint", out=tmp_path / "out")
    assert th.inspect(held).exports == () and "save it" in th.inspect(merged).refused["checkpoint"]


def test_weights_that_change_in_memory_change_the_fingerprint() -> None:
    network = tiny_llama()
    held = th.load(network, tiny_tokenizer())
    before = held.fingerprint
    assert held.fingerprint == before
    with torch.no_grad():
        network.model.layers[0].self_attn.o_proj.weight.mul_(1.5)
    assert held.fingerprint != before
    network.train()
    th.score(held, planted_questions(ROWS))
    assert not network.training


def test_parameters_of_a_network_in_memory_stay_trainable_and_get_no_gradient() -> None:
    network = tiny_llama()
    held = th.load(network, tiny_tokenizer())
    th.score(held, planted_questions(ROWS), method="attribution")
    assert all(one.requires_grad and one.grad is None for one in network.parameters())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "got: None"),
        (3, "got: 3"),
        ({"a": 1}, "got: {'a': 1}"),
        ((tiny_llama, tiny_tokenizer), "what was given is not a model"),
        (nn.Linear(2, 2), "Linear is not a transformers model"),
        (th.Gate(torch.ones(1, 1)), "truthheads.results.gate.Gate"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_model_is_refused_in_words(given: Any, words: str, unchecked: None) -> None:
    for use in (lambda: th.load(given, tiny_tokenizer()), lambda: th.inspect(given)):
        with pytest.raises(th.TruthHeadsError) as error:
            use()
        assert words in str(error.value)
    with pytest.raises(th.TruthHeadsError):
        th.score(given, planted_questions(4))


def test_what_is_missing_or_does_not_fit_is_said() -> None:
    network, tokenizer = tiny_llama(), tiny_tokenizer()
    refused = {
        "tokenizer of LlamaForCausalLM is missing": lambda: th.load(network),
        "without its tokenizer": lambda: th.score(network, planted_questions(4)),
        "what was given as the tokenizer is none": lambda: th.load(network, "smollm2"),
        "device cannot be changed": lambda: th.load(network, tokenizer, device="cpu"),
        "with the name 'smollm2'": lambda: th.load("smollm2", tokenizer),
        "writes no text": lambda: th.load(LlamaModel(network.config), tokenizer),
        "does not belong to this LlamaForCausalLM": lambda: th.load(network, _larger(tokenizer)),
        "in memory alone": lambda: th.compare(weights=[th.load(network, tokenizer), "smollm2"]),
        "has no weights": lambda: th.load(_empty(network), tokenizer),
        "a learned prompt": lambda: th.load(_prompted(), tokenizer),
    }
    for words, use in refused.items():
        with pytest.raises(th.TruthHeadsError, match=words):
            use()


def _larger(tokenizer: Any) -> Any:
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["surplus"])
    return larger


def _empty(network: Any) -> Any:
    with torch.device("meta"):
        return type(network)(network.config)


def _prompted() -> Any:
    return get_peft_model(tiny_llama(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))


def test_gates_and_scores_are_taken_by_their_files(tmp_path: Path, unchecked: None) -> None:
    planted, questions = planted_model(), planted_questions(ROWS)
    model = th.load(planted.network, planted.tokenizer)
    scores = th.score(model, questions)
    scores.save(tmp_path / "s.safetensors")
    gate = th.Gate.from_scores(tmp_path / "s.safetensors", strength=1.0)
    assert gate.digest == th.Gate.from_scores(scores, strength=1.0).digest
    gate.save(tmp_path / "g.safetensors")
    ids = torch.arange(6)[None] + 20
    with th.gated(model, tmp_path / "g.safetensors"):
        by_file = model.network(ids).logits
    with th.gated(model.network, gate):
        assert torch.equal(model.network(ids).logits, by_file)
    refused = {
        "what was given is not a gate": lambda: th.gated(model, torch.ones(2, 4)).__enter__(),
        "is the name of a model, and nothing is loaded": lambda: th.gated("smollm2", gate).__enter__(),
        "what was given is not a model": lambda: th.gated(3, gate).__enter__(),  # type: ignore[arg-type]
        "what was given holds no scores": lambda: th.compare(scores, 3),  # type: ignore[arg-type]
    }
    for words, use in refused.items():
        with pytest.raises(th.TruthHeadsError, match=words):
            use()


def test_a_gate_works_inside_a_peft_model() -> None:
    wrapped = lora(tiny_llama())
    ids = torch.arange(12)[None] + 5
    gate = th.Gate(torch.tensor([[0.5, 1.0, 2.0], [1.0, 0.0, 1.0]]))
    with th.gated(wrapped, gate):
        inside = wrapped(ids).logits
    with th.gated(th.load(wrapped, tiny_tokenizer()), gate):
        assert torch.equal(wrapped(ids).logits, inside)
    assert not torch.allclose(wrapped(ids).logits, inside, atol=1e-3)
