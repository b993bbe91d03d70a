"""Networks of policies and values: their parameters by hand, which observations are images, several values, σ.

Mutations seen to fail: a torso less or more; an LSTM with two biases; images from 35 pixels on; bytes left at 0..255;
σ as its logarithm.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hpc_rl import job as jobs
from hpc_rl.nets.actor_critic import ActorCritic
from hpc_rl.nets.torsos import ConvTorso, MlpTorso, image
from hpc_rl.types import Actions, Spec

PONG = Spec("pong", (84, 84), "uint8", Actions("discrete", (6,)), stack=4)
CARTPOLE = Spec("cartpole", (4,), "float32", Actions("discrete", (2,)))
GRAY = Spec("gray", (84, 84), "uint8", Actions("discrete", (6,)))
FILM = Spec("film", (4, 3, 48, 40), "uint8", Actions("discrete", (6,)))
PENDULUM = Spec("pendulum", (3,), "float32", Actions("box", (2,), (-1, -1), (1, 1)))
CHOICES = Spec("choices", (5, 2), "float32", Actions("multidiscrete", (3, 4)))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


NATURE = (4 * 64 + 1) * 32 + (32 * 16 + 1) * 64 + (64 * 9 + 1) * 64 + (3136 + 1) * 512  # 84 -> 20 -> 9 -> 7 pixels
SHALLOW = (4 * 64 + 1) * 16 + (16 * 16 + 1) * 32 + (2592 + 1) * 256


@pytest.mark.parametrize(
    ("spec", "shape", "parameters"),
    [
        (PONG, {"hidden": (64, 64)}, NATURE + 513 * 7),
        (PONG, {"hidden": (), "network": "shallow"}, SHALLOW + 257 * 7),
        (PONG, {"hidden": (), "lstm": 10}, NATURE + 40 * (512 + 1 + 10) + 11 * 7),  # one torso, one LSTM
        (PONG, {"hidden": (), "values": 2}, NATURE + 513 * 8),
        (GRAY, {"hidden": ()}, NATURE - 3 * 64 * 32 + 513 * 7),
        (FILM, {"hidden": ()}, (12 * 64 + 1) * 32 + 32832 + 36928 + (64 * 2 * 1 + 1) * 512 + 513 * 7),  # 11×9, 4×3, 2×1
        (CARTPOLE, {"hidden": (64, 64)}, 2 * (5 * 64 + 65 * 64) + 65 * 3),
        (CARTPOLE, {"hidden": ()}, 5 * 3),
        (CARTPOLE, {"hidden": (8,), "lstm": 6, "standardize": True}, 8 + 2 * (5 * 8 + 24 * (8 + 1 + 6)) + 7 * 3),
        (PENDULUM, {"hidden": (32,)}, 2 * 4 * 32 + 33 * 3 + 2),
        (CHOICES, {"hidden": (8,)}, 2 * 11 * 8 + 9 * 8),
    ],
)
def test_parameters_by_hand(spec: Spec, shape: dict[str, Any], parameters: int) -> None:
    assert count(ActorCritic(spec, **shape)) == parameters


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


def test_small_images_are_taken_as_vectors() -> None:
    small = Spec("small", (20, 20), "uint8", Actions("discrete", (2,)), stack=4)
    net = ActorCritic(small, (8,))
    assert count(net) == 2 * 1601 * 8 + 9 * 3
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
    first, carry = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(3, 2 * len(net.lstms), max(lstm, 1))
    dark, bright = (torch.full((2, 3, *shape), value, dtype=torch.uint8) for value in (0, 255))
    output, value, _ = net(dark, first, carry)
    assert output.shape == (2, 3, 2) and value.shape == (2, 3)
    assert not torch.equal(output, net(bright, first, carry)[0])


@pytest.mark.parametrize("name", ["a2c", "impala", "ppo"])
def test_sigma_begins_where_the_job_says(name: str) -> None:
    for std in (1.0, 0.3):
        config = jobs.algorithm(name).config(initial_std=std)
        policy = jobs.algorithm(name).policy(config, PENDULUM, None)
        output, _, _ = policy.net(torch.randn(5, 3))
        assert torch.allclose(output[:, 2:].exp(), torch.full((5, 2), std))
