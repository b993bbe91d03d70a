"""Rounded weights last until the weights change, whoever changes them; numbers near 0 are 0 on every rank.

Mutations seen to fail: no version moved by `Optimizer.step`, or by `write_back`; the version of the buffer alone; a
copy kept for ever, or made anew each time; half of the gradient; subnormal numbers kept by the ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hpc_rl import hardware, startup
from hpc_rl.devices import to_host, write_back
from hpc_rl.nets.precision import set_precision
from hpc_rl.nets.torsos import ConvTorso, rounded
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import Flat, flatten
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import polyak_

IMAGE = torch.randint(0, 256, (3, 1, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rough() -> tuple[ConvTorso, Flat]:
    torch.manual_seed(1)
    torso = ConvTorso((1, 36, 36), "shallow")
    set_precision(torso, "bf16")
    return torso, flatten(torso)


def by_optimizer(kind: str) -> Callable[[ConvTorso, Flat], None]:
    def write(torso: ConvTorso, flat: Flat) -> None:
        part = flat.part(torso.convolutions, torso.dense)
        Alone().apply_gradients(make_optimizer(part, kind, 0.1, 1e-8, 0.9), torso(IMAGE).sum(), 3, 1.0)

    return write


def by_numpy(torso: ConvTorso, flat: Flat) -> None:
    host = to_host(flat.data)
    host[:] = 0.5
    write_back(host, flat.data)


def by_whole(torso: ConvTorso, flat: Flat) -> None:
    flat.part(torso.dense)
    torso(IMAGE)
    flat.data.mul_(0.5)


def by_user(torso: ConvTorso, flat: Flat) -> None:
    with torch.no_grad():
        torso.dense.weight.mul_(0.5)


WRITERS: dict[str, Callable[[ConvTorso, Flat], Any]] = {
    **{kind: by_optimizer(kind) for kind in ("adam", "rmsprop", "rmsprop_inside")},
    "NumPy": by_numpy,
    "whole of a part": by_whole,
    "user": by_user,
    "polyak": lambda torso, flat: polyak_(flat, Flat(torch.ones_like(flat.data)), 0.5),
    "checkpoint": lambda torso, flat: flat.data.copy_(torch.ones_like(flat.data)),
    "slice": lambda torso, flat: flat.data[len(flat.data) // 2 :].zero_(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_copy_is_that_of_the_present_weights(name: str) -> None:
    torso, flat = rough()
    before = torso(IMAGE)
    WRITERS[name](torso, flat)
    after = torso(IMAGE)
    assert torch.equal(after, deepcopy(torso)(IMAGE)), "a network without a buffer rounds at every call"
    assert not torch.equal(after, before)


def test_the_copy_is_kept_as_long_as_nothing_changes() -> None:
    torso, flat = rough()
    copies = [rounded(torso.dense.weight) for _ in range(2)]
    assert copies[0].dtype == torch.bfloat16 and copies[0].data_ptr() == copies[1].data_ptr()
    flat.data.add_(0.0)
    assert rounded(torso.dense.weight).data_ptr() != copies[0].data_ptr(), "a graph may hold the old one"


def test_its_gradient_is_that_of_rounding_at_every_call() -> None:
    torso, _ = rough()
    twin = deepcopy(torso)

    def gradients(net: ConvTorso) -> tuple[Tensor, ...]:
        return torch.autograd.grad(net(IMAGE).square().sum() + net(IMAGE[:1]).sum(), list(net.parameters()))

    for ours, theirs in zip(gradients(torso), gradients(twin), strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == torch.float32 and ours.abs().max() > 0


def test_subnormal_numbers_are_0_on_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment of Adam whose gradients are 0 ends there, and a step takes thirty times as long."""
    monkeypatch.setattr(hardware, "device", lambda *_: "cpu")
    monkeypatch.setattr(startup, "settle_precision", lambda *_: "fp32")
    rank, some = SimpleNamespace(learns=True, rank=0, threads=1), SimpleNamespace(threads=1, device="cpu")
    nothing: Any = SimpleNamespace()
    smallest = torch.full((64,), 1.2e-38)
    threads = torch.get_num_threads()
    try:
        torch.set_flush_denormal(False)
        assert (smallest / 2 > 0).all()
        startup._processor(nothing, nothing, nothing, rank, nothing, nothing, [], [{}], some)  # type: ignore[arg-type]
        assert (smallest / 2 == 0).all()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
