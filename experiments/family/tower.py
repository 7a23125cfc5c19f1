"""The image tower: a small CLIP vision model that learns on generated scenes which category stands where."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModel

from truthheads.embedded.smollm2 import GRID, PATCH, tower_config
from truthheads.models.devices import mixed_precision
from truthheads.synthetic.drawing import CATEGORIES, COOCCURRENCE, Scene, draw_scene, scene_generator

# An offset of the scene index per stage, so that no two stages see the same training scenes.
TOWER_SCENES: Final = 0

RIDGE_SCENES: Final = 10_000_000

LANGUAGE_SCENES: Final = 20_000_000


class TowerBatch(NamedTuple):
    """Pictures with what each of their patches shows."""

    pixels: Float[Tensor, "batch 3 side side"]
    patch_labels: Float[Tensor, "batch patches categories"]


def training_scene(index: int, *, seed: int, difficulty: float = 1.0) -> Scene:
    """Draw one training scene."""
    rng = scene_generator("train", seed=seed, index=index)
    return draw_scene(rng, cooccurrence=COOCCURRENCE["train"], difficulty=difficulty)


def to_pixels(scenes: list[Scene]) -> Float[Tensor, "batch 3 side side"]:
    """Scale pictures to [-1, 1], as ``image_processor`` does."""
    stacked = np.stack([scene.pixels for scene in scenes]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.astype(np.float32) / 127.5 - 1.0)


def patch_labels(scene: Scene) -> Float[np.ndarray, "patches categories"]:
    """Return, per patch and category, the larger share: of the patch or of a box, that lies in the other."""
    labels = np.zeros((GRID, GRID, len(CATEGORIES)), dtype=np.float32)
    low = np.arange(GRID) * PATCH
    for item in scene.objects:
        x0, y0, x1, y1 = item.box
        across = np.clip(np.minimum(x1, low + PATCH) - np.maximum(x0, low), 0, None)
        down = np.clip(np.minimum(y1, low + PATCH) - np.maximum(y0, low), 0, None)
        share = down[:, None] * across[None, :] / min(PATCH * PATCH, (x1 - x0) * (y1 - y0))
        column = CATEGORIES.index(item.category)
        labels[..., column] = np.maximum(labels[..., column], np.minimum(share, 1.0))
    return labels.reshape(GRID * GRID, -1)


def tower_batch(scenes: list[Scene]) -> TowerBatch:
    """Stack scenes for the tower."""
    return TowerBatch(to_pixels(scenes), torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes])))


def with_mirrored(drawn: TowerBatch) -> TowerBatch:
    """Add every scene's mirror image: drawing costs more than learning."""
    batch, _, categories = drawn.patch_labels.shape
    grid = drawn.patch_labels.view(batch, GRID, GRID, categories).flip(2).flatten(1, 2)
    return TowerBatch(torch.cat((drawn.pixels, drawn.pixels.flip(3))), torch.cat((drawn.patch_labels, grid)))


def patch_features(
    tower: CLIPVisionModel, pixels: Float[Tensor, "batch 3 side side"]
) -> Float[Tensor, "batch patches width"]:
    """Return the last layer's patch states, without the class token: what LLaVA's projector reads."""
    states: Tensor = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
    return states[:, 1:]


def pretrain_tower(
    *,
    seed: int,
    steps: int,
    batch: int = 64,
    rate: float = 2e-3,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[CLIPVisionModel, nn.Linear]:
    """Teach a fresh tower, patch by patch, which categories stand there.

    Args:
        seed: Of the weights and of the scenes.
        steps: AdamW steps, the rate rising over the first twentieth and falling to nothing by a cosine.
        batch: Pictures per step, half of them mirrored.
        rate: The highest learning rate.
        report: Called with step and loss.

    Returns:
        The tower and the linear head that reads categories from its patches.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        tower = CLIPVisionModel(tower_config())
        head = nn.Linear(tower.config.hidden_size, len(CATEGORIES))
        nn.init.constant_(head.bias, -3.0)
    weights = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.02, betas=(0.9, 0.98))
    for step in range(steps):
        # Clear scenes first: from the hardest ones alone it had learned half as much after 500 steps.
        difficulty = min(1.0, 0.2 + 2.0 * step / steps)
        numbers = range(TOWER_SCENES + step * batch // 2, TOWER_SCENES + (step + 1) * batch // 2)
        drawn = tower_batch([training_scene(index, seed=seed, difficulty=difficulty) for index in numbers])
        pixels, labels = with_mirrored(drawn)
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        with mixed_precision(pixels.device):
            logits = head(patch_features(tower, pixels))
        loss = tower_loss(logits.float(), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        report(step, float(loss.detach()))
    return tower.train(False).requires_grad_(False), head.requires_grad_(False)


def tower_loss(
    logits: Float[Tensor, "batch patches categories"], labels: Float[Tensor, "batch patches categories"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy per patch, plus the same for the picture's best patch."""
    per_patch = nn.functional.binary_cross_entropy_with_logits(logits, labels)
    anywhere = (labels.amax(1) > 0).float()
    per_picture = nn.functional.binary_cross_entropy_with_logits(logits.logsumexp(1) - 0.5, anywhere)
    return 4.0 * per_patch + per_picture


def cosine(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: a short rise, then a cosine to 0."""
    rise = max(1, steps // 20)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + float(np.cos(np.pi * (step - rise) / max(1, steps - rise))))
