"""Initial weights."""

from __future__ import annotations

from torch import nn


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Module:
    """Orthogonal weights of this gain and zero bias: √2 before a ReLU, 0.01 for policy heads, 1 for value heads."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
