"""A user's own package, installed by pip and never imported by ours, trained by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from program import hpc_rl, summary, write_job

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
    done = hpc_rl("run", job, "--out", tmp_path / "run", PYTHONPATH=str(site))
    assert done.code == 0, done.err
    found = summary(tmp_path / "run")
    assert found["env_steps"] >= 2000 and found["episodes"] >= 190 and 0 < found["mean_return_100"] <= 10


def test_a_wrong_argument_names_the_right_ones(site: Path, tmp_path: Path) -> None:
    wrong = {"environment": "light_switch.games:make", "arguments": "{ button = 4 }"}
    done = hpc_rl("run", write_job(tmp_path, "ppo", 1, **wrong), "--out", tmp_path / "run", PYTHONPATH=str(site))
    assert done.code == 2 and "takes no argument 'button'; it takes buttons" in done.err


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
        done = hpc_rl(*arguments, cwd=tmp_path / "work")
        assert done.code == 0, done.err
        runs.append(summary(tmp_path / name))
    keys = ("env_steps", "episodes", "mean_return_100", "best_return")
    assert [runs[0].get(key) for key in keys] == [runs[1].get(key) for key in keys]
    assert runs[0]["mean_return_100"] != 0
