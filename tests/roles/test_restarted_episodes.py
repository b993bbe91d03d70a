"""On `solo` and `allreduce` a resumed run equals the run that was never interrupted, also in Gymnasium's environments.

PPO on two ranks draws its seed from torch's generator, which threads share: tests/run/test_restart.py has that pair.

Mutations seen to fail: the carry or the return of an open episode not taken up; other seeds after a restart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl.storage import checkpoint
from tests.contract.seats import run_job

METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"unroll": 8, "epochs": 2, "minibatches": 2, "hidden": [8], "anneal": False, "normalize_observation": True},
    "a2c": {"unroll": 5, "hidden": [8], "lstm": 4, "anneal": False, "normalize_reward": True},
}


def trained(table: dict[str, Any], folder: Path, env_steps: int, resume: Any = None) -> Any:
    """(state, meta) of the last checkpoint."""
    ran = run_job({**table, "budget": {"env_steps": env_steps}}, folder, resume=resume)
    saved = checkpoint.newest(ran.run, pytest.fail)
    assert saved is not None
    return saved[1:]


def leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Key -> number, text or bytes."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for name, item in items for path, leaf in leaves(item, f"{key}/{name}").items()}
    return {key: (value.dtype, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value}


@pytest.mark.parametrize(
    ("method", "topology", "environment"),
    [
        (method, topology, environment)
        for method, topology in (("ppo", "solo"), ("a2c", "solo"), ("a2c", "allreduce"))
        for environment in ("CartPole-v1", "Pendulum-v1")
    ],
)
def test_two_halves_equal_the_whole(method: str, topology: str, environment: str, tmp_path: Path) -> None:
    table = {
        "algorithm": method,
        "topology": topology,
        method: METHODS[method],
        "environment": {"id": environment, "columns": 4},
        "resources": {"ranks": 2 if topology == "allreduce" else 1, "threads": 1, "precision": "fp32", "device": "cpu"},
    }
    first = trained(table, tmp_path / "first", 300)
    whole, about = trained(table, tmp_path / "whole", 700)
    resumed, again = trained(table, tmp_path / "resumed", 700, first)
    mine, other = leaves(resumed), leaves(whole)
    assert mine.keys() == other.keys()
    assert [key for key in mine if mine[key] != other[key]] == []
    for name in ("env_steps", "updates", "episodes", "recent", "steps"):
        assert again[name] == about[name], name
    assert any(first[0]["sampler"]["environment"]["moves"]) and first[1]["env_steps"] < 350
