"""Runs whose columns are tensors: counted and recorded whole, resumed bitwise, on one rank, on two, on a GPU.

Mutations seen to fail: a state without the keys; a Step without the state of the Rules; the share that is recorded left
at 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.preflight import check
from hpc_rl.storage import segments
from tests.contract.seats import newest, run_job
from tests.replay.test_resumed_replay import differing, last

HALF = 400
A2C = {"unroll": 7, "hidden": [8], "anneal": False}
"""Draws nothing from torch's generator, which ranks that are threads share."""
PPO = {"unroll": 7, "hidden": [8], "minibatches": 2, "epochs": 2, "anneal": False}
ALPHAZERO = {
    "unroll": 4, "simulations": 6, "temperature_moves": 3, "capacity": 400, "min_size": 100,
    "batch_size": 16, "samples_per_insert": 2.0, "blocks": 0, "hidden": [8],
}  # fmt: skip


def table_of(env_steps: int, ranks: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "algorithm": "a2c",
        "topology": "solo" if ranks == 1 else "allreduce",
        "sampler": "device",
        "environment": {"id": "toy/cartpole", "arguments": {"limit": 30}, "columns": 8},
        "budget": {"env_steps": env_steps},
        "resources": {"ranks": ranks, "threads": 1, "precision": "fp32"},
        "a2c": A2C,
        **changes,
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_halves_equal_the_whole_bitwise(ranks: int, tmp_path: Path) -> None:
    begun = run_job(table_of(HALF, ranks), tmp_path / "half")
    two, two_meta = last(run_job(table_of(2 * HALF, ranks), tmp_path / "two", resume=begun))
    one, one_meta = last(run_job(table_of(2 * HALF, ranks), tmp_path / "one"))
    assert one_meta["env_steps"] == two_meta["env_steps"] >= 2 * HALF > last(begun)[1]["env_steps"]
    assert one_meta["episodes"] == two_meta["episodes"] > 10
    assert differing(one, two) == []


def test_a_state_goes_on_with_other_ranks(tmp_path: Path) -> None:
    """Random hashes do not know the rank: by weights that never learn, four ranks go on as one would have."""
    still = {"a2c": {**A2C, "learning_rate": 1e-30}}
    begun = run_job(table_of(HALF, 1, **still), tmp_path / "half")
    four, _ = last(run_job(table_of(2 * HALF, 4, **still), tmp_path / "four", resume=begun))
    one, _ = last(run_job(table_of(2 * HALF, 1, **still), tmp_path / "one"))
    assert differing(one["sampler"]["environment"]["memory"], four["sampler"]["environment"]["memory"]) == []
    assert differing(one["sampler"]["rows"], four["sampler"]["rows"]) == []


@pytest.mark.parametrize(
    ("algorithm", "topology", "ranks", "id", "method"),
    [
        ("ppo", "solo", 1, "toy/counter", {**PPO, "lstm": 4}),
        ("a2c", "allreduce", 2, "toy/counter", A2C),
        ("impala", "actor_learner", 3, "toy/counter", {"unroll": 7, "hidden": [8]}),
        ("dqn", "solo", 1, "toy/counter", {"unroll": 4, "capacity": 400, "min_size": 100, "batch_size": 8}),
        (
            "sac",
            "solo",
            1,
            "toy/box_counter",
            {"unroll": 4, "capacity": 400, "min_size": 100, "batch_size": 8, "hidden": [8]},
        ),
        ("alphazero", "solo", 1, "toy/tictactoe", ALPHAZERO),
    ],
)
def test_every_step_is_counted_and_recorded(
    algorithm: str, topology: str, ranks: int, id: str, method: dict[str, Any], tmp_path: Path
) -> None:
    """As by the other samplers, whose witness the counter is: the k-th move of a column pays k."""
    table = table_of(HALF, ranks, algorithm=algorithm, topology=topology, output={"record": 1.0})
    table["environment"] = {"id": id, "columns": 4}
    del table["a2c"]
    job_run = run_job({**table, algorithm: method}, tmp_path / "run")
    _, meta = newest(job_run)
    parts = [segments.describe(path) for path in segments.segments(job_run.run.path)]
    for column in range(4):
        rewards = [
            segments.read(x.path, "reward")[:, at][~segments.read(x.path, "first")[1:, at]]
            for x in parts
            for at in np.flatnonzero(x.columns == column)
        ]
        played = np.concatenate(rewards)
        counted = meta["steps"][str(column)]
        assert len(played) >= counted > 50 and (len(played) == counted or topology == "actor_learner")
        assert "counter" not in id or (played == np.arange(1, len(played) + 1)).all()


def test_on_a_gpu_it_is_the_same_run(tmp_path: Path) -> None:
    states = [last(run_job(table_of(HALF, 2), tmp_path / str(gpu), gpu))[0] for gpu in (False, True)]
    assert differing(*states) == []


def test_nothing_is_recorded_unless_it_is_asked_for() -> None:
    assert jobs.parse(table_of(HALF)).output.record == 0.0
    assert jobs.parse(table_of(HALF, output={"record": 0.5})).output.record == 0.5
    assert jobs.parse(table_of(HALF, sampler="vector")).output.record == 1.0


def test_processes_do_not_go_with_it() -> None:
    table = table_of(HALF, environment={"id": "toy/cartpole", "columns": 4, "processes": 2})
    with pytest.raises(BadJob, match=r'processes = 2 does not go with sampler = "device"'):
        jobs.parse(table)


def test_it_is_refused_before_any_rank_starts() -> None:
    from hpc_rl.envs.base import BadEnvironment

    job = jobs.parse(table_of(HALF, environment={"id": "CartPole-v1", "columns": 8}))
    with pytest.raises(BadEnvironment, match="CartPole-v1 is not made of Rules"):
        check(job, jobs.plan(job))


def test_what_compiles_nothing_is_refused() -> None:
    with pytest.raises(BadJob, match=r'resources\.compile = True has no effect here: it applies to sampler = "device"'):
        jobs.parse(table_of(HALF, sampler="vector", resources={"ranks": 1, "compile": True}))
