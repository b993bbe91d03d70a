"""Behaviour cloning by numbers: its loss against a loop in the paper's notation, its figures, and that it learns.

Mutations seen to fail: heads that predict the move one later; moves beyond an episode's end that count; a Gaussian
without its log σ; the decay left out, or not times the count; figures of all heads in ``top1``; the average of held-out
figures from 0 on; illegal moves left in; a learned σ without its floor.
"""

from __future__ import annotations

from dataclasses import replace
from math import log, pi
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.algorithms import bc
from hpc_rl.algorithms.bc import Config, Learner, likelihoods, policy
from hpc_rl.envs.make import rules as rules_of
from hpc_rl.experience import Unsuited
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.optim.alone import Alone
from hpc_rl.types import Actions, Spec, Step, Trajectory
from tests.contract.batches import SPECS

KINDS = ("discrete", "multidiscrete", "box")
N = 9


def batch_of(spec: Spec, moves: int, seed: int = 0) -> Trajectory:
    """Items of so many moves, some of which are shorter, drawn at random."""
    rng = np.random.default_rng(seed)
    length = torch.tensor(rng.integers(1, moves + 1, N))
    first = torch.arange(moves + 1)[:, None] > length
    actions = spec.actions
    if actions.kind == "box":
        action = torch.tensor(rng.uniform(-1, 1, (moves, N, *actions.shape)), dtype=torch.float32)
    else:
        picks = rng.integers(0, actions.sizes, (moves, N, len(actions.sizes)))
        action = torch.tensor(picks[..., 0] if actions.kind == "discrete" else picks)
    zeros, ends = torch.zeros(moves, N), torch.zeros(N, dtype=torch.int64)
    return Trajectory(
        observation=torch.tensor(rng.normal(size=(moves + 1, N, *spec.observation)), dtype=torch.float32),
        first=first, action=action, reward=zeros, discount=zeros + 1, extras={}, carry={}, version=zeros.long(),
        finite=zeros == 0, column=ends.int(), start=ends, chance=torch.ones(N), noise=torch.zeros(N, 0),
    )  # fmt: skip


def learner_of(spec: Spec, **changes: Any) -> Learner:
    torch.manual_seed(0)
    config = Config(**changes)
    return Learner(config, spec, None, policy(config, spec, None), Alone())


def twin(output: Tensor, batch: Trajectory, actions: Actions) -> list[list[float]]:
    """−log π_j(a_{t+j} | x_t), item by item and head by head, of the moves that happened."""
    rows = []
    for i in range(N):
        row = []
        for j in range(output.shape[1]):
            if bool(batch.first[j + 1, i]):
                break
            p, a = output[i, j].detach().numpy().astype(np.longdouble), batch.action[j, i].numpy()
            if actions.kind == "box":
                mean, log_std = np.split(p, 2)
                density = np.exp(-((a - mean) ** 2) / (2 * np.exp(log_std) ** 2)) / (np.exp(log_std) * np.sqrt(2 * pi))
                row.append(float(-np.log(density).sum()))
            else:
                total, low = 0.0, 0
                for choice, size in zip(np.atleast_1d(a), actions.sizes, strict=True):
                    z = np.exp(p[low : low + size])
                    total, low = total - log(z[choice] / z.sum()), low + size
                row.append(total)
        rows.append(row)
    return rows


@pytest.mark.parametrize("moves", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_papers(kind: str, moves: int) -> None:
    spec = SPECS[kind]
    learner, batch = learner_of(spec, moves=moves), batch_of(spec, moves)
    with torch.no_grad():
        learner.weights.data += 0.1 * torch.randn_like(learner.weights.data)
    output = learner.policy.heads(batch.observation[0])
    losses, happened = likelihoods(learner.policy.head, output, batch)
    rows = twin(output, batch, spec.actions)
    assert happened.sum(0).tolist() == [len(row) for row in rows]
    for i, row in enumerate(rows):
        assert losses[: len(row), i].tolist() == pytest.approx(row, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_steps_down_the_gradient_of_the_mean_and_the_decay(kind: str) -> None:
    spec, decay = SPECS[kind], 0.01
    learner, batch = learner_of(spec, moves=3, weight_decay=decay, held_out=0.0), batch_of(spec, 3)
    parameters = list(learner.policy.net.parameters())
    losses, happened = likelihoods(learner.policy.head, learner.policy.heads(batch.observation[0]), batch)
    loss = (losses * happened).sum() / happened[0].sum() + decay * sum(p.square().sum() for p in parameters)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
    metrics = learner.update({"items": batch}, 0.0).metrics
    assert metrics["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_the_head_that_acts(kind: str) -> None:
    spec = SPECS[kind]
    learner, batch = learner_of(spec, moves=3), batch_of(spec, 3)
    output = learner.policy.heads(batch.observation[0])
    rows = twin(output, batch, spec.actions)
    step, noise = Step(batch.observation[0], batch.first[0], batch.reward[0]), torch.rand(N, learner.policy.noise)
    action = learner.policy.act(step, {}, torch.zeros(N), noise).action
    metrics = learner.update({"items": batch, "held_out": batch_of(spec, 3, 1)}, 0.0).metrics
    assert metrics["loss"] == pytest.approx(np.mean([row[0] for row in rows]), rel=1e-4)
    assert metrics["next_loss"] == pytest.approx(np.mean([x for row in rows for x in row[1:]]), rel=1e-4)
    if kind == "box":
        assert metrics["error"] == pytest.approx(float((action - batch.action[0]).square().mean()), rel=1e-4)
    else:
        same = (action == batch.action[0]).reshape(N, -1).all(-1)
        assert metrics["top1"] == pytest.approx(float(same.float().mean()))


def test_held_out_figures_are_averaged_over_updates() -> None:
    spec = SPECS["discrete"]
    learner, figures = learner_of(spec, learning_rate=1e-9), []
    for k in range(3):
        apart = batch_of(spec, 1, k)
        losses, _ = likelihoods(learner.policy.head, learner.policy.heads(apart.observation[0]), apart)
        figures.append(float(losses[0].detach().mean()))
        metrics = learner.update({"items": batch_of(spec, 1, 9), "held_out": apart}, 0.0).metrics
        assert metrics["held_out_loss"] == pytest.approx(np.mean(figures), rel=1e-5)


def test_a_given_spread_is_a_squared_error() -> None:
    spec, batch = SPECS["box"], batch_of(SPECS["box"], 1)
    learner = learner_of(spec, std=0.5)
    output = learner.policy.heads(batch.observation[0])
    losses, _ = likelihoods(learner.policy.head, output, batch)
    mean = output[:, 0, :2]
    squared = (batch.action[0] - mean).square().sum(-1) / (2 * 0.5**2)
    constant = 2 * (log(0.5) + 0.5 * log(2 * pi))
    assert torch.allclose(losses[0], squared + constant, atol=1e-5)


def test_a_learned_spread_has_a_floor() -> None:
    learner = learner_of(SPECS["box"])
    with torch.no_grad():
        list(learner.policy.net.parameters())[-1].fill_(-100.0)
    log_std = learner.policy.heads(torch.zeros(1, 5))[0, 0, 2:]
    assert log_std.tolist() == [bc.LOG_STD[0]] * 2


def test_only_legal_moves_are_made() -> None:
    id = "toy/tictactoe"
    rules = rules_of(id, {})
    assert rules is not None and rules.legal is not None
    acting = policy(Config(), rules.spec, rules)
    state = rules.begin(torch.zeros(16, rules.begin_uniforms, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        shown = Step(rules.show(state), torch.zeros(16, dtype=torch.bool), torch.zeros(16), state)
        noise = torch.rand(16, acting.noise, generator=generator)
        action = acting.act(shown, {}, torch.tensor([0.0, 1.0]).repeat(8), noise).action
        assert rules.legal(state).gather(1, action[:, None]).all()
        state = rules.move(state, action, torch.zeros(16, rules.move_uniforms, dtype=torch.float64))[0]


def test_networks_of_a_board_have_their_heads_side_by_side() -> None:
    rules = rules_of("toy/connect_four", {})
    assert rules is not None
    planes = (torch.rand(5, *rules.spec.observation) < 0.3).float()
    for changes in ({"patterns": True}, {"blocks": 2, "channels": 8}):
        acting = policy(Config(moves=3, **changes), rules.spec, rules)  # type: ignore[arg-type]
        assert acting.heads(planes).shape == (5, 3, 7) and (acting.heads(planes) == 0).all()
        optimizer = torch.optim.Adam(acting.net.parameters(), 0.05)
        for _ in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(acting.heads(planes)[:, 1], torch.arange(5)).backward()
            optimizer.step()
        output = acting.heads(planes)
        assert (output[:, 1].argmax(-1) == torch.arange(5)).all(), changes


@pytest.mark.parametrize("changes", [{"patterns": True}, {"blocks": 1}])
def test_no_board_is_a_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(Unsuited, match=r"bc\..* needs planes of a board .* and discrete shows"):
        policy(Config(**changes), SPECS["discrete"], None)


def test_it_learns_a_function_of_the_observation() -> None:
    spec = SPECS["discrete"]
    learner = learner_of(spec, learning_rate=1e-2, anneal=False, held_out=0.0)
    metrics: dict[str, float] = {}
    for k in range(150):
        batch = batch_of(spec, 1, k)
        right = batch.observation[0][:, :4].argmax(-1)
        metrics = learner.update({"items": replace(batch, action=right[None])}, 0.0).metrics
    assert metrics["top1"] > 0.7, metrics


def test_heads_lie_side_by_side() -> None:
    spec = SPECS["multidiscrete"]
    learner = learner_of(spec, moves=2)
    head = ActionDistribution(spec.actions)
    observation = torch.randn(3, *spec.observation)
    output, flat = learner.policy.heads(observation), learner.policy.net(observation)
    assert output.shape == (3, 2, head.outputs) and torch.equal(output[:, 1], flat[:, head.outputs :])
