"""Value losses against loops, and the clipped one's gradient against finite differences.

Mutations seen to fail: ``maximum`` → ``minimum``; the clip around the target; ½ or ``weight`` left out; the mean of
explained variance over all rows; its 1 − x turned into x; the variance about 0.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.formulas.losses import clipped_half_squared, explained_variance, half_squared, standardized

CLIP = 0.3


def numbers(seed: int, n: int = 60) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """value, old, target, weight; no row near a kink of the clip or of the maximum."""
    rng = np.random.default_rng(seed)
    value, old, target = rng.normal(size=(3, 4 * n))
    near = old + np.clip(value - old, -CLIP, CLIP)
    smooth = (np.abs(np.abs(value - old) - CLIP) > 1e-3) & (
        (near == value) | (np.abs((value - target) ** 2 - (near - target) ** 2) > 1e-3)
    )
    weight = (rng.random(4 * n) < 0.7).astype(float)
    return tuple(torch.tensor(x[smooth][:n], dtype=torch.float64) for x in (value, old, target, weight))  # type: ignore


def test_half_squared_is_the_loop() -> None:
    value, _, target, weight = numbers(0)
    terms = zip(value.tolist(), target.tolist(), weight.tolist(), strict=True)
    assert np.isclose(float(half_squared(value, target, weight)), sum(w * (g - v) ** 2 / 2 for v, g, w in terms))


@pytest.mark.parametrize("seed", range(5))
def test_clipped_loss_is_the_loop(seed: int) -> None:
    value, old, target, weight = numbers(seed)
    total = 0.0
    for v, o, g, w in zip(*(x.tolist() for x in (value, old, target, weight)), strict=True):
        near = o + min(max(v - o, -CLIP), CLIP)
        total += w * 0.5 * max((v - g) ** 2, (near - g) ** 2)
    assert np.isclose(float(clipped_half_squared(value, old, target, weight, CLIP)), total)


@pytest.mark.parametrize("seed", range(5))
def test_clipped_loss_has_the_right_gradient(seed: int) -> None:
    value, old, target, weight = numbers(seed)
    at = value.clone().requires_grad_()
    (actual,) = torch.autograd.grad(clipped_half_squared(at, old, target, weight, CLIP), at)
    step = 1e-6
    for k in range(len(value)):
        ends = []
        for sign in (1, -1):
            moved = value.clone()
            moved[k] += sign * step
            ends.append(float(clipped_half_squared(moved, old, target, weight, CLIP)))
        assert np.isclose(float(actual[k]), (ends[0] - ends[1]) / (2 * step), atol=1e-5)
    assert ((actual == 0) & (weight > 0)).any(), "no row in which the clip holds the value back"


def test_explained_variance_is_that_of_the_valid_rows() -> None:
    value, _, target, weight = numbers(3)
    v, g = (x[weight > 0].numpy() for x in (value, target))
    assert np.isclose(float(explained_variance(value, target, weight)), 1 - (g - v).var() / g.var())
    assert np.isclose(float(explained_variance(target + 3, target, weight)), 1.0)


def test_explained_variance_of_a_constant_target_is_zero() -> None:
    value = torch.randn(8)
    assert float(explained_variance(value, torch.full((8,), 2.0), torch.ones(8))) == 0.0
    assert float(explained_variance(value, torch.randn(8), torch.zeros(8))) == 0.0


def test_standardized_over_the_weighted_rows_alone() -> None:
    x, _, _, weight = numbers(3)
    actual, real = standardized(x, weight).numpy(), x.numpy()[weight.numpy() == 1]
    assert np.allclose(actual, (x.numpy() - real.mean()) / (real.std() + 1e-8), rtol=1e-10)
    assert torch.isfinite(standardized(x, torch.zeros_like(x))).all()
