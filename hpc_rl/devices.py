"""The only functions by which numbers change device, or become NumPy's (tests/test_import_law.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_rl.types import Array

if TYPE_CHECKING:  # `list` and `submit` must start without torch
    import torch
    from torch import Tensor


def to_host(x: Tensor) -> Array:
    """The tensor's numbers as an array, without their graph: its own memory where it lies on the host, else a copy."""
    array: Array = x.detach().cpu().numpy()
    return array


def write_back(host: Array, x: Tensor) -> None:
    """Bring what was changed in ``host`` since `to_host` gave it for x back into x, whose version moves.

    Where it is x's own memory no number moves, but what was computed from x has to be computed anew.
    """
    import torch

    if x.device.type == "cpu":
        torch.autograd.graph.increment_version(x)
    else:
        x.copy_(to_device(host, x.device))


def to_device(x: Tensor | Array, device: torch.device | str) -> Tensor:
    """A tensor on ``device`` with the numbers of ``x``, whose own memory it is where x lies there already.

    Tensors change device by these three functions and nowhere else (tests/test_import_law.py): what was made on the
    host, what came by a message and what comes from a file has to be moved, and on one device no test would notice.
    """
    import torch

    return (x if isinstance(x, torch.Tensor) else torch.from_numpy(x)).to(device)
