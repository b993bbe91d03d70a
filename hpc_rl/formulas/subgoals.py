"""Subgoals (Levy et al. 2019, arXiv 1712.00948): when a goal is met, whose runs are over, values that are bounded.

Levels 0..N−1 count from the one that moves. A *run* of level i is up to H actions of it towards one goal; an action of
level i > 0 is a subgoal, towards which a run of level i − 1 goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

FIRST_VALUE = -0.067  # of the authors' critics before they learn


@dataclass(frozen=True)
class GoalSpace:
    """Where subgoals lie, and how near is near enough; a number for each entry of an achieved goal."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    thresholds: tuple[float, ...]

    def met(self, achieved: Tensor, goal: Tensor) -> Tensor:
        """[..] bool of [.., g] each: every entry is at most its threshold away."""
        met: Tensor = ((achieved - goal).abs() <= goal.new_tensor(self.thresholds)).all(-1)
        return met

    def scaled(self, goal: Tensor) -> Tensor:
        """[.., g] as an action, −1..1 from low to high; what lies outside of them lies outside of −1..1."""
        low, high = goal.new_tensor(self.low), goal.new_tensor(self.high)
        return 2 * (goal - low) / (high - low) - 1

    def unscaled(self, action: Tensor) -> Tensor:
        """The goal that an action [.., g] stands for: the inverse of `scaled`."""
        low, high = action.new_tensor(self.low), action.new_tensor(self.high)
        return low + (action + 1) / 2 * (high - low)

    def spread(self, width: Tensor) -> Tensor:
        """Widths [.., g] of goals in the scale of actions."""
        return 2 * width / (width.new_tensor(self.high) - width.new_tensor(self.low))


def bounded_value(x: Tensor, horizon: int) -> Tensor:
    """Q = −H σ(x + c), within −H..0, c such that x = 0 is FIRST_VALUE: no more than H moves of −1 are left of a run."""
    share = -FIRST_VALUE / horizon
    return -horizon * torch.sigmoid(x + log(share / (1 - share)))


def runs_over(met: Tensor, attempts: Tensor, horizon: int) -> Tensor:
    """[.., N] bool: the run of level i is over where its goal or one of a higher level is met, or where its last
    attempt has ended and was number H. An attempt of level i > 0 ends with the run of level i − 1, one of level 0 with
    the move.

    Args:
        met: [.., N] bool, the goal of each level is met now.
        attempts: [.., N] of each level's run so far, the last of which may still go on.
    """
    higher = met.flip(-1).cumsum(-1).flip(-1) > 0
    over, ended = [], torch.ones_like(met[..., 0])
    for i in range(met.shape[-1]):
        ended = higher[..., i] | (ended & (attempts[..., i] >= horizon))
        over.append(ended)
    return torch.stack(over, -1)
