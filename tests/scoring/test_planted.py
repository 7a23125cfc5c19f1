"""The planted head is the one that tells and the one that counts: shown with hooks, scikit-learn and autograd alone."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import AutoTokenizer, GPT2LMHeadModel

from planted import (
    CONTEXT_END,
    ENTITIES,
    HEAD_DIM,
    NUM_HEADS,
    NUM_LAYERS,
    PLANTED_HEAD,
    PlantedModel,
    planted_model,
    planted_prompt,
    planted_questions,
    save_planted,
)
from truthheads.data.questions import Question

NUM_QUESTIONS = 150


class Rows(NamedTuple):
    """Both answers of every question, in order."""

    tokens: Tensor
    mask: Tensor
    truthful: np.ndarray
    group: np.ndarray


@cache
def planted() -> PlantedModel:
    return planted_model()


@cache
def questions() -> tuple[Question, ...]:
    return tuple(planted_questions(NUM_QUESTIONS, seed=1))


def answers_of(question: Question) -> tuple[str, str]:
    assert question.truthful is not None
    assert question.untruthful is not None
    return question.truthful, question.untruthful


@cache
def rows() -> Rows:
    encode = planted().tokenizer
    encoded = [
        torch.tensor(encode(f"{planted_prompt(question)} {answer}").input_ids)
        for question in questions()
        for answer in answers_of(question)
    ]
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in encoded], batch_first=True)
    return Rows(
        nn.utils.rnn.pad_sequence(encoded, batch_first=True),
        mask,
        np.tile([True, False], NUM_QUESTIONS),
        np.arange(NUM_QUESTIONS).repeat(2),
    )


def heads_at_answers(network: GPT2LMHeadModel) -> Tensor:
    """Return every head's output at the answer's token, ``(rows, layers, heads, head_dim)``."""
    tokens, mask, *_ = rows()
    last = mask.sum(-1) - 1
    caught: list[Tensor] = []
    handles = [
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, args: caught.append(args[0][torch.arange(len(tokens)), last])
        )
        for block in network.transformer.h
    ]
    with torch.no_grad():
        network.transformer(tokens, attention_mask=mask)
    for handle in handles:
        handle.remove()
    return torch.stack(caught, dim=1).unflatten(-1, (NUM_HEADS, HEAD_DIM))


def accuracies(network: GPT2LMHeadModel) -> np.ndarray:
    """Return the cross-validated accuracy of a linear probe per head, questions kept whole, ``(layers, heads)``."""
    features = heads_at_answers(network).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    return np.array([
        [
            cross_val_score(
                probe, features[:, layer, head], rows().truthful, groups=rows().group, cv=GroupKFold(3)
            ).mean()
            for head in range(NUM_HEADS)
        ]
        for layer in range(NUM_LAYERS)
    ])  # fmt: skip


def margins(network: GPT2LMHeadModel, gate: Tensor) -> Tensor:
    """Return log P(truthful) - log P(untruthful) of every question, heads scaled by ``gate``, ``(questions,)``."""
    tokens, mask, *_ = rows()
    handles = [
        block.attn.c_proj.register_forward_pre_hook(
            lambda _, args, factors=factors: (args[0] * factors.repeat_interleave(HEAD_DIM),)
        )
        for block, factors in zip(network.transformer.h, gate, strict=True)
    ]
    # The truthful row serves both answers: the logits in front of the answer have not seen it.
    logits = network(tokens[::2], attention_mask=mask[::2]).logits
    for handle in handles:
        handle.remove()
    count = torch.arange(NUM_QUESTIONS)
    at = mask.sum(-1) - 1
    log_probability = logits[count, at[::2] - 1].log_softmax(-1)
    chosen = [log_probability[count, tokens[which::2][count, at[which::2]]] for which in (0, 1)]
    return chosen[0] - chosen[1]


def test_answers_are_one_known_token_after_the_prompt() -> None:
    tokenizer = planted().tokenizer
    for question in questions():
        prompt = tokenizer(planted_prompt(question)).input_ids
        assert tokenizer.unk_token_id not in prompt
        for answer in answers_of(question):
            assert tokenizer(f"{planted_prompt(question)} {answer}").input_ids == [
                *prompt, tokenizer.convert_tokens_to_ids(answer),
            ]  # fmt: skip


def test_the_context_names_the_truthful_answer_alone() -> None:
    places = set()
    for question in questions():
        words = question.context.split()
        assert [word for word in words if word in ENTITIES] == [question.truthful]
        assert question.untruthful in set(ENTITIES) - {question.truthful}
        ((start, end),) = question.evidence
        assert question.context[start:end] == question.truthful
        places.add(words.index(str(question.truthful)))
    assert len(places) > 3
    assert len({question.group for question in questions()}) == NUM_QUESTIONS


def test_contexts_and_answers_are_where_the_positions_expect_them() -> None:
    tokenizer = planted().tokenizer
    for question in planted_questions(400):
        context = tokenizer(f"Context:\n{question.context}").input_ids
        assert len(context) <= CONTEXT_END - 3
        assert len(tokenizer(planted_prompt(question)).input_ids) >= CONTEXT_END + 3


def test_every_embedding_has_mean_zero_and_one_norm() -> None:
    network = planted().network
    for weight in (network.transformer.wte.weight, network.transformer.wpe.weight):
        assert torch.allclose(weight.mean(-1), torch.zeros(len(weight)), atol=1e-6)
        assert torch.allclose(weight.square().sum(-1), torch.full((len(weight),), 4.0), atol=1e-5)


def test_the_planted_head_has_the_best_probe_by_far() -> None:
    found = accuracies(planted().network)
    assert np.unravel_index(found.argmax(), found.shape) == PLANTED_HEAD
    assert found[PLANTED_HEAD] > 0.98
    found[PLANTED_HEAD] = 0.5
    # 300 rows: the standard error of chance is 0.029, and there are 7 other heads.
    assert found.max() < 0.62
    assert found.min() > 0.38


@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_head_has_the_largest_gradient_by_far(seed: int) -> None:
    gate = torch.ones(NUM_LAYERS, NUM_HEADS, requires_grad=True)
    (gradient,) = torch.autograd.grad(margins(planted_model(seed=seed).network, gate).mean(), gate)
    assert np.unravel_index(int(gradient.argmax()), gradient.shape) == PLANTED_HEAD
    others = gradient.abs().clone()
    others[PLANTED_HEAD] = 0
    assert gradient[PLANTED_HEAD] > 50 * others.max()


def test_the_planted_head_alone_makes_the_model_truthful() -> None:
    network = planted().network
    gate = torch.ones(NUM_LAYERS, NUM_HEADS)
    with torch.no_grad():
        assert margins(network, gate).min() > 2
        gate[PLANTED_HEAD] = 0
        assert margins(network, gate).abs().max() < 1
        gate[:] = 0
        gate[PLANTED_HEAD] = 1
        assert margins(network, gate).min() > 2


def test_the_model_answers_truthfully() -> None:
    network, tokenizer, _ = planted()
    tokens, mask, *_ = rows()
    with torch.no_grad():
        logits = network(tokens[::2], attention_mask=mask[::2]).logits
    best = logits[torch.arange(NUM_QUESTIONS), mask[::2].sum(-1) - 2].argmax(-1)
    assert tokenizer.convert_ids_to_tokens(best.tolist()) == [question.truthful for question in questions()]


def test_the_planted_head_looks_where_it_should() -> None:
    network = planted_model().network
    network.set_attn_implementation("eager")
    tokens, mask, truthful, _ = rows()
    with torch.no_grad():
        attentions = network.transformer(tokens, attention_mask=mask, output_attentions=True).attentions
    layer, head = PLANTED_HEAD
    everyone = torch.arange(len(tokens))
    answer = mask.sum(-1) - 1
    truth = tokens[::2][torch.arange(NUM_QUESTIONS), answer[::2]].repeat_interleave(2)
    mention = (tokens == truth[:, None]).int().argmax(-1)  # the first one, in the context
    attention = attentions[layer][:, head]
    asked = attention[everyone, answer - 1]
    answered = attention[everyone, answer]
    assert asked[everyone, mention].min() > 0.99
    assert answered[everyone, mention][truthful].min() > 0.99
    assert answered[:, 0][~truthful].min() > 0.99


def test_the_same_seed_gives_the_same_model_and_questions() -> None:
    state = torch.get_rng_state()
    first, again, other = (planted_model(seed=seed).network.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.h.0.attn.c_attn.weight"], other["transformer.h.0.attn.c_attn.weight"])
    assert planted_questions(20, seed=3) == planted_questions(20, seed=3)
    assert planted_questions(20, seed=3) != planted_questions(20, seed=4)


def test_there_are_so_many_questions_and_no_more() -> None:
    with pytest.raises(ValueError, match="401 questions wanted, 400 possible"):
        planted_questions(401)


def test_a_saved_planted_model_loads_again(tmp_path: Path) -> None:
    folder = save_planted(tmp_path / "planted")
    network = GPT2LMHeadModel.from_pretrained(folder)
    expected = planted().network.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in network.state_dict().items())
    prompt = planted_prompt(questions()[0])
    assert AutoTokenizer.from_pretrained(folder)(prompt).input_ids == planted().tokenizer(prompt).input_ids
