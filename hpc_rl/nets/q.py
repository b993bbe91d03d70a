"""Action values over one torso: convolutions for images, plain layers with ReLU for vectors."""

from __future__ import annotations

from torch import Tensor, nn

from hpc_rl.nets.torsos import ConvTorso, MlpTorso, image, orthogonal
from hpc_rl.types import Spec


class QNetwork(nn.Module):
    """observation [.., *O] -> Q values [.., A] of one discrete choice.

    ``dueling``: Q = V + advantage − mean of the advantages, from two streams of one hidden layer each (Wang et al.
    2016, arXiv 1511.06581, eq. 9).
    """

    def __init__(self, spec: Spec, hidden: tuple[int, ...], network: str = "nature", dueling: bool = False) -> None:
        super().__init__()
        self.shape = spec.observation
        self.planes = image(spec.observation, spec.dtype)
        self.torso = ConvTorso(self.planes, network) if self.planes else MlpTorso(self.shape, hidden, nn.ReLU)
        features, actions = self.torso.features, spec.actions.sizes[0]
        self.value = _stream(features, 1) if dueling else None
        self.advantage = _stream(features, actions) if dueling else orthogonal(nn.Linear(features, actions), 1.0)

    def forward(self, observation: Tensor) -> Tensor:
        lead = observation.shape[: observation.dim() - len(self.shape)]
        x = observation if self.planes is None else observation.reshape(*lead, *self.planes)
        features = self.torso(x)
        q: Tensor = self.advantage(features)
        if self.value is not None:
            q = self.value(features) + q - q.mean(-1, keepdim=True)
        return q.reshape(*lead, -1)


def _stream(features: int, outputs: int) -> nn.Module:
    """One hidden layer as wide as the features, then ``outputs``."""
    hidden = orthogonal(nn.Linear(features, features), 2**0.5)
    return nn.Sequential(hidden, nn.ReLU(), orthogonal(nn.Linear(features, outputs), 1.0))
