"""The Nature torso against a plain network on x / 255, and its precision.

Mutations seen to fail: 255 → 256; one ReLU left out; a stride changed; ``.float()`` at the end left out; the size check
left out; blocks of one axis exchanged; the kernel's squares in another order; the uneven rim kept; the
offset of words not looked at.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_rl.nets.precision import set_precision
from hpc_rl.nets.torsos import ConvTorso, block_kernel, blocks

SHAPE = (4, 44, 52)


def plain(torso: ConvTorso, image: Tensor) -> Tensor:
    """The published network, written out: x/255 → 8×8/4 → 4×4/2 → 3×3/1 → 512, a ReLU after each."""
    x = image.float() / 255
    for layer, stride in zip(torso.convolutions, (4, 2, 1), strict=True):
        x = F.relu(F.conv2d(x, layer.weight.contiguous(), layer.bias, stride))
    return F.relu(F.linear(x.contiguous().flatten(1), torso.dense.weight, torso.dense.bias))


@pytest.fixture
def torso() -> ConvTorso:
    torch.manual_seed(0)
    network = ConvTorso(SHAPE)
    for layer in network.convolutions:  # biases start at zero, which would hide their loss
        torch.nn.init.normal_(layer.bias, std=0.1)
    return network


@pytest.fixture
def image() -> Tensor:
    return torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_it_is_the_plain_network(torso: ConvTorso, image: Tensor) -> None:
    actual, expected = torso(image), plain(torso, image)
    assert actual.shape == (6, 512) and actual.dtype == torch.float32
    assert expected.abs().max() > 0.1
    assert torch.allclose(actual, expected, atol=1e-4)


def test_its_gradients_are_those_of_the_plain_network(torso: ConvTorso, image: Tensor) -> None:
    weights = list(torso.parameters())
    actual = torch.autograd.grad(torso(image).square().sum(), weights)
    expected = torch.autograd.grad(plain(torso, image).square().sum(), weights)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_bf16_leaves_as_float32_and_near(torso: ConvTorso, image: Tensor) -> None:
    exact = torso(image)
    set_precision(torso, "bf16")
    rough = torso(image)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact), "bf16 computed in fp32"
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(p.dtype == torch.float32 for p in torso.parameters())
    set_precision(torso, "fp32")
    assert torch.equal(torso(image), exact)


@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 38, 41), (1, 36, 40)])
def test_a_convolution_over_blocks_is_the_one_over_pixels(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=generator)
    kernel = torch.randn(5, shape[0], 8, 8, dtype=torch.float64, generator=generator)
    expected = F.conv2d(pixels.double(), kernel, stride=4)
    actual = F.conv2d(blocks(pixels).double().movedim(-1, 1), block_kernel(kernel))
    assert torch.allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("width", [84, 41])
def test_blocks_of_stacks_are_those_of_their_copies(width: int) -> None:
    """Stacks are views of single frames, and words of four bytes are read from them where they are aligned."""
    frames = torch.randint(0, 256, (6, 3, 44, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    for row in range(3):
        stacks = frames.unfold(0, 4, 1).movedim(-1, 2)[row]
        assert not stacks.is_contiguous()
        assert torch.equal(blocks(stacks), blocks(stacks.contiguous()))
    shifted = frames.view(-1)[1 : 1 + 2 * 4 * 36 * 36].view(2, 4, 36, 36)
    assert torch.equal(blocks(shifted), blocks(shifted.clone()))


def test_the_smallest_image_is_36_and_smaller_ones_are_refused() -> None:
    assert ConvTorso((1, 36, 36))(torch.zeros(1, 1, 36, 36, dtype=torch.uint8)).shape == (1, 512)
    for shape in ((1, 35, 84), (4, 84, 10)):
        with pytest.raises(ValueError, match="36×36"):
            ConvTorso(shape)
