"""What turns observations into features: convolutions for images (sizes.py lists them), plain layers for vectors."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_rl.nets.sizes import NETWORKS, SMALLEST


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Module:
    """Orthogonal weights of this gain and zero bias: √2 before a ReLU, 0.01 for policy heads, 1 for value heads."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ConvTorso(nn.Module):
    """uint8 images [.., C, H, W] in 0..255 -> float32 features [n, features].

    ``compute`` is the precision of the layers; their result always leaves as float32, so heads and losses are exact.

    Raises:
        ValueError: the image is too small for the strided convolutions.
    """

    compute: torch.dtype = torch.float32

    def __init__(self, shape: tuple[int, ...], network: str = "nature") -> None:
        super().__init__()
        table, features = NETWORKS[network]
        self.stride = table[0][2]
        self.rows = (-1, *shape[1:], shape[0])
        channels, *size = shape
        layers: list[nn.Conv2d] = []
        for width, kernel, stride in table:
            size = [(pixels - kernel) // stride + 1 for pixels in size]
            if min(size) < 1:
                raise ValueError(
                    f"images {shape} are too small for the {network} network; use {SMALLEST}×{SMALLEST} or more"
                )
            layers.append(nn.Conv2d(channels, width, kernel, stride))
            orthogonal(layers[-1], 2**0.5)
            channels = width
        self.convolutions = nn.ModuleList(layers)
        self.dense = orthogonal(nn.Linear(channels * prod(size), features), 2**0.5)
        self.features = features
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.compute == torch.bfloat16):
            # Channels innermost is how the convolutions want them; images that already lie so are not copied.
            x = image.movedim(-3, -1).reshape(self.rows).type(self.compute).movedim(-1, 1)
            first: Any = self.convolutions[0]
            # Dividing 32 kernels by 255 costs less than dividing every pixel of the batch.
            x = F.relu(F.conv2d(x, first.weight / 255, first.bias, self.stride), inplace=True)
            for layer in self.convolutions[1:]:
                x = F.relu(layer(x), inplace=True)
            x = F.relu(self.dense(x.flatten(1)), inplace=True)
        return x.float()


class MlpTorso(nn.Module):
    """Vectors or small arrays [.., *shape], bytes taken as 0..1 -> float32 features [n, units]; tanh by default."""

    def __init__(self, shape: tuple[int, ...], hidden: tuple[int, ...], squash: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = self.inputs = prod(shape)
        for units in hidden:
            layers += [orthogonal(nn.Linear(width, units), 2**0.5), squash()]
            width = units
        self.layers = nn.Sequential(*layers)
        self.features = width

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.inputs).float()
        out: Tensor = self.layers(flat / 255 if x.dtype == torch.uint8 else flat)
        return out
