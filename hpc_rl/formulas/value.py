"""Value losses, summed over the moves whose weight is 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def half_squared(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Σ w ½ (target − V)²."""
    return 0.5 * (weight * (target - value).square()).sum()


def clipped_half_squared(value: Tensor, old: Tensor, target: Tensor, weight: Tensor, clip: float) -> Tensor:
    """Σ w ½ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²), the clipped value loss of OpenAI Baselines' ppo2."""
    near = old + (value - old).clamp(-clip, clip)
    worse = torch.maximum((value - target).square(), (near - target).square())
    return 0.5 * (weight * worse).sum()


Mean = Callable[[Tensor, Tensor], Tensor]
"""A total and a count -> their mean; a group's takes the moves of all ranks."""


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1)


def standardized(x: Tensor, weight: Tensor, mean: Mean = _mean) -> Tensor:
    """(x − mean) / (standard deviation + 1e-8), both over the weighted moves."""
    centre = mean((weight * x).sum(), weight.sum())
    variance = mean((weight * (x - centre).square()).sum(), weight.sum())
    return (x - centre) / (variance.sqrt() + 1e-8)


def explained_variance(value: Tensor, target: Tensor, weight: Tensor, mean: Mean = _mean) -> Tensor:
    """1 − Var(target − V) / Var(target) over the weighted moves; 0 where the target does not vary."""

    def variance(x: Tensor) -> Tensor:
        centre = mean((weight * x).sum(), weight.sum())
        return mean((weight * (x - centre).square()).sum(), weight.sum())

    spread = variance(target)
    return torch.where(spread > 1e-8, 1 - variance(target - value) / spread.clamp(min=1e-8), torch.zeros_like(spread))
