"""Environments as people write them: one sentence names the environment, the method, what came and what must come.

Mutations seen to fail: the guard below a wrapper left out; the shape not looked at; a reward taken with float(); info
dropped by the lower of two guards; success read at moves that end nothing.
"""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.column_shares import Processes
from hpc_rl.envs.make import make

BOX = spaces.Box(-1, 1, (3,), np.float32)
ROW = np.zeros(3, np.float32)
RESET, STEP = "(observation, info)", "(observation, reward, terminated, truncated, info)"


class Careless(gymnasium.Env):
    def __init__(self, space=BOX, reset=(ROW, {}), step=(ROW, 1.0, False, False, {})):
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self.answers = reset, step

    def reset(self, *, seed=None, options=None):
        return self.answers[0]

    def step(self, action):
        return self.answers[1]


class NoSeed(Careless):
    def reset(self):
        return self.answers[0]


class NoOptions(Careless):
    def reset(self, seed=None):
        return self.answers[0]


class NoSpace(Careless):
    def __init__(self):
        super().__init__()
        del self.observation_space


class Halved(gymnasium.ObservationWrapper):
    """A user's wrapper that returns something else than its space says."""

    def observation(self, observation):
        return observation[:2]


class Same(gymnasium.ObservationWrapper):
    """A user's wrapper, which unpacks what it gets."""

    def observation(self, observation):
        return observation


@pytest.fixture
def careless(tmp_path, monkeypatch):
    """A function of an environment and its wrapping that gives b columns of it, by way of a user's module."""
    (tmp_path / "their_careless.py").write_text("import gymnasium\n\n\ndef make():\n    return FUNCTION()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_careless", raising=False)

    def build(function, columns=2):
        import their_careless

        their_careless.FUNCTION = function
        return make("their_careless:make", {}, columns)

    return build


def moved(env):
    shown = env.reset(np.arange(env.columns))
    env.send(np.zeros(env.columns, int))
    return shown, env.recv()


DICT = spaces.Dict(a=spaces.Discrete(3), b=BOX)
PAIR = spaces.Tuple((BOX, BOX))
IMAGE = spaces.Box(0, 255, (8, 6, 3), np.uint8)


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TimeLimit(env, 10), Same])
@pytest.mark.parametrize(
    ("arguments", "method", "came", "must"),
    [
        ({"reset": ROW}, "reset()", "an array of shape (3,)", RESET),
        ({"reset": (ROW, 3)}, "reset()", "2 values (ndarray, int)", RESET),
        ({"reset": None}, "reset()", "None", RESET),
        ({"reset": (None, {})}, "reset()", "None as the observation", "shape (3,) and dtype float32"),
        ({"reset": (ROW[:2], {})}, "reset()", "shape (2,) and dtype float32 as the", "shape (3,)"),
        ({"reset": ([[1, 2], [3]], {})}, "reset()", "2 values (list, list)", "shape (3,)"),
        ({"reset": ("abc", {})}, "reset()", "'abc' as the observation", "shape (3,)"),
        ({"step": (ROW, 1.0, False, {})}, "step()", "4 values (ndarray, float, bool, dict)", STEP),
        ({"step": None}, "step()", "None", STEP),
        ({"step": (ROW, 1.0, False, False, None)}, "step()", "5 values", STEP),
        ({"step": (ROW, np.ones(1), False, False, {})}, "step()", "shape (1,) and dtype float64 as", "one number"),
        ({"step": (ROW, None, False, False, {})}, "step()", "None as the reward", "one number"),
        ({"step": (ROW, 1.0, True, False, {"is_success": "yes"})}, "step()", "'yes' as info['is_success']", "True"),
        ({"step": (ROW, "1", False, False, {})}, "step()", "'1' as the reward", "one number"),
        ({"step": (ROW, 1.0, None, False, {})}, "step()", "None as terminated", "True or False"),
        ({"step": (ROW, 1.0, False, np.zeros(1, bool), {})}, "step()", "dtype bool as truncated", "True"),
        ({"step": (None, 1.0, False, False, {})}, "step()", "None as the observation", "shape (3,)"),
        ({"step": (ROW[None], 1.0, False, False, {})}, "step()", "shape (1, 3)", "shape (3,)"),
        ({"space": IMAGE, "reset": (np.zeros((8, 6, 3)), {})}, "reset()", "float64", "dtype uint8"),
        ({"space": IMAGE, "reset": (np.zeros((3, 8, 6), np.uint8), {})}, "reset()", "(3, 8, 6)", "(8, 6, 3)"),
        ({"space": DICT, "reset": ({"a": 1}, {})}, "reset()", "the observation a dict", "one of Dict("),
        ({"space": DICT, "reset": ({"a": 5, "b": ROW}, {})}, "reset()", "the observation a dict", "one of Dict("),
        ({"space": DICT, "reset": ({"a": 1, "b": ROW[:1]}, {})}, "reset()", "the observation a dict", "one of Dict("),
        ({"space": DICT, "reset": (None, {})}, "reset()", "the observation None", "one of Dict("),
        ({"space": PAIR, "reset": (ROW, ROW)}, "reset()", "2 values (ndarray, ndarray)", RESET),
        ({"space": spaces.Discrete(3), "reset": (3, {})}, "reset()", "the observation 3", "one of Discrete(3)"),
    ],
)  # fmt: skip
def test_one_sentence(careless, arguments, method, came, must, wrap):
    env = careless(lambda: wrap(Careless(**arguments)))
    with pytest.raises(BadEnvironment) as caught:
        moved(env)
    sentence = str(caught.value)
    assert sentence.startswith(f"their_careless:make: {method} returned ")
    before, _, after = sentence.partition("; it must return ")
    assert came in before
    assert must in after
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (NoSeed, r"reset\(\) of NoSeed takes no seed and no options; it must be reset\(self, \*, seed=None, "),
        (NoOptions, r"reset\(\) of NoOptions takes no options"),
        (lambda: TimeLimit(NoSeed(), 10), r"reset\(\) of NoSeed takes no seed"),
        (NoSpace, "observation_space is None"),
        (lambda: None, "gives a NoneType; it must return one gymnasium.Env"),
    ],
)  # fmt: skip
def test_what_is_refused_before_a_reset(careless, function, words):
    with pytest.raises(BadEnvironment, match=words):
        careless(function)


def test_a_users_wrapper_is_looked_at_too(careless):
    with pytest.raises(BadEnvironment, match=r"reset\(\) returned an array of shape \(2,\)"):
        moved(careless(lambda: Halved(Careless())))


def test_one_environment_for_two_columns(careless):
    one = Careless()
    with pytest.raises(BadEnvironment, match="returned one environment twice"):
        careless(lambda: one)
    moved(careless(lambda: one, columns=1))


@pytest.mark.parametrize(
    "step",
    [
        (ROW, 1, False, False, {}),
        (ROW.astype(np.float64), np.float32(1), np.bool_(False), 0, {}),
        ([0, 0.0, 0], np.array(1.0), np.array(False), np.int64(0), {"lives": 3, "x": np.zeros(2)}),
        (ROW.astype(int), True, False, False, {}),
    ],
)
def test_what_is_near_enough(careless, step):
    env = careless(lambda: Careless(step=step))
    for _ in range(2):
        shown, moves = moved(env)
    assert (shown.dtype, moves.observation.dtype, moves.observation.shape) == (np.float32, np.float32, (2, 3))
    assert moves.reward.tolist() == [1, 1]
    assert moves.ended.tolist() == [False, False]


@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: TimeLimit(env, 10), Same])
@pytest.mark.parametrize(
    ("value", "success"), [(True, 1), (np.bool_(False), 0), (0.5, 0.5), (np.float32(1), 1), (None, np.nan)]
)
@pytest.mark.parametrize("ends", [True, False])
def test_success_is_kept_where_an_episode_ends(careless, value, success, ends, wrap):
    info = {"is_success": value, "other": 3}
    env = careless(lambda: wrap(Careless(step=(ROW, 1.0, False, ends, info))))
    _, moves = moved(env)
    expected = [success if ends else np.nan] * 2
    assert moves.success.dtype == np.float32
    assert np.array_equal(moves.success, np.array(expected, np.float32), equal_nan=True)
    env.send(np.zeros(2, int))
    moves = env.recv()  # a reset, or one more move
    assert np.isnan(moves.success).all()


def test_success_at_a_time_limit_is_kept(careless):
    env = careless(lambda: TimeLimit(Careless(step=(ROW, 1.0, False, False, {"is_success": 1})), 2))
    _, moves = moved(env)
    assert np.isnan(moves.success).all()
    env.send(np.zeros(2, int))
    assert env.recv().success.tolist() == [1, 1]


def test_an_environment_without_success_has_none(careless):
    _, moves = moved(careless(lambda: Careless(step=(ROW, 1.0, True, False, {}))))
    assert moves.ended.all()
    assert np.isnan(moves.success).all()


def test_a_child_process_gives_the_same_sentence(tmp_path, monkeypatch):
    text = (
        "import gymnasium, numpy as np\nfrom gymnasium import spaces\n"
        "class Old(gymnasium.Env):\n"
        "    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n        return np.zeros(3), {}\n"
        "    def step(self, action):\n        return np.zeros(3), 1.0, False, {}\n"
    )
    (tmp_path / "their_old.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    env = make("their_old:Old", {}, 2, 1, Processes(2, 30.0))
    try:
        with pytest.raises(BadEnvironment, match=r"^their_old:Old: step\(\) returned 4 values"):
            moved(env)
    finally:
        env.close()
