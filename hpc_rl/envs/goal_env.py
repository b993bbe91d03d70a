"""What other goals would have paid, from one Gymnasium environment with goals (gymnasium-robotics' GoalEnv).

Its observation is a Dict with "achieved_goal" and "desired_goal"; ``compute_reward(achieved, desired, info)`` is the
reward of a move that led to ``achieved``, and ``compute_terminated``, where it has one, whether that ends the episode.
Both get an empty info: none is recorded. The environment never moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.types import Array, GoalReward

if TYPE_CHECKING:
    import gymnasium

ACHIEVED, DESIRED = "achieved_goal", "desired_goal"


def goal_reward_of(id: str, env: gymnasium.Env[Any, Any]) -> GoalReward:
    """Raises BadEnvironment where its goals or its rewards cannot be computed with."""
    from gymnasium import spaces

    space: Any = env.observation_space
    goals: Any = space.spaces.get(ACHIEVED) if isinstance(space, spaces.Dict) else None
    if not isinstance(goals, (spaces.Box, spaces.MultiBinary)) or (
        isinstance(goals, spaces.Box) and goals.dtype == np.uint8
    ):
        raise BadEnvironment(
            f"{id}: {ACHIEVED} is {goals}; relabelling needs one that is a Box of numbers or MultiBinary"
        )
    if not env.has_wrapper_attr("compute_reward"):
        raise BadEnvironment(
            f"{id} has no compute_reward(achieved_goal, desired_goal, info), which relabelling looks for; add it, or "
            "relabel nothing"
        )
    reward = _of_rows(env.get_wrapper_attr("compute_reward"), goals)
    ends = env.has_wrapper_attr("compute_terminated")
    terminated = _of_rows(env.get_wrapper_attr("compute_terminated"), goals) if ends else None

    def goal_reward(achieved: Array, desired: Array) -> tuple[Array, Array]:
        """[.., g] each -> reward [..], discount [..] float32."""
        shape = achieved.shape[:-1]
        rows = [np.asarray(x).reshape(-1, *goals.shape).astype(goals.dtype) for x in (achieved, desired)]
        discount = np.ones(len(rows[0]), np.float32) if terminated is None else 1 - terminated(*rows)
        return reward(*rows).reshape(shape), discount.reshape(shape)

    return goal_reward


def _of_rows(function: Callable[..., Any], goals: Any) -> Callable[[Array, Array], Array]:
    """``function`` of n pairs of goals -> [n] float32: called once where it takes rows, else n times.

    One that takes no rows may answer two of them with one number, the norm of both together say.
    """
    pair = np.zeros((2, *goals.shape), goals.dtype)
    try:
        whole = np.shape(function(pair, pair, {})) == (2,)
    except Exception:  # whatever a user's function raises
        whole = False
    if whole:
        return lambda achieved, desired: np.asarray(function(achieved, desired, {}), np.float32)
    return lambda achieved, desired: np.array(
        [float(function(a, d, {})) for a, d in zip(achieved, desired, strict=True)], np.float32
    )
