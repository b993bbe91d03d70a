"""Classic control as Rules against Gymnasium's own, move by move and over whole episodes of its own wrappers.

Mutations seen to fail: CartPole's speed taken after the move for its place; a pole of half the length; an end at half
the angle; a limit that counts where the last move ends the episode; the torque's cost left out, or the angle's not
within −π..π; the car's reward at 0.5; a held force that goes on at the top, is paid for once, or whose first step alone
counts; Acrobot's equation without the first rod's speed; angles not wrapped; speeds not
cut.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from hpc_rl.envs.built_in import TOYS
from hpc_rl.envs.make import make
from hpc_rl.types import Array, RulesState

N = 48
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "toy/cartpole": ("CartPole-v1", ("place", "speed", "angle", "spin")),
    "toy/pendulum": ("Pendulum-v1", ("angle", "speed")),
    "toy/mountaincar": ("MountainCarContinuous-v0", ("position", "velocity")),
    "toy/acrobot": ("Acrobot-v1", ("upper", "lower", "upper_speed", "lower_speed")),
}


def action_of(id: str, state: RulesState, rng: np.random.Generator) -> Array:
    """Random, but for a car that is pushed along, and rods that are, so that ends are met."""
    if id == "toy/mountaincar":
        along = np.where(state["velocity"] < 0, -1.0, 1.0)
        return np.where(rng.random(N) < 0.9, along, rng.uniform(-1, 1, N))[:, None]
    if id == "toy/acrobot":
        return np.where(rng.random(N) < 0.8, 1 + np.sign(state["lower_speed"]), rng.integers(0, 3, N)).astype(np.int64)
    return rng.integers(0, 2, N) if id == "toy/cartpole" else rng.uniform(-1, 1, (N, 1))


@pytest.mark.parametrize("id", TASKS)
def test_every_move_is_gymnasiums(id: str) -> None:
    """From the same state the same action leads to the same state, observation, reward and end, to 1e-6."""
    rules, (theirs, names), rng = TOYS[id](np).rules, TASKS[id], np.random.default_rng(3)
    task: Any = gymnasium.make(theirs).unwrapped
    scale = 2.0 if theirs == "Pendulum-v1" else 1.0
    state, ended, extremes = rules.begin(rng.random((N, rules.begin_uniforms))), 0, 0.0
    for step in range(300):
        action = action_of(id, state, rng)
        following, reward, discount, truncated = rules.move(state, action, np.zeros((N, 0)))
        shown = rules.show(following)
        for k in range(0, N, 5):
            task.reset()
            task.state = np.array([state[name][k] for name in names])
            given = (scale * action[k]).astype(np.float32) if action.ndim > 1 else int(action[k])
            seen, paid, over, *_ = task.step(given)
            assert np.allclose(seen, shown[k], atol=2e-6), (id, step)
            assert paid == pytest.approx(float(reward[k]), abs=1e-5) and over == (discount[k] == 0), (id, step)
        assert not truncated.any() or step == 199
        ended += int((discount == 0).sum())
        extremes = max(extremes, *(float(abs(x).max()) for name, x in following.items() if name != "step"))
        fresh = rules.begin(rng.random((N, rules.begin_uniforms)))
        state = {name: np.where(discount == 0, fresh[name], x) for name, x in following.items()}
    assert (ended > 0) == (id != "toy/pendulum")
    assert extremes >= {"toy/pendulum": 8.0, "toy/mountaincar": 0.45, "toy/acrobot": 3.0, "toy/cartpole": 0.5}[id]


@pytest.mark.parametrize("id", TASKS)
def test_it_begins_as_gymnasiums(id: str) -> None:
    """First observations spread over the same range."""
    rules, rng = TOYS[id](np).rules, np.random.default_rng(4)
    ours = rules.show(rules.begin(rng.random((4000, rules.begin_uniforms))))
    task = gymnasium.make(TASKS[id][0])
    theirs = np.array([task.reset(seed=seed)[0] for seed in range(1500)])
    assert np.allclose(ours.min(0), theirs.min(0), atol=0.03) and np.allclose(ours.max(0), theirs.max(0), atol=0.03)
    assert np.allclose(ours.mean(0), theirs.mean(0), atol=0.06) and np.allclose(ours.std(0), theirs.std(0), atol=0.03)


@pytest.mark.parametrize(("id", "limit"), [("toy/pendulum", 200), ("toy/mountaincar", 999), ("toy/acrobot", 500)])
def test_the_limit_of_moves_is_gymnasiums(id: str, limit: int) -> None:
    assert gymnasium.spec(TASKS[id][0]).max_episode_steps == limit
    env = make(id, {}, 2)
    env.reset(np.arange(2))
    still = np.full((2, 1), 0.0) if id != "toy/acrobot" else np.full(2, 1)
    for move in range(1, limit + 2):
        env.send(still)
        moves = env.recv()
        assert (moves.discount == 1).all() and moves.ended.all() == (move == limit)


def test_a_held_force_is_the_steps_that_it_lasts() -> None:
    """Five of Gymnasium's steps in a move: the same state, reward and end as those five until the top."""
    held, single = TOYS["toy/mountaincar"](np, repeat=5).rules, TOYS["toy/mountaincar"](np).rules
    rng, nothing, within = np.random.default_rng(5), np.zeros((N, 0)), 0
    state = single.begin(rng.random((N, 1)))
    for _ in range(60):
        action = action_of("toy/mountaincar", state, rng)
        following, reward, discount, truncated = held.move(state, action, nothing)
        steps, paid, there = state, np.zeros(N), np.zeros(N, bool)
        for k in range(5):
            then, now, alive, _ = single.move(steps, action, nothing)
            steps = {name: np.where(there, steps[name], x) for name, x in then.items()}
            paid, there = paid + np.where(there, 0.0, now), there | (alive == 0)
            within += int(there.any() and k < 4)
        for name in ("position", "velocity"):
            assert np.array_equal(following[name], steps[name])
        assert np.allclose(reward, paid, atol=1e-12) and np.array_equal(discount == 0, there) and not truncated.any()
        assert (following["step"] == state["step"] + 1).all()
        fresh = single.begin(rng.random((N, 1)))
        state = {name: np.where(there, fresh[name], x) for name, x in following.items()}
    assert within > 0


def test_fast_rods_are_slowed_and_their_angles_wrapped() -> None:
    rules, task = TOYS["toy/acrobot"](np).rules, gymnasium.make("Acrobot-v1").unwrapped
    names = TASKS["toy/acrobot"][1]
    for values in ((3.1, -3.1, 12.0, -28.0), (-3.0, 3.1, -12.5, 28.2), (0.3, 3.0, 12.5, 28.0)):
        state = rules.begin(np.zeros((1, 4))) | {name: np.array([x]) for name, x in zip(names, values, strict=True)}
        following = rules.move(state, np.array([2]), np.zeros((1, 0)))[0]
        task.reset()
        task.state = np.array(values)  # type: ignore[attr-defined]
        task.step(2)
        ours = [float(following[name][0]) for name in names]
        assert np.allclose(ours, task.state, atol=1e-9), values  # type: ignore[attr-defined]


def test_a_pole_that_falls_with_the_last_move_has_fallen() -> None:
    rules = TOYS["toy/cartpole"](np, limit=7).rules
    state = rules.begin(np.full((2, 4), 0.5)) | {"step": np.array([6, 6]), "angle": np.array([0.0, 0.25])}
    _, reward, discount, truncated = rules.move(state, np.array([0, 0]), np.zeros((2, 0)))
    assert (reward.tolist(), discount.tolist(), truncated.tolist()) == ([1, 1], [1, 0], [True, False])


@pytest.mark.parametrize("id", TASKS)
def test_float32_follows_from_float32_uniforms(id: str) -> None:
    rules, rng = TOYS[id](torch).rules, np.random.default_rng(5)
    u = torch.from_numpy(rng.random((N, rules.begin_uniforms)))
    single, double = rules.begin(u.float()), rules.begin(u)
    for _ in range(5):
        action = torch.from_numpy(action_of(id, {name: x.numpy() for name, x in double.items()}, rng))
        single, *rest = rules.move(single, action.float() if action.ndim > 1 else action, u[:, :0])
        double = rules.move(double, action, u[:, :0])[0]
        assert all(x.dtype == torch.float32 for name, x in single.items() if name != "step")
        assert rest[0].dtype == rest[1].dtype == torch.float32
    assert torch.allclose(rules.show(single), rules.show(double), atol=1e-4)
