"""What never acts: target networks that bootstrap values, in a Flat of their own; the noise of their actions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hpc_rl.devices import to_device
from hpc_rl.optim.flat import Flat
from hpc_rl.optim.group import Group


def polyak_(target: Flat, source: Flat, tau: float) -> None:
    """θ⁻ ← (1 − τ) θ⁻ + τ θ (Lillicrap et al. 2016, arXiv 1509.02971); τ = 1 copies (Mnih et al. 2015, Nature 518)."""
    target.data.lerp_(source.data, tau)


def placed(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself, its parameters on ``device``: for one that a learner makes beside its policy's networks."""
    module._apply(lambda x: to_device(x, device))  # type: ignore[no-untyped-call]  # what nn.Module.to does
    return module


def shared_normals(group: Group, draw: np.random.Generator, items: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normals [items, *shape] for this member's items of an update's batch, on the host.

    Member r of shares of n items has the rows r·n … of one sequence: what a batch meets does not depend on how many
    members share it, as far as shares are equal.
    """
    low = group.rank * items
    return to_device(draw.standard_normal((low + items, *shape), np.float32)[low:], "cpu")
