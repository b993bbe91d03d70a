"""Goals of one level for the one below it, as offsets g of its position s (Nachum et al. 2018, HIRO, arXiv 1805.08296).

A position [.., k] are those entries of an observation that goals are for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def segment(reward: Tensor, discount: Tensor, observation: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_{k<m} r_k [n], Π_{k<m} discount_k [n] and x_m [n, …] of items [c(+1), n]: what happened while a goal stood.

    m counts the moves before the first one that is not valid: an episode may end inside.
    """
    reached = valid.cumprod(0).bool()
    row, item = reached.sum(0), torch.arange(valid.shape[1], device=valid.device)
    total, factor = torch.where(reached, reward, 0.0).sum(0), torch.where(reached, discount, 1.0).prod(0)
    return total, factor, observation[row, item]


def moved_goal(position: Tensor, goal: Tensor, behind: Tensor) -> Tensor:
    """h(s, g, s') = s + g − s' [.., k]: the same place seen from s' (eq. 3)."""
    return position + goal - behind


def goal_reward(position: Tensor, goal: Tensor, behind: Tensor) -> Tensor:
    """r = −‖s + g − s'‖₂ [..] of a move from s to s' (eq. 4): the distance itself, not its square."""
    return -moved_goal(position, goal, behind).square().sum(-1).sqrt()


def goal_candidates(goal: Tensor, offset: Tensor, z: Tensor, limit: Tensor) -> Tensor:
    """g̃ [2 + d, n, k]: the goal, what was reached in its place, and d draws N(offset, (½ limit)²), all within ± limit.

    Section 3.3, with the standard deviation of the released code: ½ · ½ of an entry's range, which is −limit..limit.

    Args:
        goal: g_0 [n, k].
        offset: s_c − s_0 [n, k].
        z: standard normals [d, n, k].
        limit: [k], what a goal may be at most.
    """
    candidates = torch.cat([goal[None], offset[None], offset + 0.5 * limit * z])
    return candidates.clamp(-limit, limit)


def relabelled_goals(
    candidates: Tensor, position: Tensor, action: Tensor, valid: Tensor, act: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The candidate of which the lower policy would most likely have acted as it did, [n, k], and its number [n].

    argmax_g̃ −½ Σ_i ‖a_i − μ_lo(s_i, g̃_i)‖²,  g̃_0 = g̃,  g̃_{i+1} = h(s_i, g̃_i, s_{i+1})        (eq. 5)

    over the moves before the first one that is not valid; among equals the first.

    Args:
        candidates: [m, n, k].
        position: s_0 … s_{c−1} [c, n, k].
        action: [c, n, *A].
        valid: [c, n] bool.
        act: goals [m, c, n, k] -> μ_lo [m, c, n, *A] at the observations of these moves.
    """
    rolled = moved_goal(position[0], candidates, position[:, None]).transpose(0, 1)  # g̃_i = s_0 + g̃ − s_i
    squares = (action - act(rolled)).flatten(3).square().sum(-1)
    score = -0.5 * (squares * valid.cumprod(0)).sum(1)
    best = score.argmax(0)
    return candidates[best, torch.arange(len(best), device=best.device)], best
