"""Action values Q(x, a) of continuous actions: k critics of one shape side by side."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_rl.types import Spec


class StackedLinear(nn.Module):
    """k linear layers [k, n, inputs] -> [k, n, outputs] as one batched matrix product; orthogonal, zero bias."""

    def __init__(self, count: int, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(count, 1, outputs))
        for layer in self.weight.data:
            nn.init.orthogonal_(layer, gain)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class Critics(nn.Module):
    """observation [n, *O], action [n, *A] -> values [k, n] of k = ``count`` critics that share nothing.

    Observation and action go in side by side; bytes are taken as 0..1. With ``outputs`` > 1 each gives [k, n, outputs].
    """

    def __init__(self, spec: Spec, hidden: tuple[int, ...], count: int, outputs: int = 1) -> None:
        super().__init__()
        widths = [prod(spec.observation) + prod(spec.actions.shape), *hidden]
        layers = [StackedLinear(count, a, b, 2**0.5) for a, b in pairwise(widths)]
        self.layers, self.value = nn.ModuleList(layers), StackedLinear(count, widths[-1], outputs, 1.0)
        self.count, self.outputs, self.bytes = count, outputs, spec.dtype == "uint8"

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        x = observation.flatten(1).float()
        x = torch.cat([x / 255 if self.bytes else x, action.flatten(1)], -1).expand(self.count, -1, -1)
        for layer in self.layers:
            x = F.relu(layer(x), inplace=True)
        value: Tensor = self.value(x)
        return value.squeeze(-1) if self.outputs == 1 else value


def slope_of(critics: Critics, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """∂Q/∂a [n, *A] of the first critic at ``action``, and Q [n] there; no other gradient is taken."""
    action = action.detach().requires_grad_()
    q = critics(observation, action)[0]
    return torch.autograd.grad(q.sum(), action)[0], q.detach()
