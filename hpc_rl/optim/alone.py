"""The group of one, and the two halves of the step that every group makes: gradients into sums, sums into a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from torch import Tensor

from hpc_rl.optim.flat import Flat, Optimizer


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
    count, stop = optimizer.flat.reduction[-2:].tolist()
    norm = clip(optimizer.flat, max_norm, scale)
    taken = count > 0 and norm < inf
    if taken:
        optimizer.step()
    return norm, stop > 0, taken
