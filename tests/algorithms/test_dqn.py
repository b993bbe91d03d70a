"""DQN's own numbers against a slow twin of a linear Q function, its target network, its exploration.

Mutations seen to fail: items without a valid move counted; Huber's κ, γ, or either side of the clip of rewards left
out; the value at the item's last row instead of the row behind its last valid move, or of a termination; the target
network left out, stepped an update late, before the step, or with 1 − τ; double Q-learning
always, never, or with its networks swapped; the longest gradient or annealing left out; ``rounds`` or the target left
out of the state, or not copied; ε not linear, ending late or never; its uniforms swapped; ``<`` → ``<=``;
exponents swapped; priorities of Huber's loss or with a sign; an end of the targets left open, or both swapped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.algorithms.dqn import Config, EpsilonGreedy, Learner, exploration, policy
from hpc_rl.experience import Unsuited
from hpc_rl.fragments import trajectory
from hpc_rl.nets.q import QNetwork
from hpc_rl.optim.alone import Alone
from hpc_rl.types import Actions, Spec, Step, Trajectory

SPEC = Spec("linear", (3,), "float32", Actions("discrete", (4,)))
ITEMS, N, GAMMA = 40, 3, 0.9


def learner_of(**changes: Any) -> Learner:
    torch.manual_seed(3)
    fixed: dict[str, Any] = {"n_step": N, "hidden": (), "discount": GAMMA, "target_every": 2, "error_clip": 0.5}
    config = Config(**{**fixed, "max_grad_norm": 1e9, "adam_epsilon": 0.01, **changes})
    return Learner(config, SPEC, None, policy(config, SPEC, None), Alone())


def batch_of(seed: int) -> Trajectory:
    """Items of three moves: whole, terminated, cut by a time limit, and some that begin with no move at all."""
    rng = np.random.default_rng(seed)
    first, discount = np.zeros((N + 1, ITEMS), bool), np.ones((N, ITEMS), np.float32)
    for k in range(ITEMS):
        end = int(rng.integers(0, N + 2))  # the row of LAST, beyond the item for some
        first[end + 1 :, k] = True
        if end and rng.random() < 0.5:
            discount[end - 1 : end, k] = 0
        discount[end:, k] = rng.normal()
    tree = {
        "observation": rng.normal(size=(N + 1, ITEMS, 3)).astype(np.float32),
        "first": first,
        "action": rng.integers(0, 4, (N, ITEMS)),
        "reward": rng.normal(size=(N, ITEMS)).astype(np.float32),
        "discount": discount,
        "version": np.zeros((N, ITEMS), np.int64),
        "column": np.zeros(ITEMS, np.int32),
        "start": np.zeros(ITEMS, np.int64),
    }
    return trajectory([tree], SPEC)


def matrices(net: QNetwork) -> tuple[np.ndarray, np.ndarray]:
    layer: Any = net.advantage
    return layer.weight.detach().double().numpy().copy(), layer.bias.detach().double().numpy().copy()


@pytest.mark.parametrize(
    ("clip", "longest_gradient", "anneal"), [(0.0, 1e9, False), (0.3, 1e9, True), (0.0, 0.02, True)]
)
@pytest.mark.parametrize("double", [True, False])
def test_an_update_has_the_papers_numbers(double: bool, clip: float, longest_gradient: float, anneal: bool) -> None:
    learner, batch = (
        learner_of(double=double, reward_clip=clip, max_grad_norm=longest_gradient, anneal=anneal),
        batch_of(1),
    )
    with torch.no_grad():
        learner.weights.data.add_(torch.randn_like(learner.weights.data))  # else θ = θ⁻
    (w, b), (w_target, b_target) = matrices(learner.policy.net), matrices(learner.target_net)
    x, r, valid = batch.observation.double().numpy(), batch.reward.double().numpy(), batch.valid.numpy()
    loss = q_sum = y_sum = 0.0
    gradient, count, longest = np.zeros((4, 4)), 0, set()
    for k in range(ITEMS):
        if not valid[0, k]:
            continue
        y, power, m, terminal = 0.0, 1.0, 0, False
        while m < N and valid[m, k] and not terminal:
            y += power * (np.clip(r[m, k], -clip, clip) if clip else r[m, k])
            terminal, power, m = batch.discount[m, k] == 0, power * GAMMA, m + 1
        q_online, q_target = w @ x[m, k] + b, w_target @ x[m, k] + b_target
        y += 0.0 if terminal else power * (q_target[q_online.argmax()] if double else q_target.max())
        a = int(batch.action[0, k])
        q = w[a] @ x[0, k] + b[a]
        error = y - q
        loss += 0.5 * error**2 if abs(error) <= 0.5 else 0.5 * (abs(error) - 0.25)
        gradient[a] -= np.clip(error, -0.5, 0.5) * np.append(x[0, k], 1.0)
        q_sum, y_sum, count = q_sum + q, y_sum + y, count + 1
        longest.add((m, bool(terminal)))
    assert {(1, True), (1, False), (3, False)} <= longest and count < ITEMS
    before = learner.weights.data.clone()
    metrics = learner.update({"items": batch}, 0.4).metrics
    expected = {"loss": loss / count, "q_mean": q_sum / count, "target_mean": y_sum / count}
    expected["grad_norm"] = float(np.linalg.norm(gradient / count))
    for name, number in expected.items():
        assert metrics[name] == pytest.approx(number, rel=1e-4), name
    step = np.concatenate([gradient[:, :3].ravel(), gradient[:, 3]]) / count
    step *= min(1.0, longest_gradient / float(np.linalg.norm(step)))
    moved = (learner.weights.data - before).numpy()  # Adam's first step, ε = 0.01
    assert metrics["learning_rate"] == (0.6 if anneal else 1.0) * 2.5e-4
    assert np.allclose(moved, -metrics["learning_rate"] * step / (np.abs(step) + 0.01), atol=2e-7)


def test_targets_are_cut_to_what_returns_can_be() -> None:
    """HER clips y to [−1 / (1 − γ), 0]; each end may be left open."""
    batch, open_ends = batch_of(4), learner_of()
    with torch.no_grad():
        open_ends.weights.data.add_(torch.randn_like(open_ends.weights.data))
    y = open_ends._target(batch)
    assert (y < -0.5).any() and (y > 0.25).any(), "both ends cut something"
    for low, high in ((-0.5, 0.25), (-0.5, None), (None, 0.25)):
        learner = learner_of(target_low=low, target_high=high)
        learner.weights.data.copy_(open_ends.weights.data)
        expected = np.clip(y.numpy(), -np.inf if low is None else low, np.inf if high is None else high)
        assert np.array_equal(learner._target(batch).numpy(), expected)


def test_importance_weights_scale_each_items_gradient_and_priorities_are_the_errors() -> None:
    """One step on all items with their chances equals the weighted sum of steps on one item each."""
    fixed: dict[str, Any] = {"error_clip": 0.5, "priority_exponent": 0.9, "importance_exponent": 0.3}
    batch, beta = batch_of(2), 0.3
    chance = torch.from_numpy(np.random.default_rng(3).exponential(3.0, ITEMS).astype(np.float32) + 1)
    learner = learner_of(**fixed)
    with torch.no_grad():
        learner.weights.data.add_(torch.randn_like(learner.weights.data))
    (w, b), (w_target, b_target) = matrices(learner.policy.net), matrices(learner.target_net)
    valid = batch.valid.double().numpy()
    errors, loss, gradient = np.zeros(ITEMS), 0.0, np.zeros((4, 4))
    for k in range(ITEMS):
        total, factor, m = 0.0, 1.0, 0
        while m < N and valid[m, k]:
            total, factor = total + factor * float(batch.reward[m, k]), factor * GAMMA * float(batch.discount[m, k])
            m += 1
        x, a = batch.observation[:, k].double().numpy(), int(batch.action[0, k])
        y = total + factor * (w_target @ x[m] + b_target)[(w @ x[m] + b).argmax()]
        errors[k] = y - (w[a] @ x[0] + b[a])
        weight, size = valid[0, k] * float(chance[k]) ** -beta, abs(errors[k])
        loss += weight * (0.5 * size**2 if size <= 0.5 else 0.5 * (size - 0.25))
        gradient[a] -= weight * np.clip(errors[k], -0.5, 0.5) * np.append(x[0], 1.0)
    result = learner.update({"items": replace(batch, chance=chance)}, 0.0)
    assert result.metrics["loss"] == pytest.approx(loss / valid[0].sum(), rel=1e-4)
    assert result.metrics["grad_norm"] == pytest.approx(float(np.linalg.norm(gradient / valid[0].sum())), rel=1e-4)
    assert result.priorities is not None and np.allclose(result.priorities, np.abs(errors), atol=1e-4)
    assert not result.priorities.requires_grad


def test_the_replay_has_the_priority_exponent() -> None:
    config = Config(priority_exponent=0.9, importance_exponent=0.3)
    assert config.experience().items[0].alpha == 0.9 and Config().experience().items[0].alpha == 0
    assert learner_of().update({"items": batch_of(1)}, 0.0).priorities is None, "nobody reads them"


@pytest.mark.parametrize("tau", [1.0, 0.25])
def test_the_target_network_follows_every_few_updates(tau: float) -> None:
    learner, targets = learner_of(tau=tau), []
    for k in range(4):
        before = learner.target.data.clone()
        learner.update({"items": batch_of(k)}, 0.0)
        targets.append(torch.equal(learner.target.data, before))
        if not targets[-1]:
            expected = before + tau * (learner.weights.data - before)
            assert torch.allclose(learner.target.data, expected, atol=1e-7)
            assert torch.equal(learner.target.data, learner.weights.data) == (tau == 1.0)
    assert targets == [True, False, True, False]


def test_a_loaded_learner_has_the_same_target_and_the_same_rounds() -> None:
    learner, other = learner_of(), learner_of()
    learner.update({"items": batch_of(0)}, 0.0)
    with torch.no_grad():
        learner.target.data.add_(1.0)
    saved, target = learner.state(), learner.target.data.clone()
    learner.update({"items": batch_of(1)}, 0.0)  # target_every = 2
    other.load(saved)
    assert torch.equal(other.target.data, target) and other.rounds == 1
    assert not torch.equal(learner.target.data, target)


def test_epsilon_falls_in_a_line() -> None:
    config, columns = Config(epsilon_final=0.1, epsilon_fraction=0.5), np.arange(3, dtype=np.int32)
    for progress, epsilon in ((0.0, 1.0), (0.25, 0.55), (0.5, 0.1), (1.0, 0.1)):
        actual = exploration(config, columns, 8, progress)
        assert actual.shape == (3,) and actual.dtype == np.float32 and np.allclose(actual, epsilon)
    assert np.allclose(exploration(Config(epsilon_final=0.1, epsilon_fraction=0.0), columns, 8, 0.0), 0.1)


def test_epsilon_of_each_column_for_life() -> None:
    """Horgan et al. 2018: ε_i = 0.4^(1 + 7 i / (N − 1)), whatever the progress; one column divides by nothing."""
    config = Config(epsilon_base=0.4)
    expected = [0.4 ** (1 + 7 * k / 7) for k in range(8)]
    for progress in (0.0, 1.0):
        assert np.allclose(exploration(config, np.arange(8), 8, progress), expected)
    assert np.allclose(exploration(config, np.arange(4, 8), 8, 0.3), expected[4:])
    assert np.allclose(exploration(config, np.arange(1), 1, 0.3), 0.4)


def test_one_uniform_decides_whether_and_one_which() -> None:
    player: EpsilonGreedy = policy(Config(hidden=()), SPEC, None)
    x = torch.randn(5, 3)
    best = player.net(x).argmax(-1)
    noise = torch.tensor([[0.29, 0.0], [0.29, 0.26], [0.29, 0.999999], [0.3, 0.6], [0.9, 0.1]])
    step = Step(x, torch.zeros(5, dtype=torch.bool), torch.zeros(5))
    action = player.act(step, {}, torch.full((5,), 0.3), noise).action
    assert action.tolist() == [0, 1, 3, *best[3:].tolist()]


def test_other_actions_are_refused_in_a_sentence() -> None:
    for actions in (Actions("box", (2,)), Actions("multidiscrete", (2, 3))):
        with pytest.raises(Unsuited, match=f"one discrete choice, and other has {actions.kind} actions; use"):
            policy(Config(), Spec("other", (3,), "float32", actions), None)
