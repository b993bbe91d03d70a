"""A run of N and then N env steps ends with the bits of a run of 2N, its replay included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl.storage import checkpoint
from tests.contract.seats import Ran, run_job

DQN = {
    "unroll": 4,
    "n_step": 3,
    "capacity": 600,
    "min_size": 200,
    "batch_size": 8,
    "samples_per_insert": 2.0,
    "priority_exponent": 0.6,
}
R2D2 = {"burn_in": 2, "length": 4, "stride": 3, "n_step": 2, "lstm": 4, "hidden": [8]}
METHODS: dict[str, dict[str, Any]] = {  # nothing is annealed: the halves have another budget than the whole
    "dqn": {**DQN, "target_every": 7, "hidden": [16], "epsilon_final": 0.3, "epsilon_fraction": 0.0},
    "r2d2": {**DQN, **R2D2, "target_every": 7},
    "cem": {"unroll": 3},
}
HALF = 500


def table_of(name: str, ranks: int, env_steps: int) -> dict[str, Any]:
    return {
        "algorithm": name,
        "topology": "solo" if ranks == 1 else "allreduce",
        "environment": {"id": "toy/catch", "columns": 4},
        "budget": {"env_steps": env_steps},
        "resources": {"ranks": ranks, "threads": 1},
        name: METHODS[name],
    }


def last(job_run: Ran) -> tuple[Any, dict[str, Any]]:
    return checkpoint.load(sorted(job_run.run.checkpoints.glob("0*.h5"))[-1])


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
def test_two_halves_equal_the_whole_bitwise(name: str, ranks: int, tmp_path: Path) -> None:
    half = last(run_job(table_of(name, ranks, HALF), tmp_path / "half"))
    two, two_meta = last(run_job(table_of(name, ranks, 2 * HALF), tmp_path / "two", resume=half))
    one, one_meta = last(run_job(table_of(name, ranks, 2 * HALF), tmp_path / "one"))
    assert one_meta["env_steps"] == two_meta["env_steps"] >= 2 * HALF > half[1]["env_steps"] - 50
    assert one_meta["updates"] == two_meta["updates"] > half[1]["updates"] > 3
    assert any(key.startswith("state/stores") for key in differing(one, half[0]))
    assert differing(one, two) == []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_episodes_go_on_with_other_ranks_as_if_nothing_had_been(before: int, after: int, tmp_path: Path) -> None:
    """The cross-entropy method does not depend on how columns are dealt out, so neither may a restart."""
    half = last(run_job(table_of("cem", before, HALF), tmp_path / "half"))
    two, two_meta = last(run_job(table_of("cem", after, 2 * HALF), tmp_path / "two", resume=half))
    one, one_meta = last(run_job(table_of("cem", 1, 2 * HALF), tmp_path / "one"))
    assert two_meta["updates"] == one_meta["updates"] > half[1]["updates"] > 3
    assert torch.equal(one["weights"], two["weights"])


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_ring_goes_on_with_other_ranks(before: int, after: int, tmp_path: Path) -> None:
    """Nothing that was replayed is lost, and the limiter goes on: the run makes as many updates as any other."""
    half = last(run_job(table_of("dqn", before, HALF), tmp_path / "half"))
    state, meta = last(run_job(table_of("dqn", after, 2 * HALF), tmp_path / "two", resume=half))
    assert len(half[0]["stores"]) == before and len(state["stores"]) == after
    inserted = torch.cat([part["env_steps"] for part in state["stores"]])
    assert inserted.tolist() == list(meta["steps"].values()) and int(inserted.sum()) == meta["env_steps"]
    allowed = (meta["env_steps"] - DQN["min_size"]) * DQN["samples_per_insert"] / DQN["batch_size"]
    assert allowed - 2 <= meta["updates"] <= allowed
