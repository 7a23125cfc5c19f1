"""``tune adapt``'s training against a plain PEFT loop over the same rows, rank and modules, on a real model."""

import numpy as np
import torch
from torch.nn.functional import softplus

import truthheads as th
from bench.timing import Outcome, in_turns, over
from truthheads.data.questions import Question
from truthheads.models.devices import pick_batch_tokens
from truthheads.models.forward import shares_prefix
from truthheads.models.head_modules import HeadPlace, locate_places
from truthheads.models.load import Model
from truthheads.models.neutral_text import neutral_ids
from truthheads.models.prompts import encode, prompt_of
from truthheads.tuning.adapt import AdaptSchedule, adapt, falling, plan_steps
from truthheads.tuning.heads import drawn

NAME = "tune-adapt"
TURNS, ROWS = 3, 64


def run(*, quick: bool) -> list[Outcome]:
    """One epoch of both, in turns."""
    model = th.load("smollm2")
    questions = th.make_text(8 if quick else ROWS, seed=0)
    neutral = neutral_ids(model, questions, texts=16, seed=0)
    places = drawn(locate_places(model.network, model.layout), 0.1, seed=0, turn=0)
    schedule = AdaptSchedule(epochs=1)
    encoded = encode(model, questions, share_prefix=shares_prefix(model))
    ours, plain = in_turns(
        lambda: adapt(
            model,
            encoded,
            neutral,
            places,
            schedule=schedule,
            batch_tokens=pick_batch_tokens(model.device),
            seed=0,
        ),
        lambda: by_peft(model, questions, neutral, places, schedule),
        turns=1 if quick else TURNS,
    )
    wall, cpu = over(ours, plain)
    tokens = sum(item.unique_tokens for item in encoded)
    n = f"{len(questions)} rows, {tokens} tokens, rank {schedule.rank}, SmolLM2, {model.dtype}".replace("torch.", "")
    return [Outcome(NAME, wall, "<= 1.2", n, cpu, {"seconds": [took.wall for took in ours]})]


def by_peft(
    model: Model,
    questions: list[Question],
    neutral: list[list[int]],
    places: list[HeadPlace],
    schedule: AdaptSchedule,
) -> None:
    """Train as the library's guide does: both answers of a step in one padded batch, each with its whole prompt."""
    from peft import LoraConfig, get_peft_model

    names = sorted({place.query.module for place in places} | {place.output.module for place in places})
    settings = LoraConfig(r=schedule.rank, lora_alpha=schedule.rank, target_modules=names)
    wrapped = get_peft_model(model.network, settings)
    optimiser = torch.optim.AdamW([one for one in wrapped.parameters() if one.requires_grad], lr=schedule.rate)
    prompts = [model.tokenizer(prompt_of(question)).input_ids for question in questions]
    answers = [
        [model.tokenizer(f"{prompt_of(question)} {answer.text}").input_ids for answer in question.answers]
        for question in questions
    ]
    drawn_texts = np.random.default_rng(0)
    encoded = encode(model, questions)
    for step in plan_steps(encoded, schedule.questions):
        rows = [(prompts[i], ids) for i in step for ids in answers[i]]
        width = max(len(ids) for _, ids in rows)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for _, row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for _, row in rows])
        counted = real[:, 1:].clone()
        for row, (prompt, _) in enumerate(rows):
            counted[row, : len(prompt) - 1] = 0
        texts = [neutral[i] for i in drawn_texts.choice(len(neutral), schedule.texts, False)]
        length = min(map(len, texts))
        text = torch.tensor([one[:length] for one in texts])
        logits = wrapped(input_ids=ids, attention_mask=real).logits[:, :-1].float().log_softmax(-1)
        logprob = (logits.gather(-1, ids[:, 1:, None])[..., 0] * counted).sum(1).view(-1, 2)
        with torch.no_grad(), wrapped.disable_adapter():
            before = wrapped(input_ids=text).logits.float().log_softmax(-1)
        after = wrapped(input_ids=text).logits.float().log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        (softplus(logprob[:, 1] - logprob[:, 0]).mean() + falling(schedule, 0) * kl).backward()
        optimiser.step()
        optimiser.zero_grad()
    wrapped.unload()
