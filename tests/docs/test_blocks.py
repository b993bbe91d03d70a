"""Every code block of README and docs/ works as printed: in order, in a temporary folder of its page.

A block whose first line is a comment with a path is written to that file; a Python block is a program of its own; a
shell block is run line by line. `hpc-rl run` gets a small budget where it names none. What is marked ``no-run`` is read
only: it installs, takes long or needs a cluster. A failure names page and line.

Mutations seen to fail: a wrong attribute in a Python block; a command that fails; a TOML file with an unknown key.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Block, commands, page
from tests.run.starting import run_to_end

BUDGET = 1500  # env steps of a run that names none, times the runs of its page so far: a resumed one goes on
LIMIT_S = 150.0  # of one program or command
SHELL = ("bash", "sh")


def environment(folder: Path) -> dict[str, str]:
    """This Python's programs first; the package that lies in the folder, if one does, before the installed one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def write(block: Block, folder: Path) -> None:
    """The block as the file that it names; one of the package goes into a copy of it, its other files around it."""
    file = folder / block.file
    if block.file.startswith("hpc_rl/") and not (folder / "hpc_rl").exists():
        for name in ("hpc_rl", "jobs", "slurm", "analysis"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.code)


def python(name: str, block: Block, folder: Path) -> None:
    """Run a program; its lines are numbered as those of the page, also in a traceback."""
    if not block.runs:
        ast.parse(block.code)
        return
    file = folder / f"{Path(name).stem}-{block.line}.py"
    file.write_text("\n" * block.line + block.code)
    finish(f"{name}:{block.line}", [sys.executable, file], folder)


def shell(name: str, block: Block, folder: Path, runs: int) -> int:
    """Run each command of a block; how many runs there have been on this page."""
    for line, text in commands(block) if block.runs else []:
        command = text
        if text.startswith("hpc-rl run"):
            runs += 1
            if "budget." not in text:
                command += f" --set budget.env_steps={BUDGET * runs}"
        finish(f"{name}:{line}: {text}", ["bash", "-c", re.sub(r"^python\b", sys.executable, command)], folder)
    return runs


def finish(where: str, command: list[object], folder: Path) -> None:
    done = run_to_end(command, LIMIT_S, environment(folder), cwd=folder)
    assert done.returncode == 0, f"{where} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("name", PAGES)
def test_blocks_work_as_printed(name: str, tmp_path: Path) -> None:
    runs = 0
    for block in page(name).blocks:
        if block.file and block.runs:
            write(block, tmp_path)
        elif block.language == "python":
            python(name, block, tmp_path)
        elif block.language in SHELL:
            runs = shell(name, block, tmp_path, runs)
