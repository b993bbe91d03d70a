"""An infinite reward in flight costs no checkpoint, whatever of it a sampler or a replay queue holds.

Mutation seen to fail: a sampler's state that must be finite (with the rewards that lanes clean left as they came).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.envs.base import TimeSteps
from hpc_rl.storage import checkpoint
from tests.contract import seats
from tests.contract.test_witness import table_of


class Overflowing:
    """Columns of an environment, of which the first is paid infinity at every third move."""

    def __init__(self, environment: Any) -> None:
        self.environment, self.moves = environment, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.environment, name)

    def recv(self) -> TimeSteps:
        moves: TimeSteps = self.environment.recv()
        self.moves += 1
        if self.moves % 3 == 0:
            moves.reward[0] = np.inf
        return moves


@pytest.mark.parametrize(
    ("name", "topology", "ranks", "method"),
    [
        ("ppo", "solo", 1, {}),
        ("ppo", "allreduce", 2, {"normalize_reward": True}),
        ("impala", "actor_learner", 2, {"replay": 0.5}),
        ("impala", "solo", 1, {"replay": 0.5, "lstm": 4}),
    ],
)
def test_the_last_checkpoint_is_written(
    name: str, topology: str, ranks: int, method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = seats.make
    monkeypatch.setattr(seats, "make", lambda *arguments, **more: Overflowing(make(*arguments, **more)))
    job_run = seats.run_job(table_of(name, topology, ranks, **method), tmp_path / "run")
    assert json.loads(job_run.run.summary_file.read_text())["reason"].startswith("done")
    newest = checkpoint.newest(job_run.run, pytest.fail)
    assert newest is not None and newest[2]["env_steps"] >= 600
    assert torch.isfinite(newest[1]["weights"]).all()
