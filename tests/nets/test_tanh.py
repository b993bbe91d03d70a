"""Both ways to the hyperbolic tangent.

Mutations seen to fail: σ(x) for σ(2x); the sum left at 0..2; the fast way taken with gradients.
"""

from __future__ import annotations

import torch

from hpc_rl.nets.torsos import Tanh

MANY = 16_384


def test_the_fast_way_is_tanh() -> None:
    x = torch.linspace(-30, 30, 2 * MANY)
    with torch.no_grad():
        y = Tanh()(x)
    assert (y.double() - torch.tanh(x.double())).abs().max() < 2e-7 and y.abs().max() <= 1
    assert not torch.equal(y, torch.tanh(x)), "the other way was taken"


def test_with_gradients_it_is_torchs() -> None:
    x = torch.linspace(-3, 3, 2 * MANY, requires_grad=True)
    assert torch.equal(Tanh()(x), torch.tanh(x))
    assert torch.equal(Tanh()(x[:5].detach()), torch.tanh(x[:5]))
