"""check_environment: each careless environment gets its sentence before a run, and sound ones get none.

Mutations seen to fail: the second copy left out; the shared generators not looked at; contains() not asked; the slow
reset counted among the moves.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpc_rl.testing import check_environment

MODULE = """
import random, time
import gymnasium, numpy as np
from gymnasium.spaces import Box, Discrete


class Walk(gymnasium.Env):
    '''A sound environment; each careless one below changes one thing.'''

    observation_space, action_space = Box(-100, 100, (2,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 7
        return self.show(), {}

    def show(self):
        return self.np_random.random(2, np.float32)

    def step(self, action):
        self.left -= 1
        return self.show(), 1.0, self.left == 0, False, {}


class Fresh(Walk):
    def show(self):
        return np.random.default_rng().random(2, np.float32)


class FreshReward(Walk):
    def step(self, action):
        return *super().step(action)[:1], np.random.default_rng().random(), False, False, {}


class Shared(Walk):
    def show(self):
        return np.random.random(2).astype(np.float32)


class SharedOnce(Walk):
    def __init__(self):
        self.maze = random.random()


class Slow(Walk):
    def reset(self, *, seed=None, options=None):
        time.sleep(0.15)
        return super().reset(seed=seed)


class Double(Walk):
    def show(self):
        return self.np_random.random(2)


class Outside(Walk):
    def show(self):
        return np.array([0, 300 if self.left == 3 else 0], np.float32)


class Infinite(Walk):
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def step(self, action):
        return np.array([np.nan, 0], np.float32), 1.0, False, False, {}


class FourTuple(Walk):
    def step(self, action):
        return self.show(), 1.0, False, {}


class NoSeed(Walk):
    def reset(self):
        return self.show(), {}


class Broken(Walk):
    def step(self, action):
        raise RuntimeError("of its own")


def with_size(size=3):
    assert size == 4
    return Walk()
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_envs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_envs", raising=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Fresh", "two copies reset with seed 1 differ in the first observation; draw from self.np_random"),
        ("FreshReward", "differ in the reward of move 1;"),
        ("Shared", "draws from numpy.random or random"),
        ("SharedOnce", "draws from numpy.random or random"),
        ("Slow", "a reset takes 0."),
        (
            "Double",
            "observation_space Box(-100.0, 100.0, (2,), float32) does not contain what reset() returned: an array",
        ),
        ("Outside", "does not contain what step() returned: an array of shape (2,) and dtype float32 from 0 to 300"),
        ("FourTuple", "step() returned 4 values"),
        ("NoSeed", "reset() of NoSeed takes no seed"),
        ("Missing", "has no function 'Missing'"),
    ],
)
def test_a_careless_environment_gets_its_sentence(name: str, words: str) -> None:
    (sentence,) = check_environment(f"their_envs:{name}", moves=20)
    assert sentence.startswith(f"their_envs:{name}: ") and words in sentence and "\n" not in sentence


def test_several_faults_are_all_named() -> None:
    infinite, outside = check_environment("their_envs:Infinite", moves=20)
    assert "step() of move 1 returned a number that is not finite in the observation" in infinite
    assert "does not contain what step() returned: an array of shape (2,) and dtype float32 from nan to nan" in outside


@pytest.mark.parametrize(
    "id", ["their_envs:Walk", "CartPole-v1", "Pendulum-v1", "Taxi-v4", "toy/catch", "toy/counter", "ALE/Pong-v5"]
)
def test_a_sound_environment_gets_none(id: str) -> None:
    random.seed(1)
    expected, before = random.Random(1).random(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert check_environment(id, moves=60) == []
    assert random.random() == expected and np.random.get_state()[1].tolist() == before  # type: ignore[index]


def test_arguments_are_those_of_the_job() -> None:
    assert check_environment("their_envs:with_size", {"size": 4}) == []
    (sentence,) = check_environment("their_envs:with_size", {"sizes": 4})
    assert "takes no argument 'sizes'; it takes size" in sentence


def test_what_it_raises_by_itself_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="of its own"):
        check_environment("their_envs:Broken")


def test_it_needs_no_torch() -> None:
    code = "import sys, hpc_rl.testing as t; t.check_environment('toy/chain'); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"
