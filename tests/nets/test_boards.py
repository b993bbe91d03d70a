"""The residual torso of boards against plain layers, and its precision.

Mutations seen to fail: the skip connection left out; bf16 that is not computed in, or leaves the torso; the precision
set for images alone; a network without convolutions measured.
"""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_rl.nets.boards import BoardNetwork, ResidualTorso
from hpc_rl.nets.precision import faster_precision, has_choice, set_precision
from hpc_rl.types import Actions, Spec

SHAPE = (2, 6, 7)
BOARD = Spec("board", SHAPE, "float32", Actions("discrete", (7,)))


@pytest.fixture
def torso() -> ResidualTorso:
    torch.manual_seed(1)
    torso = ResidualTorso(SHAPE, 8, 2)
    for p in torso.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return torso


@pytest.fixture
def planes() -> Tensor:
    return torch.randint(0, 2, (5, *SHAPE), generator=torch.Generator().manual_seed(2)).float()


def test_a_block_adds_what_its_two_convolutions_make(torso: ResidualTorso, planes: Tensor) -> None:
    x = F.conv2d(planes, torso.first.weight, torso.first.bias, padding=1)
    for inner, outer in zip(torso.inner, torso.outer, strict=True):
        assert isinstance(inner, torch.nn.Conv2d) and isinstance(outer, torch.nn.Conv2d)
        y = F.conv2d(x.relu(), inner.weight, inner.bias, padding=1).relu()
        x = x + F.conv2d(y, outer.weight, outer.bias, padding=1)
    assert torch.allclose(torso(planes), x.relu(), atol=1e-5)


def test_bf16_leaves_as_float32_and_near(torso: ResidualTorso, planes: Tensor) -> None:
    exact = torso(planes)
    set_precision(torso, "bf16")
    rough = torso(planes)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
    rough.sum().backward()
    assert all(
        p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 for p in torso.parameters()
    )
    set_precision(torso, "fp32")
    assert torch.equal(torso(planes), exact)


def test_heads_are_exact(planes: Tensor) -> None:
    """In bf16 a probability has three digits; a search adds thousands of them."""
    net = BoardNetwork(BOARD, 8, 1, ())
    set_precision(net, "bf16")
    log_p, value = net(planes, torch.ones(5, 7, dtype=torch.bool))
    assert log_p.dtype == value.dtype == torch.float32


def test_only_convolutions_have_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BoardNetwork(BOARD, 8, 0, (16,))
    assert has_choice(BoardNetwork(BOARD, 8, 1, ())) and not has_choice(plain)
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("measured"))
    assert faster_precision(plain, "cpu") == "fp32"


@pytest.mark.parametrize(("slower", "chosen"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_the_faster_one_is_chosen_and_the_network_left_as_it_is(
    slower: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, now = BoardNetwork(BOARD, 8, 1, ()), [0.0]
    state = {name: x.clone() for name, x in net.state_dict().items()}

    def forward(torso: ResidualTorso, planes: Tensor) -> Tensor:
        now[0] += 2.0 if (torso.compute == torch.bfloat16) == (slower == "bf16") else 1.0
        result: Tensor = torso.first(planes)
        return result

    monkeypatch.setattr(ResidualTorso, "forward", forward)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert faster_precision(net, "cpu") == chosen
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and net.torso.compute == torch.float32
