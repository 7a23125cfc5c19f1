"""Plugin ``pytest -p with_torchvision``: processors that transformers builds with torchvision alone, on any machine.

PyPI's wheel of torchvision is compiled for CUDA; beside a CPU build of torch its operators cannot be loaded, and
without their names it cannot be imported. transformers uses none of them to prepare images, so they are declared, not
defined: whoever called one would get an error.
"""

import torch

OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "roi_pool",
    "ps_roi_align",
    "ps_roi_pool",
    "_roi_align_backward",
    "_roi_pool_backward",
    "_ps_roi_align_backward",
    "_ps_roi_pool_backward",
)

try:
    import torchvision  # noqa: F401
except ModuleNotFoundError:
    print("torchvision is not there: the tests of what needs it are skipped")
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        LIBRARY.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
