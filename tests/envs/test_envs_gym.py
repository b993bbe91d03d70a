"""Gymnasium environments: ends, invalid moves, spaces, users' modules."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.gym import Gym
from hpc_rl.envs.make import describe, make


class Echo(gymnasium.Env):
    """Three moves an episode; remembers the actions it was given."""

    def __init__(self, observation_space, action_space, truncates=False):
        self.observation_space, self.action_space, self.truncates = observation_space, action_space, truncates
        self.seen = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.seen.append(action)
        self.count += 1
        over = self.count == 3
        return self.observation_space.sample(), 1.5, over and not self.truncates, over and self.truncates, {}


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """A function of spaces that gives (environment, what column 0 was sent), by way of a module in the directory."""
    made = []

    def function(observation, action, truncates=False):
        made.append(Echo(observation, action, truncates))
        return made[-1]

    (tmp_path / "my_task.py").write_text("def make(**arguments):\n    return FUNCTION(**arguments)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)

    def build(observation, action, columns=2, **arguments):
        monkeypatch.syspath_prepend(tmp_path)
        import my_task

        my_task.FUNCTION = function
        arguments |= {"observation": observation, "action": action}
        spec = describe("my_task:make", arguments)
        made.clear()
        env = make("my_task:make", arguments, columns)
        assert env.spec == spec
        return env, made[0].seen

    return build


ONE = spaces.Box(-1, 1, (3,), np.float32)


def test_cartpole_time_limit_termination_and_first():
    env = make("CartPole-v1", {"max_episode_steps": 12}, 4)
    env.reset(np.arange(4))
    rng = np.random.default_rng(0)
    before, terminations, limits = np.zeros(4, bool), 0, 0
    length = np.zeros(4, int)
    for _ in range(200):
        env.send(rng.integers(2, size=4))
        moves = env.recv()
        assert np.array_equal(moves.first, before)
        length = np.where(moves.first, 0, length + 1)
        assert (moves.reward == ~moves.first).all()
        assert (moves.discount[~moves.ended] == 1).all()
        assert (length[moves.ended & (moves.discount == 1)] == 12).all()
        terminations += (moves.discount == 0).sum()
        limits += (moves.ended & (moves.discount == 1)).sum()
        before = moves.ended
    assert terminations > 0
    assert limits > 0


def test_cartpole_truncates_at_500():
    env = make("CartPole-v1", {}, 1)
    shown = env.reset(np.array([3]))
    for step in range(1, 501):
        x, speed, angle, turn = shown[0]  # a hand-made controller that balances for ever
        env.send(np.array([int(angle + 0.3 * turn + 0.03 * x + 0.06 * speed > 0)]))
        moves = env.recv()
        shown = moves.observation
        assert moves.ended[0] == (step == 500)
    assert moves.discount[0] == 1
    env.send(np.array([0]))
    moves = env.recv()
    assert (moves.first[0], moves.reward[0], moves.ended[0]) == (True, 0, False)
    assert shown.dtype == np.float32


def test_seeds():
    runs = []
    for seeds in ([1, 2], [1, 2], [3, 2]):
        env = make("CartPole-v1", {}, 2)
        rows = [env.reset(np.array(seeds))]
        for _ in range(60):
            env.send(np.array([0, 1]))
            rows.append(env.recv().observation)
        runs.append(np.stack(rows))
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][:, 0], runs[2][:, 0])
    assert np.array_equal(runs[0][:, 1], runs[2][:, 1])


def test_truncation_of_a_users_environment(echo):
    env, _ = echo(ONE, spaces.Discrete(2), truncates=True)
    env.reset(np.arange(2))
    run = []
    for _ in range(8):
        env.send(np.zeros(2, int))
        run.append(env.recv())
    assert [bool(m.ended[0]) for m in run] == [False, False, True, False] * 2
    assert [bool(m.first[0]) for m in run] == [False, False, False, True] * 2
    assert [float(m.reward[0]) for m in run] == [1.5, 1.5, 1.5, 0] * 2
    assert all((m.discount == 1).all() for m in run)


@pytest.mark.parametrize(
    ("space", "frame", "dtype"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), (3,), "float32"),
        (spaces.Box(-1, 1, (), np.float32), (1,), "float32"),
        (spaces.Box(0, 255, (8, 6, 3), np.uint8), (8, 6, 3), "uint8"),
        (spaces.Discrete(5), (5,), "float32"),
        (spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-1, 1, (2, 2))), (7,), "float32"),
        (spaces.Tuple((spaces.MultiBinary(2), spaces.Box(0, 255, (2,), np.uint8))), (4,), "float32"),
    ],
)
def test_observations(echo, space, frame, dtype):
    env, _ = echo(space, spaces.Discrete(2))
    first = env.reset(np.array([1, 2]))
    env.send(np.zeros(2, int))
    for shown in (first, env.recv().observation):
        assert (shown.shape, shown.dtype) == ((2, *frame), np.dtype(dtype))
    assert (env.spec.frame, env.spec.dtype) == (frame, dtype)
    if isinstance(space, spaces.Discrete):
        assert (first.sum(1) == 1).all()


def test_discrete_actions_start_where_the_environment_counts(echo):
    env, seen = echo(ONE, spaces.Discrete(3, start=5))
    env.reset(np.arange(2))
    env.send(np.array([2, 0]))
    env.recv()
    assert env.spec.actions.sizes == (3,)
    assert seen == [7]


def test_multidiscrete_actions(echo):
    env, seen = echo(ONE, spaces.MultiDiscrete([3, 4], start=[1, 0]))
    env.reset(np.arange(2))
    env.send(np.array([[2, 3], [0, 0]]))
    env.recv()
    assert (env.spec.actions.kind, env.spec.actions.sizes) == ("multidiscrete", (3, 4))
    assert seen[0].tolist() == [3, 3]


def test_box_actions_are_clipped_and_shaped(echo):
    low, high = np.array([[-2.0, -np.inf]]), np.array([[0.5, np.inf]])
    env, seen = echo(ONE, spaces.Box(low, high, dtype=np.float64))
    env.reset(np.arange(2))
    env.send(np.array([[9, 9], [-9, -9]], np.float32))
    env.recv()
    actions = env.spec.actions
    assert (actions.shape, actions.low, actions.high) == ((2,), (-2, -np.inf), (0.5, np.inf))
    assert seen[0].tolist() == [[0.5, 9]]
    assert seen[0].dtype == np.float64


def test_what_is_refused(echo):
    with pytest.raises(BadEnvironment, match=r"Sequence.*no fixed size"):
        echo(spaces.Dict(a=spaces.Sequence(spaces.Discrete(4))), spaces.Discrete(2))
    with pytest.raises(BadEnvironment, match=r"actions Dict.*not supported"):
        echo(ONE, spaces.Dict(a=spaces.Discrete(2)))
    with pytest.raises(BadEnvironment, match=r"Box.*not supported"):
        echo(ONE, spaces.Box(0, 5, (2,), np.int64))
    with pytest.raises(BadEnvironment, match="SAME_STEP"):
        Gym("some", SyncVectorEnv([lambda: Echo(ONE, spaces.Discrete(2))], autoreset_mode=AutoresetMode.SAME_STEP))
    env, _ = echo(ONE, spaces.Discrete(2))
    with pytest.raises(BadEnvironment, match="cannot be cloned"):
        env.state()
