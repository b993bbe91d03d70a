"""What a job file may name is what is meant to make environments; everything else is never called.

Mutations seen to fail: `check_target` that accepts all; only the annotation looked at; Python's own modules imported;
the target of a partial or a decorated function not looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hpc_rl import cli
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import describe
from hpc_rl.envs.targets import notice

THEIRS = """
import functools, os, shutil
from os import system
from shutil import rmtree
import gymnasium

class Task(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def __init__(self, size=1): pass

class Duck: pass

def plain(size=1): return Task(size)
def declared(size=1) -> gymnasium.Env: return Task(size)
def quoted(size=1) -> "gymnasium.Env[int, int]": return Task(size)
def own(size=1) -> Task: return Task(size)
def other(size=1) -> str: open("CALLED", "w"); return "x"
def nothing(size=1) -> None: open("CALLED", "w")
part = functools.partial(plain, size=2)
@functools.lru_cache
def cached(): return Task()
remove = functools.partial(rmtree, "x")
"""
PLAIN = """
def lazy():
    import gymnasium
    return gymnasium.make("CartPole-v1")

def blind(path="CALLED"):
    open(path, "w")

def marked() -> "gymnasium.Env":
    from their_targets import Task
    return Task()
"""


@pytest.fixture(autouse=True)
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_targets.py").write_text(THEIRS)
    (tmp_path / "their_plain.py").write_text(PLAIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("their_targets", "their_plain"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


GOOD = ["their_targets:Task", "their_targets:plain", "their_targets:declared", "their_targets:quoted",
        "their_targets:own", "their_targets:part", "their_targets:cached", "their_plain:lazy",
        "their_plain:marked", "hpc_rl.envs.masked:make"]  # fmt: skip


@pytest.mark.parametrize("id", GOOD)
def test_environments_are_made(id: str) -> None:
    assert describe(id, {}).frame


PYTHONS = ["os:system", "subprocess:run", "shutil:rmtree", "builtins:exec", "sys:exit", "__main__:x", "os.path:exists",
           "antigravity:x", "importlib:import_module"]  # fmt: skip


@pytest.mark.parametrize("id", PYTHONS)
def test_python_itself_is_not_even_imported(id: str) -> None:
    before = set(sys.modules)
    with pytest.raises(BadEnvironment, match="belongs to Python and makes no environments"):
        describe(id, {"command": "touch CALLED"})
    assert "antigravity" not in set(sys.modules) - before


@pytest.mark.parametrize(
    ("id", "arguments"),
    [("numpy:savetxt", {"fname": "CALLED", "X": [1.0]}), ("their_targets:rmtree", {"path": "."}),
     ("their_targets:system", {"command": "touch CALLED"}), ("their_targets:remove", {}), ("their_targets:other", {}),
     ("their_targets:nothing", {}), ("their_targets:Duck", {}), ("their_plain:blind", {}),
     ("torch:save", {"obj": 1, "f": "CALLED"}), ("hpc_rl.storage.run_dir:write_text", {"path": "CALLED", "text": ""}),
     ("hpc_rl.launchers.shared_memory:clear", {}), ("gymnasium.envs.registration:register", {"id": "Called-v0"})],
)  # fmt: skip
def test_what_makes_no_environment_is_not_called(theirs: Path, id: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(BadEnvironment, match="it is not called; declare it"):
        describe(id, arguments)
    assert sorted(path.name for path in theirs.iterdir() if path.suffix != ".py") in ([], ["__pycache__"])


def test_what_is_imported_is_named_first(theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert notice("CartPole-v1") is None and notice("ALE/Pong-v5") is None and notice("hpc_rl.envs.masked:make") is None
    assert str(theirs / "their_plain.py") in (notice("their_plain:lazy") or "")
    assert "not found here" in (notice("no_such_package.x:make") or "") and "\x1b" not in (notice("\x1b:x") or "")
    assert "their_plain" not in sys.modules
    (theirs / "theirs.toml").write_text(
        'algorithm = "ppo"\ntopology = "solo"\n[environment]\nid = "their_plain:blind"\n'
    )
    for command in ("show", "run"):
        monkeypatch.setattr(sys, "argv", ["hpc-rl", command, "theirs.toml"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and "imports 'their_plain'" in said[0] and "is not called" in said[-1]
