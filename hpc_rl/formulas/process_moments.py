"""Moments of Gaussian processes at x ~ N(m, S), with the gradient written out (Deisenroth and Rasmussen 2011, ICML).

With ν_i = x_i − m, Λ = diag ℓ²:  q_i = σ² |S Λ⁻¹ + I|^(−½) exp(−½ ν_iᵀ (S + Λ)⁻¹ ν_i),  mean = βᵀ q,
Cov(x, f) = S Σ_i β_i q_i (S + Λ)⁻¹ ν_i, and E f_a f_b is β_aᵀ Q β_b, where a = b plus σ² − tr(P Q), with

    log Q_ij = log k_a(x_i, m) + log k_b(x_j, m) + ½ z_ijᵀ R⁻¹ S z_ij − ½ log |R|
    R = S (Λ_a⁻¹ + Λ_b⁻¹) + I,   z_ij = Λ_a⁻¹ ν_i + Λ_b⁻¹ ν_j

of which the exponential is taken once, at the end. A roll-out calls this eighty times for one gradient, on arrays so
small that calls are what costs: NumPy's cost a fifth of torch's with its graph. Shapes: D inputs, E outputs, n points.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_rl.devices import to_device, to_host
from hpc_rl.types import Array


@dataclass(frozen=True)
class Processes:
    """E Gaussian processes with squared-exponential kernels, by what their predictions need.

    f_e(x) has the mean Σ_i β_ei k_e(x_ei, x) and the variance σ_e² − k_eᵀ P_e k_e. Without ``inverse`` they are
    functions: their means, without variance.
    """

    inputs: Tensor  # [E, n, D]
    weights: Tensor  # β [E, n]
    log_length: Tensor  # log ℓ [E, D]
    log_signal: Tensor  # log σ [E], of which no gradient is taken
    inverse: Tensor | None = None  # P [E, n, n]: (K + σ_n² I)⁻¹ where all points are kept

    @functools.cached_property
    def products(self) -> dict[tuple[int, int], Array]:
        """β_a β_bᵀ − δ_ab P_a [n, n] of the pairs (a, b) of outputs with a ≤ b."""
        beta, inverse = to_host(self.weights), None if self.inverse is None else to_host(self.inverse)
        pairs = [(a, b) for a in range(len(beta)) for b in range(a, len(beta))]
        products = {pair: beta[pair[0]][:, None] * beta[pair[1]] for pair in pairs}
        for e, own in enumerate(() if inverse is None else inverse):
            products[e, e] -= own
        return products


def prediction(model: Processes, x: Tensor) -> Tensor:
    """Mean [b, E] of the processes at rows x [b, D]."""
    away = (x[:, None, None] - model.inputs) / model.log_length.exp()[:, None]  # [b, E, n, D]
    kernel = (2 * model.log_signal[:, None] - 0.5 * away.square().sum(-1)).exp()
    return (kernel * model.weights).sum(-1)


def process_moments(model: Processes, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [E], covariance [E, E] and gain G [D, E], Cov(x, f) = S G, of the processes at N(m, S)."""
    tensors = (mean, covariance, model.inputs, model.weights, model.log_length)
    first, second, gain = _ProcessMoments.apply(*tensors, model)  # type: ignore[no-untyped-call]
    return first, second, gain.T


class _ProcessMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        arrays = [to_host(x) for x in arguments[:-1]]
        ctx.passed = _Forward(arrays, arguments[-1], ctx.needs_input_grad[2])
        return tuple(to_device(x, "cpu") for x in ctx.passed.moments())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_all = ctx.passed.backward(*(to_host(x) for x in gradients))
        return (*(None if x is None else to_device(x, "cpu") for x in of_all), None)


class _Pair:
    """The sum over all Q_ij of outputs a ≤ b, and what its gradient needs: no matrix of n × n is kept."""

    def __init__(self, own: _Forward, a: int, b: int) -> None:
        self.a, self.b, z_a, z_b = a, b, own.z[a], own.z[b]
        self.diagonal = own.precision[a] + own.precision[b]
        spread = own.s * self.diagonal + own.identity
        self.between = np.linalg.solve(spread, own.s)  # R⁻¹ S, symmetric
        self.left, self.right = z_a @ self.between, z_b @ self.between
        u = own.log_k[a] + 0.5 * (self.left * z_a).sum(-1) - 0.5 * np.linalg.slogdet(spread)[1]
        terms = self.left @ z_b.T
        terms += u[:, None]
        terms += own.log_k[b] + 0.5 * (self.right * z_b).sum(-1)
        np.exp(terms, out=terms)
        self.by_beta = (terms @ own.beta[b], own.beta[a] @ terms) if own.whole else (0.0, 0.0)
        terms *= own.products[a, b]
        self.rows, self.columns = terms.sum(1), terms.sum(0)
        self.by_left, self.by_right = terms @ z_b, terms.T @ self.left
        self.sum = self.rows.sum()


class _Forward:
    """Everything computed on the way to the moments; ``whole``: for gradients of inputs, β and log ℓ, too."""

    def __init__(self, arrays: list[Array], model: Processes, whole: bool) -> None:
        m, s, x, beta, log_length = arrays
        self.s, self.beta, self.products, self.whole = s, beta, model.products, whole
        log_signal = to_host(model.log_signal)
        self.prior = 0 * log_signal if model.inverse is None else np.exp(2 * log_signal)
        self.length, self.identity = np.exp(log_length), np.eye(len(m))
        self.precision = self.length**-2
        self.scaled = (x - m) / self.length[:, None]
        self.z = self.scaled / self.length[:, None]
        self.log_k = 2 * log_signal[:, None] - 0.5 * (self.scaled**2).sum(-1)
        self.outer = s / (self.length[:, :, None] * self.length[:, None])
        wide = self.outer + self.identity
        self.inner = np.linalg.inv(wide)  # its eigenvalues are at most 1
        self.solved = self.scaled @ self.inner
        log_q = 2 * log_signal[:, None] - 0.5 * (self.scaled * self.solved).sum(-1)
        self.q = np.exp(log_q - 0.5 * np.linalg.slogdet(wide)[1][:, None])
        self.weighted = beta * self.q
        self.mean = self.weighted.sum(1)
        self.gain = (self.weighted[:, None] @ self.solved)[:, 0] / self.length
        outputs = range(len(beta))
        self.pairs = [_Pair(self, a, b) for a in outputs for b in outputs if a <= b]

    def moments(self) -> tuple[Array, Array, Array]:
        second = np.zeros((len(self.mean),) * 2)
        for pair in self.pairs:
            second[pair.a, pair.b] = second[pair.b, pair.a] = pair.sum
        second -= self.mean[:, None] * self.mean
        second += np.diag(self.prior)
        return self.mean, second, self.gain

    def backward(self, by_mean: Array, by_second: Array, by_gain: Array) -> tuple[Array | None, ...]:
        """Gradients of m and S, and of inputs, β and log ℓ where they are needed, else None."""
        by_second = by_second + by_second.T
        by_mean = by_mean - by_second @ self.mean
        sums = {name: np.zeros_like(x) for name, x in (("s", self.s), ("p", self.length), ("z", self.z))}
        by_log_k, by_beta = np.zeros_like(self.log_k), np.zeros_like(self.beta)
        for pair in self.pairs:
            factor = by_second[pair.a, pair.b] * (0.5 if pair.a == pair.b else 1.0)
            self._through(pair, factor, sums, by_log_k, by_beta)
        ahead = by_gain / self.length
        by_weighted = by_mean[:, None] + (self.solved @ ahead[:, :, None])[:, :, 0]
        by_log_q = (self.weighted * by_weighted)[:, :, None]
        by_solved = self.weighted[:, :, None] * ahead[:, None] - 0.5 * by_log_q * self.scaled
        by_scaled = by_solved @ self.inner - 0.5 * by_log_q * self.solved
        by_scaled += sums["z"] / self.length[:, None] - by_log_k[:, :, None] * self.scaled
        by_wide = (
            -self.inner @ (self.scaled.mT @ by_solved) @ self.inner - 0.5 * by_log_q.sum(1)[:, :, None] * self.inner
        )
        by_s = sums["s"] + (by_wide / (self.length[:, :, None] * self.length[:, None])).sum(0)
        by_x = by_scaled / self.length[:, None]
        by_m, by_s = -by_x.sum((0, 1)), (by_s + by_s.T) / 2
        if not self.whole:
            return by_m, by_s, None, None, None
        product = by_wide * self.outer
        by_log_length = -(by_scaled * self.scaled + sums["z"] * self.z).sum(1) - 2 * self.precision * sums["p"]
        by_log_length -= product.sum(1) + product.sum(2) + by_gain * self.gain
        return by_m, by_s, by_x, by_beta + by_weighted * self.q, by_log_length

    def _through(self, pair: _Pair, factor: float, sums: dict[str, Array], by_log_k: Array, by_beta: Array) -> None:
        """Add ``factor`` times the gradient of a pair's sum: of S, precisions and z, of log k and of β."""
        a, b, between = pair.a, pair.b, pair.between
        rows, columns = factor * pair.rows, factor * pair.columns
        by_left = factor * pair.by_left
        by_log_k[a] += rows
        by_log_k[b] += columns
        by_beta[a] += factor * pair.by_beta[0]
        by_beta[b] += factor * pair.by_beta[1]
        sums["z"][a] += rows[:, None] * pair.left + by_left @ between
        sums["z"][b] += columns[:, None] * pair.right + factor * pair.by_right
        z_a, z_b = self.z[a], self.z[b]
        by_between = 0.5 * (z_a.T @ (rows[:, None] * z_a) + z_b.T @ (columns[:, None] * z_b)) + z_a.T @ by_left
        total = rows.sum()
        back = self.identity - between * pair.diagonal  # R⁻¹
        sums["s"] += back.T @ by_between @ back - 0.5 * total * back.T * pair.diagonal
        by_precision = -(between @ by_between @ between).diagonal() - 0.5 * total * between.diagonal()
        sums["p"][a] += by_precision
        sums["p"][b] += by_precision
