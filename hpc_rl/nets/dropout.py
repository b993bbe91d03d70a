"""A network whose dropout stands for what is not known of its weights (Gal and Ghahramani 2016, ICML).

A draw of the units that are kept is a draw of the function; kept for a whole roll-out it is one possible world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Masks = Sequence[Tensor]
"""Of each hidden layer [K, units]: 0, or 1 / (1 − p) where a unit is kept; a row for each of K draws."""


@dataclass(frozen=True)
class Ensemble:
    """Layers of sigmoids behind standardised inputs [I], with outputs [O] in their own units; float64."""

    weights: Sequence[Tensor]  # [units before, units]
    biases: Sequence[Tensor]
    centre: tuple[Tensor, Tensor]  # mean of inputs and of outputs
    scale: tuple[Tensor, Tensor]  # their deviations
    noise: Tensor  # [O] variance of what is left of the outputs

    def __call__(self, inputs: Tensor, masks: Masks) -> Tensor:
        """Outputs [K, O] of inputs [K, I], each by its own draw."""
        return self.centre[1] + self.scale[1] * _through(
            (inputs - self.centre[0]) / self.scale[0], self.weights, self.biases, masks
        )


def draws(units: Sequence[int], count: int, rate: float, generator: torch.Generator) -> Masks:
    """``count`` draws of hidden layers whose units are dropped with probability ``rate`` = p."""
    kept = [torch.rand(count, n, generator=generator, dtype=torch.float64) >= rate for n in units]
    return [x.double() / (1 - rate) for x in kept]


def fitted(
    x: Tensor,
    y: Tensor,
    hidden: Sequence[int],
    rate: float,
    steps: int,
    learning_rate: float,
    decay: float,
    generator: torch.Generator,
    alive: Callable[[], bool],
) -> Ensemble:
    """Least squares of rows x [n, I] and y [n, O] by Adam over all rows, new units dropped in every step.

    ``decay`` is that of the squared weights: with dropout, the prior of the weights. What is the same for every row
    keeps its unit.
    """
    centre, scale = (x.mean(0), y.mean(0)), (_deviation(x), _deviation(y))
    inputs, outputs = (x - centre[0]) / scale[0], (y - centre[1]) / scale[1]
    sizes = [x.shape[1], *hidden, y.shape[1]]
    weights = [torch.randn(a, b, generator=generator, dtype=torch.float64) / a**0.5 for a, b in pairwise(sizes)]
    biases = [torch.zeros(n, dtype=torch.float64) for n in sizes[1:]]
    with torch.enable_grad():
        parameters = [p.requires_grad_() for p in (*weights, *biases)]
        optimizer = torch.optim.Adam(parameters, learning_rate)
        for step in range(steps):
            if step % 50 == 0:
                alive()
            optimizer.zero_grad()
            error = _through(inputs, weights, biases, draws(hidden, len(x), rate, generator)) - outputs
            loss = error.square().mean() + decay * torch.stack([w.square().sum() for w in weights]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    weights, biases = [w.detach() for w in weights], [b.detach() for b in biases]
    whole = [torch.ones(len(x), n, dtype=torch.float64) for n in hidden]
    left = (_through(inputs, weights, biases, whole) - outputs) * scale[1]
    return Ensemble(weights, biases, centre, scale, left.square().mean(0))


def _through(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], masks: Masks) -> Tensor:
    for weight, bias, mask in zip(weights, biases, masks, strict=False):  # the last layer has no mask
        x = torch.sigmoid(x @ weight + bias) * mask
    return x @ weights[-1] + biases[-1]


def _deviation(x: Tensor) -> Tensor:
    std = x.std(0, correction=0)
    return torch.where(std > 1e-6, std, torch.ones_like(std))
