"""BFGS of SciPy on a function of a float64 tensor, whose gradient costs too much to count anything but evaluations.

Not L-BFGS-B: its twenty last gradients say too little of the curvature of PILCO's costs. From new controllers of the
cart-pole 250 evaluations brought it to costs of 0.57 and 0.55, and BFGS to 0.23 and 0.31 (docs/methods/pilco.md). The
whole matrix of 200 parameters is nothing beside an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpc_rl.devices import to_device, to_host
from hpc_rl.types import Array

REFUSED = 1e12  # the loss of a point where the function has none: a line search goes back from there
ENOUGH = 1e-6  # of the loss, gained since the search began anew: then it begins once more


class Minimum(NamedTuple):
    """The best point of all that were evaluated, its loss, and how many there were."""

    point: Tensor
    loss: float
    evaluations: int


class _Used(Exception):
    """All evaluations are used."""


def minimum(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, evaluations: int, alive: Callable[[], bool]
) -> Minimum:
    """Minimise ``function`` [P] -> (loss, gradient [P]) from ``start`` with so many evaluations at most.

    A loss or gradient that is not finite, or a matrix that cannot be factorised, is no fault of the run: the line
    search goes back. One that finds no lower point ends the search, which begins anew at the best one, without what it
    knew of the curvature, as long as that makes it better. ``alive`` is called before each evaluation, which may take a
    second.
    """
    from scipy.optimize import minimize

    best, count = Minimum(start, REFUSED, 0), 0

    def evaluate(x: Array) -> tuple[float, Array]:
        nonlocal best, count
        if count == evaluations:
            raise _Used
        alive()
        count += 1
        point = to_device(x.copy(), "cpu")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                loss, gradient = function(point)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return REFUSED, 0 * x
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(gradient).all()):
            return REFUSED, 0 * x
        if float(loss) < best.loss:
            best = Minimum(point, float(loss), 0)
        return float(loss), to_host(gradient).copy()

    before = np.inf
    try:
        while before - best.loss > ENOUGH * abs(best.loss):
            before = best.loss
            minimize(evaluate, to_host(best.point).copy(), jac=True, method="BFGS", options={"maxiter": evaluations})
    except _Used:
        pass
    return best._replace(evaluations=count)


def with_gradient(loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """``loss`` [P] -> [] as a function that also gives its gradient, by automatic differentiation."""

    def function(point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            variable = point.clone().requires_grad_()
            value = loss(variable)
            (gradient,) = torch.autograd.grad(value, variable)
        return value.detach(), gradient

    return function
