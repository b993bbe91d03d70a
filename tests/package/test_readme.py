"""README's ten-line reader and its user environment work as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_rl.envs.make import describe

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(first_line: str) -> str:
    """The code block that begins with this text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if code.startswith(first_line)]
    return found


def test_ten_lines_read_an_episode_back(tmp_path: Path) -> None:
    tool = Path(sys.executable).parent / "hpc-rl"
    out = tmp_path / "run"
    small = ["--set", "budget.env_steps=2000", "--set", "environment.columns=4", "--set", "ppo.hidden=[8]"]
    catch = ["--set", "environment.id=toy/catch", "--set", "environment.arguments={pixels=true, stack=4}"]
    subprocess.run([tool, "run", "ppo_cartpole", *small, *catch, "--out", out], check=True, timeout=120)
    (segment,) = out.glob("trajectories/*/segment-000000.h5")
    code = block("import sys, h5py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    said = subprocess.run(
        [sys.executable, "-c", code, segment], capture_output=True, text=True, timeout=60, check=False
    )
    assert said.returncode == 0, said.stderr
    # a game of catch with ten rows lasts nine moves and is seen in ten frames
    assert re.search(r"return -?1\.0 moves 9 frames \(10, \d+, \d+\)", said.stdout), said.stdout
    assert said.stdout.rstrip().endswith("discount 0.0")


def test_user_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "my_module.py").write_text(block("# my_pkg/my_module.py"))
    sys.path.insert(0, str(tmp_path))
    try:
        assert describe("my_pkg.my_module:make", {"size": 3}).frame == (4,)
        exec(block("from hpc_rl.testing"))
        assert capsys.readouterr().out == "[]\n"
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("my_pkg.my_module", None)
        sys.modules.pop("my_pkg", None)
