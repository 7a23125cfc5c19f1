"""How well one row of attention finds the evidence.

The measures of one query, over the positions it sees that are no sinks:

    lift      share of the attention that falls on the evidence, over the evidence's share of the positions
    auroc     chance that a token of the evidence gets more attention than another token of the context (ties half)
    pointing  1 where the largest weight lies in the evidence, else 0; where several are largest, their share
    sink      attention to sinks, which the other measures leave out

``lift`` and ``pointing`` look at everything before the query, the question and the answer too; ``auroc`` stays inside
the context (or the image), so that it does not mistake a head that looks nearby for one that knows where not to look.
By chance ``lift`` is 1, ``auroc`` 0.5, and ``pointing`` the evidence's share of the positions.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MEASURES = ("auroc", "lift", "pointing", "sink", "distractor_auroc", "distractor_lift", "distractor_pointing")


def measure(
    weights: Float[Tensor, "heads seq"],
    query: int,
    *,
    sink: Bool[Tensor, " seq"],
    context: Bool[Tensor, " seq"],
    evidence: Bool[Tensor, " seq"],
    distractor: Bool[Tensor, " seq"],
) -> Float[Tensor, "measures heads"]:
    """Return every measure of one query's attention, in the order of ``MEASURES``.

    Args:
        weights: Attention of the query to every token, for any number of heads.
        query: Its position; later ones are not seen.
        sink: Tokens that take attention which is wanted nowhere.
        context: Tokens among which the evidence is looked for.
        evidence: Tokens of the evidence; none of them a sink.
        distractor: Tokens of the distractor, likewise.

    Returns:
        NaN where there is no evidence (or distractor), or for ``auroc`` nothing else in the context. ``lift`` is 1
        where all attention goes to sinks.
    """
    seen = torch.arange(weights.shape[1], device=weights.device) <= query
    kept = seen & ~sink
    sinks = weights[:, sink & seen].sum(1)
    found = _found(weights, kept, context, evidence)
    wrong = _found(weights, kept, context, distractor)
    return torch.stack([*found, sinks, *wrong])


def _found(
    weights: Float[Tensor, "heads seq"], kept: Bool[Tensor, " seq"], context: Bool[Tensor, " seq"], target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return AUROC, lift and pointing for the tokens of a target."""
    target = target & kept
    if not bool(target.any()):
        nothing = torch.full((len(weights),), torch.nan, device=weights.device)
        return nothing, nothing, nothing
    share = target.sum() / kept.sum()
    total, inside = weights[:, kept].sum(1), weights[:, target].sum(1)
    lift = torch.where(total > 0, inside / (total * share), 1.0)
    largest = weights[:, kept].amax(1, keepdim=True)
    pointing = (weights[:, target] == largest).sum(1) / (weights[:, kept] == largest).sum(1)
    return auroc(weights[:, target], weights[:, kept & context & ~target]), lift, pointing


def auroc(inside: Float[Tensor, "heads some"], outside: Float[Tensor, "heads others"]) -> Float[Tensor, " heads"]:
    """Return for each head the chance that a weight inside exceeds one outside; ties half, NaN where either is empty.

    Source:
        Hanley and McNeil (1982), Radiology 143(1), 29-36.
    """
    if not inside.shape[1] or not outside.shape[1]:
        return torch.full((len(inside),), torch.nan, device=inside.device)
    ordered, inside = outside.sort(1).values, inside.contiguous()
    below = torch.searchsorted(ordered, inside) + torch.searchsorted(ordered, inside, right=True)
    result: Float[Tensor, " heads"] = below.float().mean(1) / (2 * outside.shape[1])
    return result
