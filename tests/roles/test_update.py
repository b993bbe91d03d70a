"""Ten bad updates in a row end a run, however many optimiser steps each has; the sentence names the likely cause.

Mutations seen to fail: steps counted instead of updates; eleven instead of ten; a good update that does not begin the
count anew; the cause looked for on this rank alone; the env step of the fragment's first row.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from hpc_rl.optim.group import Diverged
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.schedule import Schedule
from hpc_rl.runtime.training import update
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Trajectory
from tests.contract.batches import COLUMNS, STEPS, config_of, learner_of, sampled

METHOD = cast(Any, SimpleNamespace(name="ppo", progress=Schedule(1000).progress))


def ppo() -> tuple[Any, Trajectory]:
    spec, (batch,) = sampled("ppo", "toy/counter", 1)
    return learner_of("ppo", spec, config_of("ppo", epochs=2, minibatches=2, normalize_advantage=False)), batch


def huge(batch: Trajectory, t: int, column: int, value: float) -> Trajectory:
    reward = batch.reward.clone()
    reward[t, column] = value
    return replace(batch, reward=reward)


def test_ten_bad_updates_end_the_run_and_nine_do_not() -> None:
    learn, batch = ppo()
    huge_batch, counters = huge(batch, 7, 1, 3e38), Counters(COLUMNS, updates=40)
    for _ in range(9):
        metrics = update(METHOD, learn, {"items": huge_batch}, counters).metrics
    assert metrics["dropped_steps"] >= 9, "counted in the metrics"
    assert update(METHOD, learn, {"items": batch}, counters).metrics["dropped_steps"] == metrics["dropped_steps"]
    for _ in range(9):
        update(METHOD, learn, {"items": huge_batch}, counters)
    with pytest.raises(Diverged) as error:
        update(METHOD, learn, {"items": huge_batch}, counters)
    step = int(batch.start[1]) + int((~batch.first[1:8, 1]).sum())
    assert str(error.value).startswith(
        "ppo, update 40: 10 updates in a row dropped a step or took none. The gradient was not finite. "
    )
    assert f"a reward of size 3e+38 in column 1 at env step {step}; clip or normalise rewards" in str(error.value)


def test_ten_updates_without_a_row_to_learn_from_end_the_run() -> None:
    """An environment that returns NaN for good: hours of stepping would teach nothing."""
    learn, batch = ppo()
    before, counters = learn.weights.data.clone(), Counters(COLUMNS, updates=3)
    unlearnable = replace(batch, finite=torch.zeros_like(batch.finite))
    for _ in range(9):
        update(METHOD, learn, {"items": unlearnable}, counters)
    with pytest.raises(Diverged, match=r"No move of the last batch could be learned from.* columns 0-3 are not finite"):
        update(METHOD, learn, {"items": unlearnable}, counters)
    assert torch.equal(learn.weights.data, before)


def test_a_large_observation_and_else_the_learning_rate_are_blamed() -> None:
    learn, batch = ppo()
    observation = batch.observation.clone()
    observation[3, 2, 0] = -3e38
    nan = torch.full_like(batch.extras["log_prob"], torch.nan)
    for damaged, words in (
        (
            replace(batch, observation=observation, extras={**batch.extras, "log_prob": nan}),
            "an observation of size 3e+38 in column 2 at env step",
        ),
        (replace(batch, extras={**batch.extras, "log_prob": nan}), "the learning rate, for the data of columns 0-3"),
    ):
        counters = Counters(COLUMNS)
        with pytest.raises(Diverged, match="Likely cause: ") as error:
            for _ in range(10):
                update(METHOD, learn, {"items": damaged}, counters)
        assert words in str(error.value)


def test_every_rank_blames_the_same_column() -> None:
    _, batch = ppo()
    huge_batch, sentences = huge(batch, 2, 3, 2e38), {}
    learners = [ppo()[0] for _ in range(2)]

    def rank(link: LocalLink) -> None:
        learn, counters = learners[link.rank], Counters(COLUMNS)
        learn.group = AllReduce(Ports(link, Waiting(20.0)), range(2))
        part = huge_batch.columns(slice(2 * link.rank, 2 * link.rank + 2))
        try:
            for _ in range(10):
                update(METHOD, learn, {"items": part}, counters)
        except Diverged as error:
            sentences[link.rank] = str(error)

    run_threads(2, rank, 30.0)
    assert sentences[0] == sentences[1] and "a reward of size 2e+38 in column 3 " in sentences[0]


def test_the_step_is_counted_from_the_columns_start() -> None:
    learn, batch = ppo()
    batch = replace(batch, start=batch.start + 100)
    for t in (0, STEPS - 1):
        column = next(k for k in range(COLUMNS) if bool(batch.valid[t, k]))
        counters, step = Counters(COLUMNS), 100 + int((~batch.first[1 : t + 1, column].numpy()).astype(np.int64).sum())
        with pytest.raises(Diverged, match=f"column {column} at env step {step};"):
            for _ in range(10):
                update(METHOD, learn, {"items": huge(batch, t, column, 3e38)}, counters)
