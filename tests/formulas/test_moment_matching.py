"""Moments against the formulas of the paper as loops, against 200 000 samples, and gradients against differences.

Samples are good to about 1 part in 100 here; the loops to rounding.

Mutations seen to fail: cos(m_i + m_j) and cos(m_i − m_j) exchanged; the gain of cos that of sin; 2 x for 3 x in the
squash; 1 for ½ in log Q; R of Λ_a twice; the determinant of R left out; σ² added off the diagonal; tr(P Q) left out; a
factor in the gradient of |R|; the gradient of one output's length-scales, or of β through the mean, left out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.formulas.moment_matching import (
    Moments,
    feature_moments,
    features,
    saturating,
    saturating_mean,
    sine,
    squashed,
    squashed_moments,
)
from hpc_rl.formulas.process_moments import Processes, prediction, process_moments
from hpc_rl.nets.controllers import Linear, RadialBasis

SAMPLES = 200_000


def gaussian(seed: int, size: int, scale: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(size, generator=generator, dtype=torch.float64)
    root = scale * torch.randn(size, size, generator=generator, dtype=torch.float64)
    return mean, root @ root.T + 0.01 * torch.eye(size, dtype=torch.float64)


def samples(mean: Tensor, covariance: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(SAMPLES, len(mean), generator=generator, dtype=torch.float64)
    return mean + z @ torch.linalg.cholesky(covariance).T


def processes(seed: int, inputs: int, outputs: int, points: int, inverse: bool = True) -> Processes:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, length, signal = normal(outputs, points, inputs), 0.3 * normal(outputs, inputs) + 0.4, 0.2 * normal(outputs)
    away = (x[:, :, None] - x[:, None]) / length.exp()[:, None, None]
    noisy = (2 * signal[:, None, None] - 0.5 * away.square().sum(-1)).exp() + 0.05 * torch.eye(points).double()
    weights = torch.linalg.solve(noisy, normal(outputs, points))
    return Processes(x, weights, length, signal, torch.linalg.inv(noisy) if inverse else None)


def close(moments: Moments, x: Tensor, y: Tensor, covariance: Tensor, more: Tensor | None = None) -> None:
    """Mean, covariance and input–output covariance of y [n, E] of x [n, D], within the noise of the samples."""
    seen = torch.cov(y.T).reshape(y.shape[1], -1) + (0 if more is None else more)
    assert torch.allclose(moments.mean, y.mean(0), rtol=0.01, atol=0.01)
    assert torch.allclose(moments.covariance, seen, rtol=0.02, atol=0.01)
    assert torch.allclose(moments.covariance, moments.covariance.T)
    cross = (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
    assert torch.allclose(covariance @ moments.gain, cross, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.5])
def test_sines_and_squashed_actions(scale: float) -> None:
    mean, covariance = gaussian(1, 3, scale)
    x = samples(mean, covariance)
    waves = sine(mean, covariance)
    close(Moments(waves.mean, waves.covariance, torch.diag(waves.gain)), x, x.sin(), covariance)
    close(squashed_moments(mean, covariance), x, squashed(x), covariance)
    assert squashed(torch.tensor([math.pi / 2, -math.pi / 2, 0.0])).tolist() == pytest.approx([1, -1, 0])
    wide = sine(mean, 2000.0 * torch.eye(3, dtype=torch.float64))
    assert torch.isfinite(wide.covariance).all() and torch.allclose(wide.covariance, 0.5 * torch.eye(3).double())


@pytest.mark.parametrize("angles", [(), (1,), (3, 0)])
def test_angles_become_sines_and_cosines(angles: tuple[int, ...]) -> None:
    mean, covariance = gaussian(2, 4)
    x = samples(mean, covariance)
    shown = features(x, angles)
    plain = [i for i in range(4) if i not in angles]
    twin = [x[:, plain]] + [f(x[:, i : i + 1]) for i in angles for f in (torch.sin, torch.cos)]
    assert torch.equal(shown, torch.cat(twin, 1))
    close(feature_moments(mean, covariance, angles), x, shown, covariance)


def test_the_cost_of_a_gaussian() -> None:
    mean, covariance = gaussian(3, 2)
    cost = saturating(samples(mean, covariance))
    assert float(saturating_mean(mean, covariance)) == pytest.approx(float(cost.mean()), rel=0.01)
    exact = 1 - math.exp(-0.5 * float(mean.square().sum()))
    assert float(saturating_mean(mean, torch.zeros(2, 2).double())) == pytest.approx(exact, abs=1e-8)


def test_processes_against_samples() -> None:
    mean, covariance = gaussian(4, 3, 0.4)
    x, model = samples(mean, covariance), processes(5, 3, 2, 20)
    means, spread = [], []
    for part in x.split(5000):
        away = (part[:, None, None] - model.inputs) / model.log_length.exp()[:, None]
        k = (2 * model.log_signal[:, None] - 0.5 * away.square().sum(-1)).exp()
        means.append((k * model.weights).sum(-1))
        assert model.inverse is not None
        spread.append((2 * model.log_signal).exp() - torch.einsum("bei,eij,bej->be", k, model.inverse, k))
        assert torch.allclose(prediction(model, part[:3]), means[-1][:3])
    moments = Moments(*process_moments(model, mean, covariance))
    close(moments, x, torch.cat(means), covariance, torch.diag(torch.cat(spread).mean(0)))
    function = processes(5, 3, 2, 20, inverse=False)
    close(Moments(*process_moments(function, mean, covariance)), x, torch.cat(means), covariance)


def twin(model: Processes, m: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deisenroth and Rasmussen 2011, equations 14 to 23, and Cov(x, f), one pair of points after the other."""
    x, beta = model.inputs.numpy(), model.weights.numpy()
    squares, alpha = np.exp(2 * model.log_length.numpy()), np.exp(2 * model.log_signal.numpy())
    outputs, points, size = x.shape
    mean, cross = np.zeros(outputs), np.zeros((size, outputs))
    for a in range(outputs):
        lam = np.diag(squares[a])
        for i in range(points):
            nu = x[a, i] - m
            root = np.linalg.det(s @ np.linalg.inv(lam) + np.eye(size)) ** -0.5
            q = alpha[a] * root * np.exp(-0.5 * nu @ np.linalg.inv(s + lam) @ nu)
            mean[a] += beta[a, i] * q
            cross[:, a] += beta[a, i] * q * s @ np.linalg.inv(s + lam) @ nu
    covariance = np.zeros((outputs, outputs))
    for a in range(outputs):
        for b in range(outputs):
            inv_a, inv_b = np.diag(1 / squares[a]), np.diag(1 / squares[b])
            r = s @ (inv_a + inv_b) + np.eye(size)
            q = np.zeros((points, points))
            for i in range(points):
                for j in range(points):
                    nu_i, nu_j = x[a, i] - m, x[b, j] - m
                    z = inv_a @ nu_i + inv_b @ nu_j
                    k = alpha[a] * alpha[b] * np.exp(-0.5 * (nu_i @ inv_a @ nu_i + nu_j @ inv_b @ nu_j))
                    q[i, j] = k * np.linalg.det(r) ** -0.5 * np.exp(0.5 * z @ np.linalg.inv(r) @ s @ z)
            covariance[a, b] = beta[a] @ q @ beta[b] - mean[a] * mean[b]
            if a == b and model.inverse is not None:
                covariance[a, a] += alpha[a] - np.trace(model.inverse[a].numpy() @ q)
    return mean, covariance, cross


@pytest.mark.parametrize("inverse", [True, False])
def test_processes_against_the_loops(inverse: bool) -> None:
    mean, covariance = gaussian(6, 3)
    model = processes(7, 3, 3, 6, inverse)
    moments = Moments(*process_moments(model, mean, covariance))
    expected, second, cross = twin(model, mean.numpy(), covariance.numpy())
    assert np.allclose(moments.mean, expected, rtol=1e-10)
    assert np.allclose(moments.covariance, second, rtol=1e-9, atol=1e-12)
    assert np.allclose(covariance @ moments.gain, cross, rtol=1e-10)


def test_gradients_are_those_of_differences() -> None:
    mean, covariance = gaussian(8, 3)
    model = processes(9, 3, 2, 5)

    def of(function: Any) -> Any:
        """S through a factor, so that every difference is symmetric."""
        return lambda m, root: function(m, root @ root.T)

    inputs = (mean.clone().requires_grad_(), torch.linalg.cholesky(covariance).requires_grad_())
    for function in (
        sine,
        squashed_moments,
        lambda m, s: feature_moments(m, s, (2,)),
        lambda m, s: process_moments(model, m, s),
        saturating_mean,
    ):
        assert torch.autograd.gradcheck(of(function), inputs)


@pytest.mark.parametrize("controller", [RadialBasis(3, 2, 4), Linear(3, 2)])
def test_controllers(controller: RadialBasis | Linear) -> None:
    mean, covariance = gaussian(10, 3)
    x = samples(mean, covariance)
    row = controller.start(x[:50], torch.ones(3).double(), torch.Generator().manual_seed(1))
    assert float(controller.output(row, x).std()) < 1, "a new controller does little"
    row = row + 0.3 * torch.randn(len(row), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    close(controller.control(row)(mean, covariance), x, controller.output(row, x), covariance)
    still = controller.control(row)(mean, torch.zeros(3, 3).double())
    assert torch.allclose(still.mean, controller.output(row, mean[None])[0])

    def through(row: Tensor, m: Tensor, root: Tensor) -> Any:
        return tuple(controller.control(row)(m, root @ root.T))

    inputs = [v.clone().requires_grad_() for v in (row, mean, torch.linalg.cholesky(covariance))]
    assert torch.autograd.gradcheck(through, inputs)
