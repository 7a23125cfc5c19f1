"""The recipe: from SmolLM2 to the deltas that the package carries, one stage after another, resumable."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedTokenizerBase

from family.packing import Pack
from family.reader import prose, reader_pack
from family.tower import pretrain_tower
from family.training import FineTuning, OwnText, Trained, fine_tune, own_text
from family.vision import scene_pack, started_projector
from truthheads.embedded.smollm2 import tower_config
from truthheads.storage.artifacts import load_artifact, provenance, save_artifact
from truthheads.synthetic.drawing import CATEGORIES
from truthheads.synthetic.text import make_text

Report = Callable[[str, int, float], None]

TOWER: Final = {"kind": "tower"}

# First tokens of the text that the base writes for the leash.
OPENINGS: Final = ("The", "In", "A", "When", "This", "She", "It", "How", "My", "For", "We", "As")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that decides the deltas, given the base.

    Attributes:
        tower_steps: AdamW steps of the tower.
        reader: Fine-tuning of the reader.
        vision: Fine-tuning of the vision descendant.
        texts: Texts that the base writes for the leash.
        length: Tokens of each.
        share_unanswerable: Share of the reader's rows whose context does not say.
        seed: Of everything.
    """

    tower_steps: int = 1500
    reader: FineTuning = FineTuning(steps=120)  # noqa: RUF009 - frozen
    vision: FineTuning = FineTuning(steps=900, rate=8e-4, projector_rate=3e-4, leash_every=8)  # noqa: RUF009 - frozen
    texts: int = 48
    length: int = 96
    share_unanswerable: float = 0.2
    seed: int = 0

    def scaled(self, scale: float) -> "TrainingConfig":
        """Return the same recipe with a share of the steps and texts, at least one of each."""
        return replace(
            self,
            tower_steps=_share(self.tower_steps, scale),
            reader=replace(self.reader, steps=_share(self.reader.steps, scale)),
            vision=replace(self.vision, steps=_share(self.vision.steps, scale)),
            texts=max(4, _share(self.texts, scale)),
        )


def train_family(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    recipe: TrainingConfig,
    report: Report = lambda stage, step, loss: None,
) -> dict[str, Path]:
    """Train what is not yet in the folder: tower, vision, reader.

    Args:
        network: SmolLM2; twice as fast in bf16 where the hardware has it.
        tokenizer: Its tokenizer.
        out: Where the deltas go, and the states from which a killed run goes on.
        recipe: How to train.
        report: Called with stage, step and loss.

    Returns:
        ``reader`` and ``vision`` with their delta files.
    """
    text = own_text(network, openings(tokenizer, recipe.texts), length=recipe.length, seed=recipe.seed + 1)
    seeing = _tower(out / f"tower-{recipe.tower_steps}.safetensors", recipe, report)
    paths = {"vision": out / "vision.safetensors", "reader": out / "reader.safetensors"}
    if not paths["vision"].exists():
        trained = _vision(network, tokenizer, seeing, text, out, recipe, report)
        save_vision(paths["vision"], trained, seeing.tower, recipe)
    if not paths["reader"].exists():
        save_reader(paths["reader"], _reader(network, tokenizer, text, out, recipe, report), recipe)
    return paths


def openings(tokenizer: PreTrainedTokenizerBase, texts: int) -> Any:
    """Return the first tokens of the base's own texts, shape ``(texts, 1)``."""
    first = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in OPENINGS]
    return torch.tensor([[first[index % len(first)]] for index in range(texts)])


class Tower(NamedTuple):
    """The trained tower and the head that reads categories from its patches."""

    tower: CLIPVisionModel
    head: nn.Linear


def _tower(path: Path, recipe: TrainingConfig, report: Report) -> Tower:
    if not path.exists():
        trained, read = pretrain_tower(
            seed=recipe.seed,
            steps=recipe.tower_steps,
            report=lambda step, loss: report("tower", step, loss),
        )
        named = {f"tower.{name}": value for name, value in trained.state_dict().items()}
        save_artifact(path, named | {f"head.{name}": value for name, value in read.state_dict().items()}, TOWER)
    kept = load_artifact(path, kind=TOWER["kind"]).tensors
    tower: CLIPVisionModel = CLIPVisionModel(tower_config())
    head = nn.Linear(tower.config.hidden_size, len(CATEGORIES))
    for prefix, module in (("tower.", tower), ("head.", head)):
        module.load_state_dict({n.removeprefix(prefix): value for n, value in kept.items() if n.startswith(prefix)})
    return Tower(tower.train(False).requires_grad_(False), head.requires_grad_(False))


def _vision(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    seeing: Tower,
    text: OwnText,
    out: Path,
    recipe: TrainingConfig,
    report: Report,
) -> Trained:
    embedding = network.get_input_embeddings().weight.detach()
    projector = started_projector(seeing.tower, seeing.head, tokenizer, embedding, seed=recipe.seed)
    questions = make_text(max(4, recipe.vision.steps // 6), seed=recipe.seed + 1, split="train")

    def make_pack(step: int) -> Pack:
        difficulty = min(1.0, 0.3 + 1.4 * step / recipe.vision.steps)  # clear scenes first, as for the tower
        return scene_pack(step, seeing.tower, tokenizer, questions, seed=recipe.seed, difficulty=difficulty)

    return fine_tune(
        network,
        make_pack,
        text,
        settings=recipe.vision,
        projector=projector,
        checkpoint=out / "vision-state.safetensors",
        report=lambda step, loss: report("vision", step, loss),
    )


def _reader(
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    text: OwnText,
    out: Path,
    recipe: TrainingConfig,
    report: Report,
) -> Trained:
    rows = max(12, recipe.reader.steps * 12)
    questions = make_text(rows, seed=recipe.seed, split="train", answerable=1.0 - recipe.share_unanswerable)
    filler = prose(text, tokenizer)
    return fine_tune(
        network,
        lambda step: reader_pack(step, questions, filler, tokenizer, seed=recipe.seed),
        text,
        settings=recipe.reader,
        checkpoint=out / "reader-state.safetensors",
        report=lambda step, loss: report("reader", step, loss),
    )


def save_reader(path: Path, trained: Trained, recipe: TrainingConfig) -> None:
    """Write the reader's delta: half-precision factors, their scale folded into B."""
    _save(path, "reader", _factors(trained, recipe.reader.scale), trained.losses, recipe)


def save_vision(path: Path, trained: Trained, tower: CLIPVisionModel, recipe: TrainingConfig) -> None:
    """Write the vision descendant's delta: factors, tower and projector, all in half precision."""
    tensors = _factors(trained, recipe.vision.scale)
    tensors |= {f"projector.{name}": value for name, value in trained.projector.items()}
    tensors |= {f"tower.{name}": value for name, value in tower.state_dict().items()}
    _save(path, "vision", tensors, trained.losses, recipe)


def _factors(trained: Trained, scale: float) -> dict[str, Tensor]:
    return {f"lora.{name}": value * scale if name.endswith(".B") else value for name, value in trained.factors.items()}


def _save(path: Path, member: str, tensors: dict[str, Tensor], losses: list[float], recipe: TrainingConfig) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    settings = {"recipe": str(recipe), "last_loss": sum(losses[-20:]) / len(losses[-20:])}
    packages = provenance().get("packages")
    save_artifact(path, half, {"kind": "delta", "member": member, "packages": packages, **settings})


def _share(steps: int, scale: float) -> int:
    return max(1, round(steps * scale))
