"""The ten-line reader of docs/run-directory.md reads segments of every kind, and keeps the moves that count."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.run.starting import run_to_end

PAGE = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text()


def block(first_line: str) -> str:
    """The code block that begins with this text."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if code.startswith(first_line)]
    return found


def test_ten_lines_read_an_episode_back(tmp_path: Path) -> None:
    tool = Path(sys.executable).parent / "hpc-rl"
    out = tmp_path / "run"
    small = ["--set", "budget.env_steps=2000", "--set", "environment.columns=4", "--set", "ppo.hidden=[8]"]
    catch = ["--set", "environment.id=toy/catch", "--set", "environment.arguments={pixels=true, stack=4}"]
    run_to_end([tool, "run", "ppo_cartpole", *small, *catch, "--out", out], 120, check=True, capture_output=False)
    (segment,) = out.glob("trajectories/*/segment-000000.h5")
    code = block("# read_back.py")
    assert len([line for line in code.splitlines() if line.strip()]) <= 13
    output = read_back(segment)
    # a game of catch with ten rows lasts nine moves and is seen in ten frames
    assert re.search(r"return -?1\.0 moves 9 frames \(10, \d+, \d+\)", output), output
    assert output.rstrip().endswith("discount 0.0")
    names: dict[str, Any] = {}
    exec(block("from pathlib import Path").replace("runs/ppo_cartpole", str(out)), names)
    (valid,) = names["counts"]
    assert [own.path for own in names["recorded"]] == [segment]
    assert valid.shape[1] == 4 and valid.any() and not valid.all()


def read_back(segment: Path) -> str:
    """What the ten lines print of a segment."""
    code = [sys.executable, "-c", block("# read_back.py"), segment]
    process = subprocess.run(code, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("ends", "firsts", "sentence"),
    [
        ({}, [], "0 whole games"),
        ({(3, 1): 5.0}, [(0, 1)], "return 5.0 moves 4 frames (5, 2)"),  # none ended in column 0
        ({(2, 0): 7.0, (5, 0): 8.0}, [(3, 0)], "return 8.0 moves 3 frames (4, 2)"),  # one began in another segment
        ({(2, 0): 7.0}, [], "0 whole games"),
    ],
)
def test_segments_without_a_whole_game_in_column_0_are_read(
    ends: dict[tuple[int, int], float], firsts: list[tuple[int, int]], sentence: str, tmp_path: Path
) -> None:
    rows, columns = 6, 2
    leaves = {
        "episode_return": np.full((rows, columns), np.nan, np.float32),
        "first": np.zeros((rows + 1, columns), bool),
        "observation": np.zeros((rows + 1, columns, 2), np.float32),
        "action": np.zeros((rows, columns), np.int64),
        "reward": np.zeros((rows, columns), np.float32),
        "discount": np.ones((rows, columns), np.float32),
    }
    for place, total in ends.items():
        leaves["episode_return"][place] = total
    for place in firsts:
        leaves["first"][place] = True
    with h5py.File(tmp_path / "segment.h5", "w") as file:
        for name, x in leaves.items():
            file[name] = x
    assert sentence in read_back(tmp_path / "segment.h5")
