"""The rules by which optimisers step a flat buffer, and their annealing.

torch.optim's classes are not used: the first that is made imports torch's compiler, which costs every rank 1.5 s of CPU
and 70 MiB. Each rule below repeats torch's bit for bit where torch has it; a test compares.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from hpc_rl.optim.flat import Flat, Optimizer, StateDict, UpdateRule


def annealed(value: float, progress: float, anneal: bool) -> float:
    """``value``, or where it is annealed what is left of it: value · (1 − progress), progress in [0, 1]."""
    return value * (1 - progress if anneal else 1.0)


def adam(x: Tensor, g: Tensor, state: StateDict, rate: float, beta1: float, beta2: float, epsilon: float) -> None:
    """m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  θ ← θ − η m̂ / (√v̂ + ε), m̂ and v̂ without their bias.

    Kingma and Ba 2015, arXiv 1412.6980, algorithm 1, by torch's fused kernel.
    """
    step = _moment(state, "step", torch.zeros((), device=x.device))
    m, v = _moment(state, "exp_avg", x), _moment(state, "exp_avg_sq", x)
    step += 1
    torch._fused_adam_([x], [g], [m], [v], [], [step], lr=rate, beta1=beta1, beta2=beta2, weight_decay=0.0,
                       eps=epsilon, amsgrad=False, maximize=False)  # fmt: skip


def rmsprop(x: Tensor, g: Tensor, state: StateDict, rate: float, alpha: float, epsilon: float, momentum: float) -> None:
    """v ← α v + (1 − α) g²,  m ← μ m + g / (√v + ε),  θ ← θ − η m, from v = 0 and m = 0, as torch's RMSprop."""
    square = _moment(state, "square_avg", x)
    square.mul_(alpha).addcmul_(g, g, value=1 - alpha)
    root = square.sqrt().add_(epsilon)
    if momentum > 0:
        moment = _moment(state, "momentum_buffer", x)
        moment.mul_(momentum).addcdiv_(g, root)
        x.add_(moment, alpha=-rate)
    else:
        x.addcdiv_(g, root, value=-rate)


def rmsprop_inside(
    x: Tensor, g: Tensor, state: StateDict, rate: float, alpha: float, epsilon: float, momentum: float
) -> None:
    """v ← α v + (1 − α) g²,  m ← μ m + g / √(v + ε),  θ ← θ − η m, from v = 0 and m = 0: ε inside the root.

    Mnih et al. 2016, arXiv 1602.01783, where all actors share v. TensorFlow's RMSProp, which published settings of
    IMPALA and A2C are for, has ε there as well but begins with v = 1; torch's adds ε to the root.
    """
    square, moment = _moment(state, "square_avg", x), _moment(state, "momentum_buffer", x)
    square.mul_(alpha).addcmul_(g, g, value=1 - alpha)
    moment.mul_(momentum).addcdiv_(g, (square + epsilon).sqrt_())
    x.sub_(moment, alpha=rate)


def _moment(state: StateDict, name: str, like: Tensor) -> Tensor:
    """What ``state`` has under this name, at first zeros."""
    if name not in state:
        state[name] = torch.zeros_like(like)
    moment: Tensor = state[name]
    return moment


def make_optimizer(
    flat: Flat, kind: str, learning_rate: float, epsilon: float, decay: float, momentum: float = 0.0
) -> Optimizer:
    """ "adam" (β₁ = momentum, β₂ = decay), "rmsprop" (α = decay), both with ε outside the root, or "rmsprop_inside"."""
    rules: dict[str, UpdateRule] = {
        "adam": partial(adam, beta1=momentum, beta2=decay, epsilon=epsilon),
        "rmsprop": partial(rmsprop, alpha=decay, epsilon=epsilon, momentum=momentum),
        "rmsprop_inside": partial(rmsprop_inside, alpha=decay, epsilon=epsilon, momentum=momentum),
    }
    return Optimizer(flat, rules[kind], learning_rate, kind)
