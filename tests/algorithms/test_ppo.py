"""PPO's own arithmetic.

Mutations seen to fail: one permutation of time for all columns; one over time and columns; a clip that stays; β from
the last epoch's mean KL; the hinge without its slope.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.algorithms import ppo
from hpc_rl.algorithms.ppo import Config, Learner
from hpc_rl.optim.alone import Alone
from tests.contract.batches import config_of, learner_of, sampled


def shares(steps: int, columns: int, ranks: int, minibatches: int) -> list[list[np.ndarray]]:
    """For each rank its part of each minibatch, as global indices time × columns + column."""
    index_lists = []
    width = columns // ranks
    for rank in range(ranks):
        group = SimpleNamespace(rank=rank, size=ranks)
        learner = cast(Learner, SimpleNamespace(config=Config(minibatches=minibatches), group=group))
        first = torch.arange(rank * width, (rank + 1) * width)
        batch = cast(Any, SimpleNamespace(action=torch.zeros(steps, width), column=first))
        parts = Learner._minibatches(learner, batch, np.random.default_rng(3))
        index_lists.append([(p // width * columns + p % width + rank * width).numpy() for p in parts])
    return index_lists


@pytest.mark.parametrize(("steps", "columns", "minibatches"), [(16, 8, 4), (10, 8, 4), (3, 8, 8), (7, 4, 1)])
def test_every_move_is_in_one_minibatch_and_ranks_change_nothing(steps: int, columns: int, minibatches: int) -> None:
    alone = shares(steps, columns, 1, minibatches)[0]
    assert sorted(np.concatenate(alone)) == list(range(steps * columns))
    for ranks in (2, 4):
        split = shares(steps, columns, ranks, minibatches)
        for k, minibatch in enumerate(alone):
            assert sorted(np.concatenate([part[k] for part in split])) == sorted(minibatch)


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


def test_the_clip_falls_with_the_learning_rate_where_it_is_annealed(monkeypatch: pytest.MonkeyPatch) -> None:
    clips: list[float] = []

    def watched(log_ratio: Any, advantage: Any, weight: Any, clip: float) -> Any:
        clips.append(clip)
        return plain(log_ratio, advantage, weight, clip)

    plain = ppo.clipped_surrogate
    monkeypatch.setattr(ppo, "clipped_surrogate", watched)
    spec, (batch,) = sampled("ppo", "toy/catch", 1)
    for anneal, expected in ((False, [0.1, 0.1, 0.1]), (True, [0.1, 0.025, 0.0])):
        learner = learner_of("ppo", spec, config_of("ppo", epochs=1, minibatches=1, anneal_clip=anneal))
        clips.clear()
        for progress in (0.0, 0.75, 1.0):
            learner.update({"items": batch}, progress)
        assert clips == pytest.approx(expected)


def kl_of(learner: Any, batch: Any) -> float:
    """The mean of r − 1 − log r over the valid moves, in a loop."""
    with torch.no_grad():
        output, _, _ = learner.policy.net(batch.observation[:-1], batch.first[:-1])
    log_prob = output.double().log_softmax(-1).numpy()
    terms = []
    for t, k in batch.valid.nonzero().tolist():
        x = log_prob[t, k, int(batch.action[t, k])] - float(batch.extras["log_prob"][t, k])
        terms.append(np.exp(x) - 1 - x)
    return float(np.mean(terms))


def test_the_penalty_follows_the_kl_after_the_last_step() -> None:
    """One step from the acting weights: during it the KL is 0, after it it is not."""
    spec, (batch,) = sampled("ppo", "toy/catch", 1)
    changes = {"objective": "kl", "epochs": 1, "minibatches": 1, "learning_rate": 1e-2, "kl_target": 1e-6}
    learner = learner_of("ppo", spec, config_of("ppo", **changes))
    metrics = learner.update({"items": batch}, 0.0).metrics
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-7) and kl_of(learner, batch) > 1.5e-6
    assert metrics["kl_cost"] == 2.0, "doubled: the policy that comes out is too far away"


def test_a_round_ends_once_the_kl_of_its_policy_is_too_large() -> None:
    spec, (batch,) = sampled("ppo", "toy/catch", 1)
    changes = {"objective": "kl", "epochs": 6, "minibatches": 1, "learning_rate": 3e-3, "anneal": False}
    kls = []
    for epochs in range(1, 7):
        learner = learner_of("ppo", spec, config_of("ppo", **{**changes, "epochs": epochs}))
        learner.update({"items": batch}, 0.0)
        kls.append(kl_of(learner, batch))
    assert kls == sorted(kls) and kls[3] > kls[2] > 0
    limit = (kls[2] + kls[3]) / 2
    learner = learner_of("ppo", spec, config_of("ppo", **changes, target_kl=limit))
    assert learner.update({"items": batch}, 0.0).metrics["steps"] == 4.0


def test_the_hinge_has_the_gradient_of_the_papers_penalty() -> None:
    """The second of two epochs, minibatches = 1: its gradient against that of β KL + ξ max(0, KL − 2 KL_target)²."""
    cost, target, hinge = 1.0, 1e-5, 400.0
    spec, (batch,) = sampled("ppo", "toy/catch", 1)
    changes = {"objective": "kl", "epochs": 2, "minibatches": 1, "learning_rate": 1e-2, "max_grad_norm": 1e9}
    config = config_of("ppo", **changes, kl_cost=cost, kl_target=target, hinge_cost=hinge)
    norm = learner_of("ppo", spec, config).update({"items": batch}, 0.0).metrics["grad_norm"]
    learner = learner_of("ppo", spec, config_of("ppo", **{**changes, "epochs": 1}, kl_cost=cost, kl_target=target))
    samples = learner._samples(batch)
    learner.update({"items": batch}, 0.0)
    output, value, _ = learner.policy.net(samples.observation, samples.first)
    total, sums = ppo.loss(learner.config, output, value, learner.policy.head, samples, 0.1, 0.0)
    log_prob, _ = learner.policy.head.log_prob_entropy(output, samples.action)
    x = (log_prob - samples.log_prob) * samples.weight
    kl = (samples.weight * (x.exp() - 1 - x)).sum() / sums[-1]
    assert float(kl) > 2 * target, "the hinge is at work"
    penalty = total / sums[-1] + cost * kl + hinge * (kl - 2 * target).clamp(min=0).square()
    parts = torch.autograd.grad(penalty, [p for p in learner.policy.net.parameters() if p.requires_grad])
    assert norm == pytest.approx(float(torch.cat([g.flatten() for g in parts]).norm()), rel=1e-3)
