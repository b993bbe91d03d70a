"""What the launchers share: how a rank is started, and what a launcher answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

END_VARIABLE = "HPC_RL_END_S"  # unix time at which the allocation ends; set, perhaps empty, by the batch script
TOKEN_VARIABLE = "HPC_RL_TOKEN"  # marks every process of one attempt, and its files in node-shared memory


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: the process's exit code, and one sentence."""

    code: int
    sentence: str


def rank_command(folder: Path, ranks: int) -> list[str]:
    """The command of one rank."""
    return [sys.executable, "-m", "hpc_rl.rank", str(folder), str(ranks)]
