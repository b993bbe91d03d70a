"""D4PG's own numbers against a slow twin of its update, its target networks, and what it refuses.

Mutations seen to fail: items without a valid move counted, or their loss; γᴺ or the termination left out of the target;
Z of the online critic, or at the action of the online actor or of the batch; the scale of rewards left out; the
importance weight left out of the critic, or put into the actor; the sign of the actor's gradient; the slope not
clipped; the actor stepped where the critic's step was dropped; a target stepped an update late, or one of the two left
out, also of the state; the weighted loss as priority.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import methods
from hpc_rl.algorithms.d4pg import Config, Learner, exploration, policy
from hpc_rl.config import BadJob
from hpc_rl.experience import Unsuited
from hpc_rl.optim.alone import Alone
from hpc_rl.types import Actions, Spec, Trajectory
from tests.algorithms.test_dqn import batch_of
from tests.formulas.test_categorical import twin as projection

SPEC = Spec("box", (3,), "float32", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)))
N, GAMMA, ATOMS, LOW, HIGH = 3, 0.9, 11, -3.0, 2.0
Z = np.linspace(LOW, HIGH, ATOMS)


def learner_of(**changes: Any) -> Learner:
    torch.manual_seed(3)
    fixed: dict[str, Any] = {"n_step": N, "hidden": (6,), "discount": GAMMA, "target_every": 2, "slope_clip": 0.0}
    fixed |= {"atoms": ATOMS, "v_min": LOW, "v_max": HIGH, "max_grad_norm": 1e9, "adam_epsilon": 0.01}
    config = Config(**{**fixed, "priority_exponent": 0.6, "importance_exponent": 0.7, **changes})
    return Learner(config, SPEC, None, policy(config, SPEC, None), Alone())


def drawn(seed: int) -> Trajectory:
    """The items of DQN's test with actions of a box, as a prioritised store gives them."""
    batch, rng = batch_of(seed), np.random.default_rng(seed)
    action = torch.from_numpy(rng.uniform(-1, 1, (*batch.action.shape, 2)).astype(np.float32))
    chance = torch.from_numpy(rng.uniform(1, 9, len(batch.chance)).astype(np.float32))
    return replace(batch, action=action, chance=chance)


def goal(learner: Learner, batch: Trajectory, k: int, scale: float) -> tuple[Any, tuple[int, bool]]:
    """m of item k, walked through, and how it ended."""
    total, power, m, terminal = 0.0, 1.0, 0, False
    while m < N and bool(batch.valid[m, k]) and not terminal:
        total += power * scale * float(batch.reward[m, k])
        terminal, power, m = bool(batch.discount[m, k] == 0), power * GAMMA, m + 1
    behind = batch.observation[m, k][None]
    with torch.no_grad():
        p = torch.softmax(learner.target_net.critics(behind, learner.target_net(behind))[0, 0], -1)
    return projection(p.double().numpy(), total, 0.0 if terminal else power, Z), (m, terminal)


def gradient_of(loss: Any, leaves: list[Any]) -> torch.Tensor:
    return torch.cat([x.flatten() for x in torch.autograd.grad(loss, leaves)])


@pytest.mark.parametrize(("scale", "clip"), [(1.0, 0.0), (0.4, 0.02)])
def test_an_update_has_the_papers_numbers(scale: float, clip: float) -> None:
    learner, batch = learner_of(reward_scale=scale, slope_clip=clip), drawn(1)
    critic, actor = (learner.optimizers[name].flat for name in ("critic", "actor"))
    critics = learner.net.critics
    with torch.no_grad():
        learner.weights.data.add_(0.3 * torch.randn_like(learner.weights.data))  # else θ = θ⁻
    losses, sums, priorities, ends = [], np.zeros(6), {}, set()
    items = [k for k in range(len(batch.chance)) if bool(batch.valid[0, k])]
    for k in items:
        m, end = goal(learner, batch, k, scale)
        log_p = torch.log_softmax(critics(batch.observation[0, k][None], batch.action[0, k][None])[0, 0], -1)
        kl = -(torch.from_numpy(m) * log_p).sum() + sum(x * np.log(x) for x in m if x > 0)
        weight = float(batch.chance[k]) ** -0.7
        losses.append(weight * kl)
        priorities[k] = number = float(kl.detach())
        p = log_p.detach().exp().double().numpy()
        sums += [weight * number, number, p @ Z, m @ Z, m[0] + m[-1], weight]
        ends.add(end)
    assert {(1, True), (1, False), (3, False)} <= ends and len(items) < len(batch.chance)
    gradient, before = gradient_of(sum(losses) / len(items), critic.leaves), critic.data.clone()
    actor_before = actor.data.clone()
    result = learner.update({"items": batch}, 0.0)
    names = ("loss", "kl", "q_mean", "target_mean", "edge_mass", "weight")
    expected = dict(zip(names, sums / len(items), strict=True)) | {"grad_norm": float(gradient.norm())}
    moved = critic.data - before  # Adam's first step, ε = 0.01
    assert torch.allclose(moved, -1e-4 * gradient / (gradient.abs() + 0.01), atol=3e-7)
    after = actor.data.clone()
    actor.data.copy_(actor_before)  # the actor's step was against the critic as it is now
    terms, values = [], 0.0
    for k in items:
        action = learner.policy.net(batch.observation[0, k][None])
        place = action.detach().requires_grad_()
        q = torch.softmax(critics(batch.observation[0, k][None], place)[0, 0], -1) @ torch.from_numpy(Z).float()
        (slope,) = torch.autograd.grad(q, place)
        values += float(q.detach())
        terms.append(-((slope.clamp(-clip, clip) if clip else slope) * action).sum())
    gradient = gradient_of(sum(terms) / len(items), actor.leaves)
    expected |= {"policy_q": values / len(items), "policy_grad_norm": float(gradient.norm())}
    assert torch.allclose(after - actor_before, -1e-4 * gradient / (gradient.abs() + 0.01), atol=3e-7)
    assert result.metrics == pytest.approx(expected, rel=2e-4, abs=1e-6)
    assert result.priorities is not None and (result.priorities >= 0).all()
    assert [float(result.priorities[k]) for k in items] == pytest.approx(list(priorities.values()), rel=1e-3, abs=1e-5)


def test_both_target_networks_follow_every_few_updates_and_are_saved() -> None:
    learner = learner_of(tau=0.25)
    for k in range(3):
        before = learner.target.data.clone()
        learner.update({"items": drawn(k)}, 0.0)
        step = 0.25 * (learner.weights.data - before) if k == 1 else 0.0
        assert torch.allclose(learner.target.data, before + step, atol=1e-7), k
    saved, other = learner.state(), learner_of()
    learner.update({"items": drawn(4)}, 0.0)
    other.load(saved)
    assert other.rounds == 3
    assert torch.equal(other.target.data, saved["target"])
    assert not torch.equal(other.target.data, learner.target.data)


def test_nothing_moves_where_the_critics_step_is_dropped() -> None:
    learner, batch = learner_of(target_every=1), drawn(0)
    flats = [learner.weights, learner.target]
    before = [flat.data.clone() for flat in flats]
    learner.update({"items": replace(batch, reward=torch.full_like(batch.reward, torch.nan))}, 0.0)
    assert all(torch.equal(flat.data, data) for flat, data in zip(flats, before, strict=True))
    assert learner.group.dropped == 1


def test_noise_and_items_are_those_of_the_config() -> None:
    config = Config(noise=0.3, priority_exponent=0.6, n_step=5)
    assert np.allclose(exploration(config, np.arange(3), 3, 0.0), 0.3)
    (items,) = config.experience().items
    assert (items.alpha, items.length) == (0.6, 5)
    assert learner_of(priority_exponent=0.0).update({"items": drawn(0)}, 0.0).priorities is None


def test_other_actions_and_crossed_ends_are_refused_in_a_sentence() -> None:
    with pytest.raises(Unsuited, match="D4PG needs a box of continuous actions, and other has discrete ones; use"):
        policy(Config(), Spec("other", (3,), "float32", Actions("discrete", (2,))), None)
    with pytest.raises(BadJob, match=r"^v_min = 5.0 is not below v_max = 5.0; returns lie between them$"):
        methods.experience("d4pg", {"v_min": 5.0, "v_max": 5.0})
