"""Running statistics of observations and returns, merged exactly over ranks.

They belong to a policy version: frozen while it acts and is learned from, replaced with the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hpc_rl.devices import to_device
from hpc_rl.types import Trajectory

LIMIT = 10.0  # standard deviations kept, as in OpenAI Baselines' VecNormalize


class Standardize(nn.Module):
    """(x − mean) · scale, clipped to ± ``limit``. Both are parameters without a gradient: they travel with the weights.

    An entry's deviation counts as ``floor`` at least: one that has not varied yet has none.
    """

    def __init__(self, shape: tuple[int, ...], limit: float = LIMIT, floor: float = 1e-4) -> None:
        super().__init__()
        self.limit, self.floor = limit, floor
        self.mean, self.scale = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean.detach()) * self.scale.detach()).clamp(-self.limit, self.limit)


class RunningMoments:
    """Count, mean and sum of squared deviations of all rows seen, in float64."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0.0
        self.mean, self.squares = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)

    def add(self, x: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        """Merge rows x [n, *shape]; ``total`` sums a tensor over all ranks.

        Deviations are taken from the old mean, which all ranks share, so one reduction of sums gives the exact result
        (Chan, Golub and LeVeque 1979) without the cancellation of raw squares.
        """
        away = to_device(x.double(), "cpu") - self.mean
        rows = torch.tensor([float(len(x))], dtype=torch.float64)
        sums = torch.cat([rows, away.sum(0).flatten(), away.square().sum(0).flatten()])
        count, first, second = torch.split(total(sums), [1, self.mean.numel(), self.mean.numel()])
        self.count += float(count)
        shift = first.reshape(self.mean.shape) / max(self.count, 1.0)
        self.mean += shift
        self.squares += second.reshape(self.mean.shape) - self.count * shift.square()

    @property
    def scale(self) -> Tensor:
        """1 / standard deviation; 1 before anything was seen."""
        if not self.count:
            return torch.ones_like(self.mean)
        return (self.squares / self.count + 1e-8).rsqrt()

    def write(self, into: Standardize) -> None:
        """Make these the statistics of the next policy version."""
        into.mean.data.copy_(self.mean)
        into.scale.data.copy_(self.scale.clamp(max=1 / into.floor))

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.clone(), "squares": self.squares.clone()}

    def load(self, state: dict[str, Any]) -> None:
        self.count, self.mean, self.squares = state["count"], state["mean"].clone(), state["squares"].clone()


class Normalizers:
    """A learner's statistics of observations and of filtered returns; either may be switched off."""

    def __init__(self, standardize: Standardize | None, rewards: bool) -> None:
        self.standardize = standardize
        self.seen = RunningMoments(tuple(standardize.mean.shape)) if standardize is not None else None
        self.returns = RunningMoments(()) if rewards else None

    def reward(self, batch: Trajectory, clip: float) -> Tensor:
        """Rewards [T, b] divided by the spread of the filtered returns, then clipped where ``clip`` says so."""
        reward = batch.reward
        if self.returns is not None:
            reward = (reward * float(self.returns.scale)).clamp(-LIMIT, LIMIT)
        return reward.clamp(-clip, clip) if clip else reward

    def add(self, batch: Trajectory, total: Callable[[Tensor], Tensor]) -> None:
        """Make the statistics of the next version from this batch's finite rows; ``total`` sums over all ranks."""
        if self.seen is not None and self.standardize is not None:
            self.seen.add(batch.observation[:-1][batch.finite], total)
            self.seen.write(self.standardize)
        if self.returns is not None:
            self.returns.add(batch.extras["filtered_return"][batch.finite], total)

    def state(self) -> dict[str, Any]:
        moments = {"observation": self.seen, "return": self.returns}
        return {name: moment.state() for name, moment in moments.items() if moment is not None}

    def load(self, state: dict[str, Any]) -> None:
        for name, running in {"observation": self.seen, "return": self.returns}.items():
            if running is not None:
                running.load(state[name])
