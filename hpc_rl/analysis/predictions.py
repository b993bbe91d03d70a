"""What a method predicted with each move, in its own units: the discounted sum of the rewards that it learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_rl.analysis.moves import has
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.types import Array, Tree

_LEAVES = (
    ("extras/value", "extras/value", "V(x)"),
    ("extras/q_action", "extras/q_max", "Q(x, a)"),
    ("extras/critic_action", "extras/critic_policy", "Q(x, a)"),
)
"""What was predicted for the move, what for its observation, and the name of the first."""


@dataclass(frozen=True)
class Prediction:
    """Where a run's predictions lie and what they are of. A function of leaves, so that it can travel to a process.

    ``of_move``, ``of_observation``: leaves; logits where ``support`` is given, rescaled where ``rescale`` > 0.
    ``clip`` and ``scale``: rewards are learned times ``scale``, within ±``clip`` where that is > 0.
    """

    name: str
    of_move: str
    of_observation: str
    gamma: float
    clip: float
    scale: float
    rescale: float
    support: tuple[float, float, int] | None

    @property
    def leaves(self) -> tuple[str, ...]:
        """What must be read for `__call__` and `moves`."""
        return tuple(dict.fromkeys(("reward", "discount", self.of_move, self.of_observation)))

    def __call__(self, leaves: Tree) -> tuple[Array, Array]:
        """`futures.Learned`: (rewards as they are learned from, prediction for the observation), [rows, b] both."""
        reward = leaves["reward"].astype(np.float64) * self.scale
        return np.clip(reward, -self.clip, self.clip) if self.clip else reward, self._value(leaves[self.of_observation])

    def moves(self, leaves: Tree) -> Array:
        """The prediction for each move, [rows, b]."""
        return self._value(leaves[self.of_move])

    def _value(self, x: Array) -> Array:
        x = x.astype(np.float64)
        if self.support is not None:
            low, high, count = self.support
            weight = np.exp(x - x.max(-1, keepdims=True))
            x = (weight * np.linspace(low, high, count)).sum(-1) / weight.sum(-1)
        return unscaled(x, self.rescale) if self.rescale else x


def prediction(run: RecordedRun) -> Prediction:
    """Of a run whose method records what it predicts.

    Raises:
        NotRecorded: it does not, or what it learns from cannot be computed from what was recorded.
    """
    known, method = has(run), run.job.method
    names = next((x for x in _LEAVES if x[0] in known and x[1] in known), None)
    gamma = method.get("discount")
    if names is None or not isinstance(gamma, float | int):
        raise NotRecorded(
            f"{run.name}: {run.job.algorithm} records no predicted values; ppo does, and dqn, rainbow, r2d2, ddpg and"
            " d4pg where they prioritise"
        )
    if method.get("normalize_reward"):
        raise NotRecorded(
            f"{run.name}: rewards were learned in units of a running spread that is not recorded; to calibrate values,"
            f" run it with {run.job.algorithm}.normalize_reward = false"
        )
    clip, scale, rescale = (_number(method, *x) for x in (("reward_clip", 0), ("reward_scale", 1), ("rescale", 0)))
    support = None
    if known[names[0]].shape:
        support = (_number(method, "v_min", 0), _number(method, "v_max", 0), known[names[0]].shape[-1])
    return Prediction(names[2], names[0], names[1], float(gamma), clip, scale, rescale, support)


def unscaled(x: Array, epsilon: float) -> Array:
    """h⁻¹(x) of R2D2's rescaled values (Pohlen et al. 2018, proposition A.2)."""
    size = np.abs(x) + 1 + epsilon
    root = 2 * size / (np.sqrt(1 + 4 * epsilon * size) + 1)
    result: Array = np.sign(x) * (root**2 - 1)
    return result


def _number(method: Any, key: str, default: float) -> float:
    value = method.get(key, default)
    return float(value) if isinstance(value, int | float) else default
