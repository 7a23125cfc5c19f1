"""Which pixels of the picture each image token stands for.

Every vision-language model cuts its pictures in its own way: one square, a square crop from the middle, tiles and the
whole picture beside them, or a grid that follows the picture's size. Each is a list of views: a grid of tokens laid
over a region of the original picture.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from truthheads.errors import ArchitectureError
from truthheads.models.load import Model


class Size(NamedTuple):
    """Of a picture or a canvas, in pixels."""

    width: float
    height: float


@dataclass(frozen=True, slots=True)
class View:
    """A grid of tokens over a region of the picture, row by row.

    Attributes:
        region: x0, y0, x1, y1 in pixels of the original picture; may reach beyond it where the picture was padded.
        rows: Rows of tokens.
        columns: Columns of tokens.
        kept: First and last row, first and last column that the model keeps; all by default.
        newline: Whether a token that covers no pixels ends each row.
    """

    region: tuple[float, float, float, float]
    rows: int
    columns: int
    kept: tuple[int, int, int, int] | None = None
    newline: bool = False

    def boxes(self) -> Float[Tensor, "tokens 4"]:
        """Return each token's rectangle in pixels, NaN for ends of rows."""
        x0, y0, x1, y1 = self.region
        x = torch.linspace(x0, x1, self.columns + 1, dtype=torch.float64)
        y = torch.linspace(y0, y1, self.rows + 1, dtype=torch.float64)
        top, bottom, left, right = self.kept or (0, self.rows, 0, self.columns)
        found = []
        for row in range(top, bottom):
            found += [torch.stack([x[at], y[row], x[at + 1], y[row + 1]]) for at in range(left, right)]
            if self.newline:
                found.append(torch.full((4,), float("nan"), dtype=torch.float64))
        return torch.stack(found).float()


def token_boxes(model: Model, size: tuple[int, int], count: int | None = None) -> Float[Tensor, "tokens 4"]:
    """Return the rectangle of each image token in pixels of the original picture, in the order of the tokens.

    Args:
        model: A model that puts tokens of a picture among those of the text.
        size: Width and height of the picture, upright.
        count: Image tokens that its prompt has; checked where given.

    Returns:
        ``[x0, y0, x1, y1]`` of each token, cut off at the picture's edges; NaN for tokens that stand for no pixels:
        ends of rows, padding.

    Raises:
        ArchitectureError: The model has no image tokens, another number of them, or cuts pictures in a way that is not
            known here.
    """
    try:
        return picture_boxes(model.network.config, model.processor, size, count)
    except ArchitectureError as error:
        raise ArchitectureError(
            f"{model.name}: {error.problem}", expected=error.expected, got=error.got, fix=error.fix
        ) from error


def picture_boxes(
    config: Any, processor: Any, size: tuple[int, int], count: int | None = None
) -> Float[Tensor, "tokens 4"]:
    """Find the same as :func:`token_boxes`, from a model's configuration and processor alone."""
    kind = config.model_type
    if processor is None or kind not in VIEWS:
        raise ArchitectureError(
            "which pixels its image tokens cover is not known",
            expected=f"one of {', '.join(sorted(VIEWS))}",
            got=f"{kind}{'' if processor else ' without a processor'}",
            fix="leave the boxes out: text rows can be traced, and scores and gates need no pixels",
        )
    boxes = torch.cat([view.boxes() for view in VIEWS[kind](config, processor, Size(*map(float, size)))])
    if count is not None and len(boxes) != count:
        raise ArchitectureError(
            "image tokens and pixels do not go together",
            expected=f"{len(boxes)} image tokens for a picture of {size[0]} x {size[1]}",
            got=f"{count}",
            fix="check that processor and model belong together",
        )
    low = torch.zeros(4)
    high = torch.tensor([size[0], size[1], size[0], size[1]], dtype=torch.float32)
    cut = boxes.clamp(low, high)
    empty = (cut[:, 2] <= cut[:, 0]) | (cut[:, 3] <= cut[:, 1])
    return cut.masked_fill(empty[:, None], float("nan"))


def _whole(size: Size, rows: int, columns: int) -> View:
    return View((0.0, 0.0, size.width, size.height), rows, columns)


def _side(config: Any) -> int:
    """Return how many patches a vision tower's square has along a side."""
    vision = config.vision_config
    image, patch = (one if isinstance(one, int) else one[0] for one in (vision.image_size, vision.patch_size))
    return int(image // patch)


def _llava(config: Any, processor: Any, size: Size) -> list[View]:
    """Shortest edge resized, square crop from the middle; Pixtral towers: a grid that follows the picture."""
    if config.vision_config.model_type == "pixtral":
        return _pixtral(config, processor, size)
    images, side = processor.image_processor, _side(config)
    shortest = getattr(images.size, "shortest_edge", None) if images.do_resize else None
    if shortest is None or not images.do_center_crop:
        return [_whole(size, side, side)]
    scale = shortest / min(size)
    resized = Size(*(shortest if edge == min(size) else int(edge * scale) for edge in size))
    crop = Size(images.crop_size.width, images.crop_size.height)
    left, top = (resized.width - crop.width) // 2, (resized.height - crop.height) // 2
    across, down = size.width / resized.width, size.height / resized.height
    region = (left * across, top * down, (left + crop.width) * across, (top + crop.height) * down)
    return [View(region, side, side)]


def _llava_next(config: Any, processor: Any, size: Size) -> list[View]:
    """The whole picture squeezed into a square, then tiles with the picture in their middle, padding cut off."""
    select_best_resolution = _own(processor, "select_best_resolution")
    side = _side(config)
    width, height = int(size.width), int(size.height)
    down, across = select_best_resolution((height, width), config.image_grid_pinpoints)
    scale = min(across / width, down / height)
    narrow = across / width < down / height
    inner = (
        Size(across, min(math.ceil(height * scale), down))
        if narrow
        else Size(min(math.ceil(width * scale), across), down)
    )
    left, top = (across - inner.width) // 2, (down - inner.height) // 2
    x, y = size.width / inner.width, size.height / inner.height
    region = (-left * x, -top * y, (across - left) * x, (down - top) * y)
    tile = config.vision_config.image_size
    rows, columns = down // tile * side, across // tile * side
    kept = (0, rows, 0, columns)
    if width / height > columns / rows:
        pad = (rows - int(round(height * (columns / width), 7))) // 2
        kept = (pad, rows - pad, 0, columns)
    else:
        pad = (columns - int(round(width * (rows / height), 7))) // 2
        kept = (0, rows, pad, columns - pad)
    return [_whole(size, side, side), View(region, rows, columns, kept, newline=True)]


def _qwen(config: Any, processor: Any, size: Size) -> list[View]:
    """Resized to a multiple of merged patches; the processor says how many."""
    _, rows, columns = _processed(processor, size)["image_grid_thw"][0].tolist()
    merge = processor.image_processor.merge_size
    return [_whole(size, rows // merge, columns // merge)]


def _pixtral(config: Any, processor: Any, size: Size) -> list[View]:
    """Resized to a multiple of patches; the processor says how many. Ends of rows are tokens of their own kind."""
    height, width = (int(edge) for edge in _processed(processor, size)["image_sizes"][0])
    patch = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    return [_whole(size, height // patch, width // patch)]


def _internvl(config: Any, processor: Any, size: Size) -> list[View]:
    """Squeezed onto a canvas of square tiles, and where there are several the whole picture after them."""
    get_optimal_tiled_canvas = _own(processor, "get_optimal_tiled_canvas")
    images = processor.image_processor
    side = int(_side(config) * config.downsample_ratio)
    columns = rows = 1
    if images.crop_to_patches or _processed(processor, size)["pixel_values"].shape[0] > 1:
        edges = (int(size.height), int(size.width)), (images.size.height, images.size.width)
        columns, rows = get_optimal_tiled_canvas(*edges, images.min_patches, images.max_patches)
    tiles = _tiles(size, rows, columns, side)
    return [*tiles, _whole(size, side, side)] if len(tiles) > 1 else tiles


def _idefics3(config: Any, processor: Any, size: Size) -> list[View]:
    """Tiles of the picture, then the whole of it; each a square."""
    made = _processed(processor, size, return_row_col_info=True)
    rows, columns = int(made["rows"][0][0]), int(made["cols"][0][0])
    side = _side(config) // config.scale_factor
    return [*(_tiles(size, rows, columns, side) if rows else []), _whole(size, side, side)]


def _gemma3(config: Any, processor: Any, size: Size) -> list[View]:
    """Squeezed into one square."""
    side = math.isqrt(config.mm_tokens_per_image)
    return [_whole(size, side, side)]


def _square(config: Any, processor: Any, size: Size) -> list[View]:
    """Squeezed into one square of patches."""
    return [_whole(size, _side(config), _side(config))]


def _tiles(size: Size, rows: int, columns: int, side: int) -> list[View]:
    width, height = size.width / columns, size.height / rows
    return [
        View((column * width, row * height, (column + 1) * width, (row + 1) * height), side, side)
        for row in range(rows)
        for column in range(columns)
    ]


def _processed(processor: Any, size: Size, **options: Any) -> Any:
    """Run the processor on a blank picture of a given size."""
    blank = Image.new("RGB", (int(size.width), int(size.height)))
    return processor.image_processor(images=[blank], return_tensors="pt", **options)


def _own(processor: Any, name: str) -> Any:
    """Return a function of the module that the image processor's own class comes from."""
    return getattr(sys.modules[type(processor.image_processor).__module__], name)


VIEWS: dict[str, Callable[[Any, Any, Size], list[View]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen2_5_omni_thinker": _qwen,
    "qwen3_vl": _qwen,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "gemma3": _gemma3,
    "paligemma": _square,
    "mistral3": _pixtral,
}
