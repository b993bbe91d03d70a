"""Q-learning on items [L, n] of which row 0, or every row, is learned from: targets, losses, priorities, ε."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpc_rl.formulas.losses import weighted
from hpc_rl.types import Array


def n_step_return(reward: Tensor, discount: Tensor, valid: Tensor, clip: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of up to L moves, the factor of the value behind them, and the row of that value; each [n].

    G = Σ_{k<m} (Π_{i<k} γ_i) r_k,  Γ = Π_{i<m} γ_i, for a target G + Γ V(x_m)  (Sutton 1988; Watkins 1989, section 7).

    m counts the moves before the first one that is not valid: after a time limit V is that of the episode's last
    observation, and at the end of the item that of row L. A termination has γ_i = 0, and so does Γ from there on.

    Args:
        reward, discount: [L, n]; ``discount`` holds γ_i.
        valid: [L, n] bool.
        clip: rewards are clipped to ± this; 0 leaves them raw.
    """
    reward = reward.clamp(-clip, clip) if clip else reward
    reached = valid.cumprod(0).bool()
    behind = torch.where(reached, discount, 1.0).cumprod(0)
    before = torch.cat([torch.ones_like(behind[:1]), behind[:-1]])
    total = torch.where(reached, before * reward, 0.0).sum(0)
    return total, behind[-1], reached.sum(0)


def item_rows(x: Tensor, row: Tensor) -> Tensor:
    """x[row_k, k] of every item k, [n, …], of x [L+1, n, …]: a view where all rows are the same one, as they are where
    no episode ended. Stacks of frames are views themselves, and picking them one by one would copy each frame."""
    if bool((row == row[0]).all()):
        return x[int(row[0])]
    return x[row, torch.arange(len(row), device=row.device)]


def n_step_targets(reward: Tensor, discount: Tensor, value: Tensor, valid: Tensor, n: int) -> Tensor:
    """The n-step target of every move, [L, b]: `n_step_return` from each row on, with the value behind it.

    y_t = Σ_{k<m} (Π_{i<k} γ_{t+i}) r_{t+k} + (Π_{i<m} γ_{t+i}) V(x_{t+m}); m ≤ n counts the moves before the first one
    that is not valid, and ends with the item: its last n − 1 moves have shorter returns.

    Args:
        reward, discount: [L, b]; ``discount`` holds γ_t.
        value: [L+1, b].
        valid: [L, b] bool.
    """
    y = value
    for _ in range(n):
        y = torch.cat([torch.where(valid, reward + discount * y[1:], value[:-1]), value[-1:]])
    return y[:-1]


def rescaled(x: Tensor, epsilon: float) -> Tensor:
    """h(x) = sign(x) (√(|x| + 1) − 1) + ε x (Pohlen et al. 2018, arXiv 1805.11593, proposition A.2)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + epsilon * x


def unscaled(x: Tensor, epsilon: float) -> Tensor:
    """h⁻¹(x) = sign(x) (((√(1 + 4ε (|x| + 1 + ε)) − 1) / 2ε)² − 1), in a form that does not subtract nearly equal
    numbers: (√(1 + 4ε s) − 1) / 2ε = 2s / (√(1 + 4ε s) + 1)."""
    size = x.abs() + 1 + epsilon
    root = 2 * size / ((1 + 4 * epsilon * size).sqrt() + 1)
    return x.sign() * (root.square() - 1)


def mixed_priority(error: Tensor, valid: Tensor, eta: float) -> Tensor:
    """p = η max |δ| + (1 − η) mean |δ|, [n], over the valid moves of δ [L, n] (Kapturowski et al. 2019, section 2.3).

    Items without one get 0.
    """
    size = torch.where(valid, error.abs(), 0.0)
    return eta * size.amax(0) + (1 - eta) * size.sum(0) / valid.sum(0).clamp(min=1)


def greedy_value(target: Tensor, online: Tensor | None = None) -> Tensor:
    """[..] the value of the greedy action, of Q values [.., A]: max_a Q⁻(x, a) (Mnih et al. 2015, Nature 518).

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


def epsilon_greedy(q: Tensor, epsilon: Tensor, noise: Tensor) -> Tensor:
    """[n] the action of the largest of Q values [n, A], or with probability ε [n] any, all as likely.

    noise [n, 2] are standard uniforms: one for whether, one for which.
    """
    actions = q.shape[-1]
    any_ = (noise[:, 1] * actions).long().clamp(max=actions - 1)
    return torch.where(noise[:, 0] < epsilon, any_, q.argmax(-1))


def falling_epsilon(progress: float, fraction: float, final: float) -> float:
    """ε, falling linearly from 1 to ``final`` while ``progress`` rises from 0 to ``fraction``."""
    share = min(max(progress, 0.0) / fraction, 1.0) if fraction else 1.0
    return 1.0 + share * (final - 1.0)


def epsilon_ladder(columns: Array, total: int, base: float, exponent: float) -> Array:
    """ε_i = ε^(1 + α i / (N − 1)) [b], for life, of ``columns`` [b] of ``total`` = N; one that is alone has ε_0 = ε.

    Horgan et al. 2018, arXiv 1803.00933 (Ape-X): ε = ``base`` 0.4, α = ``exponent`` 7.
    """
    return np.asarray(base ** (1.0 + exponent * columns / max(total - 1, 1)), np.float32)
