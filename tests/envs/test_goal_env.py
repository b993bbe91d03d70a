"""What other goals would have paid, from Gymnasium environments and from Rules.

Mutations seen to fail: a reward of two goals taken for that of each; the goals left in the ring's dtype; a termination
that is not asked for; the desired goal before the achieved one.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import goal_reward


class Goals(gymnasium.Env[Any, Any]):
    """Goals are two numbers; a reward is how far achieved lies above desired in the first of them."""

    def __init__(self, size: int = 2, dtype: Any = np.float64) -> None:
        goal = spaces.Box(0, 9, (size,), dtype)
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = spaces.Dict(dict.fromkeys(names, goal))
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), 0.0, False, False, {}


class Rows(Goals):
    """Takes rows of goals."""

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        assert info == {} and achieved.dtype == desired.dtype == self.observation_space["achieved_goal"].dtype  # type: ignore[index]
        return (achieved - desired)[..., 0]

    def compute_terminated(self, achieved: Any, desired: Any, info: Any) -> bool:
        """As gymnasium-robotics' Fetch: one answer, whatever it gets."""
        return False


class Singles(Goals):
    """Takes one pair of goals; two would give the norm of both together."""

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -float(np.linalg.norm(achieved - desired))

    def compute_terminated(self, achieved: Any, desired: Any, info: Any) -> bool:
        return bool((achieved == desired).all())


class Bits(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper, whose reward counts."""

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return (achieved == desired).sum(-1)


def bits() -> gymnasium.Env[Any, Any]:
    env = Goals()
    goal = spaces.MultiBinary(2)
    env.observation_space = spaces.Dict({"achieved_goal": goal, "desired_goal": goal, "observation": goal})
    return Bits(env)


def images() -> gymnasium.Env[Any, Any]:
    return Rows(2, np.uint8)


HERE = "tests.envs.test_goal_env"
ACHIEVED = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], np.float32)  # [L, n, g]
DESIRED = np.array([[[1, 2], [0, 0]], [[1, 2], [0, 0]]], np.float32)


@pytest.mark.parametrize(
    ("name", "reward", "discount"),
    [
        ("Rows", [[0, 3], [4, 7]], [[1, 1], [1, 1]]),
        ("Singles", [[0, -5], [-(32**0.5), -(113**0.5)]], [[0, 1], [1, 1]]),
        ("bits", [[2, 0], [0, 0]], [[1, 1], [1, 1]]),
    ],
)
def test_each_goal_is_judged_by_itself(name: str, reward: Any, discount: Any) -> None:
    judge = goal_reward(f"{HERE}:{name}", {})
    ours, ends = judge(ACHIEVED, DESIRED)
    assert ours.shape == ends.shape == (2, 2)
    assert np.allclose(ours, reward) and np.array_equal(ends, discount)


def test_rules_say_what_other_goals_pay() -> None:
    reward, discount = goal_reward("toy/bitflip", {"bits": 2})(ACHIEVED, DESIRED)
    assert reward.tolist() == [[0, -1], [-1, -1]] and discount.tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("id", "sentence"),
    [
        ("toy/catch", "toy/catch has no goals, which relabelling needs"),
        ("CartPole-v1", "achieved_goal is None; relabelling needs one that is a Box of numbers or MultiBinary"),
        (f"{HERE}:images", "achieved_goal is Box.*uint8"),
        (f"{HERE}:Goals", r"has no compute_reward\(achieved_goal, desired_goal, info\), which relabelling looks for"),
        ("ALE/Pong-v5", "name one environment with goals"),
    ],
)
def test_environments_without_goals_are_refused(id: str, sentence: str) -> None:
    with pytest.raises(BadEnvironment, match=sentence):
        goal_reward(id, {})
