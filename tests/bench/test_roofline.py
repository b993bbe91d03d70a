"""The roofline as a function; no timing is asserted.

Mutations seen to fail: the steps of two optimisers added up; the most updates that some kind of items would allow.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpc_rl import job as jobs
from hpc_rl import methods
from hpc_rl.bench.batches import batch_shapes, random_actions, reuse
from hpc_rl.bench.cores import CoreLost
from hpc_rl.bench.flops import Flops
from hpc_rl.bench.pieces import Counting, pieces
from hpc_rl.bench.roofline import Roofline, measure, render
from hpc_rl.experience import Experience, Items
from hpc_rl.optim.flat import Flat
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.sources import source_of
from hpc_rl.types import Actions

CATCH = {"algorithm": "impala", "topology": "solo", "environment": {"id": "toy/catch"}, "impala": {"minibatches": 2}}
TWICE = {**CATCH, "impala": {"passes": 2}}
CARTPOLE = {
    "algorithm": "ppo",
    "topology": "allreduce",
    "environment": {"id": "CartPole-v1"},
    "resources": {"ranks": 2},
    "ppo": {"epochs": 3, "unroll": 16, "target_kl": 1e-9},
}


def test_arithmetic() -> None:
    roofline = Roofline(env_per_s=100.0, infer_per_s=200.0, learn_per_s=400.0, reuse=2.0, cores=4)
    assert roofline.env_steps_per_s == pytest.approx(4 / (0.01 + 0.005 + 2 / 400))
    text = render(roofline)
    assert (
        "50% of an env step" in text and "2 moves per env step" in text and text.endswith("4 core(s): 200 env steps/s")
    )


@pytest.mark.parametrize(
    ("table", "passes"), [(CATCH, 1), (TWICE, 2), (CARTPOLE, 3)], ids=["catch", "twice", "cartpole"]
)
def test_measured_terms(table: dict[str, Any], passes: int) -> None:
    mask, threads = os.sched_getaffinity(0), torch.get_num_threads()
    roofline = measure(jobs.parse(table), seconds=0.15, cores=1)
    assert min(roofline.env_per_s, roofline.infer_per_s, roofline.learn_per_s, roofline.learn_flops) > 0
    assert (roofline.reuse, roofline.cores) == (passes, 1) and 0 < roofline.peak_share < 1
    assert os.sched_getaffinity(0) == mask and torch.get_num_threads() == threads


def test_all_cores_work_at_once_and_a_lost_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    job, cores = jobs.parse(CATCH), min(2, len(os.sched_getaffinity(0)))
    assert measure(job, 0.1).cores == len(os.sched_getaffinity(0))
    monkeypatch.setattr(sys, "executable", "false")
    if cores > 1:
        with pytest.raises(CoreLost, match=r"process on core [0-9]+ has ended; see"):
            measure(job, 0.1)


def test_arithmetic_is_a_share_of_the_peak() -> None:
    roofline = Roofline(100.0, 200.0, 400.0, 2.0, 4, learn_flops=3e6, peak_flops=4.8e9)
    assert roofline.peak_share == pytest.approx(0.25)
    assert "learning computes 1.2 GFLOP/s, 25% of a large matrix product's" in render(roofline)


def test_learning_costs_three_times_a_forward_pass() -> None:
    """Twice as much backward, but for the first layer, whose input needs no gradient."""
    table = {**CATCH, "algorithm": "ppo", "ppo": {"hidden": [64], "epochs": 1, "unroll": 16}}
    del table["impala"]
    with pieces(jobs.parse(table)) as work:
        first, heads = 2 * 50 * 64, 2 * 64 * 3 + 2 * 64  # 50 inputs, 3 actions; policy and value have a torso each
        assert work.learn_flops == pytest.approx(2 * 2 * first + 3 * heads, rel=0.1)


def _small_jobs() -> list[str]:
    """One shipped job of each method, none of Atari or MuJoCo."""
    names = {}
    for name in sorted(jobs.shipped_jobs()):
        job = jobs.load(name)
        recorded = source_of(jobs.experience(job)) is not None  # no env steps
        if not recorded and not job.environment.id.startswith(("ALE/", "mixture", "HalfCheetah")):
            names.setdefault(job.algorithm, name)
    assert len(names) == sum(source_of(methods.experience(name, {})) is None for name in jobs.algorithms())
    return list(names.values())


@pytest.mark.parametrize("name", _small_jobs())
def test_every_method_has_a_roofline(name: str) -> None:
    """DDPG and HIRO had none: torch's counter fails where a gradient is taken at the input of a critic."""
    with pieces(jobs.load(name)) as work:
        assert (work.learn_flops > 0) == (jobs.load(name).algorithm != "cem")
        assert all(work.work[part]() > 0 for part in ("env", "infer"))


def test_flops_are_those_of_torchs_counter() -> None:
    image = torch.rand(3, 4, 8, 8)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 6, 5))
    with FlopCounterMode(display=False) as counter:
        net(image).sum().backward()
    with Flops() as flops:
        net(image).sum().backward()
    assert flops.total == counter.get_total_flops() > 0


def test_random_actions_lie_in_their_space() -> None:
    generator = np.random.default_rng(0)
    discrete = random_actions(Actions("discrete", (3,)), (5, 40), generator)
    assert discrete.shape == (5, 40) and set(discrete.ravel().tolist()) == {0, 1, 2}
    several = random_actions(Actions("multidiscrete", (2, 5)), (60,), generator)
    assert several.shape == (60, 2) and several.max(0).tolist() == [1, 4]
    box = random_actions(Actions("box", (2,), (0.0, -np.inf), (0.5, np.inf)), (60,), generator)
    assert box.shape == (60, 2) and (abs(box) <= 1).all() and (box.min(0) < -0.8).all()  # as the policy counts


def test_what_a_replay_draws_for_each_env_step() -> None:
    fresh = Experience(20, (Items("items", 0),), passes=4)
    assert reuse(fresh) == 4.0
    items = Items("items", 32, 3, samples_per_insert=8.0)
    assert reuse(Experience(4, (items,), 100_000)) == 24.0  # 8 items of 3 moves
    goals = Items("goals", 64, 10, samples_per_insert=4.0)  # 1/16 update an env step, so 2 of the others
    assert reuse(Experience(4, (items, goals), 100_000)) == 4 * 10 + 2 * 3
    assert reuse(Experience(10, (Items("items", 0, complete="episode"),))) == 1.0


def test_batches_are_those_of_one_learning_rank() -> None:
    places = tuple(RankSpec(r, "worker", r, range(4 * r, 4 * r + 4), 1, True, peers=(0, 1)) for r in range(2))
    plan = Plan("allreduce", places, 5, 8, 4)
    experience = Experience(5, (Items("a", 32, 3), Items("b", 0), Items("c", 0, complete="episode")), 1000)
    assert batch_shapes(experience, plan) == {"a": (3, 16), "b": (5, 4), "c": (5, 4)}
    server = RankSpec(2, "parameter_server", 0, range(0), 1, False, peers=(0, 1))
    assert batch_shapes(experience, Plan("parameter_server", (*places, server), 5, 4, 4))["a"] == (3, 32)


def test_an_early_end_of_a_round_is_less_work() -> None:
    group, experience = Counting(), Experience(16, (Items("items", 0),), passes=4, minibatches=2)
    optimizers = [make_optimizer(Flat(torch.zeros(3)), "adam", 0.1, 1e-8, 0.9) for _ in range(2)]
    for optimizer in [*optimizers, *optimizers]:  # one pass of two minibatches, by two optimisers
        group.apply_gradients(optimizer, None, 0, 1.0)
    assert group.passes(experience) == 1.0
    assert group.passes(experience) == 4.0  # a method that steps nothing makes all of its passes
    group.apply_gradients(optimizers[0], None, 0, 1.0)
    assert group.passes(Experience(4, (Items("items", 32, 1),), 1000)) == 1.0
