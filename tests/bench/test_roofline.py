"""The roofline as a function; no timing is asserted."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.bench.roofline import Roofline, _random, measure, render
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
    roofline = Roofline(env_per_s=100.0, infer_per_s=200.0, learn_per_s=400.0, passes=2, cores=4)
    assert roofline.env_steps_per_s == pytest.approx(4 / (0.01 + 0.005 + 2 / 400))
    text = render(roofline)
    assert "50% of an env step" in text and "2 passes" in text and text.endswith("4 core(s): 200 env steps/s")


@pytest.mark.parametrize(
    ("table", "passes"), [(CATCH, 1), (TWICE, 2), (CARTPOLE, 3)], ids=["catch", "twice", "cartpole"]
)
def test_measured_terms(table: dict[str, Any], passes: int) -> None:
    mask, threads = os.sched_getaffinity(0), torch.get_num_threads()
    roofline = measure(jobs.parse(table), seconds=0.15)
    assert min(roofline.env_per_s, roofline.infer_per_s, roofline.learn_per_s) > 0
    assert (roofline.passes, roofline.cores) == (passes, len(mask))
    assert os.sched_getaffinity(0) == mask and torch.get_num_threads() == threads


def test_random_actions_lie_in_their_space() -> None:
    generator = np.random.default_rng(0)
    discrete = _random(Actions("discrete", (3,)), (5, 40), generator)
    assert discrete.shape == (5, 40) and set(discrete.ravel().tolist()) == {0, 1, 2}
    several = _random(Actions("multidiscrete", (2, 5)), (60,), generator)
    assert several.shape == (60, 2) and several.max(0).tolist() == [1, 4]
    box = _random(Actions("box", (2,), (0.0, -np.inf), (0.5, np.inf)), (60,), generator)
    assert box.shape == (60, 2) and (abs(box) <= 1).all() and (box.min(0) < -0.8).all()  # as the policy counts
