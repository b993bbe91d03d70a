"""Targets and losses of Q-learning on items [L, n] of which only row 0 is learned from."""

from __future__ import annotations

import torch
from torch import Tensor

from hpc_rl.formulas.losses import weighted


def n_step_return(reward: Tensor, discount: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of up to L moves, the factor of the value behind them, and the row of that value; each [n].

    G = Σ_{k<m} (Π_{i<k} γ_i) r_k,  Γ = Π_{i<m} γ_i, for a target G + Γ V(x_m)  (Sutton 1988; Watkins 1989, section 7).

    m counts the moves before the first one that is not valid: after a time limit V is that of the episode's last
    observation, and at the end of the item that of row L. A termination has γ_i = 0, and so does Γ from there on.

    Args:
        reward, discount: [L, n]; ``discount`` holds γ_i.
        valid: [L, n] bool.
    """
    reached = valid.cumprod(0).bool()
    behind = torch.where(reached, discount, 1.0).cumprod(0)
    before = torch.cat([torch.ones_like(behind[:1]), behind[:-1]])
    total = torch.where(reached, before * reward, 0.0).sum(0)
    return total, behind[-1], reached.sum(0)


def greedy_value(target: Tensor, online: Tensor | None = None) -> Tensor:
    """[n] the value of the greedy action, of Q values [n, A]: max_a Q⁻(x, a) (Mnih et al. 2015, Nature 518).

    With ``online`` it is double Q-learning, Q⁻(x, argmax_a Q(x, a)) (van Hasselt et al. 2016, arXiv 1509.06461, eq. 4).
    """
    best = (target if online is None else online).argmax(-1, keepdim=True)
    return target.gather(-1, best).squeeze(-1)


def importance_weights(chance: Tensor, beta: float) -> Tensor:
    """[n] (P(i) / min_k P(k))^(−β) = w_i / max_k w_k with w_i = (N P(i))^(−β) (Schaul et al. 2016, arXiv 1511.05952,
    section 3.4): 1 of the item that is least likely, less of others; β = 1 undoes what priorities prefer.
    """
    return chance.pow(-beta)


def huber(error: Tensor, weight: Tensor, limit: float) -> Tensor:
    """Σ w h(δ), h = ½ δ² up to |δ| = κ and κ (|δ| − ½ κ) beyond: a gradient clipped to ±κ (Huber 1964); κ = 0 is ½ δ².

    Mnih et al. 2015 clip "the error term" to ±1, which is this with κ = 1.
    """
    squared = 0.5 * error.square()
    loss = torch.where(error.abs() <= limit, squared, limit * (error.abs() - 0.5 * limit)) if limit else squared
    return weighted(weight, loss)
