"""Names: every mistake is answered by one sentence with the nearest valid name."""

import subprocess
import sys

import pytest

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import describe, make

MODULE = """
import gymnasium
from gymnasium.wrappers import Autoreset

def make_task(length=7):
    return gymnasium.make("CartPole-v1", max_episode_steps=length)

def make_anything(**arguments):
    return 3

def make_resetting():
    return Autoreset(gymnasium.make("CartPole-v1"))

def make_broken():
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("id", "arguments", "words"),
    [
        ("ALE/Pongg-v5", {}, ["ALE/Pongg-v5", "ALE/Pong-v5"]),
        ("ALE/ms_pacman-v5", {}, ["ALE/MsPacman-v5"]),
        ("ALE/Pong-v4", {}, ["ALE/Pong-v5", "ALE/<Game>-v5"]),
        ("ALE/Pong-v5", {"frame_skip": 4}, ["'frame_skip'", "frameskip, full_action_space", "life_loss_ends"]),
        ("toy/count", {}, ["toy/counter"]),
        ("toy/zzzzzz", {}, ["toy/catch", "toy/chain"]),
        ("toy/counter", {"length": 3}, ["'length'", "takes none"]),
        ("toy/chain", {"size": 3}, ["'size'", "length"]),
        ("toy/catch", {"stack": 4}, ["pixels = true"]),
        ("toy/faulty", {"how": "die"}, ["'die'", "raise, kill, hang"]),
        ("Cartpole-v1", {}, ["CartPole-v1"]),
        ("CartPole", {}, ["CartPole-v1"]),
        ("counter", {}, ["toy/counter"]),
        ("CartPole-v1", {"gravity": 3}, ["'gravity'", "max_episode_steps", "sutton_barto_reward"]),
        ("ALE/Pong-v5", {"frameskip": 0}, ["ALE/Pong-v5", "frameskip"]),
        ("no_such_package.module:make", {}, ["no module no_such_package"]),
        ("their_task:make_tusk", {}, ["'make_tusk'", "make_task"]),
        ("their_task:make_task", {"size": 1}, ["'size'", "length"]),
        ("their_task:make_anything", {"size": 1}, ["int", "gymnasium.Env"]),
        ("their_task:make_resetting", {}, ["Autoreset"]),
        ("their_task:make_broken", {}, ["their_task:make_broken", "division by zero"]),
        ("their_lacking:make", {}, ["their_lacking:make", "no_such_thing"]),
    ],
)
def test_mistakes(id, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("their_task", "their_lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "their_task.py").write_text(MODULE)
    (tmp_path / "their_lacking.py").write_text("import no_such_thing\n")
    with pytest.raises(BadEnvironment) as caught:
        make(id, arguments, 1)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_module_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "their_task", raising=False)
    (tmp_path / "their_task.py").write_text(MODULE)
    assert describe("their_task:make_task", {"length": 5}) == make("their_task:make_task", {"length": 5}, 2).spec


def test_no_columns():
    with pytest.raises(BadEnvironment, match="0 columns"):
        make("toy/counter", {}, 0)


def test_importing_make_costs_neither_gymnasium_nor_torch():
    script = "import sys, hpc_rl.envs.make as m; m.describe('toy/chain', {}); print({*sys.modules} & {*sys.argv[1:]})"
    names = ["gymnasium", "ale_py", "torch"]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
