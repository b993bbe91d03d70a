"""Update rules against torch's own, RMSProp with ε inside the root against the paper's loop, and slices of servers.

Mutations seen to fail: ε outside the root; α and 1 − α exchanged; the momentum times the learning rate twice; a slice
without its statistics; β₁ and β₂ exchanged; ε doubled in either; torch.optim imported for its rules.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.optim.flat import Flat, Optimizer
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.runtime.checkpoints import load_optimizer, optimizer_state
from hpc_rl.runtime.shards import ParameterShard, concatenate_shards
from hpc_rl.transport.parameters import shard_slices
from tests.contract.batches import config_of, learner_of, sampled

RATE, ALPHA, EPSILON = 0.05, 0.9, 0.01


def made(x: np.ndarray, momentum: float) -> tuple[Flat, Optimizer]:
    flat = Flat(torch.tensor(x, dtype=torch.float32))
    return flat, make_optimizer(flat, "rmsprop_inside", RATE, EPSILON, ALPHA, momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["adam", "rmsprop"])
def test_rules_are_those_of_torch_bit_for_bit(kind: str, momentum: float) -> None:
    rng = np.random.default_rng(1)
    flat, theirs = Flat(torch.tensor(rng.normal(size=1000), dtype=torch.float32)), torch.zeros(1000, requires_grad=True)
    theirs.data.copy_(flat.data)
    optimizer = make_optimizer(flat, kind, RATE, EPSILON, ALPHA, momentum)
    reference: torch.optim.Optimizer = torch.optim.RMSprop([theirs], RATE, ALPHA, EPSILON, momentum=momentum)
    if kind == "adam":
        reference = torch.optim.Adam([theirs], RATE, (momentum, ALPHA), EPSILON, fused=True)
    for scale in (1.0, 1e-4, 100.0, 0.0, 1.0):
        flat.reduction[:-2] = torch.tensor(rng.normal(size=1000) * scale)
        theirs.grad = flat.reduction[:-2].clone()
        optimizer.step()
        reference.step()
        assert torch.equal(flat.data, theirs.data)


def test_no_rank_imports_the_compiler_for_its_optimizer() -> None:
    """Which costs 1.5 s of computing and 70 MiB."""
    code = """
import sys, torch
from hpc_rl.optim.flat import Flat, Optimizer
from hpc_rl.runtime.checkpoints import load_optimizer, optimizer_state
from hpc_rl.optim.optimizers import make_optimizer
for kind in ("adam", "rmsprop", "rmsprop_inside"):
    make_optimizer(Flat(torch.ones(3)), kind, 0.1, 1e-8, 0.9).step()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_epsilon_is_inside_the_root(momentum: float) -> None:
    rng = np.random.default_rng(0)
    x, gradients = rng.normal(size=5), rng.normal(size=(7, 5)) * [1e-3, 0.1, 1.0, 10.0, 0.0]
    flat, optimizer = made(x, momentum)
    v, m = np.zeros(5), np.zeros(5)
    for k, g in enumerate(gradients):
        if k == 4:  # a state that is taken up goes on as if nothing had been
            state = optimizer_state(optimizer)
            flat, optimizer = made(flat.parameter.detach().numpy(), momentum)
            load_optimizer(optimizer, state)
        flat.reduction[:-2] = torch.tensor(g)
        optimizer.step()
        for i in range(5):
            v[i] = ALPHA * v[i] + (1 - ALPHA) * g[i] ** 2
            m[i] = momentum * m[i] + g[i] / np.sqrt(v[i] + EPSILON)
            x[i] -= RATE * m[i]
        assert np.allclose(flat.parameter.detach().numpy(), x, atol=1e-5), k


def test_a_small_gradient_moves_less_than_with_epsilon_outside() -> None:
    moved = {}
    for kind in ("rmsprop", "rmsprop_inside"):
        flat = Flat(torch.zeros(1))
        optimizer = make_optimizer(flat, kind, 1.0, EPSILON, ALPHA)
        flat.reduction[0] = 1e-3
        optimizer.step()
        moved[kind] = -flat.parameter.item()
    assert moved["rmsprop_inside"] == pytest.approx(1e-3 / np.sqrt(1e-7 + EPSILON), rel=1e-5)
    assert moved["rmsprop"] == pytest.approx(1e-3 / (np.sqrt(1e-7) + EPSILON), rel=1e-5)


@pytest.mark.parametrize("name", ["a2c", "impala"])
def test_servers_share_its_statistics_slice_by_slice(name: str) -> None:
    spec, batches = sampled(name, "toy/catch", 2)
    learn: Any = learner_of(name, spec, config_of(name, optimizer="rmsprop_inside", epsilon=EPSILON))
    learn.update({"items": batches[0]}, 0.0)
    size = learn.weights.data.numel()
    parts = [ParameterShard(learn, part, 0, 0) for part in shard_slices(size, 3)]
    state = concatenate_shards(learn, [part.state() for part in parts])["learner"]["optimizers"]["weights"]
    for key, x in optimizer_state(learn.optimizer).items():
        assert torch.equal(state[key], x) and (key != "square_avg" or (x > 0).any()), key
    g = torch.linspace(-1, 1, size)
    for part, place in zip(parts, shard_slices(size, 3), strict=True):
        head = np.array([[1.0, 1.0, np.inf, RATE]])
        part.take({"gradient": g[place].numpy()[None], "head": head}, 0, 7)
    learn.weights.reduction[:-2] = g
    learn.optimizer.learning_rate = RATE
    learn.optimizer.step()
    assert torch.allclose(
        concatenate_shards(learn, [part.state() for part in parts])["weights"], learn.weights.data, atol=1e-7
    )
