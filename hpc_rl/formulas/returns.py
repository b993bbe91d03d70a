"""Advantages and value targets along time. Every recursion is cut where a move is not valid (see types.py).

Where the other player moves next, ``discount`` is −γ and the results are negamax values: r − γ V(x') for V of the
player to move, and traces that change sign with the player.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cut_scan(delta: Tensor, decay: Tensor, valid: Tensor, through: bool = False) -> Tensor:
    """x_t = valid_t · (δ_t + decay_t · x_{t+1}), x_T = 0; all [T, b]. The one recursion behind GAE and V-trace.

    With ``through`` nothing is cut: x_t = x_{t+1} where a move is not valid, as if it were not there.
    """
    out = torch.empty_like(delta)
    x = torch.zeros_like(delta[0])
    for t in range(delta.shape[0] - 1, -1, -1):
        cut = valid[t] * (delta[t] + decay[t] * x)
        x = cut + (1 - valid[t]) * x if through else cut
        out[t] = x
    return out


def following(value: Tensor, valid: Tensor, through: bool = False) -> Tensor:
    """V(x_{t+1}) [T, b] of value [T+1, b]; with ``through`` that of the next row from which a valid move is made.

    So the last observation of an episode is passed over for the first one of the next. The last row is what it is.
    """
    if not through:
        return value[1:]
    rows, row = [], value[-1]
    for t in range(valid.shape[0] - 1, -1, -1):
        rows.append(row)
        row = torch.where(valid[t] > 0, value[t], row)
    return torch.stack(rows[::-1])


def gae(
    reward: Tensor, discount: Tensor, value: Tensor, valid: Tensor, lambda_: float, through: bool = False
) -> Tensor:
    """Generalised advantage estimates [T, b] (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    δ_t = r_t + γ_t V(x_{t+1}) − V(x_t);  Â_t = δ_t + γ_t λ Â_{t+1}, with γ_t = γ · discount_t.

    Args:
        reward, discount, valid: [T, b]; ``discount`` holds γ_t, ``valid`` is 0.0 or 1.0.
        value: [T+1, b].
        through: episodes follow each other as if they were one, whose ``discount`` is then γ everywhere (the
            non-episodic stream of RND, Burda et al. 2018, arXiv 1810.12894, section 2.3).
    """
    delta = reward + discount * following(value, valid, through) - value[:-1]
    return cut_scan(delta, discount * lambda_, valid, through)


def filtered(reward: Tensor, discount: float, valid: Tensor, before: Tensor) -> Tensor:
    """F_t = γ F_{t−1} + r_t [T, b], forward in time from F_{−1} = ``before`` [b]; kept where a move is not valid.

    Its spread is that of returns, known as soon as the rewards are (Burda et al. 2018, arXiv 1810.12894, section 2.4).
    """
    rows, keep = torch.cat([before[None], reward]), torch.cat([torch.ones_like(before)[None], valid])
    forward = cut_scan(rows.flip(0), torch.full_like(rows, discount), keep.flip(0), through=True)
    return forward.flip(0)[1:]


def vtrace(
    log_ratio: Tensor,
    reward: Tensor,
    discount: Tensor,
    value: Tensor,
    valid: Tensor,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    lambda_: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """V-trace targets v_s, weights ρ_s and advantages Â_s, all [T, b] (Espeholt et al. 2018, arXiv 1802.01561, eq. 1).

    v_s = V(x_s) + Σ_{t≥s} γ^{t−s} (Π_{i<t} c_i) ρ_t (r_t + γ V(x_{t+1}) − V(x_t)),
    ρ_t = min(ρ̄, π/μ), c_t = λ min(c̄, π/μ);  Â_s = r_s + γ v_{s+1} − V(x_s), v_T = V(x_T).

    The policy gradient of the paper weighs log π with ρ_s Â_s.

    Args:
        log_ratio: log π(a|x) − log μ(a|x), [T, b].
        reward, discount, valid: [T, b]; ``discount`` holds γ_t.
        value: [T+1, b], without gradient.
    """
    ratio = log_ratio.exp()
    rho, c = ratio.clamp(max=rho_bar), lambda_ * ratio.clamp(max=c_bar)
    delta = rho * (reward + discount * value[1:] - value[:-1])
    target = value[:-1] + cut_scan(delta, discount * c, valid)
    next_target = torch.cat([target[1:], value[-1:]])
    return target, rho, valid * (reward + discount * next_target - value[:-1])
