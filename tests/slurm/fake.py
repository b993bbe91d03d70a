"""SLURM's commands as stubs that note how they were called; conftest.py puts them on PATH."""

from __future__ import annotations

from pathlib import Path

COMMANDS = {"sbatch": "12", "squeue": "", "sacct": "", "scancel": "", "scontrol": "", "srun": "pmi2"}


def answer(folder: Path, name: str, text: str, code: int = 0) -> None:
    """From now on ``name`` prints this and ends with this code."""
    file = folder / name
    file.write_text(f"#!/bin/sh\necho \"{name} $*\" >> {folder}/calls\ncat <<'E'\n{text}\nE\nexit {code}\n")
    file.chmod(0o755)


def program(folder: Path, name: str, shell: str) -> None:
    """From now on ``name`` is these lines of shell."""
    (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{shell}\n')
    (folder / name).chmod(0o755)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
