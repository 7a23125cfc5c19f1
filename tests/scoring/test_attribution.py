"""The gradient of the margin in each head's gate, and the planted head found by both methods."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import truthheads
from planted import PLANTED_HEAD, planted_model, planted_questions
from truthheads.data.questions import Question
from truthheads.errors import ActivationError, DataError, ModelError
from truthheads.models.load import Model
from truthheads.models.prompts import encode
from truthheads.scoring.attribution import attribute
from zoo import ROWS, ZooRow, tiny_tokenizer

ModelOf = Callable[[ZooRow], Model]
Wrap = Callable[..., Model]
BY_NAME = {row.name: row for row in ROWS}

QUESTIONS = (
    Question("short", "Ann sat.", "Who sat?", "Ann", "Bob"),
    Question("long", "The mill by the river was sold to a baker in May.", "What was sold?", "the old mill", "a house"),
    Question("bare", "", "Is it so?", "yes", "no, not at all"),
    Question("alike", "He flew to New York, then home.", "Where to?", "New York", "New Orleans"),
)


class Found(NamedTuple):
    """Of every question the gradient per head and the margin."""

    gradient: Tensor
    margin: Tensor


def attributed(
    model: Model, folder: Path, *, questions: Sequence[Question] = QUESTIONS, batch_tokens: int = 10_000, **options: Any
) -> Found:
    encoded = encode(model, questions, **options)
    store = attribute(model, encoded, questions, folder, identity="a", batch_tokens=batch_tokens)
    found = Found(store.read("gradient").clone(), store.read("margin").clone())
    store.delete()
    return found


@torch.no_grad()
def margin(row: ZooRow, model: Model, question: Question, gate: Tensor) -> float:
    """Return log P(truthful) - log P(untruthful), heads scaled by ``gate``, with no code of the package."""
    tokenizer = tiny_tokenizer()
    prompt = (
        f"Context:\n{question.context}\n\n" if question.context else ""
    ) + f"Question: {question.question}\nAnswer:"
    start = len(tokenizer(prompt).input_ids)
    handles = [
        model.network.get_submodule(row.projection(layer)).register_forward_pre_hook(
            lambda _, args, layer=layer: (args[0] * gate[layer].repeat_interleave(row.head_dim), *args[1:])
        )
        for layer in row.attending
    ]
    logprobs = []
    for answer in (question.truthful, question.untruthful):
        ids = tokenizer(f"{prompt} {answer}").input_ids
        logprob = model.network(torch.tensor([ids])).logits[0].log_softmax(-1)
        logprobs.append(sum(float(logprob[at - 1, ids[at]]) for at in range(start, len(ids))))
    for handle in handles:
        handle.remove()
    return logprobs[0] - logprobs[1]


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "mistral", "gpt_neo", "lfm2"])
def test_the_gradient_is_the_slope_of_the_margin(name: str, model_of: ModelOf, tmp_path: Path) -> None:
    row = BY_NAME[name]
    model = model_of(row)
    sharing = not row.without_attention
    found = attributed(model, tmp_path / "store", share_prefix=sharing)
    assert found.gradient.shape == (len(QUESTIONS), row.num_layers, row.num_heads)
    # Double precision, but for norms and rotations, which transformers computes in float32 (GPT-2's are exact). Hence
    # wide steps, and four of them: the error of this formula is of the order of step ** 4 / 30 = 5e-9.
    exact = Model(copy.deepcopy(model.network).double(), model.tokenizer, None, model.layout, "exact")
    step, tolerance = 0.02, 1e-4
    for number, question in enumerate(QUESTIONS[:2]):
        ones = torch.ones(row.num_layers, row.num_heads, dtype=torch.float64)
        assert found.margin[number].item() == pytest.approx(margin(row, exact, question, ones), abs=1e-4)
        for layer in row.attending:
            for head in range(row.num_heads):
                change = torch.zeros_like(ones)
                change[layer, head] = step
                low, less, more, high = (margin(row, exact, question, ones + k * change) for k in (-2, -1, 1, 2))
                slope = (low - 8 * less + 8 * more - high) / (12 * step)
                assert found.gradient[number, layer, head].item() == pytest.approx(slope, rel=tolerance, abs=tolerance)
    assert found.gradient[:, list(row.attending)].abs().min() > 0
    assert not found.gradient[:, list(row.without_attention)].any()


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma3", "deepseek_v3", "falcon_alibi", "xglm", "gpt_oss"])
def test_gradients_do_not_depend_on_batches_order_or_sharing(name: str, model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(BY_NAME[name])
    alone = attributed(model, tmp_path / "store", batch_tokens=1, share_prefix=False)
    for share in (True, False):
        together = attributed(model, tmp_path / "store", share_prefix=share)
        backwards = attributed(
            model, tmp_path / "store", questions=QUESTIONS[::-1], batch_tokens=250, share_prefix=share
        )
        for found in (together, Found(backwards.gradient.flip(0), backwards.margin.flip(0))):
            assert (found.margin - alone.margin).abs().max() < 1e-4
            # Gradients reach 10; float32 sums over 100 tokens in another order.
            assert torch.allclose(found.gradient, alone.gradient, rtol=1e-3, atol=2e-4)


def test_swapped_answers_have_the_opposite_gradient(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(BY_NAME["llama_gqa"])
    swapped = tuple(Question(one.id, one.context, one.question, one.untruthful, one.truthful) for one in QUESTIONS)
    found, opposite = attributed(model, tmp_path / "a"), attributed(model, tmp_path / "b", questions=swapped)
    assert torch.allclose(found.gradient, -opposite.gradient, rtol=1e-3, atol=2e-4)
    assert torch.allclose(found.margin, -opposite.margin, rtol=0, atol=1e-4)


class Unlearnable(torch.nn.Linear):
    """A layer like those of many quantised kernels: torch does not know that its output depends on its input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.detach())


PRODUCTS = torch.library.Library("truthheads_tests", "DEF")
PRODUCTS.define("product(Tensor x, Tensor weight) -> Tensor")
PRODUCTS.impl("product", lambda x, weight: x @ weight.T, "CPU")


class WithoutBackward(torch.nn.Linear):
    """A layer like bitsandbytes' packed one: its product is registered without a backward pass."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.truthheads_tests.product(input, self.weight)


@pytest.mark.parametrize(
    ("kind", "where", "got"),
    [
        (Unlearnable, r"model\.layers\.1\.mlp\.down_proj", "Unlearnable"),
        (WithoutBackward, "a layer", "truthheads_tests::product"),
    ],
)
def test_a_layer_that_stops_gradients_is_named(
    kind: type[torch.nn.Linear], where: str, got: str, model_of: ModelOf, tmp_path: Path
) -> None:
    """Without a word, attribution would lack what heads do through this layer: the residual stream goes around it."""
    model = model_of(BY_NAME["llama_gqa"])
    network = copy.deepcopy(model.network)
    plain: Any = network.get_submodule("model.layers.1.mlp.down_proj")
    layer = kind(plain.in_features, plain.out_features)
    layer.load_state_dict(plain.state_dict())
    network.set_submodule("model.layers.1.mlp.down_proj", layer.requires_grad_(False))
    broken = dataclasses.replace(model, network=network)
    with pytest.raises(ModelError, match=f"gradients stop at {where}\n[^\n]*\n  got: {got}"):
        attributed(broken, tmp_path / "store")
    with pytest.raises(ModelError, match=f"gradients stop at {where}\n[^\n]*\n  got: {got}"):
        truthheads.tune(broken, planted_questions(8), guard=10.0, batch_tokens=400)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_network_is_left_as_it_was(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(BY_NAME["llama_gqa"])
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    attributed(model, tmp_path / "store")
    assert all(torch.equal(before[name], value) for name, value in model.network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert all(parameter.grad is None for parameter in model.network.parameters())
    assert not any(module._forward_pre_hooks for module in model.network.modules())


def test_a_gradient_that_is_not_finite_names_the_row(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of(BY_NAME["llama_gqa"])
    # "B" stands in one row alone.
    token = tiny_tokenizer()("B", add_special_tokens=False).input_ids[-1]
    model.network.get_input_embeddings().weight[token] = torch.nan
    with pytest.raises(ActivationError, match="row 'short': the gradient of its margin is not finite"):
        attributed(model, tmp_path)


# The planted model, through the public function


@cache
def planted_rows() -> tuple[Question, ...]:
    return tuple(planted_questions(150, seed=2))


@pytest.fixture(scope="module")
def planted(wrap: Wrap) -> Model:
    network, tokenizer, _ = planted_model()
    return wrap(network, tokenizer, "planted")


def test_the_planted_head_has_the_best_probe(planted: Model) -> None:
    scores = truthheads.score(planted, planted_rows(), method="probe", seed=0)
    accuracy = scores.values.clone()
    assert np.unravel_index(int(accuracy.argmax()), accuracy.shape) == PLANTED_HEAD
    assert accuracy[PLANTED_HEAD] > 0.98
    accuracy[PLANTED_HEAD] = 0.5
    # 300 rows in 150 pairs: the standard error of chance is 0.041 at most, and there are 7 other heads.
    assert accuracy.min() > 0.38
    assert accuracy.max() < 0.62


def test_the_planted_head_has_the_highest_attribution(planted: Model) -> None:
    scores = truthheads.score(planted, planted_rows(), method="attribution", seed=0)
    values = scores.values.clone()
    assert np.unravel_index(int(values.argmax()), values.shape) == PLANTED_HEAD
    highest = float(values[PLANTED_HEAD])
    values[PLANTED_HEAD] = 0
    assert highest > 50 * float(values.abs().max())


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffled_labels_are_at_chance(planted: Model, seed: int) -> None:
    questions = planted_questions(400)
    scores = truthheads.score(planted, questions, shuffle_labels=True, seed=seed)
    # 800 answers a head, 8 heads
    assert abs(float(scores.values.mean()) - 0.5) < 0.03
    shuffled = truthheads.score(planted, questions, method="attribution", shuffle_labels=True, seed=seed)
    true = truthheads.score(planted, questions, method="attribution", seed=seed)
    # The sum of 400 random signs is 20 on average.
    assert abs(float(shuffled.values[PLANTED_HEAD])) < 0.2 * float(true.values[PLANTED_HEAD])


def test_scores_do_not_depend_on_order(planted: Model) -> None:
    questions = planted_rows()
    one = truthheads.score(planted, questions, method="attribution")
    other = truthheads.score(planted, questions[::-1], method="attribution", batch_tokens=300, share_prefix=False)
    assert torch.allclose(one.values, other.values, rtol=1e-4, atol=1e-5)


def test_attribution_needs_pairs(planted: Model) -> None:
    single = Question("one", "", "who ?", "Oslo", None)
    with pytest.raises(
        DataError, match=r"attribution needs pairs\n.*\n  got: rows with one answer\n  do: use --method probe"
    ):
        truthheads.score(planted, [*planted_rows()[:3], single], method="attribution")
