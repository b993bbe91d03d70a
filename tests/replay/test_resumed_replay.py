"""A run that goes on from a checkpoint in its middle ends with the bits of the run that was never interrupted.

Mutations seen to fail: (filled in below)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from seats import Ran, run_job

from hpc_rl.storage import checkpoint

DQN = {"unroll": 4, "n_step": 3, "capacity": 600, "min_size": 200, "batch_size": 8, "samples_per_insert": 2.0}
METHODS: dict[str, dict[str, Any]] = {
    "dqn": {**DQN, "target_every": 7, "hidden": [16]},
    "cem": {"unroll": 3, "extra_std": 0.3},
}


def table_of(name: str, ranks: int) -> dict[str, Any]:
    return {
        "algorithm": name,
        "topology": "solo" if ranks == 1 else "allreduce",
        "environment": {"id": "toy/catch", "columns": 4},
        "budget": {"env_steps": 1500},
        "checkpoint": {"interval_s": 1e-6, "keep": 1000},
        "resources": {"ranks": ranks, "threads": 1},
        name: METHODS[name],
    }


def checkpoints(ran: Ran) -> list[Path]:
    return sorted(ran.run.checkpoints.glob("0*.h5"))


def differing(one: Any, other: Any, key: str = "state") -> list[str]:
    """Keys of nested states that are not the same bits."""
    if isinstance(one, dict):
        same = one.keys() == other.keys()
        return [x for name in one for x in differing(one[name], other[name], f"{key}/{name}")] if same else [key]
    if isinstance(one, list):
        same = len(one) == len(other)
        return [x for k, pair in enumerate(zip(one, other, strict=same)) for x in differing(*pair, f"{key}/{k}")]
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes() else [key]
    return [] if one == other else [key]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_the_uninterrupted_one(name: str, ranks: int, tmp_path: Path) -> None:
    table = table_of(name, ranks)
    whole = run_job(table, tmp_path / "whole")
    files = checkpoints(whole)
    resumed = run_job(table, tmp_path / "resumed", resume=checkpoint.load(files[len(files) // 2]))
    (one, one_meta), (other, other_meta) = (checkpoint.load(checkpoints(ran)[-1]) for ran in (whole, resumed))
    assert len(files) > 10 and files[len(files) // 2].name < files[-1].name == checkpoints(resumed)[-1].name
    assert one_meta["env_steps"] == other_meta["env_steps"] >= 1500
    assert differing(one, other) == []
    assert differing(one, checkpoint.load(files[len(files) // 2])[0]) != []
