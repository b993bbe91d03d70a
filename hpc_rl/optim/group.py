"""Learners that share parameters: how a gradient of all becomes new parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from torch import Tensor

from hpc_rl.optim.flat import Flat
from hpc_rl.optim.optimizers import Optimizer


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


def no_stop() -> bool:
    """``Group.alive`` where there is no peer to pulse and no stop flag."""
    return False


class Alone:
    """The group of one: what a solo learner uses, and the base case that the contract tests compare with."""

    rank, size, taken, dropped, stop = 0, 1, 0, 0, False

    def __init__(self, alive: Callable[[], bool] = no_stop) -> None:
        self.alive = alive

    def broadcast_(self, data: Tensor) -> None:
        pass

    def sum(self, data: Tensor) -> Tensor:
        return data

    def max(self, data: Tensor) -> Tensor:
        return data

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        return total / count.clamp(min=1)

    def check_identical(self, tensors: Sequence[Tensor]) -> None:
        pass

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        accumulate(optimizer.flat, loss_sum, count, self.stop)
        norm, self.stop, taken = finish(optimizer, max_norm, scale)
        self.taken, self.dropped = self.taken + taken, self.dropped + (not norm < inf)
        return norm


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


def accumulate(flat: Flat, loss_sum: Tensor | None, count: int, stop: bool) -> None:
    """This member's part of the one reduction: gradient of its summed loss, its count, its vote to stop.

    Only ``flat`` receives gradients, whatever other networks the loss passes through.
    """
    flat.reduction.zero_()
    if loss_sum is not None and count:
        loss_sum.backward(inputs=flat.leaves or None)  # type: ignore[no-untyped-call]
    flat.reduction[-2] = count
    flat.reduction[-1] = float(stop)


def clip(flat: Flat, max_norm: float, scale: float) -> float:
    """Make the summed gradient scale · Σ / count, at most ``max_norm`` long; its norm before that, maybe not finite."""
    gradient = flat.reduction[:-2]
    gradient.mul_(scale / max(float(flat.reduction[-2]), 1.0))
    norm = float(gradient.norm())
    if max_norm < norm < inf:
        gradient.mul_(max_norm / norm)
    return norm


def finish(optimizer: Optimizer, max_norm: float, scale: float) -> tuple[float, bool, bool]:
    """The second half of ``apply_gradients``, once ``reduction`` holds the sums: scale, clip, step.

    Returns (gradient norm before clipping, a member votes to stop, the step was taken). It is not where the norm is not
    finite, nor without samples: an optimiser with momentum would move on a gradient of zeros.
    """
    stop = bool(optimizer.flat.reduction[-1] > 0)
    samples = bool(optimizer.flat.reduction[-2] > 0)
    norm = clip(optimizer.flat, max_norm, scale)
    taken = samples and norm < inf
    if taken:
        optimizer.step()
    return norm, stop, taken
