"""Two heads over one torso for positions of a game: which legal move to make, and what is expected for who moves."""

from __future__ import annotations

from contextlib import nullcontext
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_rl.types import Spec

POLICY_PLANES, VALUE_PLANES, VALUE_UNITS = 4, 2, 64


class BoardNetwork(nn.Module):
    """observation [n, *O], legal [n, A] bool -> log p [n, A], −∞ for moves that are not legal; value [n] in −1..1.

    ``blocks`` residual blocks of ``channels`` over planes [C, rows, columns] behind a first convolution (AlphaGo Zero:
    Silver et al. 2017, Nature 550), without batch normalisation: a block x + W₂ relu(W₁ relu(x)) begins as the
    identity, W₂ = 0 (Zhang et al. 2019, Fixup, arXiv 1901.09321). With 0 blocks, and for other observations, the torso
    is ``hidden`` plain layers. Both heads begin at 0: every legal move as likely, nothing expected.
    """

    def __init__(self, spec: Spec, channels: int, blocks: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        shape, actions = spec.observation, spec.actions.sizes[0]
        if len(shape) == 3 and blocks > 0:
            places = prod(shape[1:])
            self.torso: nn.Module = ResidualTorso(shape, channels, blocks)
            narrow = nn.Conv2d(channels, POLICY_PLANES, 1)
            self.policy = nn.Sequential(
                narrow, nn.ReLU(), nn.Flatten(), _zero(nn.Linear(POLICY_PLANES * places, actions))
            )
            self.value = _value_head(channels, places)
        else:
            widths = [prod(shape), *hidden]
            layers = [x for pair in zip(widths, hidden, strict=False) for x in (nn.Linear(*pair), nn.ReLU())]
            self.torso = nn.Sequential(nn.Flatten(), *layers)
            self.policy = nn.Sequential(_zero(nn.Linear(widths[-1], actions)))
            self.value = nn.Sequential(_zero(nn.Linear(widths[-1], 1)))

    def forward(self, observation: Tensor, legal: Tensor) -> tuple[Tensor, Tensor]:
        features = self.torso(observation.float())
        allowed = legal | ~legal.any(-1, keepdim=True)  # where the game is over there may be none
        log_p = self.policy(features).masked_fill(~allowed, -torch.inf).log_softmax(-1)
        return log_p, torch.tanh(self.value(features)).squeeze(-1)


class BoardValue(nn.Module):
    """observation [n, C, rows, columns] -> what is expected for who moves [n], in −1..1; begins at 0."""

    def __init__(self, spec: Spec, channels: int, blocks: int) -> None:
        super().__init__()
        self.torso = ResidualTorso(spec.observation, channels, blocks)
        self.value = _value_head(channels, prod(spec.observation[1:]))

    def forward(self, observation: Tensor) -> Tensor:
        return torch.tanh(self.value(self.torso(observation.float()))).squeeze(-1)


class ResidualTorso(nn.Module):
    """Planes [n, C, rows, columns] of 0..1 -> float32 [n, channels, rows, columns].

    ``compute`` is the precision of the layers; their result always leaves as float32, so heads and losses are exact.
    """

    compute: torch.dtype = torch.float32

    def __init__(self, shape: tuple[int, ...], channels: int, blocks: int) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.outer = nn.ModuleList(_zero(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(blocks))

    def forward(self, planes: Tensor) -> Tensor:
        rough = self.compute == torch.bfloat16
        with torch.autocast(planes.device.type, self.compute) if rough else nullcontext():
            x: Tensor = self.first(planes)
            for inner, outer in zip(self.inner, self.outer, strict=True):
                x = x + outer(F.relu(inner(F.relu(x))))
            x = F.relu(x)
        return x.float()


def _value_head(channels: int, places: int) -> nn.Sequential:
    narrow, units = nn.Conv2d(channels, VALUE_PLANES, 1), nn.Linear(VALUE_PLANES * places, VALUE_UNITS)
    return nn.Sequential(narrow, nn.ReLU(), nn.Flatten(), units, nn.ReLU(), _zero(nn.Linear(VALUE_UNITS, 1)))


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
