"""A planted model: a real GPT-2 whose weights are written by hand so that exactly one head keeps it truthful.

Head ``L1H2`` does two things. At ``Answer:`` it looks at the one entity in the context and copies its name into the
logits. At an answer that is an entity it looks at an earlier mention of the same entity in the context, and where there
is none, at the first token: its output tells whether the answer agrees with the context. Every other head, and both
feed-forward blocks, are small random noise. So the head with the highest probe accuracy, and with the highest gradient
of log P(truthful) - log P(untruthful), is known beforehand.

How it is built. Every feature of a token is a pair of coordinates (+1, -1), every token has 2 features and every
position 2 more. So all embeddings have mean 0 and the same norm, and LayerNorm multiplies them by one constant. The
planted head is in the last layer: no other head reads what it writes.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from truthheads.data.questions import Question
from zoo import tiny_tokenizer

PLANTED_HEAD = (1, 2)
NUM_LAYERS, NUM_HEADS, HEAD_DIM = 2, 4, 32
HIDDEN = NUM_HEADS * HEAD_DIM

_TOWN_NAMES = (
    "Oslo Paris Lima Cairo Quito Hanoi Delhi Rome Accra Minsk Sofia Dakar Tunis Riga Baku Kyiv Seoul Tokyo Doha Male "
    "Bern Apia Lome Juba"
)
ENTITIES = tuple(_TOWN_NAMES.split())
"""One token each; truthful and untruthful answers are drawn alike from all of them."""

_MATERIAL_NAMES = (
    "copper wooden silver paper leather iron woollen glass marble clay bronze cotton silk stone ivory velvet "
    "amber pewter wicker linen"
)
_MATERIALS = tuple(_MATERIAL_NAMES.split())
_THING_NAMES = (
    "kettle letter basket button mirror lantern ticket trumpet carpet saddle locket violin teapot ladder parcel "
    "compass blanket candle bucket statue"
)
_THINGS = tuple(_THING_NAMES.split())
_STORIES = ("{opening} the {item} {middle} {town} {ending}", "in {town} {opening} the {item} was seen {ending}")
_OPENINGS = ("a visitor writes that", "the report adds that", "an old diary says that", "she told us later that")
_MIDDLES = ("was sent to", "was made in", "once came from", "had been kept in")
_ENDINGS = ("long before the war .", "for many years .", "as far as we know .", "during that winter .")
_QUESTION = "which town does the story name for the {item} ?"
_FRAME = ("Context:", "Question:", "Answer:")

CONTEXT_END = 25
"""Positions below are seen as context, from here on as question and answer: contexts end at 20 or before, answers stand
at 30 or after, which leaves room for a few tokens more or less in front."""
_POSITIONS = 64

# Scores of the planted head before the softmax. At an answer, a context token gets _REGION, an entity _REGION more, the
# same entity _MATCH more, the first token _SINK more; a token after the context loses _REGION:
#   same entity in the context 25 + 20 = 45 > first token 25 + 10 = 35 > itself 25 > other entity 20 > other words 10
# so that the wanted token always leads by 10, that is by a factor of 22,000 before the sum over some 30 tokens.
_MATCH, _SINK, _REGION = 25.0, 25.0, 10.0
_NOISE = 0.05
_COPY = 1.0
_LOGIT = 0.5


class PlantedModel(NamedTuple):
    """A model with its tokenizer, and the one head that keeps it truthful."""

    network: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    head: tuple[int, int]


class _Features:
    """Pairs of coordinates of the residual stream, by name."""

    def __init__(self) -> None:
        names = [*ENTITIES, "entity", "answer", "word", "context", "first"]
        self.pair = {name: (2 * number, 2 * number + 1) for number, name in enumerate(names)}
        self.free = range(2 * len(names), HIDDEN)

    def vector(self, **strengths: float) -> Tensor:
        """Return the vector in which each named feature has its strength."""
        vector = torch.zeros(HIDDEN)
        for name, strength in strengths.items():
            plus, minus = self.pair[name]
            vector[plus], vector[minus] = strength, -strength
        return vector


def _words() -> list[str]:
    """Return every word that questions are made of, entities first."""
    phrases = re.sub(r"{\w+}", "", " ".join((*_STORIES, *_OPENINGS, *_MIDDLES, *_ENDINGS, _QUESTION)))
    return [*dict.fromkeys((*ENTITIES, *_FRAME, *_MATERIALS, *_THINGS, *phrases.split()))]


def planted_model(*, seed: int = 0) -> PlantedModel:
    """Return the planted model.

    Args:
        seed: Of everything that is not planted: codes of plain words, and the noise in all other weights.
    """
    tokenizer = tiny_tokenizer(_words())
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=_POSITIONS,
        n_embd=HIDDEN,
        n_layer=NUM_LAYERS,
        n_head=NUM_HEADS,
        n_inner=HIDDEN,
        tie_word_embeddings=False,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights, all of which are written again
        network = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    features = _Features()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".ln_" in name:
                parameter.fill_(float(name.endswith("weight")))
            else:
                # Noise in what is written to the stream (c_proj) has to be far smaller than in what is read from it, or
                # the norm changes from token to token and LayerNorm is a constant no more.
                parameter.normal_(std=_NOISE * (0.05 if "c_proj" in name else 1.0), generator=generator)
        _embed(network, tokenizer, features, generator)
        _plant(network, tokenizer, features)
    return PlantedModel(network, tokenizer, PLANTED_HEAD)


def _embed(
    network: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, features: _Features, generator: torch.Generator
) -> None:
    """Write the embeddings of tokens and positions: mean 0, squared norm 4, all of them."""
    tokens, positions = network.transformer.wte.weight, network.transformer.wpe.weight
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if token in ENTITIES:
            tokens[number] = features.vector(entity=1.0, **{token: 1.0})
            continue
        code = torch.randn(len(features.free), generator=generator)
        code -= code.mean()
        tokens[number] = features.vector(answer=1.0) if token == "Answer:" else features.vector(word=1.0)
        tokens[number, features.free.start :] = code * (2**0.5 / code.norm())
    for number in range(_POSITIONS):
        region = 1.0 if number < CONTEXT_END else -1.0
        positions[number] = features.vector(context=region, first=1.0 if number == 0 else -1.0)


def _plant(network: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, features: _Features) -> None:
    """Write queries, keys, values and output of the planted head, and the language-model head."""
    layer, head = PLANTED_HEAD
    attention = network.transformer.h[layer].attn
    columns = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    query, key, value = (torch.zeros(HIDDEN, HEAD_DIM) for _ in range(3))
    query_bias, key_bias, value_bias = (torch.zeros(HEAD_DIM) for _ in range(3))
    output = torch.zeros(HEAD_DIM, HIDDEN)
    # A feature of strength 1 is (+1, -1); after LayerNorm (squared norm 8 over HIDDEN coordinates) it is `scale` times
    # that, so `read` gives back 1.
    scale = (HIDDEN / 8) ** 0.5
    read = {name: features.vector(**{name: 1.0}) / (2 * scale) for name in features.pair}

    for column, name in enumerate(ENTITIES):
        query[:, column] = _MATCH * read[name]
        key[:, column] = value[:, column] = read[name]
        output[column] = _COPY * features.vector(**{name: 1.0})
    place, first = len(ENTITIES), len(ENTITIES) + 1
    query[:, place] = _REGION * (read["entity"] + read["answer"])
    key[:, place] = read["entity"] + read["context"]
    query[:, first] = _SINK * (read["entity"] + read["word"])
    key[:, first] = value[:, first] = read["first"] / 2
    key_bias[first] = value_bias[first] = 0.5  # -1 or 1 becomes 0 or 1
    value[:, place] = read["entity"]

    for block, (weight, bias) in enumerate(((query, query_bias), (key, key_bias), (value, value_bias))):
        target = slice(block * HIDDEN + columns.start, block * HIDDEN + columns.stop)
        size = HEAD_DIM**0.5 if block == 0 else 1.0  # attention divides scores by it
        attention.c_attn.weight[:, target] = weight * size
        attention.c_attn.bias[target] = bias * size
    attention.c_proj.weight[columns] = output
    for token in ENTITIES:
        network.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = _LOGIT * features.vector(**{token: 1.0})


def planted_questions(n: int, seed: int = 0) -> list[Question]:
    """Return questions whose context names exactly one entity, the truthful answer; the untruthful one is any other.

    Args:
        n: Number of questions, at most 400: each asks about another thing, so each is a group of its own.
        seed: Of the draw.

    Raises:
        ValueError: More questions than things to ask about.
    """
    items = [f"{material} {thing}" for material in _MATERIALS for thing in _THINGS]
    if n > len(items):
        raise ValueError(f"{n} questions wanted, {len(items)} possible")
    generator = np.random.default_rng(seed)
    questions = []
    for number, item in enumerate(generator.permutation(items)[:n]):
        truthful, untruthful = map(str, generator.choice(ENTITIES, size=2, replace=False))
        story, opening, middle, ending = (
            str(generator.choice(phrases)) for phrases in (_STORIES, _OPENINGS, _MIDDLES, _ENDINGS)
        )
        context = story.format(opening=opening, item=item, middle=middle, town=truthful, ending=ending)
        start = context.index(truthful)
        questions.append(
            Question(
                id=f"planted-{number}",
                context=context,
                question=_QUESTION.format(item=item),
                truthful=truthful,
                untruthful=untruthful,
                evidence=((start, start + len(truthful)),),
                group=_QUESTION.format(item=item),
                kind="absent",
            )
        )
    return questions


def planted_prompt(question: Question) -> str:
    """Return the paper's prompt, up to where the answer begins."""
    return f"Context:\n{question.context}\n\nQuestion: {question.question}\nAnswer:"


def save_planted(folder: Path, *, seed: int = 0) -> Path:
    """Write the planted model as a checkpoint and return its folder."""
    planted = planted_model(seed=seed)
    planted.network.save_pretrained(folder)
    planted.tokenizer.save_pretrained(folder)
    return folder
