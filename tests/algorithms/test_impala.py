"""IMPALA's own arithmetic: the replay mix and the baseline without correction.

Mutations seen to fail: queued columns that are views of the batch; the queue not cut; replayed columns in the place of
fresh ones; the ratio of the clip taken for V-trace's; draws that do not know the seed; ratios above ρ̄ counted without a
margin.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.algorithms.impala import FIGURES, loss
from hpc_rl.optim.alone import Alone
from hpc_rl.types import Trajectory
from tests.contract.batches import config_of, learner_of, sampled


def test_half_of_the_batch_is_replayed_and_fresh_columns_stay() -> None:
    config = config_of("impala", replay=0.5, replay_columns=6)
    spec, batches = sampled("impala", "toy/catch", 4)
    learner = learner_of("impala", spec, config)
    assert learner._mixed(batches[0]) is batches[0], "the queue was empty"
    for k, batch in enumerate(batches[1:]):
        mixed = learner._mixed(batch)
        assert mixed.action.shape[1] == 8 and torch.equal(mixed.observation[:, :4], batch.observation)
        versions = {int(v) for v in mixed.version[0, 4:]}
        assert versions <= set(range(k + 1)), "a column was replayed before it was seen"
        assert len({(int(c), int(s)) for c, s in zip(mixed.column[4:], mixed.start[4:], strict=True)}) == 4
    assert len(learner.queue) == 6


def test_the_queue_holds_copies() -> None:
    spec, (batch,) = sampled("impala", "toy/catch", 1)
    learner = learner_of("impala", spec, config_of("impala", replay=0.5))
    learner._mixed(batch)
    reward = learner.queue[0].reward.clone()
    batch.reward.fill_(7.0)
    assert torch.equal(learner.queue[0].reward, reward)


def test_replayed_columns_are_drawn_by_the_seed() -> None:
    config = config_of("impala", replay=0.5)
    spec, batches = sampled("impala", "toy/catch", 6)

    def drawn(seed: int) -> list[tuple[int, int]]:
        torch.manual_seed(seed)
        algorithm = jobs.algorithm("impala")
        learner = algorithm.learner(config, spec, None, algorithm.policy(config, spec, None), Alone())
        mixed = [learner._mixed(batch) for batch in batches]
        return [(int(c), int(s)) for x in mixed for c, s in zip(x.column[4:], x.start[4:], strict=True)]

    assert drawn(1) == drawn(1) and drawn(1) != drawn(2)
    assert len({tuple(drawn(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("correction", ["vtrace", "none"])
def test_without_correction_late_data_are_taken_for_fresh(correction: str) -> None:
    spec, (batch,) = sampled("impala", "toy/catch", 1)
    config = config_of("impala", correction=correction)
    learner = learner_of("impala", spec, config)
    output, value, _ = learner.policy.net(batch.observation)

    def figures(part: Trajectory) -> list[torch.Tensor]:
        return loss(config, output, value, learner.policy.head, part, learner.group)[1]

    fresh = figures(batch)
    late = figures(replace(batch, extras={"log_prob": batch.extras["log_prob"] + 0.5 * torch.rand(24, 4)}))
    same = all(torch.allclose(a, b, atol=1e-4) for a, b in zip(fresh, late, strict=True))
    assert same == (correction == "none")


@pytest.mark.parametrize(
    ("added", "rho_bar", "share"), [(-0.005, 1.0, 0), (0.3, 1.0, 0), (-0.3, 1.0, 1), (-0.3, 2.0, 0)]
)
def test_ratios_that_are_clipped_are_counted(added: float, rho_bar: float, share: float) -> None:
    """Less than one per cent is rounding, or as good as fresh."""
    spec, (batch,) = sampled("impala", "toy/catch", 1)
    config = config_of("impala", rho_bar=rho_bar)
    learner = learner_of("impala", spec, config)
    output, value, _ = learner.policy.net(batch.observation)
    part = replace(batch, extras={"log_prob": batch.extras["log_prob"] + added})
    sums = dict(zip(FIGURES, loss(config, output, value, learner.policy.head, part, learner.group)[1], strict=True))
    assert sums["clipped"] == share * batch.valid.sum()
