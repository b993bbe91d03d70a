"""The protocols between a method and the rest of the house. A method is one file of this folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpc_rl.types import Act, Schema, Spec, Step, Trajectory, Update

State = dict[str, Any]
"""Nested dicts whose leaves are tensors, numbers, strings or None: what a checkpoint can hold without a pickle."""


class Policy(Protocol):
    """Chooses actions. ``act`` draws nothing itself: ``noise`` are standard uniforms of each column's stream.

    The first M of them stay the same over a fragment, which keeps them as its leaf "noise"; K are new for each move.
    """

    @property
    def net(self) -> nn.Module: ...

    @property
    def noise(self) -> int: ...  # K

    @property
    def fragment_noise(self) -> int: ...  # M, 0 for most

    @property
    def extras(self) -> Schema: ...

    @property
    def carry(self) -> Schema: ...

    def initial_carry(self, columns: int) -> dict[str, Tensor]: ...

    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> Act:
        """exploration [b] in [0, 1]: 1 samples as in training, 0 evaluates greedily. noise is [b, M + K]."""
        ...


class Learner(Protocol):
    """Improves a policy. One ``update`` is one optimisation round, its epochs and minibatches included."""

    policy: Any
    flat: Flat
    optimizer: Optimizer
    group: Group

    def update(self, batch: Trajectory, progress: float) -> Update:
        """progress rises from 0 to 1 at the budget's env steps and never falls: all that annealed values depend on."""
        ...

    def state(self) -> State: ...

    def load(self, state: State) -> None: ...


class Group(Protocol):
    """Learners that share one parameter vector; every call is collective and made by all members in the same order."""

    rank: int
    size: int
    taken: int  # steps so far
    dropped: int  # steps so far that were not taken because the reduced gradient was not finite
    stop: bool  # set before a step to ask for a stop; after the step every member reads the same answer

    def broadcast_(self, data: Tensor) -> None:
        """Overwrite ``data`` with the first member's."""
        ...

    def sum(self, data: Tensor) -> Tensor: ...

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

    def check_identical(self, data: Tensor) -> None:
        """Raise RuntimeError naming the member whose parameters are not bit for bit the first member's."""
        ...


class Diverged(RuntimeError):
    """Update after update had a gradient that was not finite; the run ends as failed."""


class Flat:
    """Parameters in one contiguous buffer, their gradients in another of two elements more.

    Optimiser, reduction, clipping, weight messages and checkpoints then each touch one array.
    """

    def __init__(self, data: Tensor) -> None:
        self.parameter = nn.Parameter(data)
        self.reduction = data.new_zeros(len(data) + 2)  # gradient, sample count, stop flag
        self.parameter.grad = self.reduction[:-2]


def flatten(module: nn.Module) -> Flat:
    """Move all parameters of a module into a `Flat`, where they stay views.

    Call it once the module has its final memory format and device: a later ``.to`` would leave the buffer.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    flat = Flat(torch.empty(sum(p.numel() for p in weights), device=weights[0].device))
    offset = 0
    for p in weights:
        view = flat.parameter.data.as_strided(p.shape, p.stride(), offset)
        view.copy_(p.data)
        p.data = view
        p.grad = flat.reduction.as_strided(p.shape, p.stride(), offset)
        offset += p.numel()
    return flat


@dataclass(frozen=True)
class Optimizer:
    """A torch optimiser over one flat parameter."""

    flat: Flat
    torch: torch.optim.Optimizer


class Alone:
    """The group of one: what a solo learner uses, and the base case that the contract tests compare with."""

    rank, size, taken, dropped, stop = 0, 1, 0, 0, False

    def broadcast_(self, data: Tensor) -> None:
        pass

    def sum(self, data: Tensor) -> Tensor:
        return data

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        return total / count.clamp(min=1)

    def check_identical(self, data: Tensor) -> None:
        pass

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        accumulate(optimizer.flat, loss_sum, count, self.stop)
        norm, self.stop, taken = finish(optimizer, max_norm, scale)
        self.taken, self.dropped = self.taken + taken, self.dropped + (not norm < inf)
        return norm


def accumulate(flat: Flat, loss_sum: Tensor | None, count: int, stop: bool) -> None:
    """This member's share of the one reduction: gradient of its summed loss, its count, its wish to stop."""
    flat.reduction.zero_()
    if loss_sum is not None and count:
        loss_sum.backward()  # type: ignore[no-untyped-call]
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

    Returns (gradient norm before clipping, somebody wants to stop, the step was taken). It is not where the norm is not
    finite, nor without samples: an optimiser with momentum would move on a gradient of zeros.
    """
    stop = bool(optimizer.flat.reduction[-1] > 0)
    samples = bool(optimizer.flat.reduction[-2] > 0)
    norm = clip(optimizer.flat, max_norm, scale)
    taken = samples and norm < inf
    if taken:
        optimizer.torch.step()
    return norm, stop, taken


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
        adam = torch.optim.Adam([flat.parameter], learning_rate, (momentum, decay), epsilon, fused=True)
        return Optimizer(flat, adam)
    if kind == "rmsprop_inside":
        return Optimizer(flat, RmsPropInside([flat.parameter], learning_rate, decay, epsilon, momentum))
    return Optimizer(flat, torch.optim.RMSprop([flat.parameter], learning_rate, decay, epsilon, momentum=momentum))


@dataclass(frozen=True)
class Algorithm:
    """A method as a value: the last line of each file of this folder."""

    config: type[Any]
    policy: Callable[[Any, Spec], Policy]
    learner: Callable[[Any, Spec, Any, Group], Learner]


def optimizer_state(optimizer: Optimizer) -> State:
    """Moments and counters of an optimiser over one flat parameter."""
    state: Mapping[str, Any] = optimizer.torch.state_dict()["state"].get(0, {})
    return {name: x.detach().clone() if isinstance(x, Tensor) else x for name, x in state.items()}


def load_optimizer(optimizer: Optimizer, state: State) -> None:
    """The inverse of ``optimizer_state``; an empty state is that of an optimiser which never stepped."""
    whole = optimizer.torch.state_dict()
    optimizer.torch.load_state_dict({**whole, "state": {0: state} if state else {}})
