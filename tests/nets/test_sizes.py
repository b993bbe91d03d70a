"""The arithmetic of sizes.py against the modules it describes."""

from __future__ import annotations

import pytest
import torch

from hpc_rl.nets.actor_critic import ActorCritic
from hpc_rl.nets.sizes import activations, actor_critic
from hpc_rl.types import Actions, Spec

PONG = Spec("pong", (84, 84), "uint8", Actions("discrete", (6,)), stack=4)
CARTPOLE = Spec("cartpole", (4,), "float32", Actions("discrete", (2,)))
PENDULUM = Spec("pendulum", (3,), "float32", Actions("box", (2,), (-1, -1), (1, 1)))
CHOICES = Spec("choices", (5, 2), "float32", Actions("multidiscrete", (3, 4)))


@pytest.mark.parametrize("spec", [PONG, CARTPOLE, PENDULUM, CHOICES], ids=lambda spec: spec.id)
@pytest.mark.parametrize("hidden", [(64, 64), (32,), ()])
def test_parameters_are_those_of_the_module(spec: Spec, hidden: tuple[int, ...]) -> None:
    assert actor_critic(spec, hidden) == sum(p.numel() for p in ActorCritic(spec, hidden).parameters())


@pytest.mark.parametrize("spec", [PONG, CARTPOLE], ids=lambda spec: spec.id)
def test_activations_are_what_backward_keeps(spec: Spec) -> None:
    """Every distinct storage that autograd saves, parameters left out; per sample, within a fifth."""
    net, batch = ActorCritic(spec, (64, 64)), 16
    owned = {p.untyped_storage().data_ptr() for p in net.parameters()}
    saved: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in owned and len(x) == batch:
            saved[x.untyped_storage().data_ptr()] = x.numel()
        return x

    dtype = torch.uint8 if spec.dtype == "uint8" else torch.float32
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        net(torch.zeros(batch, *spec.observation, dtype=dtype))
    assert sum(saved.values()) / batch == pytest.approx(activations(spec, (64, 64)), rel=0.2)


def test_small_images_are_taken_as_vectors() -> None:
    small = Spec("small", (20, 20), "uint8", Actions("discrete", (2,)), stack=4)
    net = ActorCritic(small, (8,))
    assert sum(p.numel() for p in net.parameters()) == actor_critic(small, (8,))
    _, bright, _ = net(torch.full((1, 4, 20, 20), 255, dtype=torch.uint8))
    _, one, _ = net(torch.ones(1, 4, 20, 20))
    assert torch.allclose(bright, one)  # bytes are 0..1


@pytest.mark.parametrize("network", ["nature", "shallow"])
def test_both_image_networks(network: str) -> None:
    spec = Spec("atari", (84, 84), "uint8", Actions("discrete", (6,)), stack=4)
    net = ActorCritic(spec, (), network)
    assert sum(p.numel() for p in net.parameters()) == actor_critic(spec, (), network)
