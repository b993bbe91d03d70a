"""Gymnasium environments: ends, invalid moves, spaces, users' modules."""

import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hpc_rl.envs.base import BadEnvironment
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

    (tmp_path / "my_task.py").write_text(
        "import gymnasium\n\n\ndef make(**arguments) -> gymnasium.Env:\n    return FUNCTION(**arguments)\n"
    )
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


def test_observations_are_fresh_arrays():
    env = make("CartPole-v1", {}, 2)
    held = [env.reset(np.arange(2))]
    copies = [held[0].copy()]
    for _ in range(30):
        env.send(np.array([0, 1]))
        moves = env.recv()
        held += [moves.observation, moves.reward, moves.discount, moves.first, moves.ended]
        copies += [x.copy() for x in held[-5:]]
    assert all((x == y).all() for x, y in zip(held, copies, strict=True))


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
        (spaces.Box(0, 255, (8, 6, 3), np.uint8), (3, 8, 6), "uint8"),  # images: channels first
        (spaces.Box(0, 255, (8, 6, 1), np.uint8), (1, 8, 6), "uint8"),
        (spaces.Box(0, 255, (4, 8, 6, 3), np.uint8), (4, 3, 8, 6), "uint8"),  # a stack of four
        (spaces.Box(0, 255, (3, 8, 6), np.uint8), (3, 8, 6), "uint8"),
        (spaces.Box(0, 255, (8, 6), np.uint8), (8, 6), "uint8"),
        (spaces.Box(0, 1, (8, 6, 3), np.float32), (8, 6, 3), "float32"),
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


def test_parts_tell_where_goals_lie(echo):
    arm = spaces.Dict(joints=spaces.Box(-9, 9, (2, 2), np.float32), grip=spaces.Discrete(3))
    pair = spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (), np.float32)))
    space = spaces.Dict(observation=arm, achieved_goal=ONE, desired_goal=ONE, last=pair)
    env, _ = echo(space, spaces.Discrete(2))
    parts = env.spec.parts
    shapes = {name: part.shape for name, part in parts.items()}
    assert shapes == {
        "achieved_goal": (3,), "desired_goal": (3,), "last/0": (2,), "last/1": (),
        "observation/grip": (3,), "observation/joints": (2, 2),
    }  # fmt: skip
    assert sorted((part.start, part.stop) for part in parts.values())[-1][1] == env.spec.frame[0] == 16
    shown = env.reset(np.array([4, 5]))
    own = Echo(space, spaces.Discrete(2))
    sample = own.reset(seed=5)[0]
    pieces = {name: shown[1, part.start : part.stop].reshape(part.shape) for name, part in parts.items()}
    assert np.array_equal(pieces["desired_goal"], sample["desired_goal"])
    assert np.array_equal(pieces["observation/joints"], sample["observation"]["joints"])
    assert pieces["observation/grip"].argmax() == sample["observation"]["grip"]
    assert np.array_equal(pieces["last/0"], sample["last"][0]) and pieces["last/1"] == sample["last"][1]
    assert hash(env.spec) == hash(describe_again(env.spec))
    assert not echo(ONE, spaces.Discrete(2))[0].spec.parts
    assert not echo(spaces.Discrete(3), spaces.Discrete(2))[0].spec.parts


def describe_again(spec):
    return replace(spec, parts=dict(spec.parts))


def test_parts_of_one_name_are_refused(echo):
    space = spaces.Dict({"a": spaces.Dict(b=ONE), "a/b": ONE})
    with pytest.raises(BadEnvironment, match=r"two parts .* named 'a/b'"):
        echo(space, spaces.Discrete(2))


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6, 1), (4, 8, 6, 3)])
def test_images_are_moved_and_not_mixed_up(echo, shape):
    env, _ = echo(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2))
    shown = env.reset(np.array([1, 2]))
    own = spaces.Box(0, 255, shape, np.uint8, seed=2).sample()
    assert np.array_equal(shown[1], np.moveaxis(own, -1, -3))


@pytest.mark.parametrize("wrap", [lambda *parts: spaces.Tuple(parts), lambda a, b: spaces.Dict(a=a, b=b)])
def test_bytes_beside_other_numbers_are_scaled(echo, wrap):
    nested = spaces.Tuple((spaces.Box(0, 255, (2,), np.uint8), spaces.Discrete(2)))
    env, _ = echo(wrap(spaces.Box(-9, 9, (2,), np.float32), nested), spaces.Discrete(2))
    shown = np.concatenate([env.reset(np.arange(k, k + 2)) for k in range(0, 40, 2)])
    assert np.abs(shown[:, :2]).max() > 1
    assert 0.5 < shown[:, 2:4].max() <= 1
    assert (shown[:, 4:].sum(1) == 1).all()


def test_bytes_among_themselves_stay_bytes(echo):
    part = spaces.Box(0, 255, (2,), np.uint8)
    env, _ = echo(spaces.Dict(a=part, b=part), spaces.Discrete(2))
    assert (env.spec.dtype, env.reset(np.arange(2)).max() > 1) == ("uint8", True)  # the network takes bytes as 0..1


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


@pytest.mark.parametrize("shape", [3, (2, 2)])
def test_multibinary_actions_are_choices_of_two(echo, shape):
    env, seen = echo(ONE, spaces.MultiBinary(shape))
    env.reset(np.arange(2))
    count = np.prod(shape)
    chosen = np.stack([np.arange(count) % 2, np.zeros(count, int)])
    env.send(chosen)
    env.recv()
    assert (env.spec.actions.kind, env.spec.actions.sizes) == ("multidiscrete", (2,) * count)
    assert np.array_equal(seen[0].ravel(), chosen[0])
    assert env._space.contains(seen[0])


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("low", "high", "action", "native"),
    [
        (-2, 0.5, [-9, -1, 0, 1, 9], [-2, -2, -0.75, 0.5, 0.5]),
        (0, 1000, [-1, -0.5, 0, 1, 3], [0, 250, 500, 1000, 1000]),
        (-1, 1, [-1.5, -0.3, 0.1, 1, 2], [-1, -0.3, 0.1, 1, 1]),
        (-np.inf, np.inf, [-9, -0.3, 0, 1, 9], [-9, -0.3, 0, 1, 9]),
        (-LARGEST, LARGEST, [-9, -0.3, 0, 1, 9], [-9, -0.3, 0, 1, 9]),
        (0, np.inf, [-9, -0.3, 0, 1, 9], [0, 0, 0, 1, 9]),
        (-np.inf, 5, [-9, -0.3, 0, 1, 9], [-9, -0.3, 0, 1, 5]),
        (3, 3, [-9, -0.3, 0, 1, 9], [3, 3, 3, 3, 3]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_box_actions_are_scaled_to_the_bounds(echo, low, high, action, native, dtype):
    env, seen = echo(ONE, spaces.Box(np.full((1, 5), low, dtype), np.full((1, 5), high, dtype), dtype=dtype))
    env.reset(np.arange(2))
    env.send(np.array([action, [0] * 5], np.float32))
    env.recv()
    assert env.spec.actions.shape == (5,)
    assert seen[0].shape == (1, 5)
    assert seen[0].dtype == dtype
    assert seen[0][0].tolist() == pytest.approx(native, rel=1e-6)
    assert env._space.contains(seen[0])


def test_each_entry_of_a_box_has_its_own_scale(echo):
    low, high = np.array([[-2.0, -np.inf]]), np.array([[0.5, np.inf]])
    env, seen = echo(ONE, spaces.Box(low, high, dtype=np.float64))
    env.reset(np.arange(2))
    env.send(np.array([[9, 9], [-9, -9]], np.float32))
    env.recv()
    actions = env.spec.actions
    assert (actions.shape, actions.low, actions.high) == ((2,), (-2, -np.inf), (0.5, np.inf))
    assert actions.scaled_to == ((-2, 0.5), None)
    assert seen[0].tolist() == [[0.5, 9]]


class Mission(spaces.Space[str]):
    """A class of spaces that Gymnasium does not know, as MiniGrid's."""

    def sample(self, mask=None, probability=None):
        return "reach the green square"


def test_parts_without_a_fixed_size_are_left_out(echo):
    inner = spaces.Dict(names=spaces.Sequence(spaces.Discrete(4)), place=spaces.Box(-1, 1, (2,)))
    talk = spaces.Dict(only=spaces.Sequence(spaces.Discrete(2)))
    space = spaces.Dict(inner=inner, mission=Mission(), ready=spaces.Discrete(2), talk=talk)
    env, _ = echo(space, spaces.Discrete(2))
    assert {name: (part.start, part.stop) for name, part in env.spec.parts.items()} == {
        "inner/place": (0, 2),
        "ready": (2, 4),
    }
    assert env.reset(np.arange(2)).shape == (2, 4)


def test_minigrid_is_played():
    pytest.importorskip("minigrid")
    env = make("minigrid:MiniGrid-Empty-5x5-v0", {}, 2)
    assert {name: part.shape for name, part in env.spec.parts.items()} == {"direction": (4,), "image": (7, 7, 3)}
    first = env.reset(np.arange(2))
    env.send(np.array([0, 1]))  # turn to the left, to the right
    turned = env.recv().observation
    assert first[:, :4].tolist() == [[1, 0, 0, 0]] * 2
    assert turned[:, :4].tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]] and 0 < turned[:, 4:].max() < 1


def test_what_is_refused(echo):
    with pytest.raises(BadEnvironment, match=r"Sequence.*no fixed size"):
        echo(spaces.Dict(a=spaces.Sequence(spaces.Discrete(4))), spaces.Discrete(2))
    with pytest.raises(BadEnvironment, match=r"actions Dict.*not supported"):
        echo(ONE, spaces.Dict(a=spaces.Discrete(2)))
    with pytest.raises(BadEnvironment, match=r"Box.*not supported"):
        echo(ONE, spaces.Box(0, 5, (2,), np.int64))
