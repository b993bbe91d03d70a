"""The particles of pilco_nn against a loop in NumPy, their gradient against differences, one result on every layout.

Mutations seen to fail: new masks in each move; particles not drawn anew; z that is not of mean 0 and covariance I.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.algorithms.pilco_nn import Config, Learner, drawn, goal, policy, rolled_out
from hpc_rl.experience import Unsuited
from hpc_rl.formulas.moment_matching import features
from hpc_rl.nets.dropout import draws, fitted
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.group import Group
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from tests.algorithms.test_pilco import SPEC, batch_of, pendulum_data

CONFIG = Config(
    angles=(1,), target=(0.0, 3.0), horizon=4, centres=5, evaluations=4, particles=7, hidden=(6, 5), dropout=0.3,
    model_steps=60, learning_rate=2e-2,
)  # fmt: skip


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_network_learns_and_its_draws_differ() -> None:
    x, y = pendulum_data(200)
    model = fitted(x, y, (20, 20), 0.05, 600, 2e-2, 1e-6, generator(0), lambda: False)
    whole = [torch.ones(len(x), 20).double()] * 2
    left = model(x, whole) - y
    assert float((left.square().mean(0) / y.var(0)).max()) < 0.15
    assert torch.allclose(model.noise, left.square().mean(0))
    masks = draws((20, 20), 5000, 0.25, generator(1))
    assert {round(v, 6) for v in masks[0].unique().tolist()} == {0.0, round(1 / 0.75, 6)}
    assert float(masks[1].mean()) == pytest.approx(1.0, abs=0.02)
    assert float(model(x[:1].expand(5000, -1), masks).std(0).min()) > 0.01


def test_particles_are_those_of_the_twin() -> None:
    x, y = pendulum_data()
    config = CONFIG
    model = fitted(x, y, config.hidden, config.dropout, config.model_steps, 2e-2, 1e-6, generator(0), lambda: False)
    world, net, aim = drawn(config, model, 2, generator(2)), policy(config, SPEC, None).net, goal(config, SPEC)
    assert torch.allclose(world.z.mean(1), torch.zeros(5, 2).double(), atol=1e-12)
    assert all(torch.allclose(torch.cov(z.T), torch.eye(2).double()) for z in world.z)
    row = 3 * net.controller.start(x[:, :3], aim.target, generator(3))
    cost, means, deviations = rolled_out(world, net, row, aim, torch.zeros(2).double(), 0.01 * torch.eye(2).double())

    weights, biases = ([p.numpy() for p in ps] for ps in (model.weights, model.biases))
    mean, covariance, costs = np.zeros(2), 0.01 * np.eye(2), []
    for t in range(4):
        root = np.linalg.cholesky(covariance)
        following = []
        for k in range(7):
            state = mean + root @ world.z[t, k].numpy()
            shown = np.array([state[0], np.sin(state[1]), np.cos(state[1])])
            a = float(net.controller.output(row, torch.from_numpy(shown)[None]))
            u = (9 * np.sin(a) + np.sin(3 * a)) / 8
            h = (np.append(shown, u) - model.centre[0].numpy()) / model.scale[0].numpy()
            for layer in range(2):
                h = 1 / (1 + np.exp(-(h @ weights[layer] + biases[layer]))) * world.masks[layer][k].numpy()
            change = model.centre[1].numpy() + model.scale[1].numpy() * (h @ weights[2] + biases[2])
            following.append(state + change + world.noise[t, k].numpy())
        mean, covariance = np.mean(following, 0), np.cov(np.array(following).T)
        root = np.linalg.cholesky(covariance)
        again = torch.from_numpy(np.array([mean + root @ world.z[t + 1, k].numpy() for k in range(7)]))
        costs.append(float(aim.cost(again).mean()))
        assert np.allclose(means[t + 1], mean, atol=1e-6)
        assert np.allclose(deviations[t + 1], np.sqrt(covariance.diagonal()), atol=1e-6)
    assert float(cost) == pytest.approx(np.mean(costs), abs=1e-6)

    def loss(row: Tensor) -> Tensor:
        return rolled_out(world, net, row, aim, torch.zeros(2).double(), 0.01 * torch.eye(2).double())[0]

    assert torch.autograd.gradcheck(loss, (row.clone().requires_grad_(),), rtol=1e-4)


def learner_of(config: Config, group: Group | None = None) -> Learner:
    torch.manual_seed(0)
    return Learner(config, SPEC, None, policy(config, SPEC, None), group or Alone())


def test_every_layout_has_the_same_controller_to_the_bit() -> None:
    config = replace(CONFIG, restarts=3, model_steps=5)

    def rows(ranks: int) -> list[Tensor]:
        learners = [learner_of(config) for _ in range(ranks)]

        def rank(link: LocalLink) -> None:
            learner, own = learners[link.rank], slice(4 * link.rank // 2, 4 * (link.rank + 1) // 2)
            if ranks > 1:
                learner.group = AllReduce(Ports(link, Waiting(30.0)), range(ranks))
            for seed in (1, 2):
                batch = batch_of(seed)
                learner.update({"items": batch.columns(own) if ranks > 1 else batch}, 0.0)

        run_threads(ranks, rank, 60.0)
        return [learner.weights.data.clone() for learner in learners]

    (alone,) = rows(1)
    assert float(alone.abs().sum()) > 0
    for x in [*rows(2), *rows(3)]:
        assert torch.equal(x, alone)


def test_the_plan_and_what_is_refused() -> None:
    learner = learner_of(CONFIG)
    figures = learner.update({"items": batch_of(3)}, 0.0).metrics
    net = learner.policy.net
    assert torch.allclose(net.plan[0, 0].double(), learner.data.first.mean(0), atol=1e-6)
    assert torch.allclose(net.plan[0, 1], torch.tensor([0.1, 0.1])) and 0 < figures["predicted_cost"] < 1
    assert torch.equal(features(torch.zeros(1, 2), (1,)), torch.tensor([[0.0, 0.0, 1.0]]))
    with pytest.raises(Unsuited, match="rows: start_std has 3 numbers"):
        policy(replace(CONFIG, start_std=(1.0, 2.0, 3.0)), SPEC, None)
