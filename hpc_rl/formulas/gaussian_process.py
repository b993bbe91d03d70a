"""Gaussian processes with one squared-exponential kernel a input (ARD) and no mean: fit, posterior, sparse posterior.

Rasmussen and Williams 2006, chapters 2 and 5; the sparse one is FITC (Snelson and Ghahramani 2006; Quiñonero-Candela
and Rasmussen 2005). Float64 throughout. Hyper-parameters θ [D + 2] of one output: log ℓ [D], log σ_f, log σ_n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpc_rl.formulas.process_moments import Processes

LEAST = 1e-6  # of a deviation: an entry that does not vary has none
JITTER = 1e-6  # of the prior variance, on the diagonal over inducing points
RUN_AWAY = 1e5  # deviations of its input, beyond which a length-scale says that the fit failed


def deviations(x: Tensor) -> Tensor:
    """Standard deviation of each input [D] of rows [n, D], 1 where it does not vary."""
    std = x.std(0, correction=0)
    return torch.where(std > LEAST, std, torch.ones_like(std))


def first_guess(x: Tensor, y: Tensor) -> Tensor:
    """θ of inputs [n, D] and outputs [n]: ℓ the inputs' deviations, σ_f the outputs' root mean square, σ_n a tenth."""
    size = y.square().mean().sqrt().clamp(min=LEAST).log()
    return torch.cat([deviations(x).log(), torch.stack([size, size - math.log(10)])])


def kernel(theta: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """k [n, m] = σ_f² exp(−½ Σ_d (x_d − x'_d)² / ℓ_d²) of rows [n, D] and [m, D]."""
    a, b = (x / theta[:-2].exp() for x in (left, right))
    squares = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    return (2 * theta[-2] - 0.5 * squares.clamp(min=0)).exp()


def penalised_loss(theta: Tensor, x: Tensor, y: Tensor, signal_to_noise: float) -> tuple[Tensor, Tensor]:
    """Negative log marginal likelihood with penalties, and its gradient [D + 2].

    ½ yᵀ K⁻¹ y + ½ log |K| + n/2 log 2π + Σ_d ((log ℓ_d − log std x_d) / log 100)³⁰ + ((log σ_f − log σ_n) / log SNR)³⁰

    (the penalties are those of PILCO's released code). ∂/∂θ of the first part is ½ tr((K⁻¹ − α αᵀ) ∂K/∂θ), α = K⁻¹ y.
    Raises torch.linalg.LinAlgError where K is not positive definite.
    """
    n = len(y)
    smooth = kernel(theta, x, x)
    noise = (2 * theta[-1]).exp()
    root = torch.linalg.cholesky(smooth + noise * torch.eye(n, dtype=x.dtype))
    alpha = torch.cholesky_solve(y[:, None], root)[:, 0]
    loss = 0.5 * y @ alpha + root.diagonal().log().sum() + 0.5 * n * math.log(2 * math.pi)
    outer = torch.cholesky_inverse(root) - alpha[:, None] * alpha
    inner = outer * smooth
    scaled = x / theta[:-2].exp()
    by_length = inner.sum(1) @ scaled.square() - (scaled * (inner @ scaled)).sum(0)
    gradient = torch.cat([by_length, torch.stack([inner.sum(), noise * outer.trace()])])
    far = (theta[:-2] - deviations(x).log()) / math.log(100)
    ratio = (theta[-2] - theta[-1]) / math.log(signal_to_noise)
    slope = 30 * ratio**29 / math.log(signal_to_noise)
    penalty = torch.cat([30 * far**29 / math.log(100), torch.stack([slope, -slope])])
    return loss + far.pow(30).sum() + ratio**30, gradient + penalty


def run_away(theta: Tensor, x: Tensor) -> int | None:
    """The first input whose length-scale is beyond `RUN_AWAY` of its deviations, or is no number."""
    ratio = theta[:-2].exp() / deviations(x)
    bad = ~(ratio <= RUN_AWAY)
    return int(bad.int().argmax()) if bool(bad.any()) else None


def posterior(theta: Sequence[Tensor], x: Tensor, y: Tensor) -> Processes:
    """All points [n, D] and outputs [n, E] kept: β = (K + σ_n² I)⁻¹ y."""
    parts = []
    for row, outputs in zip(theta, y.T, strict=True):
        noisy = kernel(row, x, x) + (2 * row[-1]).exp() * torch.eye(len(x), dtype=x.dtype)
        root = torch.linalg.cholesky(noisy)
        parts.append((x, torch.cholesky_solve(outputs[:, None], root)[:, 0], torch.cholesky_inverse(root)))
    return _stacked(theta, parts)


def sparse_posterior(theta: Sequence[Tensor], x: Tensor, y: Tensor, points: int) -> Processes:
    """FITC with ``points`` inducing inputs for each output, chosen among x by `spread`.

    With Λ = diag(K − Q) + σ_n² I, Q = K_fu K_uu⁻¹ K_uf, A = K_uu + K_uf Λ⁻¹ K_fu:
    β = A⁻¹ K_uf Λ⁻¹ y, and the variance is σ_f² − k_uᵀ (K_uu⁻¹ − A⁻¹) k_u.
    """
    parts = []
    for row, outputs in zip(theta, y.T, strict=True):
        u = x[spread(row, x, points)]
        identity = torch.eye(len(u), dtype=x.dtype)
        signal = (2 * row[-2]).exp()
        root = torch.linalg.cholesky(kernel(row, u, u) + JITTER * signal * identity)
        v = torch.linalg.solve_triangular(root, kernel(row, u, x), upper=False)  # Q = vᵀ v
        scale = (signal - v.square().sum(0)).clamp(min=0) + (2 * row[-1]).exp()
        inner = torch.linalg.cholesky(identity + (v / scale) @ v.T)
        whitened = torch.cholesky_solve((v @ (outputs / scale))[:, None], inner)
        beta = torch.linalg.solve_triangular(root.T, whitened, upper=True)[:, 0]
        back = torch.linalg.solve_triangular(root, identity, upper=False)
        inverse = back.T @ (identity - torch.cholesky_inverse(inner)) @ back
        parts.append((u, beta, (inverse + inverse.T) / 2))
    return _stacked(theta, parts)


def spread(theta: Tensor, x: Tensor, points: int) -> list[int]:
    """Rows of x [n, D], each that of the largest variance given those before it (pivoted Cholesky)."""
    count = min(points, len(x))
    chosen: list[int] = []
    left = torch.full((len(x),), float((2 * theta[-2]).exp()), dtype=x.dtype)
    columns = x.new_zeros(len(x), count)
    for k in range(count):
        at = int(left.argmax())
        chosen.append(at)
        column = kernel(theta, x, x[at : at + 1])[:, 0] - columns @ columns[at]
        columns[:, k] = column / left[at].clamp(min=1e-300).sqrt()
        left = left - columns[:, k].square()
        left[chosen] = -1.0
    return chosen


def _stacked(theta: Sequence[Tensor], parts: list[tuple[Tensor, Tensor, Tensor]]) -> Processes:
    inputs, weights, inverse = (torch.stack(list(x)) for x in zip(*parts, strict=True))
    table = torch.stack(list(theta))
    return Processes(inputs, weights, table[:, :-2], table[:, -2], inverse)
