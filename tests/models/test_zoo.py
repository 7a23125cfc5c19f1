"""The zoo is what its table says: checked against the modules and against what they compute, without the package."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from truthheads.models.forward import cache_name, cache_of
from zoo import MULTIMODAL, ROWS, SPECIAL_TOKENS, VOCAB_SIZE, ZooRow, build, runner, save, text_inputs, tiny_tokenizer

TOLERANCE = 1e-4
"""Two ways through a float32 model of logits of size 1 to 5: 3e-5 apart at most, in all rows."""

EVERY = (*ROWS, *MULTIMODAL)
every_row = pytest.mark.parametrize("row", EVERY, ids=str)

LENGTHS = (13, 9)  # both longer than the tiny sliding windows
ANSWERS = (3, 5)


class Sequences(NamedTuple):
    """Two prompts of different length and two answers to each."""

    prompts: tuple[Tensor, ...]
    answers: tuple[tuple[Tensor, ...], ...]


@cache
def network_of(row: ZooRow) -> PreTrainedModel:
    return build(row)


@cache
def sequences() -> Sequences:
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> Tensor:
        return torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, (length,), generator=generator)

    return Sequences(tuple(map(draw, LENGTHS)), tuple(tuple(map(draw, ANSWERS)) for _ in LENGTHS))


def pad(rows: list[Tensor] | tuple[Tensor, ...], side: str) -> tuple[Tensor, Tensor]:
    """Return tokens and mask, ``(rows, longest)``."""
    tokens = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return tokens, nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)


@torch.no_grad()
def logits(row: ZooRow, tokens: Tensor, mask: Tensor, *, answer: int = 0, **changes: Any) -> Tensor:
    """Return the logits of a batch; ``changes`` replace or (None) remove inputs."""
    inputs: dict[str, Any] = text_inputs(row, mask, new=tokens.shape[1], answer=answer) | changes
    given = {name: value for name, value in inputs.items() if value is not None}
    return cast(Tensor, runner(row, network_of(row))(tokens, **given).logits)


def plain(row: ZooRow, tokens: Tensor, *, answer: int = 0) -> Tensor:
    """Return the logits of one sequence run on its own."""
    return logits(row, tokens[None], torch.ones_like(tokens)[None], answer=answer)[0]


def padded_error(row: ZooRow, side: str, **changes: Any) -> float:
    """Return how far a padded batch is from the sequences run one by one."""
    prompts = sequences().prompts
    tokens, mask = pad(prompts, side)
    batch = logits(row, tokens, mask, **changes)
    return max(
        float((batch[number][mask[number].bool()] - plain(row, prompt)).abs().max())
        for number, prompt in enumerate(prompts)
    )


def continued_error(row: ZooRow, side: str, spread: Callable[[Any], None], *, positions: bool = True) -> float:
    """Return how far answers continued from cached prompts are from prompt and answer run in one.

    Args:
        row: The architecture.
        side: Where the shorter prompt is padded.
        spread: Turns the cache of two prompts into one of four rows, each prompt twice.
        positions: Pass position ids.
    """
    prompts, answers = sequences()
    network = runner(row, network_of(row))
    tokens, mask = pad(prompts, side)
    inputs = text_inputs(row, mask)
    if not positions:
        inputs.pop("position_ids", None)
    with torch.no_grad():
        past = cache_of(network.base_model(tokens, use_cache=True, **inputs))
    spread(past)
    flat = [answer for pair in answers for answer in pair]
    tokens, answer_mask = pad(flat, "right")
    mask = torch.cat([mask.repeat_interleave(len(ANSWERS), dim=0), answer_mask], dim=1)
    changes = {} if positions else {"position_ids": None}
    batch = logits(row, tokens, mask, answer=tokens.shape[1], **{cache_name(network): past}, **changes)
    errors = []
    for number, answer in enumerate(flat):
        prompt = prompts[number // len(ANSWERS)]
        one = plain(row, torch.cat([prompt, answer]), answer=len(answer))
        errors.append(float((batch[number, : len(answer)] - one[len(prompt) :]).abs().max()))
    return max(errors)


def repeat(past: Any) -> None:
    past.batch_repeat_interleave(len(ANSWERS))


def reorder(past: Any) -> None:
    past.reorder_cache(torch.arange(len(LENGTHS)).repeat_interleave(len(ANSWERS)))


def test_names_are_unique() -> None:
    assert len({row.name for row in EVERY}) == len(EVERY)


@every_row
def test_projections_are_where_the_row_says(row: ZooRow) -> None:
    modules = dict(network_of(row).named_modules())
    assert row.projection(row.attending[0]) == row.out_proj
    assert [layer for layer in range(row.num_layers + 1) if row.projection(layer) in modules] == [*row.attending]
    for layer in row.attending:
        module = modules[row.projection(layer)]
        assert isinstance(module, Conv1D if row.transposed else nn.Linear)
        weight = module.weight if row.transposed else module.weight.T
        assert weight.shape[0] == row.num_heads * row.head_dim


CACHED = {
    "falcon_new": (4, 8),  # its 2 key-value heads are repeated for the 4 query heads before they are cached
    "deepseek_v3": (1, 8),  # cached are the latent (as keys) and the 8 rotary columns (as values), one for all heads
}
"""Heads and width of cached values where those are not the row's own."""


@every_row
def test_counts_are_what_the_model_computes_with(row: ZooRow) -> None:
    network = build(row)
    network.set_attn_implementation("eager")
    tokens = sequences().prompts[0][None]
    with torch.no_grad():
        out = runner(row, network).base_model(tokens, use_cache=True, output_attentions=True)
    assert [tuple(attention.shape) for attention in out.attentions if attention is not None] == [
        (1, row.num_heads, tokens.shape[1], tokens.shape[1])
    ] * len(row.attending)
    shape = CACHED.get(row.name, (row.num_kv_heads, row.head_dim))
    for layer in row.attending:
        values = cache_of(out).layers[layer].values
        assert (values.shape[1], values.shape[-1]) == shape


@every_row
def test_every_head_matters(row: ZooRow) -> None:
    network = network_of(row)
    prompt = sequences().prompts[0]
    before = plain(row, prompt)
    for layer in row.attending:
        for head in range(row.num_heads):

            def mute(_: nn.Module, args: tuple[Tensor, ...], head: int = head) -> tuple[Tensor, ...]:
                heads = args[0].clone()
                heads[..., head * row.head_dim : (head + 1) * row.head_dim] = 0
                return (heads, *args[1:])

            handle = network.get_submodule(row.projection(layer)).register_forward_pre_hook(mute)
            change = float((plain(row, prompt) - before).abs().max())
            handle.remove()
            assert change > 0.01, (layer, head)


@every_row
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(row: ZooRow, side: str) -> None:
    assert padded_error(row, side) < TOLERANCE


@every_row
def test_which_rows_need_positions(row: ZooRow) -> None:
    errors = [padded_error(row, "left", position_ids=None)]
    if row.cache_reorder:
        try:
            errors.append(continued_error(row, "left", reorder, positions=False))
        except RuntimeError:
            errors.append(torch.inf)
    if row.needs_positions:
        assert max(errors) > 100 * TOLERANCE
    else:
        assert max(errors) < TOLERANCE


@pytest.mark.parametrize("row", [row for row in EVERY if not row.position_ids], ids=str)
def test_stray_positions_are_ignored(row: ZooRow) -> None:
    assert padded_error(row, "left", position_ids=torch.full((2, 13), 7)) < TOLERANCE


@pytest.mark.parametrize("row", [row for row in EVERY if row.token_types], ids=str)
def test_without_token_types_padding_turns_attention_causal(row: ZooRow) -> None:
    prompt = sequences().prompts[0][None]
    other = prompt.clone()
    other[0, -1] += 1
    mask = torch.ones_like(prompt)

    def reaches_back(*padding: int) -> bool:
        runs = []
        for tokens in (prompt, other):
            padded, seen = (nn.functional.pad(value, padding) for value in (tokens, mask))
            runs.append(logits(row, padded, seen, token_type_ids=None)[:, padding[0] :][:, :12])
        return bool((runs[0] - runs[1]).abs().max() > 100 * TOLERANCE)

    assert reaches_back(0, 0)
    assert not reaches_back(2, 0)


@every_row
def test_cached_prompts_can_be_continued(row: ZooRow) -> None:
    if row.cache_repeat:
        assert continued_error(row, "left", repeat) < TOLERANCE
    else:
        with pytest.raises((AttributeError, RuntimeError)) as error:
            continued_error(row, "left", repeat)
        said = f"{type(error.value).__name__}: {error.value}"
        assert row.cache_reason.startswith(said) or said.startswith(row.cache_reason)
    reordered = continued_error(row, "left", reorder)
    assert reordered < TOLERANCE if row.cache_reorder else reordered > 100 * TOLERANCE
    hole = continued_error(row, "right", reorder)
    assert hole < TOLERANCE if row.cache_hole else hole > 100 * TOLERANCE


def test_building_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    row = ROWS[0]
    state = torch.get_rng_state()
    first, again, other = (build(row, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    half = build(row, seed=1, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(first[name].bfloat16(), half[name]) for name in first)


def test_a_config_shares_nothing_with_its_row() -> None:
    row = next(row for row in MULTIMODAL if row.name == "qwen2_5_vl")
    row.config().get_text_config().rope_parameters["rope_theta"] = 1.0
    assert row.config().get_text_config().rope_parameters["rope_theta"] == 10000.0


def test_biases_are_not_zero() -> None:
    network = network_of(next(row for row in ROWS if row.name == "gpt2"))
    assert all(bool((bias != 0).all()) for name, bias in network.named_parameters() if name.endswith("bias"))


@settings(deadline=None)
@given(st.text())
def test_bytes_encode_any_text(text: str) -> None:
    tokenizer = _byte_tokenizer()
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>" + text
    assert max(ids) < VOCAB_SIZE


@settings(deadline=None)
@given(st.text(), st.text())
def test_the_tokens_of_a_prefix_are_a_prefix(prefix: str, rest: str) -> None:
    tokenizer = _byte_tokenizer()
    ids = tokenizer(prefix).input_ids
    assert tokenizer(prefix + rest).input_ids[: len(ids)] == ids


@cache
def _byte_tokenizer() -> Any:
    return tiny_tokenizer()


def test_offsets_and_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer("né", return_offsets_mapping=True).offset_mapping == [(0, 0), (0, 1), (1, 2), (1, 2)]
    chat = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<s><|user|>\nhi<|end|>\n<|assistant|>\n"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)[:2] == [
        "<s>",
        "<|user|>",
    ]


def test_words() -> None:
    tokenizer = tiny_tokenizer(["the", "cat", "sat", ".", "Answer:", "cat"])
    assert tokenizer("the cat sat.\nAnswer: dog").tokens() == [
        "<s>", "the", "cat", "sat", ".", "Answer:", "<unk>",
    ]  # fmt: skip
    assert len(tokenizer) == len(SPECIAL_TOKENS) + 5


@pytest.mark.parametrize("row", [*ROWS, MULTIMODAL[0]], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_saved_folders_load_again(row: ZooRow, shards: int, tmp_path: Path) -> None:
    folder = save(row, tmp_path / "model", shards=shards)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == shards
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert list(tensors.keys())
    network = type(network_of(row)).from_pretrained(folder)
    expected = network_of(row).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in network.state_dict().items())
    text = "Héllo, 世界\n\nAnswer: <image>"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tiny_tokenizer()(text).input_ids


def test_saving_refuses_a_number_of_shards_it_cannot_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="llama does not split into 1000 files"):
        save(ROWS[0], tmp_path, shards=1000)
