"""Attention rows beside the model's own call: what an eager model says of itself, without a whole matrix."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlavaProcessor, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from truthheads.data.questions import Question
from truthheads.errors import ArchitectureError
from truthheads.models.load import Model
from truthheads.models.prompts import encode
from truthheads.tracing.attention import attention_rows, capture_attention, collect_attention
from zoo import MULTIMODAL, ROWS, ZooRow, runner, text_inputs

TOLERANCE = 1e-5
DISAGREE = ("falcon_alibi",)
"""Families whose own sdpa and eager classes give different logits (1.4 apart at a largest logit of 4.7)."""
EVERY = (*ROWS, *MULTIMODAL)
NAMED = {row.name: row for row in EVERY}
SEVEN = ("llama_gqa", "qwen2", "qwen3", "gemma3", "mistral", "gpt2", "llava")
GEMMA = ZooRow(
    "gemma",
    "GemmaConfig",
    "GemmaForCausalLM",
    {**NAMED["llama_gqa"].settings, "head_dim": 16},
    3,
    4,
    16,
    2,
    "model.layers.0.self_attn.o_proj",
)


def eager(row: ZooRow, network: PreTrainedModel) -> PreTrainedModel:
    """Return the same model, loaded to compute and return whole attention matrices."""
    kind: Any = getattr(transformers, row.model_class)
    with torch.random.fork_rng(devices=[]):
        twin: PreTrainedModel = kind._from_config(copy.deepcopy(network.config), attn_implementation="eager").eval()
    twin.load_state_dict(network.state_dict())
    return twin


def whole(row: ZooRow, twin: PreTrainedModel, inputs: dict[str, Any]) -> list[Tensor]:
    """Return every layer's whole matrix ``[batch, heads, seq, seq]``; layers without one are left out."""
    out = runner(row, twin)(**inputs, use_cache=False, output_attentions=True)
    found = [matrix for matrix in out.attentions if matrix is not None]
    return [matrix if matrix.ndim == 4 else matrix.unflatten(0, (len(inputs["input_ids"]), -1)) for matrix in found]


@pytest.mark.parametrize("row", (*EVERY, GEMMA), ids=str)
def test_rows_are_those_of_the_eager_model(row: ZooRow, model_of: Callable[[ZooRow], Model]) -> None:
    model = model_of(row)
    if row.name in DISAGREE:
        model = replace(model, network=eager(row, model.network))
    ids = torch.randint(20, 270, (2, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, :5] = 0
    inputs = {"input_ids": ids, **text_inputs(row, mask)}
    queries = torch.tensor([[20, 23], [7, 22]])
    seen: dict[int, Tensor] = {}
    with torch.inference_mode():
        with capture_attention(model, queries, lambda layer, weights: seen.update({layer: weights})):
            runner(row, model.network)(**inputs, use_cache=False)
        wanted = whole(row, eager(row, model.network), inputs)
    assert tuple(seen) == row.attending
    for weights, matrix in zip(seen.values(), wanted, strict=True):
        rows = torch.stack([matrix[i][:, queries[i]].transpose(0, 1) for i in range(2)])
        assert weights.shape == (2, 2, row.num_heads, 24)
        assert not rows.isnan().any()
        assert (weights - rows).abs().max() < TOLERANCE


def with_sight(model: Model) -> Model:
    """Return a LLaVA with a processor made in memory."""
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


@pytest.mark.parametrize("row", [*(NAMED[name] for name in SEVEN), NAMED["gemma2"], NAMED["gpt_oss"], GEMMA], ids=str)
@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
def test_batches_of_questions_have_the_rows_of_each_question_alone(
    row: ZooRow, share: bool, model_of: Callable[[ZooRow], Model], tmp_path: Path
) -> None:
    model = model_of(row)
    questions = [
        Question("a", "Oslo is far from the sea, and from Rome too.", "Which town is far?", "Oslo", "Rome or none"),
        Question("b", "Rome is old.", "Which?", "Rome it is, as all know", "Oslo"),
        Question("c", "Lima lies by the sea.", "Where does Lima lie?", "by the sea", "inland, very far"),
    ]
    if row.name == "llava":
        model = with_sight(model)
        noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        questions = [
            Question(q.id, q.context, q.question, q.truthful, q.untruthful, image=str(tmp_path / "a.png"))
            for q in questions
        ]
    encoded = encode(model, questions, share_prefix=share)
    assert bool(encoded[0].prefix) == share
    found: dict[tuple[int, int], Tensor] = {}
    collect_attention(
        model, encoded, ("answer", "question", "untruthful"), lambda i, at, rows: found.update({(i, at): rows})
    )
    twin = eager(row, model.network)
    assert len(found) == 9
    for i, item in enumerate(encoded):
        for tail in (0, 1):
            ids = [*item.prefix, *item.tails[tail]]
            inputs: dict[str, Any] = {"input_ids": torch.tensor([ids])}
            if row.name == "llava":
                image = Image.open(tmp_path / "a.png")
                inputs |= {"pixel_values": model.processor.image_processor(image, return_tensors="pt")["pixel_values"]}
            with torch.inference_mode():
                matrices = torch.stack([matrix[0] for matrix in whole(row, twin, inputs)])
            last, prompt = len(ids) - 1, len(item.prefix) + item.starts[tail] - 1
            assert (found[i, 2 * tail] - matrices[:, :, last]).abs().max() < TOLERANCE
            if tail == 0:
                assert (found[i, 1] - matrices[:, :, prompt]).abs().max() < TOLERANCE


class Largest(TorchDispatchMode):
    """Notes the elements of the largest new tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        held = {part.untyped_storage().data_ptr() for part in args if isinstance(part, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in held:  # a view takes no memory
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("kind", ["none", "padding", "matrix"])
def test_no_tensor_grows_with_the_square_of_the_length(kind: str) -> None:
    largest = []
    for length in (256, 512):
        query, key = torch.randn(2, 4, length, 8), torch.randn(2, 2, length, 8)
        masks = {"none": None, "padding": torch.ones(2, length), "matrix": torch.ones(1, 1, length, length).tril() > 0}
        with Largest() as watch:
            attention_rows(query, key, torch.tensor([[length - 2, length - 1]] * 2), masks[kind])
        # The mask is the model's own and is not copied: the largest tensor here is the query or key in fp32.
        assert watch.elements <= query.numel()
        largest.append(watch.elements)
    assert largest[1] == 2 * largest[0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    before=st.integers(0, 6),
    window=st.none() | st.integers(1, 12),
    cap=st.none() | st.floats(1, 5),
    sunk=st.booleans(),
    mask=st.sampled_from(["none", "padding", "bool", "float"]),
    scaling=st.none() | st.floats(0.1, 2),
)
def test_rows_follow_the_definition(
    seed: int, before: int, window: int | None, cap: float | None, sunk: bool, mask: str, scaling: float | None
) -> None:
    draw = torch.Generator().manual_seed(seed)
    batch, heads, groups, tokens, width = 2, 4, 2, 5, 8
    keys = before + tokens
    query = torch.randn(batch, heads, tokens, width, generator=draw)
    key = torch.randn(batch, groups, keys, width, generator=draw)
    queries = torch.tensor([[0, 4], [2, 3]])
    sinks = torch.randn(heads, generator=draw) if sunk else None
    allowed = torch.rand(batch, 1, tokens, keys, generator=draw) > 0.3
    allowed |= torch.eye(tokens, keys, dtype=torch.bool).roll(before, 1)
    padding = torch.ones(batch, keys, dtype=torch.long)
    padding[1, :before] = 0
    causal = torch.ones(tokens, keys, dtype=torch.bool).tril(before)
    given_mask = {
        "none": None,
        "padding": padding,
        "bool": allowed & causal,
        "float": torch.zeros(batch, 1, tokens, keys).masked_fill(~(allowed & causal), float("-inf")),
    }[mask]
    visible = {"none": causal, "padding": causal & (padding > 0)[:, None, None], "bool": allowed & causal}
    seen = visible.get(mask, allowed & causal).expand(batch, heads, tokens, keys)
    if window is not None:
        place = torch.arange(before, keys)[:, None] - torch.arange(keys)
        seen = seen & (place < window)
    logits = query @ key.repeat_interleave(heads // groups, dim=1).transpose(2, 3)
    logits = logits * (width**-0.5 if scaling is None else scaling)
    logits = logits if cap is None else torch.tanh(logits / cap) * cap
    exp = logits.exp() * seen
    total = exp.sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp().view(1, -1, 1, 1))
    wanted = exp / total
    rows = attention_rows(
        query, key, queries, given_mask, scaling=scaling, sliding_window=window, softcap=cap, sinks=sinks
    )
    for i in range(batch):
        assert torch.allclose(rows[i], wanted[i][:, queries[i]], atol=1e-6)


# What is left behind: nothing


def test_leaving_the_block_leaves_nothing(model_of: Callable[[ZooRow], Model]) -> None:
    ids = torch.arange(20, 40)[None]
    for name in ("llama", "gemma2", "bloom", "falcon_new"):
        model = model_of(NAMED[name])
        registered = dict(ALL_ATTENTION_FUNCTIONS)
        before = model.network(ids).logits
        with pytest.raises(KeyboardInterrupt), capture_attention(model, torch.tensor([[19]]), lambda *_: None):
            inside = model.network(ids).logits
            raise KeyboardInterrupt
        assert torch.equal(inside, before) and torch.equal(model.network(ids).logits, before)
        assert dict(ALL_ATTENTION_FUNCTIONS) == registered
        hooks = [m for m in model.network.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert hooks == []


def test_a_function_registered_by_others_is_called_and_comes_back(model_of: Callable[[ZooRow], Model]) -> None:
    calls = []

    def mine(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS["sdpa"] = mine
    try:
        model = model_of(NAMED["llama"])
        with capture_attention(model, torch.tensor([[3]]), lambda *_: None):
            model.network(torch.arange(20, 24)[None])
        assert len(calls) == 3 and ALL_ATTENTION_FUNCTIONS["sdpa"] is mine
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_another_model_in_the_block_is_not_seen(model_of: Callable[[ZooRow], Model]) -> None:
    model, other = model_of(NAMED["llama"]), model_of(NAMED["qwen2"])
    seen = []
    with capture_attention(model, torch.tensor([[3]]), lambda layer, _: seen.append(layer)):
        other.network(torch.arange(20, 24)[None])
        model.network(torch.arange(20, 24)[None])
    assert seen == [0, 1, 2]


def test_two_models_can_be_seen_at_once(model_of: Callable[[ZooRow], Model]) -> None:
    models = [model_of(NAMED[name]) for name in ("llama", "qwen2")]
    seen: list[int] = []
    query = torch.tensor([[3]])
    with (
        capture_attention(models[0], query, lambda layer, _: seen.append(layer)),
        capture_attention(models[1], query, lambda layer, _: seen.append(10 + layer)),
    ):
        for model in models:
            model.network(torch.arange(20, 24)[None])
    assert seen == [0, 1, 2, 10, 11, 12]


def test_attention_that_cannot_be_seen_is_refused(model_of: Callable[[ZooRow], Model]) -> None:
    model = model_of(NAMED["llama"])
    with (
        pytest.raises(ArchitectureError, match=r"LlamaForCausalLM cannot be seen in layer 0, 1, 2"),
        capture_attention(model, torch.tensor([[0]]), lambda *_: None),
    ):
        pass
