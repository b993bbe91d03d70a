"""A2C's own arithmetic: the sum of A3C and the ε of GA3C.

Mutations seen to fail: the sum scaled by this rank's moves, or by the valid ones; ε in the entropy; ε left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from hpc_rl import job as jobs
from hpc_rl.algorithms.a2c import loss
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from tests.contract.batches import config_of, learner_of, sampled


def norms(kind: str, ranks: int) -> float:
    """Gradient norm of one update on a batch without invalid moves, over all ranks."""
    spec, (batch,) = sampled("a2c", "toy/catch", 1, steps=4)
    assert batch.valid.all()
    norm_of: dict[int, float] = {}
    learners = [learner_of("a2c", spec, config_of("a2c", loss=kind, max_grad_norm=1e9)) for _ in range(ranks)]

    def rank(link: LocalLink) -> None:
        learner, width = learners[link.rank], 4 // ranks
        if ranks > 1:
            learner.group = AllReduce(Ports(link, Waiting(20.0)), range(ranks))
        own_columns = batch.columns(slice(link.rank * width, (link.rank + 1) * width))
        norm_of[link.rank] = learner.update({"items": own_columns}, 0.0).metrics["grad_norm"]

    run_threads(ranks, rank, 20.0)
    return norm_of[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_sum_is_the_mean_times_the_moves_of_all_ranks(ranks: int) -> None:
    assert norms("sum", ranks) == pytest.approx(16 * norms("mean", ranks), rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.3])
def test_epsilon_guards_the_policys_logarithm_alone(epsilon: float) -> None:
    spec, (batch,) = sampled("a2c", "toy/catch", 1)
    config: Any = config_of("a2c", log_epsilon=epsilon)
    learner = learner_of("a2c", spec, config)
    output, value, _ = learner.policy.net(batch.observation, batch.first)
    sums: list[Tensor] = loss(config, output, value, learner.policy.head, batch, batch.reward)[1]
    policy_loss, _, entropy = (float(x) for x in sums)
    p = output[:-1].detach().double().softmax(-1).numpy()
    v, w = value.detach().double().numpy(), batch.valid.numpy()
    total, spread = 0.0, 0.0
    for k in range(p.shape[1]):
        following = 0.0
        for t in range(p.shape[0] - 1, -1, -1):
            gamma = config.discount * float(batch.discount[t, k])
            following = w[t, k] * (float(batch.reward[t, k]) + gamma * v[t + 1, k] - v[t, k] + gamma * following)
            total -= w[t, k] * np.log(p[t, k, int(batch.action[t, k])] + epsilon) * following
            spread -= w[t, k] * float((p[t, k] * np.log(p[t, k])).sum())
    assert policy_loss == pytest.approx(total, rel=1e-4, abs=1e-4) and entropy == pytest.approx(spread, rel=1e-4)


def test_jobs_that_bear_a_papers_name_have_its_epsilons() -> None:
    assert jobs.load("ga3c_cartpole").method["log_epsilon"] == 1e-6
    assert jobs.load("a3c_cartpole").method["optimizer"] == "rmsprop_inside"
    dppo = jobs.load("dppo_pendulum").method
    assert dppo["target_kl"] == 4 * dppo["kl_target"] and dppo["hinge_cost"] > 0
