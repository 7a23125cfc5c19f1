"""Image tokens to pixels: a bright rectangle lights up exactly the tokens whose pixels it covers."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import unpad_image

from truthheads.errors import ArchitectureError
from truthheads.tracing.image_patches import picture_boxes
from vision_zoo import lacks_torchvision


class Eye(NamedTuple):
    """A configuration, an image processor, and how its pixel values lie in the order of the tokens."""

    kind: str
    config: dict[str, Any]
    images: Any
    lights: Callable[[Any, Any, tuple[int, int]], Tensor]


def _cells(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Return the mean of each cell of a grid over ``[channels, height, width]``."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.mean(0, keepdim=True)[None], (rows, columns)).flatten()


def _squares(side: int) -> Callable[[Any, Any, tuple[int, int]], Tensor]:
    def lights(made: Any, config: Any, size: tuple[int, int]) -> Tensor:
        pixels = made["pixel_values"]
        return torch.cat([_cells(tile, side, side) for tile in pixels.reshape(-1, *pixels.shape[-3:])])

    return lights


def _next(made: Any, config: Any, size: tuple[int, int]) -> Tensor:
    base, *tiles = made["pixel_values"][0]
    tile = config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    height, width = _best(made, config, size)
    rows, columns = height // tile, width // tile
    grid = torch.stack([_cells(one, side, side).reshape(side, side) for one in tiles[: rows * columns]])
    canvas = grid.reshape(rows, columns, side, side).permute(0, 2, 1, 3).reshape(1, rows * side, columns * side)
    kept = unpad_image(canvas, (size[1], size[0]))[0]
    ended = torch.cat([kept, torch.full((len(kept), 1), float("nan"))], dim=1)
    return torch.cat([_cells(base, side, side), ended.flatten()])


def _best(made: Any, config: Any, size: tuple[int, int]) -> tuple[int, int]:
    from transformers.image_processing_utils import select_best_resolution

    best: tuple[int, int] = select_best_resolution((size[1], size[0]), config.image_grid_pinpoints)
    return best


def _qwen(made: Any, config: Any, size: tuple[int, int]) -> Tensor:
    return torch.as_tensor(made["pixel_values"]).mean(1).reshape(-1, 4).mean(1)


def _pixtral(made: Any, config: Any, size: tuple[int, int]) -> Tensor:
    height, width = (int(edge) for edge in made["image_sizes"][0])
    patch = config.vision_config.patch_size
    return _cells(made["pixel_values"][0][:, :height, :width], height // patch, width // patch)


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


CLIP = {"model_type": "clip_vision_model", "image_size": 48, "patch_size": 8}
PLAIN: dict[str, Any] = {"do_normalize": False, "do_rescale": True}


def _splitting(kind: Any) -> Any:
    """Return Idefics3's image processor or one like it; None where it cannot be built here."""
    if lacks_torchvision(kind):
        return None
    return kind(size={"longest_edge": 144}, max_image_size={"longest_edge": 48}, **PLAIN)


EYES = [
    Eye(
        "llava",
        {"vision_config": CLIP},
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=_square(48), **PLAIN),
        _squares(6),
    ),
    Eye(
        "llava_next",
        {"vision_config": CLIP, "image_grid_pinpoints": [[48, 96], [96, 48], [96, 96], [48, 144], [144, 48]]},
        transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 48},
            crop_size=_square(48),
            image_grid_pinpoints=[[48, 96], [96, 48], [96, 96], [48, 144], [144, 48]],
            **PLAIN,
        ),
        _next,
    ),
    *(
        Eye(
            kind,
            {},
            transformers.Qwen2VLImageProcessorPil(
                patch_size=8, merge_size=2, size={"shortest_edge": 2048, "longest_edge": 16384}, **PLAIN
            ),
            _qwen,
        )
        for kind in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "qwen3_vl")
    ),
    Eye(
        "internvl",
        {"vision_config": {"image_size": [48, 48], "patch_size": [4, 4]}, "downsample_ratio": 0.5},
        transformers.GotOcr2ImageProcessorPil(
            size=_square(48), crop_to_patches=True, min_patches=1, max_patches=6, **PLAIN
        ),
        _squares(6),
    ),
    Eye(
        "idefics3",
        {"vision_config": {"image_size": 48, "patch_size": 4}, "scale_factor": 2},
        _splitting(transformers.Idefics3ImageProcessorPil),
        _squares(6),
    ),
    Eye(
        "smolvlm",
        {"vision_config": {"image_size": 48, "patch_size": 4}, "scale_factor": 2},
        _splitting(transformers.SmolVLMImageProcessorPil),
        _squares(6),
    ),
    Eye(
        "gemma3",
        {"mm_tokens_per_image": 36},
        transformers.Gemma3ImageProcessorPil(size=_square(48), **PLAIN),
        _squares(6),
    ),
    Eye(
        "paligemma",
        {"vision_config": {"image_size": 48, "patch_size": 8}},
        transformers.SiglipImageProcessorPil(size=_square(48), **PLAIN),
        _squares(6),
    ),
    Eye(
        "mistral3",
        {"vision_config": {"patch_size": 8}, "spatial_merge_size": 1},
        transformers.PixtralImageProcessorPil(size={"longest_edge": 96}, patch_size={"height": 8, "width": 8}, **PLAIN),
        _pixtral,
    ),
]


def config_of(eye: Eye) -> Any:
    """Return as much of a configuration as decides where the image tokens are."""
    parts = {name: SimpleNamespace(**value) if isinstance(value, dict) else value for name, value in eye.config.items()}
    if "vision_config" in parts:
        parts["vision_config"].__dict__.setdefault("model_type", "other")
    return SimpleNamespace(model_type=eye.kind, **parts)


@pytest.fixture(params=EYES, ids=lambda eye: eye.kind)
def eye(request: pytest.FixtureRequest) -> Eye:
    found: Eye = request.param
    if found.images is None:
        pytest.skip("this release of transformers builds its image processor with torchvision alone")
    return found


def boxes_of(eye: Eye, size: tuple[int, int], count: int | None = None) -> Tensor:
    """Return the tokens' boxes."""
    return picture_boxes(config_of(eye), SimpleNamespace(image_processor=eye.images), size, count)


def overlap(boxes: Tensor, rectangle: tuple[float, float, float, float]) -> Tensor:
    """Return which share of each box a rectangle covers."""
    x = (boxes[:, 2].clamp(max=rectangle[2]) - boxes[:, 0].clamp(min=rectangle[0])).clamp(min=0)
    y = (boxes[:, 3].clamp(max=rectangle[3]) - boxes[:, 1].clamp(min=rectangle[1])).clamp(min=0)
    return x * y / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


@pytest.mark.parametrize("size", [(120, 80), (70, 150), (64, 64), (203, 61)], ids=str)
def test_a_bright_rectangle_lights_the_tokens_that_cover_it(eye: Eye, size: tuple[int, int]) -> None:
    width, height = size
    rectangle = (width // 3, height // 4, width // 3 + width // 3, height // 4 + height // 3)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[rectangle[1] : rectangle[3], rectangle[0] : rectangle[2]] = 255
    made = eye.images(images=[Image.fromarray(pixels)], return_tensors="pt")
    lights = eye.lights(made, config_of(eye), size)
    boxes = boxes_of(eye, size, len(lights))
    seen = torch.isfinite(boxes[:, 0]) & torch.isfinite(lights)
    assert seen.sum() >= 0.6 * len(boxes)
    expected = overlap(boxes[seen], rectangle)
    # Resampling smears an edge over its neighbours, and a token at the edge of the picture may be half padding.
    assert float((lights[seen] - expected).abs().mean()) < 0.04
    assert float(np.corrcoef(lights[seen].numpy(), expected.numpy())[0, 1]) > 0.96


def test_pixels_outside_the_crop_are_in_no_token() -> None:
    boxes = boxes_of(EYES[0], (200, 100), 36)
    assert float(boxes[:, 0].min()) == pytest.approx(50, abs=1.1)
    assert float(boxes[:, 2].max()) == pytest.approx(150, abs=1.1)


def test_another_number_of_tokens_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="36 image tokens"):
        boxes_of(EYES[0], (200, 100), 35)


def test_a_model_whose_pixels_are_not_known_is_refused() -> None:
    with pytest.raises(ArchitectureError, match="mllama"):
        boxes_of(EYES[0]._replace(kind="mllama"), (200, 100))


def test_boxes_of_real_photographs_lie_inside_their_tokens(eye: Eye, reference_data: Path) -> None:
    folder = reference_data / "coco_val128"
    rows = _boxes_of(folder)
    assert len(rows) > 100
    for size, boxes in rows:
        tokens = boxes_of(eye, size)
        tokens = tokens[torch.isfinite(tokens[:, 0])]
        for box in boxes:
            shown = torch.tensor([float(tokens[:, 0].min()), float(tokens[:, 1].min()), *tokens[:, 2:].max(0).values])
            inside = [max(box[0], shown[0]), max(box[1], shown[1]), min(box[2], shown[2]), min(box[3], shown[3])]
            if inside[2] - inside[0] < 2 or inside[3] - inside[1] < 2:
                continue  # LLaVA's crop has cut it off
            touched = tokens[overlap(tokens, tuple(map(float, inside))) > 0]  # type: ignore[arg-type]
            assert len(touched)
            assert float(touched[:, 0].min()) <= inside[0] + 1e-3
            assert float(touched[:, 1].min()) <= inside[1] + 1e-3
            assert float(touched[:, 2].max()) >= inside[2] - 1e-3
            assert float(touched[:, 3].max()) >= inside[3] - 1e-3


def _boxes_of(folder: Path) -> list[tuple[tuple[int, int], list[list[float]]]]:
    """Return size and object boxes of every photograph."""
    found = json.loads((folder / "boxes.json").read_text()).values()
    return [((rows[0]["width"], rows[0]["height"]), [row["box"] for row in rows]) for rows in found if rows]
