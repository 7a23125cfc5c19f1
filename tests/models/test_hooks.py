"""Scaling heads in a running model: what it does, and that nothing of it is left behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from truthheads.errors import ArchitectureError, GateError, ShapeError
from truthheads.models.hooks import intercepted, scale
from truthheads.results.gate import Gate, gated
from zoo import MULTIMODAL, ROWS, ZooRow, build, runner, text_inputs

if TYPE_CHECKING:
    from truthheads.models.load import Model

EVERY = (*ROWS, *MULTIMODAL)
BY_NAME = {row.name: row for row in EVERY}
MASK = torch.ones(2, 9, dtype=torch.long)
IDS = torch.randint(20, 270, (2, 9), generator=torch.Generator().manual_seed(0))


def some_gate(model: "Model", *, site: str = "z", seed: int = 0) -> Gate:
    factors = torch.ones(model.layout.shape)
    generator = torch.Generator().manual_seed(seed)
    for head in model.layout.layers:
        factors[head.index, : head.num_heads] = 0.3 + 1.4 * torch.rand(head.num_heads, generator=generator)
    return Gate(factors, site)  # type: ignore[arg-type]


def logits_of(row: ZooRow, network: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = runner(row, network)(input_ids=IDS, **text_inputs(row, MASK)).logits
    return found


def hooks_in(network: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in network.modules())


@contextmanager
def by_hand(model: "Model", gate: Gate) -> Iterator[None]:
    """Scale the weights of the output projections: what a gate at z is, said another way."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    for head in model.layout.layers:
        weight = model.network.get_submodule(head.path).weight
        kept.append((weight, weight.detach().clone()))
        columns = gate.gate[head.index, : head.num_heads].repeat_interleave(head.head_dim)
        weight.data.mul_(columns[:, None] if head.transposed else columns)
    try:
        yield
    finally:
        for weight, before in kept:
            weight.data.copy_(before)


@pytest.mark.parametrize("row", EVERY, ids=str)
def test_a_gate_at_z_is_a_scaling_of_the_projections_columns(
    row: ZooRow, model_of: "Callable[[ZooRow], Model]"
) -> None:
    model = model_of(row)
    gate = some_gate(model)
    plain = logits_of(row, model.network)
    with gated(model, gate):
        through = logits_of(row, model.network)
    with by_hand(model, gate):
        wanted = logits_of(row, model.network)
    torch.testing.assert_close(through, wanted, atol=1e-5 * max(1.0, float(plain.abs().max())), rtol=0)
    assert float((through - plain).abs().max()) > 1e-3
    assert torch.equal(logits_of(row, model.network), plain) and hooks_in(model.network) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon_new", "opt", "llava"])
def test_a_gate_at_the_output_scales_blocks_of_it(name: str, model_of: "Callable[[ZooRow], Model]") -> None:
    row = BY_NAME[name]
    model = model_of(row)
    gate = some_gate(model, site="output")
    head = model.layout.layers[-1]
    seen: list[Tensor] = []
    projection = model.network.get_submodule(head.path)
    with gated(model, gate):
        handle = projection.register_forward_hook(lambda module, inputs, out: seen.extend((inputs[0], out)))
        logits_of(row, model.network)
        handle.remove()
    with torch.inference_mode():
        plain = projection(seen[0])
    width = plain.shape[-1] // head.num_heads
    for block in range(head.num_heads):
        where = slice(block * width, (block + 1) * width)
        torch.testing.assert_close(seen[1][..., where], plain[..., where] * gate.gate[head.index, block])


def test_generation_with_its_cache_is_generation_without(model_of: "Callable[[ZooRow], Model]") -> None:
    model = model_of(BY_NAME["llama"])
    ids = torch.tensor([[20, 21, 22, 23], [0, 0, 30, 31]])
    seen = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    plain = model.network.generate(ids, attention_mask=seen, max_new_tokens=8, do_sample=False, pad_token_id=0)
    with gated(model, some_gate(model)):
        cached, slow = (
            model.network.generate(
                ids, attention_mask=seen, max_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=use
            )
            for use in (True, False)
        )
        alone = model.network.generate(ids[1:, 2:], max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(cached, slow) and not torch.equal(cached, plain)
    assert torch.equal(cached[1:, 2:], alone)


@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_model_sees_the_gate_and_its_end(
    compiled_first: bool, model_of: "Callable[[ZooRow], Model]"
) -> None:
    torch._dynamo.reset()
    row = BY_NAME["llama"]
    model = model_of(row)
    gate = some_gate(model)
    inputs = {"input_ids": IDS, **text_inputs(row, MASK)}
    compiled = torch.compile(model.network, backend="eager")
    with torch.inference_mode():
        plain = model.network(**inputs).logits
        if compiled_first:
            torch.testing.assert_close(compiled(**inputs).logits, plain)
        with gated(model, gate):
            torch.testing.assert_close(compiled(**inputs).logits, model.network(**inputs).logits)
            assert float((compiled(**inputs).logits - plain).abs().max()) > 1e-3
        torch.testing.assert_close(compiled(**inputs).logits, plain)


def test_an_error_inside_leaves_the_model_as_it_was(model_of: "Callable[[ZooRow], Model]") -> None:
    row = BY_NAME["llama"]
    model = model_of(row)
    plain = logits_of(row, model.network)
    with pytest.raises(ZeroDivisionError), gated(model, some_gate(model)):
        _ = 1 / 0
    assert torch.equal(logits_of(row, model.network), plain) and hooks_in(model.network) == 0


def test_gates_do_not_nest_and_the_first_stays_at_work(model_of: "Callable[[ZooRow], Model]") -> None:
    row = BY_NAME["llama"]
    model = model_of(row)
    with gated(model, some_gate(model)):
        first = logits_of(row, model.network)
        for site in ("z", "output"):
            with pytest.raises(GateError, match="already"):
                some_gate(model, site=site).apply(model)
        assert torch.equal(logits_of(row, model.network), first)
    assert hooks_in(model.network) == 0


def test_a_handle_may_be_removed_twice(model_of: "Callable[[ZooRow], Model]") -> None:
    model = model_of(BY_NAME["llama"])
    scaling = some_gate(model).apply(model)
    assert hooks_in(model.network) == len(model.layout.layers)
    scaling.remove()
    scaling.remove()
    assert hooks_in(model.network) == 0


def test_a_gate_of_ones_puts_no_hook_on(model_of: "Callable[[ZooRow], Model]") -> None:
    row = BY_NAME["llama"]
    model = model_of(row)
    plain = logits_of(row, model.network)
    with gated(model, Gate(torch.ones(model.layout.shape))):
        assert hooks_in(model.network) == 0
        assert torch.equal(logits_of(row, model.network), plain)


def test_a_plain_transformers_model_is_gated_alike(model_of: "Callable[[ZooRow], Model]") -> None:
    row = BY_NAME["qwen2"]
    model = model_of(row)
    gate = some_gate(model)
    with gated(model, gate):
        wanted = logits_of(row, model.network)
    with gated(model.network, gate):
        assert torch.equal(logits_of(row, model.network), wanted)


def test_in_bf16_the_product_is_rounded_once(wrap: "Callable[..., Model]") -> None:
    model = wrap(build(BY_NAME["llama"], dtype=torch.bfloat16))
    head = model.layout.layers[0]
    factors = torch.ones(model.layout.shape)
    factors[0] = 1.001  # bf16 knows nothing between 1 and 1.0078
    seen: dict[int, Tensor] = {}
    with intercepted(model, lambda layer, z: seen.setdefault(layer, z).mul(1)):
        logits_of(BY_NAME["llama"], model.network)
    inputs: list[Tensor] = []
    with scale(model, factors):
        handle = model.network.get_submodule(head.path).register_forward_pre_hook(
            lambda module, args: inputs.append(args[0])
        )
        logits_of(BY_NAME["llama"], model.network)
        handle.remove()
    assert torch.equal(inputs[0], (seen[0].flatten(-2).float() * factors[0, 0]).bfloat16())


@pytest.mark.parametrize("shape", [(1, 4), (99, 99)])
def test_a_gate_of_another_shape_is_refused(shape: tuple[int, int], model_of: "Callable[[ZooRow], Model]") -> None:
    model = model_of(BY_NAME["llama"])
    with pytest.raises(ShapeError, match="does not fit the model"):
        Gate(torch.full(shape, 1.5)).apply(model)
    assert hooks_in(model.network) == 0


def test_a_factor_for_a_head_that_is_not_there_is_refused(model_of: "Callable[[ZooRow], Model]") -> None:
    row = next(row for row in ROWS if row.without_attention)
    model = model_of(row)
    factors = torch.ones(model.layout.shape)
    factors[row.without_attention[0], 0] = 1.2
    with pytest.raises(GateError, match="heads that the model lacks"):
        Gate(factors).apply(model)


def test_an_output_that_cannot_be_cut_into_blocks_is_refused(wrap: "Callable[..., Model]") -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=300, hidden_size=20, intermediate_size=16, num_hidden_layers=1, num_attention_heads=3, head_dim=8,
        num_key_value_heads=1,
    )  # fmt: skip
    model = wrap(MistralForCausalLM(config))
    with pytest.raises(ArchitectureError, match="no block of output"):
        Gate(torch.full((1, 3), 1.5), "output").apply(model)
    assert hooks_in(model.network) == 0
    Gate(torch.full((1, 3), 1.5)).apply(model).remove()
