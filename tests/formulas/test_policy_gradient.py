"""Policy losses against loops, and their gradients against finite differences.

Mutations seen to fail: ``minimum`` → ``maximum``; the clip one-sided; ``weight`` left out;
the sign of a loss; k3 without its −1; k3 with the sign of log r turned; ½ (log r)² in the place of k3;
ε added to the logarithm; the hinge from KL_target on, or without its factor 2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.formulas.losses import (
    approximate_kl,
    clipped_surrogate,
    guarded,
    kl_slope,
    policy_gradient,
    surrogate,
)

CLIP = 0.2


def numbers(seed: int, n: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """log-ratios on both sides of the clip and well away from its kinks, advantages of both signs, weights."""
    rng = np.random.default_rng(seed)
    edges = np.log([1 - CLIP, 1 + CLIP])
    ratio = rng.normal(size=8 * n) * 0.4
    ratio = ratio[np.abs(ratio[:, None] - edges).min(1) > 1e-3][:n]
    parts = (ratio, rng.normal(size=n), (rng.random(n) < 0.7).astype(float))
    return tuple(torch.tensor(x, dtype=torch.float64) for x in parts)  # type: ignore[return-value]


def finite_differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    slopes = []
    for k in range(len(at)):
        shift = torch.zeros_like(at)
        shift[k] = step
        slopes.append((function(at + shift) - function(at - shift)) / (2 * step))
    return torch.stack(slopes)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(at), at)
    return slope


@pytest.mark.parametrize("seed", range(5))
def test_clipped_surrogate_is_the_loop(seed: int) -> None:
    ratio, advantage, weight = numbers(seed)
    total = 0.0
    for x, a, w in zip(ratio.tolist(), advantage.tolist(), weight.tolist(), strict=True):
        r = np.exp(x)
        total += w * min(r * a, min(max(r, 1 - CLIP), 1 + CLIP) * a)
    assert np.isclose(float(clipped_surrogate(ratio, advantage, weight, CLIP)), -total)


@pytest.mark.parametrize("seed", range(5))
def test_clipped_surrogate_has_the_right_gradient(seed: int) -> None:
    ratio, advantage, weight = numbers(seed)

    def of(x: Tensor) -> Tensor:
        return clipped_surrogate(x, advantage, weight, CLIP)

    actual = gradient(of, ratio)
    assert torch.allclose(actual, finite_differences(of, ratio), atol=1e-6)
    r = ratio.exp()
    outside = ((r > 1 + CLIP) & (advantage > 0)) | ((r < 1 - CLIP) & (advantage < 0))
    assert outside.any() and (actual[outside] == 0).all()
    inside = ~outside & (weight > 0)
    assert torch.allclose(actual[inside], -(r * advantage)[inside])


def test_surrogate_is_the_loop() -> None:
    ratio, advantage, weight = numbers(3)
    terms = zip(ratio.tolist(), advantage.tolist(), weight.tolist(), strict=True)
    assert np.isclose(float(surrogate(ratio, advantage, weight)), -sum(w * np.exp(x) * a for x, a, w in terms))


def test_the_penalty_pulls_as_the_exact_kl_does() -> None:
    """Its gradient in the logits of π, averaged over actions of π_old, is that of KL(π_old ‖ π)."""
    old = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    logits = torch.tensor([0.1, -0.4, 0.9, 0.2], dtype=torch.float64)

    def penalty(x: Tensor) -> Tensor:
        return approximate_kl(torch.log_softmax(x, -1) - old.log(), old)

    def exact(x: Tensor) -> Tensor:
        return (old * (old.log() - torch.log_softmax(x, -1))).sum()

    assert torch.allclose(gradient(penalty, logits), gradient(exact, logits))


def test_policy_gradient_is_the_loop_and_its_gradient_the_advantage() -> None:
    log_prob, advantage, weight = numbers(7)
    terms = zip(log_prob.tolist(), advantage.tolist(), weight.tolist(), strict=True)
    assert np.isclose(float(policy_gradient(log_prob, advantage, weight)), -sum(w * p * a for p, a, w in terms))
    assert torch.allclose(gradient(lambda x: policy_gradient(x, advantage, weight), log_prob), -weight * advantage)


def test_approximate_kl_is_unbiased_for_the_exact_one() -> None:
    """Σ_a π_old(a) k3(a) is KL(π_old ‖ π) exactly, and no term is negative."""
    old = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    new = torch.tensor([0.25, 0.25, 0.4, 0.1], dtype=torch.float64)
    log_ratio = (new / old).log()
    exact = sum(p * np.log(p / q) for p, q in zip(old.tolist(), new.tolist(), strict=True))
    assert np.isclose(float(approximate_kl(log_ratio, old)), exact)
    one = torch.ones(1, dtype=torch.float64)
    assert all(float(approximate_kl(x[None], one)) >= 0 for x in log_ratio)


def test_epsilon_stands_beside_the_probability() -> None:
    probability = np.array([1.0, 0.5, 1e-3, 1e-9, 1e-30])
    for epsilon in (1e-6, 0.1):
        actual = guarded(torch.tensor(np.log(probability)), epsilon).numpy()
        assert np.allclose(actual, [np.log(p + epsilon) for p in probability], rtol=1e-12)
    at = torch.tensor(np.log(probability))
    slopes = gradient(lambda x: guarded(x, 1e-6).sum(), at)
    assert torch.allclose(slopes, finite_differences(lambda x: guarded(x, 1e-6).sum(), at), atol=1e-6)
    assert torch.isfinite(guarded(torch.tensor([-1e4]), 1e-6)).all()


@pytest.mark.parametrize("kl", [0.0, 0.01, 0.019, 0.021, 0.1, 3.0])
def test_the_slope_of_the_penalty_with_its_hinge(kl: float) -> None:
    cost, target, hinge = 0.7, 0.01, 50.0

    def penalty(x: float) -> float:
        return cost * x + hinge * max(0.0, x - 2 * target) ** 2

    step = 1e-6
    assert kl_slope(kl, cost, target, hinge) == pytest.approx((penalty(kl + step) - penalty(kl - step)) / (2 * step))
