"""Names: every mistake is answered by one sentence with the nearest valid name."""

import subprocess
import sys

import pytest

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import describe, describe_sets, make

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

REGISTRY = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Their(CartPoleEnv):
    def __init__(self, length=7):
        super().__init__()

gymnasium.register("Their-v0", "their_registry:Their", max_episode_steps=9)
"""


@pytest.fixture(autouse=True)
def _registry():
    import gymnasium

    yield
    gymnasium.registry.pop("Their-v0", None)


@pytest.mark.parametrize(
    ("id", "arguments", "words"),
    [
        ("ALE/Pongg-v5", {}, ["ALE/Pongg-v5", "ALE/Pong-v5"]),
        ("ALE/ms_pacman-v5", {}, ["ALE/MsPacman-v5"]),
        ("ALE/Pong-v4", {}, ["ALE/Pong-v5", "ALE/<Game>-v5"]),
        ("ALE/Pong-v5", {"frame_skip": 4}, ["'frame_skip'", "frameskip, full_action_space", "life_loss_ends"]),
        ("toy/count", {}, ["toy/counter"]),
        ("toy/qqqqqqqqqqqqqqqqqqqq", {}, ["there are toy/acrobot, toy/bitflip, toy/box_counter, toy/cartpole"]),
        ("toy/counter", {"length": 3}, ["'length'", "takes none"]),
        ("toy/chain", {"size": 3}, ["'size'", "length"]),
        ("toy/catch", {"stack": 4}, ["pixels = true"]),
        ("toy/catch", {"pixels": True, "stack": 0}, ["stack = 0", "from 1 to 32"]),
        ("toy/catch", {"rows": 1}, ["rows = 1", "from 2 to 1000"]),
        ("toy/catch", {"columns": 0}, ["columns = 0"]),
        ("toy/chain", {"length": 0}, ["length = 0"]),
        ("toy/latency", {"step_s": 0.0}, ["step_s = 0.0"]),
        ("toy/latency", {"end_probability": 2.0}, ["end_probability = 2.0", "from 0 to 1"]),
        ("toy/faulty", {"how": "die"}, ["'die'", "raise, kill, hang"]),
        ("Cartpole-v1", {}, ["CartPole-v1"]),
        ("CartPole", {}, ["CartPole-v1"]),
        ("counter", {}, ["toy/counter"]),
        ("CartPole-v1", {"gravity": 3}, ["'gravity'", "max_episode_steps", "sutton_barto_reward"]),
        ("ALE/Pong-v5", {"frameskip": 0}, ["ALE/Pong-v5", "frameskip"]),
        ("PongNoFrameskip-v4", {}, ['"ALE/Pong-v5"', "repeat_action_probability = 0.0", "frameskip = 4"]),
        ("Pong-v4", {}, ['"ALE/Pong-v5"', "repeat_action_probability = 0.0"]),
        ("MsPacmanDeterministic-v0", {}, ['write id = "ALE/MsPacman-v5"']),
        ("Breakout-ramNoFrameskip-v4", {}, ['"ALE/Breakout-v5"', "memory cannot be observed"]),
        ("no_such_package.module:make", {}, ["no module no_such_package", "start in the folder that holds it"]),
        ("their_registry:Thier-v0", {}, ["registers no such id"]),
        ("their_registry:Their-v0", {"long": 1}, ["takes no argument 'long'; it takes length, max_episode_steps"]),
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
    for name in ("their_task", "their_lacking", "their_registry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "their_task.py").write_text(MODULE)
    (tmp_path / "their_registry.py").write_text(REGISTRY)
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


def test_gymnasiums_own_form_with_a_module(tmp_path, monkeypatch):
    """The module is imported, which registers the id; the folder of the job file has no part in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "their_registry", raising=False)
    (tmp_path / "their_registry.py").write_text(REGISTRY)
    env = make("their_registry:Their-v0", {"length": 5}, 2)
    assert describe("their_registry:Their-v0", {}) == env.spec
    assert env.spec.frame == (4,)


def test_an_old_name_is_refused_whatever_was_imported():
    import ale_py  # noqa: F401  # registers it
    import gymnasium

    assert "PongNoFrameskip-v4" in gymnasium.registry
    with pytest.raises(BadEnvironment, match="ALE/Pong-v5"):
        describe("PongNoFrameskip-v4", {})
    assert describe("ale_py:PongNoFrameskip-v4", {}).dtype == "uint8"


def test_no_columns():
    with pytest.raises(BadEnvironment, match="0 columns"):
        make("toy/counter", {}, 0)


def test_importing_make_costs_neither_gymnasium_nor_torch():
    script = "import sys, hpc_rl.envs.make as m; m.describe('toy/chain', {}); print({*sys.modules} & {*sys.argv[1:]})"
    names = ["gymnasium", "ale_py", "torch"]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_sets_of_an_evaluation_must_suit_the_policy() -> None:
    """Mutation seen to fail: the sets described without the job's own arguments."""
    spec = describe("toy/catch", {"rows": 6})
    describe_sets("toy/catch", {"rows": 6}, [{}, {"rows": 6}], spec)
    with pytest.raises(BadEnvironment, match=r"evaluate.arguments\[1\] = .'rows': 4. changes the observation .*to "):
        describe_sets("toy/catch", {"rows": 6}, [{}, {"rows": 4}], spec)
    with pytest.raises(BadEnvironment, match="row"):
        describe_sets("toy/catch", {}, [{"row": 4}], spec)
