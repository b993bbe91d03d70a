"""Open episodes of Gymnasium environments in a checkpoint: replayed to the bit, or a new episode and why.

Mutations seen to fail: later episodes without a seed, or all with one; the last observation, the rewards or the end
not compared; only ValueErrors forgiven; the moves of an episode that has ended replayed or kept; an episode's rewards
added to those before; what TimeLimit counted, or the environment's generator, left where it was; a state that was not
taken up passed over; a state below a stack of frames, or one of objects, relied upon; moves beyond LONGEST kept;
boxes not scaled when replayed; a second start that forgets nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl.envs import episodes
from hpc_rl.envs.base import BadEnvironment, TimeSteps
from hpc_rl.envs.episodes import EpisodeLog, episode_seed
from hpc_rl.envs.gym import Gym
from hpc_rl.envs.make import make
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.types import Actions, Array

TASKS = '''
import gymnasium
import numpy as np

HIDDEN = np.random.default_rng(5)  # nobody's seed starts it
SEEDS = []


class Walk(gymnasium.Env):
    """A noisy walk; an episode lasts 7 moves unless a subclass changes it."""

    observation_space = gymnasium.spaces.Box(-99, 99, (2,), np.float64)
    action_space = gymnasium.spaces.MultiDiscrete([3, 2])
    resets = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        SEEDS.append(seed)
        self.resets, self.count, self.at = self.resets + 1, 0, self.np_random.normal(size=2)
        return self.at.copy(), {}

    def step(self, action):
        self.count += 1
        self.at = self.at + action + 0.1 * self.np_random.normal(size=2)
        return self.seen(), self.reward(), self.over(), False, {"is_success": self.at[0] > 5}

    def seen(self):
        return self.at.copy()

    def reward(self):
        return float(self.at.sum())

    def over(self):
        return self.count == 7


class Hidden(Walk):
    def seen(self):
        return self.at + HIDDEN.normal()


class HiddenReward(Walk):
    def reward(self):
        return HIDDEN.normal()


class Again(Walk):
    """The columns of a resumed run go otherwise when they are reset for the second time, to be taken up."""

    lives = 0

    def __init__(self):
        Again.lives += 1
        self.second = Again.lives > 3


class Shorter(Again):
    def over(self):
        return self.count == (5 if self.second and self.resets == 2 else 7)


class Breaks(Again):
    def seen(self):
        if self.second and self.resets == 2 and self.count == 3:
            raise OSError("no licence")
        return self.at.copy()


class Offers(Walk):
    """Has a state of its own, and no way to repeat itself."""

    def seen(self):
        return self.at + HIDDEN.normal()

    def get_state(self):
        return {"at": self.at, "count": (self.count, None), "name": "walk"}

    def set_state(self, state):
        self.at, self.count = state["at"], state["count"][0]


class Forgets(Offers):
    def set_state(self, state):
        self.count = state["count"][0]


class Named(Offers):
    get_state = set_state = None
    dump, restore = Offers.get_state, Offers.set_state


class Objects(Walk):
    """What it gives cannot be kept."""

    def get_state(self):
        return object()

    def set_state(self, state):
        raise AssertionError


def limited(name, moves=5):
    return gymnasium.wrappers.TimeLimit(globals()[name](), moves)


def stacked(name) -> gymnasium.Env:
    return gymnasium.wrappers.FrameStackObservation(globals()[name](), 3)


def scaled(name) -> gymnasium.Env:
    return gymnasium.wrappers.NormalizeObservation(globals()[name]())
'''


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the environments above, fresh for each test."""
    (tmp_path / "walks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "walks", raising=False)
    import walks  # type: ignore[import-not-found]

    return walks


def actions_of(environment: Any, moves: int, seed: int = 0) -> list[Array]:
    rng, actions, columns = np.random.default_rng(seed), environment.spec.actions, environment.columns
    if actions.kind == "box":
        return [rng.normal(size=(columns, *actions.shape)).astype(np.float32) for _ in range(moves)]
    rows = [rng.integers(actions.sizes, size=(columns, len(actions.sizes))) for _ in range(moves)]
    return [row[:, 0] if actions.kind == "discrete" else row for row in rows]


def play(environment: Any, actions: list[Array]) -> list[TimeSteps]:
    moves = []
    for action in actions:
        environment.send(action)
        moves.append(environment.recv())
    return moves


def assert_same(one: list[TimeSteps], other: list[TimeSteps], columns: Any = slice(None)) -> None:
    for left, right in zip(one, other, strict=True):
        for item in fields(TimeSteps):
            a, b = getattr(left, item.name), getattr(right, item.name)
            assert a.dtype == b.dtype and a[columns].tobytes() == b[columns].tobytes(), item.name


def resumed(id: str, arguments: dict[str, Any], before: int, columns: int = 3, **more: Any) -> Any:
    """(lost, moves that followed, the moves that would have, state) of a run that was interrupted after ``before``."""
    whole = make(id, arguments, columns, **more)
    whole.reset(np.arange(columns) + 10)
    actions = actions_of(whole, before + 40)
    play(whole, actions[:before])
    state = from_bytes(to_bytes({"environment": whole.state()}))["environment"]
    after = play(whole, actions[before:])
    other = make(id, arguments, columns, **more)
    other.reset(np.arange(columns) + 500)  # as a resumed run begins
    play(other, actions_of(other, 4, 9))
    taken = other.load(state)
    assert taken.observation.dtype == after[0].observation.dtype
    return taken.lost.tolist(), play(other, actions[before:]), after, state


MUJOCO = pytest.mark.skipif(find_spec("mujoco") is None, reason="mujoco is not installed (the extra of that name)")
REPEATING: list[Any] = [
    ("CartPole-v1", {"max_episode_steps": 12}, 30),
    ("Pendulum-v1", {"max_episode_steps": 20}, 27),
    ("MountainCarContinuous-v0", {}, 50),
    ("hpc_rl.envs.masked:make", {}, 33),
    ("walks:Walk", {}, 3),
    ("walks:Walk", {}, 7),  # right after an end
    ("walks:Walk", {}, 8),  # right after a beginning
    ("walks:limited", {"name": "Walk"}, 9),
    ("walks:stacked", {"name": "Walk"}, 5),  # a wrapper that remembers frames of the episode
    pytest.param("HalfCheetah-v5", {"max_episode_steps": 30}, 50, marks=MUJOCO),
    pytest.param("Hopper-v5", {}, 90, marks=MUJOCO),
]


@pytest.mark.parametrize(("id", "arguments", "before"), REPEATING)
def test_a_replayed_episode_goes_on_as_it_would_have(id: str, arguments: dict[str, Any], before: int) -> None:
    lost, after, expected, _ = resumed(id, arguments, before)
    assert lost == ["", "", ""]
    assert_same(after, expected)
    assert any(move.first.any() for move in after) or id.startswith("Mountain")


@pytest.mark.parametrize(
    ("name", "before", "why"),
    [
        ("Hidden", 3, "the 3 moves of its episode led to another observation when they were repeated"),
        ("HiddenReward", 3, "the 3 moves of its episode led to other rewards when they were repeated"),
        ("Shorter", 6, "its episode ended after 5 of 6 moves when they were repeated"),
        ("Breaks", 4, "OSError: no licence"),
    ],
)
def test_an_episode_that_does_not_repeat_itself_is_replaced(name: str, before: int, why: str) -> None:
    lost, after, *_ = resumed(f"walks:{name}", {}, before)
    assert lost == [why] * 3
    assert [bool(move.first[0]) for move in after].index(True) == 7  # a whole episode, then the next


def test_every_episode_has_a_seed_of_its_own(tasks: Any) -> None:
    walk = make("walks:Walk", {}, 2)
    walk.reset(np.array([3, 4]))
    play(walk, actions_of(walk, 20))
    seeds = list(tasks.SEEDS)
    assert seeds == [3, 4, *(episode_seed(seed, number) for number in (1, 2) for seed in (3, 4))]
    assert len(set(tasks.SEEDS)) == 6 and all(0 <= seed < 2**31 for seed in tasks.SEEDS)


def test_a_new_episode_is_the_next_one(tasks: Any) -> None:
    resumed("walks:Hidden", {}, 3)
    begun = tasks.SEEDS.index(10, 3)  # the replay of column 0
    assert tasks.SEEDS[begun : begun + 6] == [10, 11, 12, *(episode_seed(seed, 1) for seed in (10, 11, 12))]


# ---- environments that offer their state ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "arguments", "more"),
    [
        ("walks:Offers", {}, {}),
        ("walks:limited", {"name": "Offers"}, {}),
        ("walks:Named", {}, {"state": ("dump", "restore")}),
    ],
)
def test_a_state_that_is_offered_takes_the_place_of_the_replay(
    id: str, arguments: dict[str, Any], more: dict[str, Any]
) -> None:
    lost, after, expected, state = resumed(id, arguments, 9, **more)
    assert lost == ["", "", ""] and state["moves"] == ["", "", ""]
    for left, right in zip(after, expected, strict=True):  # what it shows has noise that nothing repeats
        assert np.array_equal(left.reward, right.reward) and np.array_equal(left.ended, right.ended)
        assert np.array_equal(left.first, right.first) and np.array_equal(left.success, right.success, equal_nan=True)


def test_a_state_that_is_not_taken_up_is_named() -> None:
    lost, *_ = resumed("walks:Forgets", {}, 3)
    assert lost == ["ValueError: it gives another state than it was given"] * 3


@pytest.mark.parametrize(("id", "arguments"), [("walks:Objects", {}), ("walks:stacked", {"name": "Offers"})])
def test_a_state_that_cannot_be_kept_or_is_not_all_is_left_alone(id: str, arguments: dict[str, Any]) -> None:
    lost, after, expected, state = resumed(id, arguments, 3)
    assert state["own"] == [None] * 3 and all(state["moves"])
    if id == "walks:Objects":
        assert lost == ["", "", ""]
        assert_same(after, expected)


@pytest.mark.parametrize(
    ("id", "arguments", "names", "sentence"),
    [
        (
            "walks:Walk",
            {},
            ("dump", "restore"),
            r"environment.state = \['dump', 'restore'\], but walks:Walk has no two",
        ),
        ("walks:Walk", {}, ("step", "reset"), r"has no two methods"),
        ("walks:Named", {}, ("dump",), r"environment.state = \['dump'\], but"),
        ("walks:scaled", {"name": "Offers"}, ("get_state", "set_state"), r"below which all lies"),
        ("toy/catch", {}, ("get_state", "set_state"), r"has no effect on toy/catch"),
    ],
)
def test_names_that_no_state_has(id: str, arguments: dict[str, Any], names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BadEnvironment, match=sentence):
        make(id, arguments, 1, state=names)


# ---- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "bytes_per_move"),
    [(Actions("discrete", (256,)), 1), (Actions("discrete", (257,)), 8), (Actions("multidiscrete", (3, 9)), 2),
     (Actions("box", (2, 3), (-1.0,) * 6, (1.0,) * 6), 24)],
)  # fmt: skip
def test_moves_are_kept_compactly(actions: Actions, bytes_per_move: int) -> None:
    log, rng = EpisodeLog(2, actions), np.random.default_rng(0)
    rows = rng.integers(0, actions.sizes[0], size=(5, 2, *actions.shape))
    rows = rows.astype(actions.dtype) if actions.kind != "box" else rng.normal(size=rows.shape).astype(np.float32)
    for row in rows:
        log.add(row)
    log.next(1)
    assert [len(moves) for moves in log._moves] == [5 * bytes_per_move, 0]
    other = EpisodeLog(2, actions)
    other.load(log.state())
    assert np.array_equal(other.actions(0), rows[:, 0]) and other.actions(0).dtype == actions.dtype
    assert len(other.actions(1)) == 0
    log.start(np.zeros(2))
    assert log.state()["moves"] == ["", ""]


def test_an_endless_episode_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "LONGEST", 4)
    lost, _, _, state = resumed("walks:Walk", {}, 4)
    assert lost == ["", "", ""] and all(state["moves"])
    lost, _, _, state = resumed("walks:Walk", {}, 6)
    log = EpisodeLog(1, Actions("discrete", (2,)))
    for _ in range(9):
        log.add(np.zeros(1, np.int64))
    assert len(log._moves[0]) == 5
    assert state["moves"] == [None] * 3 and lost == ["of more than 4 moves none is kept"] * 3


def _drop(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        _drop("moves"),
        _drop("seeds"),
        lambda state: state["moves"].pop(),
        lambda state: state["moves"].__setitem__(0, "§"),
        lambda state: state.__setitem__("numbers", np.array([-1, 0, 0])),
        lambda state: state.__setitem__("shown", np.zeros((3, 5), np.float32)),
    ],
)
def test_a_state_of_something_else_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    walk = make("walks:Walk", {}, 3)
    walk.reset(np.arange(3))
    play(walk, actions_of(walk, 3))
    state = walk.state()
    change(state)
    with pytest.raises(BadEnvironment, match=r"walks:Walk: the open episodes of the checkpoint do not fit 3 columns"):
        walk.load(state)


def test_moves_that_are_no_actions_are_not_played() -> None:
    walk = make("walks:Walk", {}, 1)
    assert isinstance(walk, Gym)
    walk.reset(np.arange(1))
    play(walk, actions_of(walk, 1))
    state = {**walk.state(), "moves": ["/w8="]}  # 255, 15
    assert walk.load(state).lost.tolist() == ["ValueError: an action is none of this environment"]
