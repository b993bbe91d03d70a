"""Two heads over one torso for positions of a game: logits of the moves, and what is expected for who moves."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_rl.nets.torsos import MlpTorso, orthogonal
from hpc_rl.types import Spec

POLICY_PLANES, VALUE_PLANES, VALUE_UNITS = 4, 2, 64


class BoardNetwork(nn.Module):
    """observation [n, *O] -> logits [n, A], value [n] in −1..1.

    ``blocks`` residual blocks of ``channels`` over planes [C, rows, columns] behind a first convolution (AlphaGo Zero:
    Silver et al. 2017, Nature 550), without batch normalisation: a block x + W₂ relu(W₁ relu(x)) begins as the
    identity, W₂ = 0 (Zhang et al. 2019, Fixup, arXiv 1901.09321). With 0 blocks, and for other observations, the torso
    is ``hidden`` plain layers.
    """

    def __init__(self, spec: Spec, channels: int, blocks: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        shape, actions = spec.observation, spec.actions.sizes[0]
        planes = len(shape) == 3 and blocks > 0
        self.torso: nn.Module = (
            ResidualTorso(shape[0], channels, blocks) if planes else MlpTorso(shape, hidden, nn.ReLU)
        )
        if planes:
            places = prod(shape[1:])
            self.policy = _head(nn.Conv2d(channels, POLICY_PLANES, 1), POLICY_PLANES * places, actions)
            narrow = orthogonal(nn.Conv2d(channels, VALUE_PLANES, 1), 2**0.5)
            units = orthogonal(nn.Linear(VALUE_PLANES * places, VALUE_UNITS), 2**0.5)
            last = orthogonal(nn.Linear(VALUE_UNITS, 1), 0.01)
            self.value: nn.Module = nn.Sequential(narrow, nn.ReLU(), nn.Flatten(), units, nn.ReLU(), last)
        else:
            features = hidden[-1] if hidden else prod(shape)
            self.policy = orthogonal(nn.Linear(features, actions), 0.01)
            self.value = orthogonal(nn.Linear(features, 1), 0.01)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        features = self.torso(observation)
        return self.policy(features), torch.tanh(self.value(features)).squeeze(-1)


class ResidualTorso(nn.Module):
    """Planes [n, C, rows, columns] of 0..1 -> [n, channels, rows, columns]."""

    def __init__(self, planes: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.first = orthogonal(nn.Conv2d(planes, channels, 3, padding=1), 2**0.5)
        pairs = [nn.ModuleList([_square(channels, 2**0.5), _square(channels, 0.0)]) for _ in range(blocks)]
        self.blocks = nn.ModuleList(pairs)

    def forward(self, planes: Tensor) -> Tensor:
        x: Tensor = self.first(planes.float())
        for block in self.blocks:
            inner, outer = block.children()
            x = x + outer(F.relu(inner(F.relu(x))))
        return F.relu(x)


def _square(channels: int, gain: float) -> nn.Module:
    layer = nn.Conv2d(channels, channels, 3, padding=1)
    if gain:
        return orthogonal(layer, gain)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _head(convolution: nn.Conv2d, features: int, outputs: int) -> nn.Module:
    last = orthogonal(nn.Linear(features, outputs), 0.01)
    return nn.Sequential(orthogonal(convolution, 2**0.5), nn.ReLU(), nn.Flatten(), last)
