"""Where the training of an adapter got to: written after every epoch, read by the run that goes on."""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from truthheads.errors import ArtifactError
from truthheads.models.hooks import LowRank
from truthheads.storage.artifacts import load_artifact, save_artifact
from truthheads.storage.files import dumps
from truthheads.tuning.lora_layers import LoraLayers

KIND = "training state"

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of each parameter."""


def identity(depends_on: object) -> str:
    """Return a digest of everything that a result depends on, which is written as JSON."""
    return hashlib.sha256(dumps(depends_on).encode()).hexdigest()


class AdapterPoint(NamedTuple):
    """One point of the path, after an epoch.

    Attributes:
        updates: The averaged factors.
        epoch: Passes over the questions so far.
        loss: Mean loss of the margins in this epoch, in nats.
        kl: Mean KL on the neutral texts in it, in nats a token.
    """

    updates: dict[str, LowRank]
    epoch: float
    loss: float
    kl: float


@dataclass(frozen=True, slots=True)
class TrainingState:
    """A file that holds factors, AdamW's moments, averages and the points so far.

    Attributes:
        path: The file.
        identity: Everything that the training depends on; the state of another training is not used.
    """

    path: Path
    identity: str

    @classmethod
    def of(cls, path: Path, *depends_on: object) -> "TrainingState":
        """Return the state of a training that depends on these values, which are written as JSON."""
        return cls(path, identity(depends_on))

    def keep(
        self,
        layers: LoraLayers,
        optimiser: torch.optim.Optimizer,
        mean: Sequence[Tensor],
        points: Sequence[AdapterPoint],
    ) -> None:
        """Write the state after an epoch.

        Raises:
            ArtifactError: The file cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for at, parameter in enumerate(layers.parameters):
            tensors |= {f"parameter.{at}": parameter, f"mean.{at}": mean[at]}
            tensors |= {f"{name}.{at}": optimiser.state[parameter][name] for name in MOMENTS}
        for number, point in enumerate(points):
            for at, update in enumerate(point.updates.values()):
                tensors |= {f"point.{number}.{at}.a": update.a, f"point.{number}.{at}.b": update.b}
        told = [(point.epoch, point.loss, point.kl) for point in points]
        save_artifact(self.path, tensors, {"kind": KIND, "identity": self.identity, "points": told})

    def restore(
        self, layers: LoraLayers, optimiser: torch.optim.Optimizer, mean: Sequence[Tensor]
    ) -> list[AdapterPoint]:
        """Put everything back as it was after the last epoch, and return the points so far.

        Without a state of this training nothing is changed, and there are no points.
        """
        with suppress(ArtifactError):
            tensors, meta = load_artifact(self.path, kind=KIND)
            if meta.get("identity") != self.identity:
                return []
            for at, parameter in enumerate(layers.parameters):
                parameter.data.copy_(tensors[f"parameter.{at}"])
                mean[at].copy_(tensors[f"mean.{at}"])
                moments = {name: tensors[f"{name}.{at}"] for name in MOMENTS}
                optimiser.state[parameter] = {
                    name: value if name == "step" else value.to(parameter.device) for name, value in moments.items()
                }
            return [
                AdapterPoint(
                    {
                        name: LowRank(tensors[f"point.{number}.{at}.a"], tensors[f"point.{number}.{at}.b"])
                        for at, name in enumerate(layers.names)
                    },
                    *told,
                )
                for number, told in enumerate(meta["points"])
            ]
        return []
