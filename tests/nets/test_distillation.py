"""Random network distillation's networks: what they see, what is fixed, what is finite.

Mutations seen to fail: the whole stack seen; its oldest frame seen; frames as they are; no floor of σ; a limit of 10;
a predictor as deep as its target; a target of ReLUs; a target without its linear output; features of the target summed.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hpc_rl.nets.distillation import Distillation
from hpc_rl.nets.normalizers import RunningMoments
from hpc_rl.types import Actions, Spec

PIXELS = Spec("pixels", (84, 84), "uint8", Actions("discrete", (3,)), stack=4)
VECTOR = Spec("vector", (5,), "float32", Actions("discrete", (2,)))


def shapes(net: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in net.parameters() if p.dim() > 1]


def test_the_networks_of_the_released_code() -> None:
    """32@8/4, 64@4/2, 64@3/1, leaky ReLU → 512; the predictor the same and two layers of 512 with ReLU."""
    net = Distillation(PIXELS, (128, 128), 512)
    convolutions = [(32, 1, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 7 * 7)]
    assert shapes(net.target) == convolutions
    assert shapes(net.predictor) == [*convolutions, (512, 512), (512, 512)]
    kinds = [type(layer).__name__ for layer in net.predictor]
    assert kinds[:7] == ["Conv2d", "LeakyReLU"] * 3 + ["Flatten"]
    assert kinds[7:] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert all(layer.negative_slope == 0.2 for layer in net.target if isinstance(layer, nn.LeakyReLU))
    assert all(torch.equal(layer.bias, torch.zeros_like(layer.bias)) for layer in net.target if hasattr(layer, "bias"))


def test_of_a_stack_the_newest_frame_alone_is_seen() -> None:
    net = Distillation(PIXELS, (8,), 16)
    stacks = torch.randint(0, 256, (3, 2, 4, 84, 84), dtype=torch.uint8)
    other = torch.randint(0, 256, (3, 2, 4, 84, 84), dtype=torch.uint8)
    other[:, :, 3] = stacks[:, :, 3]
    frames = net.newest(stacks)
    assert frames.shape == (3, 2, 84, 84) and torch.equal(frames, net.newest(other))
    assert net.features(frames).shape == (3, 2, 16)
    assert net.error(frames, net.features(frames)).shape == (3, 2)
    vectors = torch.randn(3, 2, 5)
    assert torch.equal(Distillation(VECTOR, (8,), 4).newest(vectors), vectors)


def test_the_error_is_a_mean_over_the_features() -> None:
    net, frame = Distillation(VECTOR, (8,), 16), torch.randn(7, 5)
    predicted = net.predictor(net.standardize(frame))
    for k, away in enumerate((predicted - net.features(frame)).tolist()):
        assert float(net.error(frame, net.features(frame))[k]) == pytest.approx(sum(x * x for x in away) / 16, rel=1e-4)


def test_what_never_varied_has_a_deviation_and_a_bound() -> None:
    """An input that was always 0 is bounded once it is 1, and rounding of one that never moves is not a novelty."""
    net, seen = Distillation(VECTOR, (8,), 16), RunningMoments((5,))
    frames = torch.randn(50, 5)
    frames[:, 1], frames[:, 2] = 0.0, 0.3
    seen.add(frames, lambda x: x)
    seen.write(net.standardize)
    new = frames[:1].clone()
    new[0, 1] = 1.0
    standardized = net.standardize(new)
    assert standardized[0, 1] == 5.0 and standardized.abs().max() <= 5.0
    new[0, 2] = 0.3 + 3e-5
    assert abs(float(net.standardize(new)[0, 2])) < 0.05
    never = RunningMoments((5,))
    never.add(torch.zeros(9, 5), lambda x: x)
    never.write(net.standardize)
    assert torch.isfinite(net.error(new, net.features(new))).all()
    assert float(net.standardize.scale.max()) == pytest.approx(1e3)


def test_the_features_see_standardised_frames() -> None:
    net, seen, frames = Distillation(VECTOR, (8,), 16), RunningMoments((5,)), 100 + torch.randn(500, 5)
    seen.add(frames, lambda x: x)
    seen.write(net.standardize)
    away = (frames - frames.mean(0)) / frames.std(0, unbiased=False)
    assert torch.allclose(net.features(frames), net.target(away.clamp(-5, 5)), atol=1e-3)
