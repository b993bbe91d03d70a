"""MountainCarContinuous and Pendulum with goals: mechanics against Gymnasium's own, goals by hand.

Mutations seen to fail: the left wall left out; a position that moves by the velocity before; the angle shown as it is
and not within −π..π; a torque of 1 N·m; a goal that is met where one entry is; a time limit that counts where the last
move meets the goal; a desired goal that moves.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.goals import goal_mountaincar, goal_pendulum
from hpc_rl.envs.make import make

N = 64
NONE = np.zeros((N, 0))


def parts(rules: Any, state: dict[str, Any]) -> dict[str, np.ndarray]:
    shown = rules.show(state)
    return {name: shown[:, part.start : part.stop] for name, part in rules.spec.parts.items()}


def test_the_car_moves_as_gymnasiums() -> None:
    rules, rng = goal_mountaincar(np, goal=(0.7, 0.0)).rules, np.random.default_rng(0)
    theirs: Any = gymnasium.make("MountainCarContinuous-v0").unwrapped
    state = rules.begin(rng.random((N, 1)))
    assert (state["velocity"] == 0).all() and (abs(state["position"] + 0.5) <= 0.1).all()
    lowest = 0.0
    for step in range(200):  # pushed along, so that it meets both ends
        action = np.where(rng.random((N, 1)) < 0.7, np.sign(state["velocity"])[:, None], rng.uniform(-2, 2, (N, 1)))
        following, reward, discount, truncated = rules.move(state, action, NONE)
        for k in range(0, N, 7):
            theirs.state = np.array([state["position"][k], state["velocity"][k]])
            shown, *_ = theirs.step(action[k])
            assert np.allclose(shown, [following["position"][k], following["velocity"][k]], atol=1e-6), step
        assert (reward == -1).all() and (discount == 1).all() and not truncated.any()
        seen = parts(rules, following)
        assert np.array_equal(seen["observation"], seen["achieved_goal"])
        assert np.allclose(seen["achieved_goal"][:, 0], following["position"])
        lowest, state = min(lowest, following["position"].min()), following
    assert lowest == -1.2 and state["position"].max() > 0.59


def test_the_pendulum_moves_as_gymnasiums() -> None:
    rules, rng = goal_pendulum(np).rules, np.random.default_rng(1)
    theirs: Any = gymnasium.make("Pendulum-v1").unwrapped
    state = rules.begin(rng.random((N, 4)))
    assert state["angle"].min() >= math.pi / 4 and state["angle"].max() <= 7 * math.pi / 4
    assert np.ptp(state["angle"]) > 4 and np.ptp(state["desired_angle"]) > 0.4 and np.ptp(state["desired_speed"]) > 1
    desired = parts(rules, state)["desired_goal"]
    for step in range(100):
        action = rng.uniform(-1.5, 1.5, (N, 1))
        following = rules.move(state, action, NONE)[0]
        for k in range(0, N, 7):
            theirs.state, theirs.last_u = np.array([state["angle"][k], state["speed"][k]]), 0.0
            shown, *_ = theirs.step(2 * action[k])
            seen = {name: x[k] for name, x in parts(rules, following).items()}
            assert np.allclose(shown, seen["observation"], atol=1e-6), step
            angle, speed = seen["achieved_goal"]
            assert np.allclose([math.cos(angle), math.sin(angle), speed], shown, atol=1e-5) and abs(angle) <= math.pi
        state = following
        assert np.array_equal(parts(rules, state)["desired_goal"], desired)
    assert abs(state["angle"]).max() > math.pi, "some turned over"


def test_a_goal_is_met_within_all_its_thresholds() -> None:
    rules = goal_mountaincar(np, limit=3).rules
    position = np.array([0.48, 0.4705, 0.4695, 0.48, 0.48])
    velocity = np.array([0.04, 0.0205, 0.04, 0.0195, 0.0605])
    met = np.array([True, True, False, False, False])
    achieved = np.stack([position, velocity], 1).astype(np.float32)
    desired = np.tile(np.float32([0.48, 0.04]), (5, 1))
    assert rules.goal_reward is not None and rules.success is not None
    reward, discount = rules.goal_reward(achieved, desired)
    assert np.array_equal(reward, np.where(met, 0, -1)) and np.array_equal(discount, np.where(met, 0, 1))
    with_torch: Any = goal_mountaincar(torch).rules.goal_reward
    reward, discount = with_torch(*(torch.from_numpy(np.stack([x, x])) for x in (achieved, desired)))
    assert reward.shape == (2, 5) and np.array_equal(discount[1].numpy(), np.where(met, 0, 1))
    state = {"position": position, "velocity": velocity, "step": np.full(5, 2)}
    assert np.array_equal(rules.success(state), met)


def test_a_goal_met_by_the_last_move_is_a_termination() -> None:
    rules = goal_mountaincar(np, limit=3).rules
    # One move of full throttle from here is at (0.48, 0.04).
    before = {"position": np.array([0.44, -0.5]), "velocity": np.array([0.04, 0.0]), "step": np.array([2, 2])}
    _, reward, discount, truncated = rules.move(before, np.ones((2, 1)), np.zeros((2, 0)))
    assert reward.tolist() == [0, -1] and discount.tolist() == [0, 1] and truncated.tolist() == [False, True]


@pytest.mark.parametrize("id", ["toy/goal_mountaincar", "toy/goal_pendulum"])
def test_success_stands_where_the_goal_was_met(id: str) -> None:
    wide = {"thresholds": [0.65, 0.08] if "car" in id else [0.5, 8.0], "limit": 60}
    env = make(id, wide, 16)
    shown, ends = env.reset(np.arange(16)), []
    rng = np.random.default_rng(0)
    for _ in range(150):
        env.send(rng.uniform(-1, 1, (16, 1)).astype(np.float32) if "pend" in id else np.sign(shown[:, 1:2] + 1e-9))
        moves = env.recv()
        shown = moves.observation
        assert np.array_equal(np.isnan(moves.success), ~moves.ended)
        assert np.array_equal(moves.success[moves.ended] == 1, moves.discount[moves.ended] == 0)
        ends += moves.success[moves.ended].tolist()
    assert set(ends) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("id", "arguments", "text"),
    [
        ("toy/goal_mountaincar", {"goal": [0.48]}, r"goal = \[0.48\] is refused; it must be two numbers"),
        ("toy/goal_pendulum", {"thresholds": [0.1, math.nan]}, r"thresholds = \[0.1, nan\] is refused"),
        ("toy/goal_mountaincar", {"limit": 0}, "limit = 0 is refused"),
    ],
)
def test_bad_arguments_are_named(id: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(BadEnvironment, match=text):
        make(id, arguments, 1)
