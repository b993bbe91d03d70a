"""Critics side by side are critics apart; actors stay within −1..1 and explore by their uniforms.

Mutations seen to fail: observation and action in the other order; bytes not divided; exploration left out of either
policy, the action not cut; log σ not cut; the values of the other action remembered.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_rl.nets.continuous import ActorWithCritic, Critics, DeterministicActor, DeterministicPolicy
from hpc_rl.nets.squashed import GaussianActor, SquashedGaussianPolicy
from hpc_rl.types import Actions, Spec, Step

SPEC = Spec("box", (5,), "float32", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("outputs", [1, 4])
def test_critics_side_by_side_are_critics_apart(outputs: int, dtype: str) -> None:
    torch.manual_seed(1)
    spec = Spec("box", (2, 3), dtype, SPEC.actions)
    critics = Critics(spec, (8, 6), 3, outputs)
    with torch.no_grad():
        for p in critics.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, a = torch.randint(0, 256, (9, 2, 3)), torch.rand(9, 2)
    x = x.byte() if dtype == "uint8" else x / 99
    values = critics(x, a)
    assert values.shape == ((3, 9) if outputs == 1 else (3, 9, outputs))
    for k in range(3):
        y = torch.cat([x.flatten(1) / (255 if dtype == "uint8" else 1), a], 1)
        for layer in critics.layers:
            y = F.relu(y @ layer.weight[k].T + layer.bias[k, 0])  # type: ignore[operator, index]
        y = y @ critics.value.weight[k].T + critics.value.bias[k, 0]
        assert torch.allclose(values[k], y.squeeze(-1), atol=1e-6)
    assert not torch.allclose(values[0], values[1])


def test_critics_are_orthogonal_each() -> None:
    weight = Critics(SPEC, (16, 16), 2).layers[1].weight
    assert isinstance(weight, Tensor)
    for k in range(2):
        assert torch.allclose(weight[k] @ weight[k].T, 2 * torch.eye(16), atol=1e-5)
    assert not torch.equal(weight[0], weight[1])


def test_deterministic_actions_get_gaussian_noise_and_stay_in_the_box() -> None:
    torch.manual_seed(1)
    player = DeterministicPolicy(DeterministicActor(SPEC, (8,)), SPEC.actions)
    x, first = torch.randn(4000, 5), torch.zeros(4000, dtype=torch.bool)
    step, uniforms = Step(x, first, torch.zeros(4000)), torch.rand(4000, 2)
    plain = player.net(x).detach()
    assert torch.equal(player.act(step, {}, torch.zeros(4000), uniforms).action, plain)
    near = player.act(step, {}, torch.full((4000,), 0.1), uniforms).action - plain
    assert float(near.std()) == pytest.approx(0.1, rel=0.05) and abs(float(near.mean())) < 0.005
    far = player.act(step, {}, torch.ones(4000), uniforms).action
    assert float(far.abs().max()) == 1 and 0.25 < float((far.abs() == 1).float().mean()) < 0.4
    half = torch.arange(4000) % 2 == 0
    mixed = player.act(step, {}, torch.where(half, 0.0, 0.1), uniforms).action
    assert torch.equal(mixed[half], plain[half]) and torch.equal(mixed[~half], (plain + near).clamp(-1, 1)[~half])


@pytest.mark.parametrize("outputs", [1, 4])
def test_a_policy_remembers_what_its_critic_says(outputs: int) -> None:
    """Of the action that was taken, noise and all, and of the one without."""
    torch.manual_seed(1)
    net = ActorWithCritic(SPEC, (8,), outputs)
    player = DeterministicPolicy(net, SPEC.actions, net.critics)
    x, uniforms = torch.randn(6, 5), torch.rand(6, 2)
    step = Step(x, torch.zeros(6, dtype=torch.bool), torch.zeros(6))
    act = player.act(step, {}, torch.full((6,), 0.5), uniforms)
    with torch.no_grad():
        assert torch.equal(act.extras["critic_action"], net.critics(x, act.action)[0])
        assert torch.equal(act.extras["critic_policy"], net.critics(x, net.actor(x))[0])
    assert not torch.equal(*act.extras.values())
    assert {name: leaf.shape for name, leaf in player.extras.items()} == {
        name: tuple(value.shape[1:]) for name, value in act.extras.items()
    }


def test_the_squashed_gaussian_draws_at_a_temperature() -> None:
    torch.manual_seed(1)
    net = GaussianActor(SPEC, (8,))
    player = SquashedGaussianPolicy(net, SPEC.actions)
    with torch.no_grad():
        net.layers[1].bias.copy_(torch.tensor([0.2, -0.3, -1.0, 9.0]))  # type: ignore[operator, union-attr]
    x, n = torch.zeros(4000, 5), 4000
    step, uniforms = Step(x, torch.zeros(n, dtype=torch.bool), torch.zeros(n)), torch.rand(n, 2)
    mean, log_std = net(x)
    assert log_std[0].tolist() == [-1, 2], "cut at e²"
    assert torch.equal(player.act(step, {}, torch.zeros(n), uniforms).action, mean.tanh())
    u = player.act(step, {}, torch.full((n,), 0.5), uniforms).action[:, 0].atanh()
    assert float(u.mean()) == pytest.approx(0.2, abs=0.02)
    assert float(u.std()) == pytest.approx(0.5 * float(log_std[0, 0].exp()), rel=0.05)
