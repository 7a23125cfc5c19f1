"""How scores become the part of a gate that a strength multiplies."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from truthheads.errors import GateError

Norm = Literal["centred", "minmax", "signed"]
MINMAX_EPSILON = 1e-6


def check_settings(strength: float, norm: str, floor: float | None) -> None:
    """Raise GateError for settings that give no gate."""
    if norm not in ("centred", "minmax", "signed"):
        raise GateError("unknown norm", expected="centred, minmax or signed", got=repr(norm), fix="choose one of them")
    if not np.isfinite(strength):
        raise GateError("strength is not finite", expected="a number", got=str(strength), fix="give a finite strength")
    if floor is not None and not (np.isfinite(floor) and floor <= 1):
        raise GateError("the floor is no floor", expected="a number up to 1, or none", got=str(floor), fix="try 0")


def normalised(
    values: Float[Tensor, "num_layers num_heads"], norm: Norm, standardise: bool
) -> Float[Tensor, "num_layers num_heads"]:
    """Return scores under a norm; NaN where there was NaN.

    Args:
        values: Scores.
        norm: See :meth:`truthheads.gates.Gate.from_scores`.
        standardise: Divide centred scores by the standard deviation of all.
    """
    if norm == "centred":
        centred = values - values.nanmean(1, keepdim=True)
        spread = values[torch.isfinite(values)].std(correction=0)
        return centred / spread if standardise and spread > 0 else centred
    if norm == "minmax":
        least = torch.nan_to_num(values, nan=torch.inf).amin(1, keepdim=True)
        most = torch.nan_to_num(values, nan=-torch.inf).amax(1, keepdim=True)
        return (values - least) / (most - least + MINMAX_EPSILON)
    largest = values[torch.isfinite(values)].abs().max()
    return values / largest if largest > 0 else values
