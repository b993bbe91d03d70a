"""What a manager and a worker owe each other along time (FuN, Vezhnevets et al. 2017, arXiv 1703.01161, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def windows(past: Tensor, rows: Tensor, opens: Tensor) -> Tensor:
    """[n+1, T, b, …]: of each row the n rows before it, oldest first, and itself; zeros where another episode was.

    Args:
        past: [n, b, …], the rows before row 0, oldest first; zeros where the episode had not begun.
        rows: [T, b, …].
        opens: [T, b] bool, nothing before such a row belongs to it.
    """
    count, episode = len(past), opens.long().cumsum(0)
    every = torch.cat([past, rows])
    episodes = torch.cat([torch.zeros_like(episode[:1]).expand(count, -1), episode])
    wide, steps = (..., *[None] * (rows.dim() - 2)), len(rows)
    seen = [
        torch.where((episodes[k : k + steps] == episode)[wide], every[k : k + steps], 0.0) for k in range(count + 1)
    ]
    return torch.stack(seen)


def intrinsic_reward(states: Tensor, goals: Tensor) -> Tensor:
    """r^I_t = 1/c Σ_{i=1..c} cos(s_t − s_{t−i}, g_{t−i}), [T, b] (eq. 8), of `windows` [c+1, T, b, d] of each.

    Goals are unit vectors, or zeros where there was none, whose cosine is 0.
    """
    moved = F.normalize(states[-1] - states[:-1], dim=-1)
    return (moved * goals[:-1]).sum(-1).mean(0)


def transition(states: Tensor, opens: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """s_{t+c} − s_t [T, b, d] of states [T+1, b, d], and whether it is known [T, b] bool.

    Where the episode ends before t + c, its last row stands for that one; where the fragment does, nothing is known.
    """
    steps = len(states) - 1
    rows = torch.arange(steps + 1, device=states.device)[:, None].expand(opens.shape)
    ends = torch.where(opens[1:], rows[:-1], steps)  # the row itself where it is the last of its episode
    last = ends.flip(0).cummin(0).values.flip(0)
    target = torch.minimum(rows[:-1] + horizon, last)
    ahead = states.gather(0, target[..., None].expand(-1, -1, states.shape[-1]))
    return ahead - states[:-1], (target == rows[:-1] + horizon) | (last < steps)


def direction(transition: Tensor, goal: Tensor) -> Tensor:
    """cos(s_{t+c} − s_t, g_t) [T, b] (eq. 7), whose gradient goes to the unit goal [T, b, d] alone."""
    return (F.normalize(transition.detach(), dim=-1) * goal).sum(-1)
