"""BFGS of SciPy on a float64 tensor. L-BFGS-B ends PILCO's searches far above it: docs/methods/pilco.md."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpc_rl.devices import to_device, to_host
from hpc_rl.types import Array

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
REFUSED = 1e12  # the loss of a point where the function has none: a line search goes back from there
ENOUGH = 1e-6  # of the loss, gained since the search began anew: then it does once more


class Minimum(NamedTuple):
    """The best point of all that were evaluated, its loss, and how many there were."""

    point: Tensor
    loss: float
    evaluations: int


def minimum(function: Function, start: Tensor, evaluations: int, alive: Callable[[], bool]) -> Minimum:
    """Minimise ``function`` [P] -> (loss, gradient [P]) from ``start`` with so many evaluations at most.

    A loss or gradient that is not finite, or a matrix that cannot be factorised, is no fault of the run: the line
    search goes back; where it finds nothing lower, the search begins anew at the best point, and knows no curvature.
    ``alive`` is called before each evaluation, which may take a second.
    """
    from scipy.optimize import minimize

    best, before = Minimum(start, REFUSED, 0), np.inf

    def evaluate(x: Array) -> tuple[float, Array]:
        nonlocal best
        if best.evaluations == evaluations:
            raise StopIteration
        alive()
        best, point = best._replace(evaluations=best.evaluations + 1), to_device(x.copy(), "cpu")
        loss, gradient = torch.tensor(torch.nan), point
        with suppress(torch.linalg.LinAlgError), np.errstate(over="ignore", invalid="ignore"):  # type: ignore[attr-defined]
            loss, gradient = function(point)
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(gradient).all()):
            return REFUSED, 0 * x
        if float(loss) < best.loss:
            best = best._replace(point=point, loss=float(loss))
        return float(loss), to_host(gradient).copy()

    with suppress(StopIteration):
        while before - best.loss > ENOUGH * abs(best.loss):
            before = best.loss
            minimize(evaluate, to_host(best.point).copy(), jac=True, method="BFGS", options={"maxiter": evaluations})
    return best


def with_gradient(loss: Callable[[Tensor], Tensor]) -> Function:
    """``loss`` [P] -> [] as a function that also gives its gradient, by automatic differentiation."""

    def function(point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            variable = point.clone().requires_grad_()
            value = loss(variable)
            return value.detach(), torch.autograd.grad(value, variable)[0]

    return function
