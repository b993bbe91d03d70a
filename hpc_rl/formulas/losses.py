"""Losses of policies and values, summed over the moves whose weight is 1; the caller divides by the global count."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def weighted(weight: Tensor, term: Tensor) -> Tensor:
    """Σ w x. Raises ValueError where the shapes differ: [n, 1] beside [n] would be summed as [n, n], and be learned."""
    if term.shape != weight.shape:
        raise ValueError(
            f"a loss of shape {list(term.shape)} has weights of shape {list(weight.shape)}; make them alike"
        )
    return (weight * term).sum()


def policy_gradient(log_prob: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """−Σ w log π(a|x) Â (Williams 1992); ``advantage`` carries no gradient. All of one shape."""
    return -weighted(weight, log_prob * advantage)


def guarded(log_prob: Tensor, epsilon: float) -> Tensor:
    """log(π(a|x) + ε): actions that have become unlikely since give no large gradients (GA3C, arXiv 1611.06256)."""
    return torch.logaddexp(log_prob, torch.full_like(log_prob, math.log(epsilon)))


def surrogate(log_ratio: Tensor, advantage: Tensor, weight: Tensor) -> Tensor:
    """−Σ w r Â, r = π/π_old (Schulman et al. 2017, arXiv 1707.06347, eq. 6)."""
    return -weighted(weight, log_ratio.exp() * advantage)


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, weight: Tensor, clip: float) -> Tensor:
    """−Σ w min(r Â, clip(r, 1−ε, 1+ε) Â), r = π/π_old (Schulman et al. 2017, arXiv 1707.06347, eq. 7)."""
    ratio = log_ratio.exp()
    unclipped, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -weighted(weight, torch.minimum(unclipped, clipped))


def approximate_kl(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """Σ w (r − 1 − log r), the low-variance estimate "k3" of KL(π_old ‖ π), r = π/π_old.

    Over actions of π_old neither it nor its gradient, Σ w (r − 1) ∇log π, is biased, so it also serves as a penalty.
    """
    return weighted(weight, log_ratio.exp() - 1 - log_ratio)


def kl_slope(kl: float, cost: float, target: float, hinge: float) -> float:
    """β + 2 ξ max(0, KL − 2 KL_target): the derivative by KL of β KL + ξ max(0, KL − 2 KL_target)².

    A loss with this constant times KL has the gradient of that penalty (Heess et al. 2017, DPPO, arXiv 1707.02286).
    """
    return cost + 2.0 * hinge * max(0.0, kl - 2.0 * target)


def half_squared(value: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Σ w ½ (target − V)²."""
    return 0.5 * weighted(weight, (target - value).square())


def clipped_half_squared(value: Tensor, old: Tensor, target: Tensor, weight: Tensor, clip: float) -> Tensor:
    """Σ w ½ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²), the clipped value loss of OpenAI Baselines' ppo2."""
    near = old + (value - old).clamp(-clip, clip)
    worse = torch.maximum((value - target).square(), (near - target).square())
    return 0.5 * weighted(weight, worse)


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
