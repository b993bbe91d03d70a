"""The group of one, and the parts of the step that every group makes: gradients into sums, sums into a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import torch
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
        accumulate(optimizer.flat, loss_sum, count, self.stop, scale / max(count, 1))
        norm, self.stop, taken = step(optimizer, max_norm)
        self.taken, self.dropped = self.taken + taken, self.dropped + (not norm < inf)
        return norm


def accumulate(flat: Flat, loss_sum: Tensor | None, count: int, stop: bool, factor: float = 1.0) -> None:
    """This member's part of the one reduction: factor · gradient of its summed loss, its count, its vote to stop.

    Only ``flat`` receives gradients, whatever other networks the loss passes through.
    """
    if loss_sum is None or not count:
        flat.reduction.zero_()
    else:
        _differentiate(flat, loss_sum, factor)
    flat.reduction[-2] = count
    flat.reduction[-1] = float(stop)


def _differentiate(flat: Flat, loss_sum: Tensor, factor: float) -> None:
    """Write factor · gradient of the loss: each parameter's once, as soon as it is known, so that none is kept."""
    places = {id(p): place for p, place in zip(flat.leaves, flat.gradients, strict=True)}

    def write(p: Tensor) -> None:
        torch.mul(p.grad, factor, out=places.pop(id(p)))  # type: ignore[arg-type]
        p.grad = None

    hooks = [p.register_post_accumulate_grad_hook(write) for p in flat.leaves]  # type: ignore[no-untyped-call]
    try:
        loss_sum.backward(inputs=flat.leaves)  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    for place in places.values():  # of parameters that the loss does not depend on
        place.zero_()


def divide(flat: Flat, scale: float) -> None:
    """Make the summed gradient scale · Σ / count."""
    flat.reduction[:-2].mul_(scale / max(float(flat.reduction[-2]), 1.0))


def clip(flat: Flat, max_norm: float) -> float:
    """Make the gradient at most ``max_norm`` long; its norm before that, maybe not finite."""
    gradient = flat.reduction[:-2]
    norm = float(gradient.norm())
    if max_norm < norm < inf:
        gradient.mul_(max_norm / norm)
    return norm


def step(optimizer: Optimizer, max_norm: float) -> tuple[float, bool, bool]:
    """The last part of ``apply_gradients``, once ``reduction`` holds scale · Σ / count: clip, step.

    Returns (gradient norm before clipping, a member votes to stop, the step was taken). It is not where the norm is not
    finite, nor without samples: an optimiser with momentum would move on a gradient of zeros.
    """
    count, stop = optimizer.flat.reduction[-2:].tolist()
    norm = clip(optimizer.flat, max_norm)
    taken = count > 0 and norm < inf
    if taken:
        optimizer.step()
    return norm, stop > 0, taken
