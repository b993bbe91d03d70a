"""The likelihood, its penalties, the posterior and its sparse form against loops, differences and gpytorch.

Mutations seen to fail: the trace left out of the noise's gradient; the penalty's 29 as 30; its unit the outputs' size;
the noise left out of β; Λ of FITC without the noise; K_uu⁻¹ alone as the sparse inverse.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.formulas import gaussian_process as gp
from hpc_rl.formulas.process_moments import Processes, prediction


def data(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.2]).double()
    y = torch.stack([x[:, 0].sin() + 0.1 * x[:, 1], x[:, 2] * x[:, 0]], 1)
    return x, y + 0.05 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def likelihood(theta: np.ndarray, x: np.ndarray, y: np.ndarray, snr: float) -> float:
    """Rasmussen and Williams 2006, equation 2.30, and the penalties of hypCurb.m."""
    length, signal, noise = np.exp(theta[:-2]), math.exp(theta[-2]), math.exp(theta[-1])
    k = np.array([[signal**2 * math.exp(-0.5 * sum(((a - b) / length) ** 2)) for b in x] for a in x])
    k += noise**2 * np.eye(len(x))
    value = 0.5 * y @ np.linalg.inv(k) @ y + 0.5 * np.linalg.slogdet(k)[1] + len(x) / 2 * math.log(2 * math.pi)
    value += sum(((theta[:-2] - np.log(x.std(0))) / math.log(100)) ** 30)
    return float(value + ((theta[-2] - theta[-1]) / math.log(snr)) ** 30)


def test_the_penalised_likelihood_and_its_gradient() -> None:
    x, y = data()
    first = gp.first_guess(x, y[:, 0])
    assert torch.allclose(first[:3].exp(), x.std(0, correction=0))
    assert float(first[3] - first[4]) == pytest.approx(math.log(10))
    far = first + torch.tensor([4.4, -4.5, 0.3, 1.5, -1.2]).double()  # where both penalties weigh
    for theta in (first, first + 0.3, far):
        loss, gradient = gp.penalised_loss(theta, x, y[:, 0], 50.0)
        assert float(loss) == pytest.approx(likelihood(theta.numpy(), x.numpy(), y[:, 0].numpy(), 50.0), rel=1e-9)
        for k in range(5):
            step = np.zeros(5)
            step[k] = 1e-5
            ends = [likelihood(theta.numpy() + s, x.numpy(), y[:, 0].numpy(), 50.0) for s in (step, -step)]
            assert float(gradient[k]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-4)


def variance(model: Processes, x: Tensor) -> Tensor:
    """σ² − kᵀ P k [b, E], without noise."""
    away = (x[:, None, None] - model.inputs) / model.log_length.exp()[:, None]
    k = (2 * model.log_signal[:, None] - 0.5 * away.square().sum(-1)).exp()
    assert model.inverse is not None
    return (2 * model.log_signal).exp() - torch.einsum("bei,eij,bej->be", k, model.inverse, k)


def test_the_posterior_is_that_of_the_textbook() -> None:
    x, y = data()
    theta = [gp.first_guess(x, y[:, k]) for k in range(2)]
    model, at = gp.posterior(theta, x, y), x[:5] + 0.1
    for e, row in enumerate(theta):
        k = gp.kernel(row, x, x) + float(row[-1].exp()) ** 2 * torch.eye(len(x)).double()
        cross = gp.kernel(row, at, x)
        assert torch.allclose(prediction(model, at)[:, e], cross @ torch.linalg.inv(k) @ y[:, e])
        exact = gp.kernel(row, at, at) - cross @ torch.linalg.inv(k) @ cross.T
        assert torch.allclose(variance(model, at)[:, e], exact.diagonal())


def test_the_sparse_posterior_is_fitc() -> None:
    x, y = data()
    theta = [gp.first_guess(x, y[:, k]) for k in range(2)]
    model, at = gp.sparse_posterior(theta, x, y, 12), x[:5] + 0.1
    for e, row in enumerate(theta):
        u = model.inputs[e]
        assert u.shape == (12, 3)
        jitter = gp.JITTER * float(row[-2].exp()) ** 2 * torch.eye(12).double()
        k_uu, k_uf = gp.kernel(row, u, u) + jitter, gp.kernel(row, u, x)
        q = k_uf.T @ torch.linalg.inv(k_uu) @ k_uf
        lam = torch.diag((gp.kernel(row, x, x) - q).diagonal()) + float(row[-1].exp()) ** 2 * torch.eye(len(x)).double()
        prior = torch.linalg.inv(q + lam)  # FITC is a GP with this covariance (Quiñonero-Candela and Rasmussen, eq. 21)
        cross = gp.kernel(row, at, u) @ torch.linalg.inv(k_uu) @ k_uf
        assert torch.allclose(prediction(model, at)[:, e], cross @ prior @ y[:, e], rtol=1e-6)
        spread = float(row[-2].exp()) ** 2 - (cross @ prior @ cross.T).diagonal()
        assert torch.allclose(variance(model, at)[:, e], spread, rtol=1e-5)
    whole = gp.sparse_posterior(theta, x, y, 40)
    assert torch.allclose(prediction(whole, at), prediction(gp.posterior(theta, x, y), at), atol=1e-3)


def test_inducing_points_are_spread() -> None:
    x = torch.cat([torch.zeros(50, 1), torch.ones(1, 1), 1e-3 * torch.ones(5, 1)]).double()
    assert set(gp.spread(torch.zeros(3).double(), x, 2)) == {0, 50}


def test_a_length_scale_that_runs_away_is_named() -> None:
    x, y = data()
    theta = gp.first_guess(x, y[:, 0])
    assert gp.run_away(theta, x) is None
    assert gp.run_away(theta + torch.tensor([0, 11.6, 0, 0, 0]), x) == 1
    assert gp.run_away(theta + torch.tensor([0, 0, math.nan, 0, 0]), x) == 2
    still = torch.cat([x, torch.ones(40, 1).double()], 1)
    assert torch.isfinite(gp.first_guess(still, 0 * y[:, 0])).all(), "what does not vary has a deviation, too"


def test_gpytorch_agrees() -> None:
    gpytorch = pytest.importorskip("gpytorch")
    x, y = data()
    theta = gp.first_guess(x, y[:, 0])
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=3)).double()
    kernel.base_kernel.lengthscale, kernel.outputscale = theta[:3].exp(), (2 * theta[3]).exp()
    noise = gpytorch.likelihoods.GaussianLikelihood().double()
    noise.noise = (2 * theta[4]).exp()

    class Exact(gpytorch.models.ExactGP):  # type: ignore[misc]
        def forward(self, x: Tensor) -> object:
            return gpytorch.distributions.MultivariateNormal(torch.zeros(len(x)).double(), kernel(x))

    model = Exact(x, y[:, 0], noise)
    with gpytorch.settings.fast_computations(False, False, False):
        model.train(), noise.train()
        marginal = gpytorch.mlls.ExactMarginalLogLikelihood(noise, model)(model(x), y[:, 0])
        assert float(-marginal * len(x)) == pytest.approx(
            float(gp.penalised_loss(theta, x, y[:, 0], 1000.0)[0]), rel=1e-6
        )
        model.eval(), noise.eval()
        theirs, ours = model(x[:5] + 0.1), gp.posterior([theta], x, y[:, :1])
    assert torch.allclose(theirs.mean, prediction(ours, x[:5] + 0.1)[:, 0], rtol=1e-6)
    assert torch.allclose(theirs.variance, variance(ours, x[:5] + 0.1)[:, 0], rtol=1e-4)
