"""A plain torso for vectors."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from hpc_rl.nets.init import orthogonal


class MlpTorso(nn.Module):
    """Vectors or small arrays [.., *shape], bytes taken as 0..1 -> float32 features [n, units] through tanh."""

    def __init__(self, shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = self.inputs = prod(shape)
        for units in hidden:
            layers += [orthogonal(nn.Linear(width, units), 2**0.5), nn.Tanh()]
            width = units
        self.layers = nn.Sequential(*layers)
        self.features = width

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.inputs).float()
        out: Tensor = self.layers(flat / 255 if x.dtype == torch.uint8 else flat)
        return out
