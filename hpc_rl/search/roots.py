"""What is done at the root of a search: noise on its priors before, a move drawn from its visits after."""

from __future__ import annotations

import numpy as np

from hpc_rl.types import Array


def dirichlet(u: Array, alpha: float, legal: Array) -> Array:
    """Draws [n, A] of a Dirichlet distribution over the legal [n, A] moves, from uniforms u [n, A].

    Independent Gamma(α) numbers over their sum; each is the inverse of the distribution function at its uniform.
    """
    from scipy.special import gammaincinv

    gamma = np.where(legal, gammaincinv(alpha, u), 0.0)
    summed = gamma.sum(-1, keepdims=True)
    even = legal / np.maximum(legal.sum(-1, keepdims=True), 1)
    return np.where(summed > 0, gamma / np.where(summed > 0, summed, 1.0), even)


def noisy(prior: Array, u: Array, alpha: float, share: float) -> Array:
    """(1 − ε) P + ε Dir(α) over the moves [n, A] whose prior is not 0; ε = ``share`` (Silver et al. 2017)."""
    return (1 - share) * prior + share * dirichlet(u, alpha, prior > 0)


def sharpened(visits: Array, temperature: Array) -> Array:
    """N^(1/τ) / Σ N^(1/τ) [n, A] of visits [n, A] and τ [n]; τ = 0 is the most visited move, the first of equals."""
    best = np.arange(visits.shape[1]) == visits.argmax(-1)[:, None]
    tau = np.where(temperature > 0, temperature, 1.0)[:, None]
    power = (visits / visits.max(-1, keepdims=True)) ** (1 / tau)
    share: Array = np.where(temperature[:, None] > 0, power / power.sum(-1, keepdims=True), best)
    return share


def drawn(probability: Array, u: Array) -> Array:
    """[n] int64: the move at which the distribution function [n, A] passes u [n] in 0..1."""
    above = probability.cumsum(-1) > (u * probability.sum(-1))[:, None]
    last = probability.shape[1] - 1 - (probability[:, ::-1] > 0).argmax(-1)  # if rounding leaves u above
    move: Array = np.where(above.any(-1), above.argmax(-1), last)
    return move
