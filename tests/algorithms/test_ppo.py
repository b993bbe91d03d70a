"""PPO's own arithmetic. Mutations seen to fail: one permutation of time for all columns; one over time and columns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.algorithms.base import Alone
from hpc_rl.algorithms.ppo import Config, Learner


def shares(steps: int, columns: int, ranks: int, minibatches: int) -> list[list[np.ndarray]]:
    """For each rank its part of each minibatch, as global indices time × columns + column."""
    found = []
    width = columns // ranks
    for rank in range(ranks):
        group = SimpleNamespace(rank=rank, size=ranks)
        learner = cast(Learner, SimpleNamespace(config=Config(minibatches=minibatches), group=group))
        first = torch.arange(rank * width, (rank + 1) * width)
        batch = cast(Any, SimpleNamespace(action=torch.zeros(steps, width), column=first))
        parts = Learner._minibatches(learner, batch, np.random.default_rng(3))
        found.append([(p // width * columns + p % width + rank * width).numpy() for p in parts])
    return found


@pytest.mark.parametrize(("steps", "columns", "minibatches"), [(16, 8, 4), (10, 8, 4), (3, 8, 8), (7, 4, 1)])
def test_every_move_is_in_one_minibatch_and_ranks_change_nothing(steps: int, columns: int, minibatches: int) -> None:
    alone = shares(steps, columns, 1, minibatches)[0]
    assert sorted(np.concatenate(alone)) == list(range(steps * columns))
    for ranks in (2, 4):
        split = shares(steps, columns, ranks, minibatches)
        for k, whole in enumerate(alone):
            assert sorted(np.concatenate([part[k] for part in split])) == sorted(whole)


def test_ranks_have_equal_work_in_every_minibatch() -> None:
    assert {len(part) for rank in shares(16, 8, 4, 4) for part in rank} == {8}


def test_epochs_are_permuted_anew_and_columns_apart() -> None:
    learner = cast(Learner, SimpleNamespace(config=Config(minibatches=2), group=Alone()))
    batch = cast(Any, SimpleNamespace(action=torch.zeros(12, 4), column=torch.arange(4)))
    draw = np.random.default_rng(0)
    one, two = (Learner._minibatches(learner, batch, draw)[0] for _ in range(2))
    assert sorted(one.tolist()) != sorted(two.tolist())
    times = [set((one[one % 4 == column] // 4).tolist()) for column in (0, 2)]  # these two take the same turns
    assert times[0] != times[1]


def test_the_job_for_pong_gives_equal_minibatches() -> None:
    method = jobs.load("ppo_pong").method
    assert method["unroll"] % method["minibatches"] == 0
