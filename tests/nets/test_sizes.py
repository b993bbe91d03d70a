"""The arithmetic of sizes.py against the modules it describes."""

from __future__ import annotations

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.nets.actor_critic import ActorCritic
from hpc_rl.nets.sizes import activations, actor_critic, image
from hpc_rl.nets.torsos import ConvTorso, MlpTorso
from hpc_rl.types import Actions, Spec

PONG = Spec("pong", (84, 84), "uint8", Actions("discrete", (6,)), stack=4)
CARTPOLE = Spec("cartpole", (4,), "float32", Actions("discrete", (2,)))
GRAY = Spec("gray", (84, 84), "uint8", Actions("discrete", (6,)))
FILM = Spec("film", (4, 3, 48, 40), "uint8", Actions("discrete", (6,)))
PENDULUM = Spec("pendulum", (3,), "float32", Actions("box", (2,), (-1, -1), (1, 1)))
CHOICES = Spec("choices", (5, 2), "float32", Actions("multidiscrete", (3, 4)))


@pytest.mark.parametrize("spec", [PONG, GRAY, FILM, CARTPOLE, PENDULUM, CHOICES], ids=lambda spec: spec.id)
@pytest.mark.parametrize("hidden", [(64, 64), (32,), ()])
def test_parameters_are_those_of_the_module(spec: Spec, hidden: tuple[int, ...]) -> None:
    assert actor_critic(spec, hidden) == sum(p.numel() for p in ActorCritic(spec, hidden).parameters())
    two = sum(p.numel() for p in ActorCritic(spec, hidden, values=2).parameters())
    assert actor_critic(spec, hidden, values=2) == two > actor_critic(spec, hidden)


def test_several_values_have_an_axis_and_one_has_none() -> None:
    x, first = torch.rand(5, 3, 4), torch.zeros(5, 3, dtype=torch.bool)
    for lstm in (0, 6):
        for values, shape in ((1, (5, 3)), (3, (5, 3, 3))):
            net = ActorCritic(CARTPOLE, (8,), lstm=lstm, values=values)
            carry = torch.zeros(3, 4, 6) if lstm else None
            assert net(x, first, carry)[1].shape == shape
    torch.manual_seed(1)
    one = ActorCritic(CARTPOLE, (8,))
    torch.manual_seed(1)
    assert torch.equal(one(x)[1], ActorCritic(CARTPOLE, (8,), values=1)(x)[1])


@pytest.mark.parametrize("spec", [PONG, FILM, CARTPOLE], ids=lambda spec: spec.id)
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


@pytest.mark.parametrize(
    ("shape", "planes"),
    [
        ((84, 84), (1, 84, 84)),
        ((1, 84, 84), (1, 84, 84)),
        ((3, 96, 40), (3, 96, 40)),
        ((4, 3, 36, 36), (12, 36, 36)),
        ((4, 35, 84), None),
        ((84,), None),
        ((3, 7, 7), None),
    ],
)
@pytest.mark.parametrize("lstm", [0, 4])
def test_what_is_an_image(shape: tuple[int, ...], planes: tuple[int, ...] | None, lstm: int) -> None:
    """Such observations reach the chosen network, and every pixel of them counts."""
    spec = Spec("some", shape, "uint8", Actions("discrete", (2,)))
    assert image(spec.observation, spec.dtype) == planes and image(shape, "float32") is None
    torch.manual_seed(0)
    net = ActorCritic(spec, (8,), "shallow", lstm)
    assert isinstance(net.torso, ConvTorso if planes else MlpTorso)
    assert actor_critic(spec, (8,), "shallow", lstm) == sum(p.numel() for p in net.parameters())
    first, carry = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(3, 2 * len(net.lstms), max(lstm, 1))
    dark, bright = (torch.full((2, 3, *shape), value, dtype=torch.uint8) for value in (0, 255))
    output, value, _ = net(dark, first, carry)
    assert output.shape == (2, 3, 2) and value.shape == (2, 3)
    assert not torch.equal(output, net(bright, first, carry)[0])


@pytest.mark.parametrize("name", jobs.algorithms())
def test_sigma_begins_where_the_job_says(name: str) -> None:
    for std in (1.0, 0.3):
        config = jobs.algorithm(name).config(initial_std=std)
        policy = jobs.algorithm(name).policy(config, PENDULUM)
        output, _, _ = policy.net(torch.randn(5, 3))
        assert torch.allclose(output[:, 2:].exp(), torch.full((5, 2), std))


@pytest.mark.parametrize("network", ["nature", "shallow"])
def test_both_image_networks(network: str) -> None:
    spec = Spec("atari", (84, 84), "uint8", Actions("discrete", (6,)), stack=4)
    net = ActorCritic(spec, (), network)
    assert sum(p.numel() for p in net.parameters()) == actor_critic(spec, (), network)
