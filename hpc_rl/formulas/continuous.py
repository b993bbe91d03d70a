"""Losses, targets and densities of methods for continuous actions, which lie in −1..1."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_rl.devices import to_device
from hpc_rl.formulas.losses import weighted


def critics_loss(
    q: Tensor, target: Tensor, weight: Tensor, importance: Tensor | float = 1.0
) -> tuple[Tensor, list[Tensor]]:
    """Σ_k Σ w u ½ (y − Q_k)², of k critics' values [k, n] against one target [n] (Fujimoto et al. 2018, TD3).

    u is the ``importance`` of an item. With it, on the host and without gradients, come the sums of itself, and with w
    alone of the critics' mean value and of y.
    """
    summed = 0.5 * weighted((weight * importance).expand_as(q), (target - q).square())
    sums = [summed, (weight * q.mean(0)).sum(), (weight * target).sum()]
    return summed, [to_device(x.detach(), "cpu") for x in sums]


def deterministic_policy_gradient(action: Tensor, slope: Tensor, weight: Tensor, limit: float = 0.0) -> Tensor:
    """−Σ w ∂Q/∂a · π(x): its gradient is −Σ w ∂Q/∂a ∂π/∂θ (Silver et al. 2014; Lillicrap et al. 2016, eq. 6).

    Args:
        action: π(x) [n, *A], the only one that carries a gradient: the critic gets none.
        slope: ∂Q(x, a)/∂a [n, *A] at a = π(x).
        limit: each entry of the slope is clipped to ± this (Ape-X DPG, Horgan et al. 2018); 0 leaves it.
    """
    slope = slope.detach()
    slope = slope.clamp(-limit, limit) if limit else slope
    return -weighted(weight, (slope * action).flatten(1).sum(-1))


def smoothed(action: Tensor, z: Tensor, std: float, limit: float) -> Tensor:
    """clip(a + clip(σ z, −c, c), −1, 1): target policy smoothing (Fujimoto et al. 2018, arXiv 1802.09477, eq. 14)."""
    return (action + (std * z).clamp(-limit, limit)).clamp(-1, 1)


def squashed_sample(mean: Tensor, log_std: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """a = tanh(u), u = μ + σ z, all [n, K], and log π(a) [n] in nats (Haarnoja et al. 2018, arXiv 1812.05905, app. C).

    log π(a) = Σ log N(u; μ, σ) − Σ log(1 − tanh² u),  log(1 − tanh² u) = 2 (log 2 − u − softplus(−2 u)),

    which stays exact where tanh u rounds to ±1.
    """
    u = mean + log_std.exp() * z
    squash = 2 * (log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), -(0.5 * z.square() + log_std + 0.5 * log(2 * pi) + squash).sum(-1)


def entropy_regularized(log_prob: Tensor, q: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """Σ w (α log π(a|x) − Q(x, a)) for drawn actions a (Haarnoja et al. 2018, eq. 7); all of one shape but α."""
    return weighted(weight, temperature * log_prob - q)


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float, weight: Tensor) -> Tensor:
    """−Σ w log α (log π(a|x) + H̄): α falls while the entropy is above H̄ (Haarnoja et al. 2018, eq. 18).

    With log α in place of the paper's α, as in the authors' code. ``log_prob`` carries no gradient here.
    """
    return -weighted(weight, log_temperature * (log_prob.detach() + target_entropy))
