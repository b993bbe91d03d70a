"""L-BFGS-B of SciPy (Byrd et al. 1995) on a function of a float64 tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpc_rl.devices import to_device, to_host
from hpc_rl.types import Array

REFUSED = 1e12  # the loss of a point where the function has none: a line search goes back from there


class Minimum(NamedTuple):
    """The best point of all that were evaluated, its loss, and how many there were."""

    point: Tensor
    loss: float
    evaluations: int


def minimum(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, evaluations: int, alive: Callable[[], bool]
) -> Minimum:
    """Minimise ``function`` [P] -> (loss, gradient [P]) from ``start`` with about so many evaluations.

    A loss or gradient that is not finite, or a matrix that cannot be factorised, is no fault of the run: the line
    search goes back. ``alive`` is called before each evaluation, which may take a second.
    """
    from scipy.optimize import minimize

    best, count = Minimum(start, REFUSED, 0), 0

    def evaluate(x: Array) -> tuple[float, Array]:
        nonlocal best, count
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

    options = {"maxfun": evaluations, "maxiter": evaluations, "maxcor": 20}
    minimize(evaluate, to_host(start).copy(), jac=True, method="L-BFGS-B", options=options)
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
