"""Trajectories beside one another, as rows of columns, and on another device: how a method keeps old ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpc_rl.devices import to_device
from hpc_rl.types import ENDS, ROWS, Trajectory


def concatenate(parts: list[Trajectory]) -> Trajectory:
    """Copies of fragments of equal length, side by side on the column axis."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {name: joined([x[name] for x in values]) for name in values[0]}
        return torch.cat(values, 1)

    rows: dict[str, Any] = {name: joined([getattr(part, name) for part in parts]) for name in ROWS}
    carry = {name: torch.cat([part.carry[name] for part in parts]) for name in parts[0].carry}
    ends: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in ENDS}
    return Trajectory(**rows, carry=carry, **ends)


def rows_of(batch: Trajectory) -> dict[str, Tensor]:
    """The same moves as one row [b, …] per column: {field, extras/name, carry/name: [b, …]}."""
    plain = {name: getattr(batch, name) for name in vars(batch) if name not in ("extras", "carry")}
    timed = {name: x.movedim(1, 0) if name in ROWS else x for name, x in plain.items()}
    timed |= {f"extras/{name}": x.movedim(1, 0) for name, x in batch.extras.items()}
    return {**timed, **{f"carry/{name}": x for name, x in batch.carry.items()}}


def batch_of(rows: dict[str, Tensor]) -> Trajectory:
    """The inverse of `rows_of`."""
    whole = {name: x for name, x in rows.items() if "/" not in name}
    plain: dict[str, Any] = {name: x.movedim(0, 1) if name in ROWS else x for name, x in whole.items()}
    extras = {name[7:]: x.movedim(0, 1) for name, x in rows.items() if name.startswith("extras/")}
    carry = {name[6:]: x for name, x in rows.items() if name.startswith("carry/")}
    return Trajectory(**plain, extras=extras, carry=carry)


def moved(batch: Trajectory, device: torch.device | str) -> Trajectory:
    """The same moves on ``device``."""

    def family(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: to_device(x, device) for name, x in leaves.items()}

    names = [name for name in vars(batch) if name not in ("extras", "carry")]
    plain: dict[str, Any] = {name: to_device(getattr(batch, name), device) for name in names}
    return Trajectory(extras=family(batch.extras), carry=family(batch.carry), **plain)
