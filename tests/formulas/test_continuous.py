"""Losses and densities of continuous control against slow NumPy twins.

Mutations seen to fail: tanh's change of volume left out, or with the other sign; log(1 − tanh² u) computed as it is
written; the temperature's loss with the other sign, or with a gradient of log π; the target's noise not clipped, or its
sum with the action; the slope's clip left out; a critic left out of the sum; α Q − log π.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpc_rl.formulas.continuous import (
    critics_loss,
    deterministic_policy_gradient,
    entropy_regularized,
    smoothed,
    squashed_sample,
    temperature_loss,
)

N, A = 7, 3


def normals(*shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(len(shape)).normal(size=shape), dtype=torch.float32)


def test_the_squashed_density_is_the_derivative_of_its_distribution() -> None:
    mean, log_std, z = normals(N, A).double(), 0.3 * normals(N, A, 1)[..., 0].double(), normals(1, N, A)[0].double()
    action, log_prob = squashed_sample(mean, log_std, z)
    for n in range(N):
        total = 0.0
        for k in range(A):
            m, s, a = float(mean[n, k]), math.exp(float(log_std[n, k])), float(action[n, k])

            def below(x: float, m: float = m, s: float = s) -> float:  # P(tanh u < x)
                return 0.5 * math.erfc(-(math.atanh(x) - m) / s / math.sqrt(2))

            step = 1e-4 * (1 - abs(a))
            total += math.log((below(a + step) - below(a - step)) / (2 * step))
        assert float(log_prob[n]) == pytest.approx(total, abs=1e-5)


def test_the_density_is_exact_where_the_action_rounds_to_one() -> None:
    """log(1 − tanh² u) is −19.6, −39.4 and −2·50 + log 4 where float32 has tanh u = 1."""
    u = torch.tensor([[0.0], [10.5], [20.4], [50.0], [-50.0]], requires_grad=True)
    action, log_prob = squashed_sample(u, torch.zeros(5, 1), torch.zeros(5, 1))
    twin = [math.log(4) - 2 * abs(x) - 2 * math.log1p(math.exp(-2 * abs(x))) for x in (0.0, 10.5, 20.4, 50.0, -50.0)]
    assert action.flatten().tolist()[2:] == [1, 1, -1]
    assert log_prob.tolist() == pytest.approx([-0.5 * math.log(2 * math.pi) - x for x in twin], rel=1e-5)
    (gradient,) = torch.autograd.grad(log_prob.sum(), u)
    assert gradient.flatten().tolist() == pytest.approx([0.0, 2.0, 2.0, 2.0, -2.0], abs=1e-5)


def test_gradients_of_the_squashed_sample_are_differences() -> None:
    mean, log_std, z = normals(N, A).double(), 0.3 * normals(N, A, 1)[..., 0].double(), normals(1, N, A)[0].double()
    inputs = (mean.requires_grad_(), log_std.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, s: squashed_sample(m, s, z), inputs)


def test_temperature_rises_below_the_target_entropy() -> None:
    weight, target = torch.tensor([1.0, 1.0, 0.0]), -2.0
    for numbers, sign in (([3.0, 2.5, -9.0], -1), ([1.0, 1.5, 9.0], 1)):
        log_alpha, log_prob = torch.tensor([0.3], requires_grad=True), torch.tensor(numbers, requires_grad=True)
        temperature_loss(log_alpha, log_prob, target, weight).backward()  # type: ignore[no-untyped-call]
        slope = -(numbers[0] + numbers[1] + 2 * target)
        assert log_alpha.grad is not None and float(log_alpha.grad) == pytest.approx(slope)
        assert math.copysign(1, slope) == sign and log_prob.grad is None  # a step goes against the slope


def test_the_actor_trades_entropy_against_value() -> None:
    log_prob, q, weight = normals(N), normals(N, 1)[:, 0], (normals(N) > -0.5).float()
    expected = sum(w * (0.2 * p - v) for p, v, w in zip(log_prob, q, weight, strict=True))
    assert float(entropy_regularized(log_prob, q, torch.tensor([0.2]), weight)) == pytest.approx(float(expected))


def test_critics_share_one_target() -> None:
    q, y, weight = normals(2, N), normals(N), (normals(N) > -0.5).float()
    expected = sum(0.5 * weight[n] * (y[n] - q[k, n]) ** 2 for k in range(2) for n in range(N))
    summed, sums = critics_loss(q, y, weight)
    assert float(summed) == float(sums[0]) == pytest.approx(float(expected), rel=1e-5)
    assert float(sums[1]) == pytest.approx(float((weight * (q[0] + q[1]) / 2).sum()), rel=1e-5)
    assert float(sums[2]) == pytest.approx(float((weight * y).sum()), rel=1e-5)


@pytest.mark.parametrize("limit", [0.0, 0.4])
def test_the_gradient_is_the_slope_of_the_value(limit: float) -> None:
    action, slope = normals(N, A).requires_grad_(), normals(N, A, 1)[..., 0].requires_grad_()
    weight = (normals(N) > -0.5).float()
    deterministic_policy_gradient(action, slope, weight, limit).backward()  # type: ignore[no-untyped-call]
    bound = slope.detach().numpy()
    expected = -weight.numpy()[:, None] * (np.clip(bound, -limit, limit) if limit else bound)
    assert action.grad is not None and np.allclose(action.grad.numpy(), expected) and slope.grad is None


def test_the_noise_of_the_target_is_clipped_and_so_is_the_action() -> None:
    action, z = torch.tensor([[0.0], [0.0], [0.0], [0.9], [-0.9]]), torch.tensor([[1.0], [5.0], [-5.0], [1.0], [-5.0]])
    assert smoothed(action, z, 0.2, 0.5).flatten().tolist() == pytest.approx([0.2, 0.5, -0.5, 1.0, -1.0])
