"""Distributions over returns on fixed atoms z_i = z_0 + i Δ, i < N (Bellemare et al. 2017, arXiv 1707.06887)."""

from __future__ import annotations

import torch
from torch import Tensor


def atoms(low: float, high: float, count: int, device: torch.device | str = "cpu") -> Tensor:
    """z [N]: ``count`` >= 2 returns from ``low`` to ``high``, Δ apart."""
    return torch.linspace(low, high, count, device=device)


def projected(probability: Tensor, total: Tensor, factor: Tensor, support: Tensor) -> Tensor:
    """m [n, N], the distribution of G + Γ Z projected onto the atoms of Z (algorithm 1).

    m_i = Σ_j p_j [1 − |clip(G + Γ z_j, z_0, z_{N−1}) − z_i| / Δ]⁺: each mass goes to the two atoms beside its place, in
    proportion to their nearness; one that lies on an atom goes there whole. What lies beyond an end goes to that end.

    Args:
        probability: p [n, N] of Z.
        total, factor: G and Γ [n]; Γ is 0 behind a termination.
        support: z [N], at equal distances.
    """
    count, low, high = len(support), support[0], support[-1]
    place = (total[:, None] + factor[:, None] * support).clamp(low, high)
    place = ((place - low) * ((count - 1) / (high - low))).clamp(0, count - 1)
    # Of two neighbours, never of floor and ceiling: those are one atom where ``place`` is whole, and lose its mass.
    below = place.floor().clamp(max=count - 2)
    upper = (place - below) * probability
    index = below.nan_to_num(0.0).long()  # what is not a number stays so in the masses
    m = torch.zeros_like(probability).scatter_add_(1, index, probability - upper)
    return m.scatter_add_(1, index + 1, upper)


def expectation(logits: Tensor, support: Tensor) -> Tensor:
    """[..] the mean Σ_i p_i z_i of distributions with these logits [.., N]."""
    return torch.softmax(logits, -1) @ support


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[n] −Σ_i m_i log p_i for logits [n, N] of p and probabilities m [n, N]."""
    return -(target * torch.log_softmax(logits, -1)).sum(-1)


def entropy(probability: Tensor) -> Tensor:
    """[n] −Σ_i m_i log m_i, where 0 log 0 = 0; `cross_entropy` minus this is KL(m ‖ p)."""
    terms: Tensor = torch.special.entr(probability)
    return terms.sum(-1)


def edge_mass(probability: Tensor) -> Tensor:
    """[n] mass on the two outermost atoms [n, N]: far above 2/N, returns lie beyond the atoms."""
    return probability[:, 0] + probability[:, -1]
