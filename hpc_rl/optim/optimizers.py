"""Optimisers over one flat buffer, their annealing, and their states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpc_rl.optim.flat import Flat, StateDict


@dataclass(frozen=True)
class Optimizer:
    """A torch optimiser over one flat parameter."""

    flat: Flat
    torch: torch.optim.Optimizer

    def set_learning_rate(self, rate: float) -> None:
        self.torch.param_groups[0]["lr"] = rate


def annealed(value: float, progress: float, anneal: bool) -> float:
    """``value``, or where it is annealed what is left of it: value · (1 − progress), progress in [0, 1]."""
    return value * (1 - progress if anneal else 1.0)


class RmsPropInside(torch.optim.Optimizer):
    """v ← α v + (1 − α) g²,  m ← μ m + g / √(v + ε),  θ ← θ − η m, from v = 0 and m = 0: ε inside the root.

    Mnih et al. 2016, arXiv 1602.01783, where all actors share v. TensorFlow's RMSProp, which published settings of
    IMPALA and A2C are for, has ε there as well but begins with v = 1; torch's adds ε to the root.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, alpha: float, eps: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for x in group["params"]:
                state = self.state[x]
                square = state.setdefault("square_avg", torch.zeros_like(x))
                moment = state.setdefault("momentum_buffer", torch.zeros_like(x))
                square.mul_(group["alpha"]).addcmul_(x.grad, x.grad, value=1 - group["alpha"])
                moment.mul_(group["momentum"]).addcdiv_(x.grad, (square + group["eps"]).sqrt_())
                x.sub_(moment, alpha=group["lr"])


def make_optimizer(
    flat: Flat, kind: str, learning_rate: float, epsilon: float, decay: float, momentum: float = 0.0
) -> Optimizer:
    """ "adam" (β₁ = momentum, β₂ = decay), "rmsprop" (α = decay), both with ε outside the root, or "rmsprop_inside"."""
    if kind == "adam":
        fused = not flat.data.is_meta  # where nothing is computed there are no fused kernels
        adam = torch.optim.Adam([flat.parameter], learning_rate, (momentum, decay), epsilon, fused=fused)
        return Optimizer(flat, adam)
    if kind == "rmsprop_inside":
        return Optimizer(flat, RmsPropInside([flat.parameter], learning_rate, decay, epsilon, momentum))
    return Optimizer(flat, torch.optim.RMSprop([flat.parameter], learning_rate, decay, epsilon, momentum=momentum))


def optimizer_state(optimizer: Optimizer) -> StateDict:
    """Moments and counters of an optimiser over one flat parameter; empty before its first step."""
    state: Mapping[str, Any] = optimizer.torch.state_dict()["state"].get(0, {})
    return {name: x.detach().clone() if isinstance(x, Tensor) else x for name, x in state.items()}


def load_optimizer(optimizer: Optimizer, state: StateDict) -> None:
    """The inverse of ``optimizer_state``, of copies; an empty state is that of an optimiser which never stepped."""
    own = {name: x.clone() if isinstance(x, Tensor) else x for name, x in state.items()}
    optimizer.torch.load_state_dict({**optimizer.torch.state_dict(), "state": {0: own} if state else {}})


def states(weights: Flat, optimizers: Mapping[str, Optimizer]) -> dict[str, StateDict]:
    """Each optimiser's ``optimizer_state`` under its name, with its "parameters" where ``weights`` do not hold them."""
    return {name: optimizer_state(x) | _own(weights, x) for name, x in optimizers.items()}


def load_states(weights: Flat, optimizers: Mapping[str, Optimizer], saved: Mapping[str, StateDict]) -> None:
    """The inverse of ``states``. Raises KeyError where an optimiser or its parameters are missing."""
    for name, optimizer in optimizers.items():
        moments = dict(saved[name])
        if not optimizer.flat.inside(weights):
            optimizer.flat.data.copy_(moments.pop("parameters"))
        load_optimizer(optimizer, moments)


def _own(weights: Flat, optimizer: Optimizer) -> StateDict:
    return {} if optimizer.flat.inside(weights) else {"parameters": optimizer.flat.data.clone()}
