"""Learners that share parameters: how a gradient of all becomes new parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hpc_rl.optim.flat import Optimizer


class Diverged(RuntimeError):
    """Update after update had a gradient that was not finite; the run ends as failed."""


class Group(Protocol):
    """Learners that share one parameter vector; every call is collective and made by all members in the same order."""

    rank: int
    size: int
    taken: int  # steps so far
    dropped: int  # steps so far that were not taken because the reduced gradient was not finite
    stop: bool  # set before a step to ask for a stop; after the step every member reads the same answer
    alive: Callable[[], bool]  # local: pulses the peers; True where this rank is asked to stop

    def broadcast_(self, data: Tensor) -> None:
        """Overwrite ``data`` with the first member's."""
        ...

    def sum(self, data: Tensor) -> Tensor: ...

    def max(self, data: Tensor) -> Tensor:
        """The elementwise largest of all members' ``data``."""
        ...

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        """Sum of totals over sum of counts, never a mean of means."""
        ...

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        """One optimiser step on the gradient of scale · Σ loss / Σ count over all members, clipped to ``max_norm``.

        A member without samples passes None and 0 and still takes part; a count of 0 over all members is no step. A
        norm that is not finite drops the step for everyone and is counted in ``dropped``. Returns the global gradient
        norm before clipping.
        """
        ...

    def check_identical(self, tensors: Sequence[Tensor]) -> None:
        """Raise RuntimeError naming the member whose ``tensors`` are not bit for bit the first member's."""
        ...


def means(group: Group, names: Sequence[str], sums: Tensor) -> dict[str, float]:
    """Metrics {name: Σ sum / Σ count} over all members; ``sums`` [names + 1] ends with the count. Collective.

    Raises ValueError for another number of sums, on every member alike.
    """
    if len(sums) != len(names) + 1:
        raise ValueError(
            f"{len(names)} metrics ({', '.join(names)}) and their count take {len(names) + 1} sums, not {len(sums)}"
        )
    totals = group.sum(sums)
    return dict(zip(names, (totals[:-1] / totals[-1].clamp(min=1)).tolist(), strict=True))


def shared_seed(group: Group) -> int:
    """31 bits from the first member's torch generator, the same on every member. Collective."""
    seed = torch.randint(2**31, (1,), device="cpu").double()
    group.broadcast_(seed)
    return int(seed)
