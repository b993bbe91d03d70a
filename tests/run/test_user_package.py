"""A user's own package, installed by pip and never imported by ours, trained by name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.contract.seats import run_job
from tests.run.program import hpc_rl, summary, write_job

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "light-switch"
version = "0.1"
"""
MODULE = '''
import gymnasium
import numpy as np


class Switch(gymnasium.Env):
    """Press the button that is lit; 1 point each time, ten presses a game."""

    def __init__(self, buttons):
        self.observation_space = gymnasium.spaces.Discrete(buttons)
        self.action_space = gymnasium.spaces.Discrete(buttons, start=1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.presses = 0
        return self.light(), {}

    def light(self):
        self.lit = int(self.np_random.integers(self.observation_space.n))
        return self.lit

    def step(self, action):
        self.presses += 1
        reward = float(action == self.lit + 1)
        return self.light(), reward, False, self.presses == 10, {}


def make(buttons=3):
    return Switch(buttons)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package, as an environment's site-packages would hold it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "light_switch").mkdir()
    (source / "light_switch" / "__init__.py").write_text("")
    (source / "light_switch" / "games.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True, timeout=120)
    return target


@pytest.mark.parametrize(("method", "ranks"), [("impala", 2), ("ppo", 2)])
def test_a_users_environment_is_trained(method: str, ranks: int, site: Path, tmp_path: Path) -> None:
    environment = {"environment": "light_switch.games:make", "arguments": "{ buttons = 4 }"}
    job = write_job(tmp_path, method, ranks, env_steps=2000, **environment)
    result = hpc_rl("run", job, "--out", tmp_path / "run", PYTHONPATH=str(site))
    assert result.code == 0, result.err
    figures = summary(tmp_path / "run")
    assert figures["env_steps"] >= 2000 and figures["episodes"] >= 190 and 0 < figures["mean_return_100"] <= 10


def test_a_wrong_argument_names_the_right_ones(site: Path, tmp_path: Path) -> None:
    changes = {"environment": "light_switch.games:make", "arguments": "{ button = 4 }"}
    result = hpc_rl("run", write_job(tmp_path, "ppo", 1, **changes), "--out", tmp_path / "run", PYTHONPATH=str(site))
    assert result.code == 2 and "takes no argument 'button'; it takes buttons" in result.err


DICE = """
import random
import gymnasium, numpy as np


class make(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.show(), {}

    def show(self):
        return np.array([random.random(), np.random.random()], np.float32)

    def step(self, action):
        return self.show(), np.random.normal(), random.random() < 0.1, False, {}
"""


def test_a_run_repeats_where_an_environment_draws_from_shared_generators(tmp_path: Path) -> None:
    """With evaluations between the updates, and from another folder than that of the job file."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "their_dice.py").write_text(DICE)
    job = write_job(tmp_path, "ppo", 1, env_steps=1500, environment="their_dice:make", topology="solo")
    runs = []
    for name in ("a", "b"):
        arguments = ("run", job, "--out", tmp_path / name, "--set", "evaluate.every_steps=400")
        result = hpc_rl(*arguments, cwd=tmp_path / "work")
        assert result.code == 0, result.err
        runs.append(summary(tmp_path / name))
    keys = ("env_steps", "episodes", "mean_return_100", "best_return")
    assert [runs[0].get(key) for key in keys] == [runs[1].get(key) for key in keys]
    assert runs[0]["mean_return_100"] != 0


SCALES = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Shown(gymnasium.Env):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.moves = 0
        return self.show(), {}

    def step(self, action):
        self.moves += 1
        reward = self.paid(action)
        return self.show(), reward, False, self.moves == 20, {}


class Valve(Shown):
    # opened to the point 0..1000 that is shown as 0..1; at random the return is -10
    observation_space, action_space = Box(0, 1, (1,)), Box(0, 1000, (1,))

    def show(self):
        self.point = self.np_random.random(1, np.float32)
        return self.point

    def paid(self, action):
        return -float(abs(action[0] / 1000 - self.point[0]))


class Goal(Shown):
    # the goal of -1 or 1 counts, the bytes beside it do not; at random the return is 10
    observation_space = Dict(bytes=Box(0, 255, (64,), np.uint8), goal=Box(-1, 1, (1,)))
    action_space = Discrete(2)

    def show(self):
        self.goal = int(self.np_random.integers(2))
        noise = self.np_random.integers(0, 256, 64).astype(np.uint8)
        return {"bytes": noise, "goal": np.array([2 * self.goal - 1], np.float32)}

    def paid(self, action):
        return float(action == self.goal)
"""
SCALES_JOB = """
algorithm = "ppo"
topology = "solo"
[environment]
id = "their_scales:NAME"
[ppo]
unroll = 64
epochs = 6
learning_rate = 1e-3
entropy_cost = 0.0
discount = 0.9
[budget]
env_steps = 25_000
stop_at_return = AT_LEAST
[resources]
threads = 1
"""


@pytest.mark.parametrize(("name", "at_least"), [("Valve", -5.0), ("Goal", 18.0)])
def test_what_lies_on_other_scales_is_learned(
    name: str, at_least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box of 0..1000 was explored with a sigma of 1, and bytes of 0..255 drowned the goal: both stayed at chance."""
    (tmp_path / "their_scales.py").write_text(SCALES)
    monkeypatch.syspath_prepend(tmp_path)
    table = tomllib.loads(SCALES_JOB.replace("NAME", name).replace("AT_LEAST", str(at_least)))
    run_job(table, tmp_path / "run")
    assert summary(tmp_path / "run")["mean_return_100"] >= at_least
