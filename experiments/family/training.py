"""Fine-tuning SmolLM2 on packed sequences: LoRA on the attention, a leash to the base on its own text, resumable."""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from family.packing import Pack
from family.tower import cosine
from truthheads.models.devices import mixed_precision

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class FineTuning:
    """Settings of one fine-tuning run.

    Attributes:
        steps: Packs to learn from.
        rank: Of the LoRA factors.
        scale: What their product is multiplied by (LoRA's alpha over rank).
        rate: Highest learning rate of the factors.
        projector_rate: The same for the projector.
        leash: Weight of the KL divergence from the base on its own text.
        leash_every: The leash is felt every so many steps.
        seed: Of the factors; the packs bring their own.
    """

    steps: int
    rank: int = 16
    scale: float = 2.0
    rate: float = 1.5e-3
    projector_rate: float = 1e-3
    leash: float = 2.0
    leash_every: int = 4
    seed: int = 0


class Trained(NamedTuple):
    """What a run leaves: LoRA factors by module path, the projector's tensors, and the course of the loss."""

    factors: dict[str, Tensor]
    projector: dict[str, Tensor]
    losses: list[float]


class OwnText(NamedTuple):
    """Text that the base wrote itself, with its last hidden states: what the leash compares with."""

    ids: Int[Tensor, "texts length"]
    states: Float[Tensor, "texts length width"]


def own_text(base: Any, prompts: Int[Tensor, "texts prompt"], *, length: int, seed: int) -> OwnText:
    """Let the base write, sampling at temperature 1.

    Args:
        base: The base, in any dtype.
        prompts: First tokens of every text, all equally many.
        length: Tokens per text, prompt included.
        seed: Of the sampling.

    Returns:
        The texts and the base's states on them.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.random.manual_seed(seed)
        room = {"max_length": length, "min_length": length}
        ids = base.generate(prompts, do_sample=True, top_k=0, attention_mask=torch.ones_like(prompts), **room)
        states = base.get_decoder()(input_ids=ids).last_hidden_state
    return OwnText(ids.clone(), states.clone())


def fine_tune(
    base: Any,
    make_pack: Callable[[int], Pack],
    text: OwnText,
    *,
    settings: FineTuning,
    projector: nn.Module | None = None,
    checkpoint: Path | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Trained:
    """Teach a copy of the base through LoRA factors; the base's own weights are not changed.

    Args:
        base: The base language model; in bf16, where the hardware has it, twice as fast; the factors stay fp32.
        make_pack: Gives the pack of a step; the same step must give the same pack.
        text: The leash.
        settings: How to train.
        projector: Trained along where given; fills the slots of the packs.
        checkpoint: Where to keep the state; a run that finds one goes on from it.
        report: Called with step and loss.

    Returns:
        The factors and what else was learned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(settings.seed)
        lora = LoraConfig(
            r=settings.rank, lora_alpha=round(settings.scale * settings.rank), target_modules=list(ATTENTION)
        )
        with warnings.catch_warnings():  # peft asks for an attribute that transformers renamed
            warnings.simplefilter("ignore", FutureWarning)
            model: Any = get_peft_model(base, lora)
    factors = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    extra = dict(projector.named_parameters()) if projector is not None else {}
    groups = [{"params": list(factors.values()), "lr": settings.rate}]
    if extra:
        groups.append({"params": list(extra.values()), "lr": settings.projector_rate})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))
    weights = {**factors, **{f"projector.{name}": weight for name, weight in extra.items()}}
    losses = _resume(checkpoint, settings, weights, optimizer)
    for step in range(len(losses), settings.steps):
        for group, highest in zip(optimizer.param_groups, (settings.rate, settings.projector_rate), strict=False):
            group["lr"] = highest * cosine(step, settings.steps)
        loss = answer_loss(model, make_pack(step), projector)
        total = loss
        if settings.leash_every and step % settings.leash_every == 0:
            pull = settings.leash * leash_loss(model, text, step // settings.leash_every)
            total = loss + pull
        optimizer.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        report(step, losses[-1])
        if checkpoint is not None and (step + 1) % 50 == 0:
            _keep(checkpoint, settings, weights, optimizer, losses)
    if checkpoint is not None:
        _keep(checkpoint, settings, weights, optimizer, losses)
    trained = {_plain(name): weight.detach().clone() for name, weight in factors.items()}
    model.unload()
    return Trained(trained, {name: weight.detach().clone() for name, weight in extra.items()}, losses)


def answer_loss(model: Any, sample: Pack, projector: nn.Module | None) -> Float[Tensor, ""]:
    """Cross-entropy of a pack's answer tokens, by their weights."""
    decoder, head = model.get_base_model().get_decoder(), model.get_output_embeddings()
    embedded = model.get_input_embeddings()(sample.ids)
    with mixed_precision(embedded.device):
        if projector is not None and sample.features is not None:
            filled = projector(sample.features).flatten(0, 1).to(embedded.dtype)
            embedded = embedded.index_put((sample.slots,), filled)
        # A finite "minus infinity": bf16 rounds the true lowest value to infinity, and a row of those gives NaN.
        mask = torch.zeros(sample.mask.shape, dtype=embedded.dtype).masked_fill(~sample.mask, -1e9)
        states = decoder(
            inputs_embeds=embedded[None],
            attention_mask=mask[None, None],
            position_ids=sample.positions[None],
            use_cache=False,
        ).last_hidden_state[0]
        logits = head(states[sample.sources])
    return (nn.functional.cross_entropy(logits.float(), sample.targets, reduction="none") * sample.weights).sum()


def leash_loss(model: Any, text: OwnText, turn: int, *, batch: int = 2) -> Float[Tensor, ""]:
    """KL divergence from the base on two of its texts, in nats per token."""
    rows = [(turn * batch + row) % len(text.ids) for row in range(batch)]
    head = model.get_output_embeddings()
    with mixed_precision(text.ids.device):
        states = model.get_base_model().get_decoder()(input_ids=text.ids[rows], use_cache=False).last_hidden_state
        after = head(states).float().log_softmax(-1)
        with torch.no_grad():
            before = head(text.states[rows]).float().log_softmax(-1)
    return nn.functional.kl_div(after.flatten(0, 1), before.flatten(0, 1), log_target=True, reduction="batchmean")


def _plain(name: str) -> str:
    """``base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight`` -> ``layers.0.self_attn.q_proj.A``."""
    module, _, rest = name.partition(".lora_")
    return f"{module.removeprefix('base_model.model.model.')}.{rest[0]}"


def _keep(
    checkpoint: Path,
    settings: FineTuning,
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: list[float],
) -> None:
    tensors = {f"weight.{name}": weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        for key, value in optimizer.state[weight].items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value)
    note = {"settings": json.dumps(asdict(settings), sort_keys=True), "losses": json.dumps(losses)}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    aside = checkpoint.with_suffix(".part")
    save_file(tensors, aside, metadata=note)
    aside.replace(checkpoint)


def _resume(
    checkpoint: Path | None,
    settings: FineTuning,
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> list[float]:
    """Load a state kept under the same settings; return its losses, none where there is no such state."""
    if checkpoint is None or not checkpoint.exists():
        return []
    with safe_open(checkpoint, "pt") as kept:
        note: dict[str, Any] = kept.metadata()
        if json.loads(note["settings"]) != asdict(settings):
            return []
        for name, weight in weights.items():
            with torch.no_grad():
                weight.copy_(kept.get_tensor(f"weight.{name}"))
            if f"exp_avg.{name}" in kept.keys():  # noqa: SIM118 - not a dictionary
                state = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[weight] = {key: kept.get_tensor(f"{key}.{name}") for key in state}
    losses: list[float] = json.loads(note["losses"])
    return losses
