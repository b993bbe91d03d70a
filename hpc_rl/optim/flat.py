"""Flat buffers: the parameters of one or several networks as one contiguous array, their gradients as another.

And what steps such a buffer, with its state: `Optimizer`. The rules by which it steps are in optimizers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

StateDict = dict[str, Any]
"""Nested dicts whose leaves are tensors, numbers, strings or None: what a checkpoint can hold without a pickle."""


class Flat:
    """Parameters in one contiguous buffer, their gradients in another of two elements more.

    Optimiser, reduction, clipping, weight messages and checkpoints then each touch one array.
    """

    def __init__(self, data: Tensor, whole: Flat | None = None) -> None:
        self.data = data  # [parameters] float32: the buffer itself
        self.parameter = nn.Parameter(data)
        self.reduction = data.new_zeros(len(data) + 2)  # gradient, sample count, stop flag
        # The networks' own parameters, views of this buffer, and where the reduction has their gradients.
        self.leaves, self.gradients = [self.parameter], [self.reduction[:-2]]
        self.whole = whole  # the Flat that this is a part of

    def part(self, *modules: nn.Module) -> Flat:
        """The contiguous part of this buffer that holds these modules' parameters, as a Flat with gradients of its own.

        Its optimiser steps this buffer in place. From now on the modules' gradients lie in the part.

        Raises:
            ValueError: the parameters are not in this buffer, or others lie between them.
        """
        leaves = _trainable(modules)
        low, size = _offset(self.data, leaves[0]), sum(p.numel() for p in leaves)
        position = low
        for p in leaves:
            if _offset(self.data, p) != position:
                raise ValueError(
                    f"a part must be contiguous; a parameter {tuple(p.shape)} lies elsewhere in the buffer"
                )
            position += p.numel()
        part = Flat(self.data[low : low + size], self)
        part._adopt(leaves)
        return part

    def inside(self, whole: Flat) -> bool:
        """Whether these parameters are ``whole`` or a part of it, whose copy then holds them."""
        return self is whole or (self.whole is not None and self.whole.inside(whole))

    def _adopt(self, leaves: list[nn.Parameter]) -> None:
        """Let these parameters, in this order, be views of this buffer and their gradients of this reduction."""
        offset, self.gradients = 0, []
        for p in leaves:
            p.data = self.data.as_strided(p.shape, p.stride(), self.data.storage_offset() + offset)
            vars(p)["buffer"] = self.data  # its version tells a network when its rounded copy of p is old
            self.gradients.append(self.reduction.as_strided(p.shape, p.stride(), offset))
            offset += p.numel()
        self.leaves = leaves


def flatten(*modules: nn.Module) -> Flat:
    """Move all parameters of these modules into a `Flat`, where they stay views.

    Call it once the modules have their final memory format and device: a later ``.to`` would leave the buffer.
    """
    leaves = _trainable(modules)
    flat = Flat(torch.empty(sum(p.numel() for p in leaves), device=leaves[0].device))
    before = [p.data for p in leaves]
    flat._adopt(leaves)
    for p, x in zip(leaves, before, strict=True):
        p.data.copy_(x)
    return flat


def count_trainable(module: nn.Module) -> int:
    """Parameters that a `Flat` of this module holds."""
    return sum(p.numel() for p in _trainable((module,)))


def _trainable(modules: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _offset(buffer: Tensor, p: Tensor) -> int:
    """Elements of ``buffer`` before p. Raises ValueError where p is other memory."""
    if p.untyped_storage().data_ptr() != buffer.untyped_storage().data_ptr():
        raise ValueError(f"a parameter {tuple(p.shape)} is not in this buffer; flatten its module first")
    return int(p.storage_offset() - buffer.storage_offset())


UpdateRule = Callable[[Tensor, Tensor, StateDict, float], None]
"""(parameters [n], gradient [n], state, learning rate): one step in place. The first one fills the empty state."""


@dataclass
class Optimizer:
    """An update rule over one flat parameter."""

    flat: Flat
    rule: UpdateRule
    learning_rate: float
    name: str = ""
    state: StateDict = field(default_factory=dict)  # moments and counters, empty before the first step

    def step(self) -> None:
        """One step down the gradient in ``flat.reduction``."""
        self.rule(self.flat.data, self.flat.reduction[:-2], self.state, self.learning_rate)
        torch.autograd.graph.increment_version(self.flat.data)  # fused kernels do not
