"""Atari: nothing is left to ale_py's defaults, and what ale_py returns is what the picture in types.py says."""

import inspect

import numpy as np
import pytest
import torch
from ale_py import vector_env
from ale_py.vector_env import AtariVectorEnv

from hpc_rl.envs import atari
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import describe, make
from hpc_rl.fragments import stacked


def play(env, seeds, steps, seed=0, action=None):
    """Rows of observation and first, moves of everything else; as one dict of time-major arrays."""
    rng = np.random.default_rng(seed)
    rows = {"observation": [env.reset(np.array(seeds))], "first": [np.ones(env.columns, bool)]}
    rows |= {"reward": [], "discount": [], "ended": []}
    for _ in range(steps):
        chosen = rng.integers(env.spec.actions.sizes[0], size=env.columns)
        env.send(chosen if action is None else np.full(env.columns, action))
        moves = env.recv()
        for name, values in rows.items():
            values.append(getattr(moves, name))
    return {name: np.stack(values) for name, values in rows.items()}


def rebuilt(run, spec):
    """What `stacked` makes of single frames; row 0's own stack opens the frames."""
    observation = run["observation"]
    frames = np.concatenate([observation[0].swapaxes(0, 1), observation[1:, :, -1]])
    return stacked(torch.from_numpy(frames), torch.from_numpy(run["first"]), spec.stack, spec.padding).numpy()


def test_every_argument_of_ale_py_is_passed(monkeypatch):
    seen = {}
    monkeypatch.setattr(vector_env, "AtariVectorEnv", lambda **passed: seen.update(passed))
    atari.vector_env("pong", atari.Options(), columns=3, threads=8)
    assert set(seen) == set(inspect.signature(AtariVectorEnv.__init__).parameters) - {"self"}
    assert (seen["reward_clipping"], seen["episodic_life"], seen["life_loss_info"]) == (False, False, False)
    assert (seen["batch_size"], seen["num_threads"]) == (3, 3)


def test_options_reach_ale_py(monkeypatch):
    seen = {}
    monkeypatch.setattr(vector_env, "AtariVectorEnv", lambda **passed: seen.update(passed))
    options = atari.Options(0.5, 3, 7, True, False, 2, 42, 999)
    atari.vector_env("pong", options, 1, 1)
    names = (
        "repeat_action_probability frameskip noop_max full_action_space use_fire_reset stack_num img_height img_width"
    )
    assert [seen[name] for name in names.split()] == [0.5, 3, 7, True, False, 2, 42, 42]
    assert seen["max_num_frames_per_episode"] == 999


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("stack", [0, -1, 1_000_000, 4.0, True, "4"], "a whole number from 1 to 32"),
        ("size", [0, -1, 100_000, 84.0], "a whole number from 8 to 512"),
        ("noop_max", [-1, 1_000_000, True], "a whole number from 0 to 1000"),
        ("frameskip", [0, -4, 1_000_000, True], "a whole number from 1 to 1000"),
        ("max_frames", [0, -1, 2**31, 1e5], "a whole number from 1 to 2147483647"),
        ("repeat_action_probability", [2.0, -0.1, float("nan"), False, "0.25"], "from 0 to 1"),
        ("life_loss_ends", ["no", 0, 1], "true or false"),
        ("use_fire_reset", ["no", 3], "true or false"),
        ("full_action_space", [2], "true or false"),
    ],
)
def test_arguments_out_of_range(name, values, words):
    for value in values:
        with pytest.raises(BadEnvironment, match=f"ALE/Pong-v5: {name} = .*; it must be {words}$"):
            describe("ALE/Pong-v5", {name: value})


def test_the_ends_of_the_ranges_work():
    for end in (0, 1):
        edges = {name: limits[end] for name, limits in atari.LIMITS.items() if name != "max_frames" or not end}
        env = make("ALE/Pong-v5", edges, 1)
        assert env.reset(np.array([1])).shape == (1, *env.spec.observation)
        env.send(np.array([0]))
        assert env.recv().ended.shape == (1,)


def test_spec_and_names():
    spec = describe("ALE/MsPacman-v5", {})
    assert (spec.frame, spec.dtype, spec.stack, spec.padding, spec.action_repeat) == ((84, 84), "uint8", 4, "zeros", 4)
    assert spec.actions.sizes == (9,)
    assert describe("ALE/Pong-v5", {"full_action_space": True}).actions.sizes == (18,)
    env = make("ALE/Pong-v5", {"size": 42, "stack": 1, "frameskip": 2}, 2)
    assert env.spec == describe("ALE/Pong-v5", {"size": 42, "stack": 1, "frameskip": 2})
    assert env.reset(np.array([1, 2])).shape == (2, *env.spec.observation) == (2, 42, 42)
    assert env.state() is None  # resumed games are new ones


def test_observations_are_fresh_arrays():
    env = make("ALE/Pong-v5", {}, 2)
    held = [env.reset(np.array([1, 2]))]
    copies = [held[0].copy()]
    for _ in range(30):
        env.send(np.array([2, 3]))
        held.append(env.recv().observation)
        copies.append(held[-1].copy())
    assert all((x == y).all() for x, y in zip(held, copies, strict=True))


def test_seeds():
    runs = [play(make("ALE/Breakout-v5", {}, 2, threads), [5, 2**31 - 1], 60) for threads in (1, 2)]
    for name in runs[0]:
        assert np.array_equal(runs[0][name], runs[1][name]), name
    other = play(make("ALE/Breakout-v5", {}, 2), [6, 7], 60)
    assert not np.array_equal(runs[0]["observation"], other["observation"])
    assert not np.array_equal(runs[0]["observation"][:, 0], runs[0]["observation"][:, 1])


@pytest.mark.parametrize("stack", [4, 3])
@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_stacks_rebuilt_from_single_frames_are_the_environments_own(game, stack):
    limit = {"max_frames": 60, "noop_max": 3} if game == "Pong" else {}
    env = make(f"ALE/{game}-v5", {"stack": stack, **limit}, 2)
    run = play(env, [1, 2], 100 if game == "Pong" else 300)
    assert run["first"][1:].sum() >= 2, "the run must cross episode borders"
    own = run["observation"]
    assert not own[run["first"]][:, :-1].any(), "after a reset: zeros, then the newest frame"
    assert own[run["first"]][:, -1].any()
    assert np.array_equal(rebuilt(run, env.spec), own)


def test_a_time_limit_is_no_termination():
    run = play(make("ALE/Pong-v5", {"max_frames": 40}, 2), [1, 2], 60)
    assert (run["discount"] == 1).all()
    assert np.flatnonzero(run["ended"][:, 0]).tolist() == [9, 20, 31, 42, 53]  # ten moves, then the reset
    assert np.array_equal(run["first"][1:], np.roll(run["ended"], 1, 0) & (np.arange(60) > 0)[:, None])


def test_rewards_are_raw():
    run = play(make("ALE/SpaceInvaders-v5", {}, 2), [1, 2], 150)
    assert run["reward"].max() >= 5
    assert run["reward"].dtype == np.float32


def test_a_lost_life_ends_nothing_but_the_discount():
    arguments = {"noop_max": 5}
    plain = play(make("ALE/Breakout-v5", arguments, 2), [1, 2], 400)
    lives = play(make("ALE/Breakout-v5", {**arguments, "life_loss_ends": True}, 2), [1, 2], 400)
    for name in ("observation", "first", "reward", "ended"):
        assert np.array_equal(plain[name], lives[name]), name
    games = plain["ended"].sum(0)
    assert (games >= 1).all()
    assert np.array_equal(plain["discount"] == 0, plain["ended"])
    assert np.array_equal(run_of_lives(lives["discount"], lives["ended"]), 5 * games)
    assert (lives["reward"][lives["first"][1:]] == 0).all()
    assert (lives["discount"][lives["first"][1:]] == 1).all(), "the way back to five lives loses none"


def run_of_lives(discount, ended):
    """Lives lost up to each column's last finished game, [b]."""
    last = len(ended) - 1 - ended[::-1].argmax(0)
    return np.array([(discount[: end + 1, column] == 0).sum() for column, end in enumerate(last)])


def test_life_losses_are_those_that_ale_py_reports():
    ours = play(make("ALE/Breakout-v5", {"life_loss_ends": True}, 2), [1, 2], 300)
    options = dict(max_num_frames_per_episode=108_000, repeat_action_probability=0.25, reward_clipping=False)
    theirs = AtariVectorEnv("breakout", 2, life_loss_info=True, num_threads=1, **options)
    theirs.reset(seed=np.array([1, 2]))
    rng = np.random.default_rng(0)
    terminated = np.stack([theirs.step(rng.integers(4, size=2))[2] for _ in range(300)])
    assert np.array_equal(ours["discount"] == 0, terminated)


def test_a_bonus_life_that_a_reset_takes_back_is_no_loss():
    class Script:
        """Six lives at a time limit, five after the reset."""

        lives, truncated = iter([6, 6, 5, 4]), iter([True, False, False])

        def reset(self, seed):
            return np.zeros((1, 4, 84, 84), np.uint8), {"lives": np.array([next(self.lives)])}

        def recv(self):
            flags = np.array([False]), np.array([next(self.truncated)])
            return np.zeros((1, 4, 84, 84), np.uint8), np.zeros(1, int), *flags, {"lives": np.array([next(self.lives)])}

    env = atari.Atari(describe("ALE/Breakout-v5", {}), 1, Script(), life_loss_ends=True)
    env.reset(np.array([0]))
    moves = [env.recv() for _ in range(3)]
    assert [(m.discount[0], m.first[0], m.ended[0]) for m in moves] == [(1, 0, 1), (1, 1, 0), (0, 0, 0)]
