"""Rainbow's own numbers against a slow twin of its update, its noise, and what it refuses.

Mutations seen to fail: items without a valid move counted, or their loss; γⁿ or the termination left out of the
target; the distribution at the item's last row instead of the row behind its last valid move; double Q-learning always,
never, or with the target's noise; the online network's distribution as target; one noise for prediction and target;
the noise of another update, or not of the seed that is saved; the importance weight left out, with β instead of −β, or
with a β that falls; ω for β; a target stepped an update late; the weighted loss as priority; rewards not clipped;
``exploration`` ignored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import methods
from hpc_rl.algorithms.rainbow import Config, Learner, NoisyGreedy, policy
from hpc_rl.config import BadJob
from hpc_rl.experience import Unsuited
from hpc_rl.formulas.categorical import atoms
from hpc_rl.nets.noisy import factors
from hpc_rl.optim.alone import Alone
from hpc_rl.types import Actions, Spec, Step, Trajectory
from tests.algorithms.test_dqn import batch_of
from tests.formulas.test_categorical import twin as projection

SPEC = Spec("linear", (3,), "float32", Actions("discrete", (4,)))
N, GAMMA, ATOMS, LOW, HIGH = 3, 0.9, 11, -3.0, 2.0


def learner_of(**changes: Any) -> Learner:
    torch.manual_seed(3)
    fixed: dict[str, Any] = {"n_step": N, "hidden": (6,), "discount": GAMMA, "target_every": 2}
    fixed |= {"atoms": ATOMS, "v_min": LOW, "v_max": HIGH, "importance_exponent": 0.4, "max_grad_norm": 1e9}
    config = Config(**{**fixed, "adam_epsilon": 0.01, **changes})
    return Learner(config, SPEC, None, policy(config, SPEC, None), Alone())


def drawn(seed: int) -> Trajectory:
    """Items as a prioritised store gives them: some are more likely than the least likely one."""
    batch = batch_of(seed)
    chance = np.random.default_rng(seed).uniform(1, 9, len(batch.chance)).astype(np.float32)
    return replace(batch, chance=torch.from_numpy(chance))


@pytest.mark.parametrize(("clip", "anneal"), [(0.0, False), (0.3, True)])
@pytest.mark.parametrize("double", [True, False])
def test_an_update_has_the_papers_numbers(double: bool, clip: float, anneal: bool) -> None:
    learner, batch = learner_of(double=double, reward_clip=clip, anneal=anneal), drawn(1)
    with torch.no_grad():
        learner.weights.data.add_(0.3 * torch.randn_like(learner.weights.data))  # else θ = θ⁻
    draw = np.random.default_rng([learner.seed, 0]).random((3, learner.policy.net.noise), np.float32)
    online, late, choice = (factors(torch.from_numpy(x))[None] for x in draw)
    z, net = np.linspace(LOW, HIGH, ATOMS), learner.policy.net
    valid, beta = batch.valid.numpy(), 0.4 + 0.6 * 0.25
    losses, terms, priorities, sums, ends = [], [], {}, np.zeros(6), set()
    for k in range(valid.shape[1]):
        if not valid[0, k]:
            continue
        total, power, m, terminal = 0.0, 1.0, 0, False
        while m < N and valid[m, k] and not terminal:
            r = float(batch.reward[m, k])
            total += power * (min(max(r, -clip), clip) if clip else r)
            terminal, power, m = bool(batch.discount[m, k] == 0), power * GAMMA, m + 1
        behind = batch.observation[m, k][None]
        with torch.no_grad():
            target = torch.softmax(learner.target_net(behind, late)[0], -1).double().numpy()
            chooser = torch.softmax(net(behind, choice)[0], -1).double().numpy() if double else target
        best = int((chooser @ z).argmax())
        goal = projection(target[best], total, 0.0 if terminal else power, z)
        log_p = torch.log_softmax(net(batch.observation[0, k][None], online)[0, int(batch.action[0, k])], -1)
        weight = float(batch.chance[k]) ** -beta
        kl = -(torch.from_numpy(goal) * log_p).sum() + sum(x * np.log(x) for x in goal if x > 0)
        losses.append(weight * kl)
        p, priorities[k] = log_p.detach().exp().double().numpy(), float(kl.detach())
        edges = goal[0] + goal[-1]
        terms.append(weight)
        sums += [weight * float(kl.detach()), float(kl.detach()), p @ z, goal @ z, edges, weight]
        ends.add((m, terminal))
    count = len(losses)
    assert {(1, True), (1, False), (3, False)} <= ends and count < valid.shape[1] and max(terms) > 1.5 * min(terms)
    mean_loss: Any = sum(losses) / count
    gradient = torch.cat([x.flatten() for x in torch.autograd.grad(mean_loss, learner.weights.leaves)])
    before = learner.weights.data.clone()
    result = learner.update({"items": batch}, 0.25)
    names = ("loss", "kl", "q_mean", "target_mean", "edge_mass", "weight")
    expected = dict(zip(names, sums / count, strict=True))
    expected |= {"importance": beta, "grad_norm": float(gradient.norm())}
    for name, number in expected.items():
        assert result.metrics[name] == pytest.approx(number, rel=1e-4, abs=1e-6), name
    rate = result.metrics["learning_rate"]
    assert rate == pytest.approx((0.75 if anneal else 1.0) * 6.25e-5)
    moved = learner.weights.data - before  # Adam's first step, ε = 0.01
    assert torch.allclose(moved, -rate * gradient / (gradient.abs() + 0.01), atol=3e-7)
    assert result.priorities is not None and result.priorities.shape == batch.chance.shape
    assert (result.priorities >= 0).all()
    for k, kl in priorities.items():
        assert float(result.priorities[k]) == pytest.approx(kl, rel=1e-3, abs=1e-5)


def test_the_target_network_is_copied_every_few_updates() -> None:
    learner = learner_of()
    for k in range(4):
        before = learner.target.data.clone()
        learner.update({"items": drawn(k)}, 0.0)
        expected = learner.weights.data if k % 2 else before
        assert torch.equal(learner.target.data, expected)


def test_every_update_has_noise_of_its_own_which_a_loaded_learner_repeats() -> None:
    learner = learner_of()
    first = learner._noise()
    assert first.shape == (3, 1, learner.policy.net.noise)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    assert torch.equal(first, learner._noise())
    learner.update({"items": drawn(0)}, 0.0)
    second, saved = learner._noise(), learner.state()
    assert not torch.equal(first, second)
    torch.manual_seed(8)
    other = Learner(learner.config, SPEC, None, policy(learner.config, SPEC, None), Alone())
    assert not torch.equal(other._noise(), first)
    other.load(saved)
    assert torch.equal(other._noise(), second) and torch.equal(other.target.data, learner.target.data)
    learner.update({"items": drawn(1)}, 0.0)
    assert not torch.equal(other.target.data, learner.target.data)


def test_acting_is_greedy_under_the_columns_own_noise() -> None:
    player: NoisyGreedy = policy(Config(hidden=(6,), sigma=2.0), SPEC, None)
    x, noise = torch.randn(1, 3).expand(64, 3), torch.rand(64, player.fragment_noise)
    step = Step(x, torch.zeros(64, dtype=torch.bool), torch.zeros(64))
    z = atoms(-10.0, 10.0, 51)

    def greedy(scale: float) -> torch.Tensor:
        logits = torch.cat([player.net(x[k][None], factors(noise[k][None], scale)) for k in range(64)])
        return (torch.softmax(logits, -1) @ z).argmax(-1)

    for scale in (1.0, 0.1, 0.0):
        assert torch.equal(player.act(step, {}, torch.full((64,), scale), noise).action, greedy(scale)), scale
    assert len(set(greedy(1.0).tolist())) > 1 and len(set(greedy(0.0).tolist())) == 1
    assert player.noise == 0, "no uniform of a single move"


def test_items_carry_the_exponent_of_priorities() -> None:
    (items,) = Config(priority_exponent=0.7, n_step=5).experience().items
    assert items.alpha == 0.7 and items.length == 5


def test_other_actions_and_crossed_ends_are_refused_in_a_sentence() -> None:
    for actions in (Actions("box", (2,)), Actions("multidiscrete", (2, 3))):
        with pytest.raises(Unsuited, match=f"one discrete choice, and other has {actions.kind} actions; use"):
            policy(Config(), Spec("other", (3,), "float32", actions), None)
    with pytest.raises(BadJob, match=r"^v_min = 5.0 is not below v_max = 5.0; returns lie between them$"):
        methods.experience("rainbow", {"v_min": 5.0, "v_max": 5.0})
