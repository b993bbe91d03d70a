"""The counter as a witness: no step of any topology is lost, doubled, reordered or recorded in the wrong column.

The k-th move of a column pays k, so a column's recorded rewards must be 1, 2, 3, … whatever carried them.

Mutations seen to fail: ``start`` off by one; invalid moves counted as env steps; a fragment tallied twice or not
recorded; streams keyed by the place in the rank instead of the column.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.methods import config_class
from hpc_rl.storage import checkpoint
from hpc_rl.storage.segments import describe, read, segments
from hpc_rl.types import Tree
from tests.contract.batches import NAMES, environment_of, quick, sampled, ways
from tests.contract.seats import left_over, run_job

RANKS = {"solo": 1, "allreduce": 2}  # any other topology: 3
COLUMNS = 4
WAYS = ways()


def table_of(name: str, topology: str, ranks: int, env_steps: int = 600, **method: Any) -> dict[str, Any]:
    return {
        "algorithm": name,
        "topology": topology,
        "environment": {"id": environment_of(name, "toy/counter"), "columns": COLUMNS},
        "budget": {"env_steps": env_steps},
        "resources": {"ranks": ranks, "threads": 1},
        "output": {"record": 1.0, "compression": "none", "segment_s": 1e-6},
        name: {"unroll": 12, **quick(config_class(name).__dataclass_fields__), **method},
    }


def column_of(run: Path, column: int) -> Tree:
    """One column's rows over all its segments: reward, valid, and the counter's observation before each move.

    Asserts that the segments follow each other without a gap, in steps and in observations.
    """
    parts: dict[str, list[np.ndarray]] = {"reward": [], "valid": [], "observation": [], "action": []}
    step, edge = 0, None
    for path in segments(run):
        segment = describe(path)
        if column not in segment.columns:
            continue
        at = segment.columns.tolist().index(column)
        assert segment.start[at] == step, f"{path} starts at {segment.start[at]}, not {step}"
        first, observation = read(path, "first")[:, at], read(path, "observation")[:, at]
        assert edge is None or np.array_equal(edge, observation[0]), f"{path} opens with another observation"
        valid = ~first[1:]
        step, edge = step + int(valid.sum()), observation[-1]
        assert segment.stop[at] == step
        rows = {"reward": read(path, "reward")[:, at], "valid": valid, "observation": observation[:-1]}
        for name, x in (rows | {"action": read(path, "action")[:, at]}).items():
            parts[name].append(x)
    return {name: np.concatenate(x) for name, x in parts.items()}


def check_column(rows: Tree) -> int:
    """Every move is there, once, in order; returns how many."""
    valid, moves = rows["valid"], int(rows["valid"].sum())
    assert rows["reward"][valid].tolist() == list(range(1, moves + 1))
    assert (rows["reward"][~valid] == 0).all()
    episode, step, total = rows["observation"].reshape(len(valid), -1)[:, :3].T
    assert np.array_equal(total, np.cumsum(valid) - valid), "an observation is not the one before its move"
    opens = np.flatnonzero(step == 0)
    assert episode[opens].tolist() == list(range(len(opens))), "an episode is missing"
    return moves


def test_the_plain_sampler_alone() -> None:
    _, batches = sampled(NAMES[0], "toy/counter", 5, steps=7)
    starts = np.zeros(4, np.int64)
    rewards: list[list[float]] = [[] for _ in range(4)]
    for k, batch in enumerate(batches):
        assert np.array_equal(batch.start.numpy(), starts) and (batch.version == k).all()
        starts += batch.valid.sum(0).numpy()
        for j in range(4):
            rewards[j] += batch.reward[:, j][batch.valid[:, j]].tolist()
        if k:
            assert torch.equal(batch.observation[0], batches[k - 1].observation[-1])
    assert all(rewards_of_column == list(range(1, len(rewards_of_column) + 1)) for rewards_of_column in rewards)


@pytest.mark.parametrize(("name", "topology"), WAYS)
def test_no_step_is_lost_doubled_or_reordered(name: str, topology: str, tmp_path: Path) -> None:
    job_run = run_job(table_of(name, topology, RANKS.get(topology, 3)), tmp_path / "run")
    moves = {column: check_column(column_of(job_run.run.path, column)) for column in range(COLUMNS)}
    assert len(segments(job_run.run.path)) > len(job_run.plan.ranks), "nothing was rolled"
    summary = json.loads(job_run.run.summary_file.read_text())
    _, meta = checkpoint.load(sorted(job_run.run.checkpoints.glob("0*.h5"))[-1])
    through = {int(column): step for column, step in meta["steps"].items()}
    assert summary["env_steps"] == meta["env_steps"] == sum(through.values()) >= 600
    if topology in RANKS:
        assert through == moves
    else:  # fragments that were on their way at the end are recorded and not learned from
        assert all(0 < through[column] <= moves[column] for column in moves)
    assert summary["reason"].startswith("done")


def test_everything_is_cleaned_up(tmp_path: Path) -> None:
    for name, topology in WAYS:
        if topology not in RANKS:
            ranks = 3 if topology == "actor_replay_learner" else 2
            job_run = run_job(table_of(name, topology, ranks, env_steps=100), tmp_path / f"{name}-{topology}")
            assert left_over(job_run) == []
