"""AllReduce: the `Group` of learners that sum their gradients, over a link or by torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor

from hpc_rl.devices import to_device, to_host, write_back
from hpc_rl.optim.alone import Alone, accumulate, divide, no_stop, step
from hpc_rl.optim.flat import Optimizer
from hpc_rl.optim.group import Group
from hpc_rl.transport.ports import Ports

Reduce = Callable[[Tensor], None]
"""Sums a contiguous tensor in place over the members. Raises Deadline."""


class AllReduce:
    """Every learner holds the same parameters and steps the same optimiser on the same reduced gradient."""

    def __init__(
        self, ports: Ports, members: Sequence[int], reduce: Reduce | None = None, alive: Callable[[], bool] = no_stop
    ) -> None:
        self.members, self.reduce, self.alive = list(members), reduce or over_link(ports, members), alive
        self.rank, self.size = self.members.index(ports.link.rank), len(members)
        self.taken, self.dropped, self.stop = 0, 0, False

    def broadcast_(self, data: Tensor) -> None:
        if self.rank:
            data.zero_()
        data.copy_(self.sum(data))

    def sum(self, data: Tensor) -> Tensor:
        copy = data.detach().clone(memory_format=torch.contiguous_format)
        self.reduce(copy)
        return copy

    def max(self, data: Tensor) -> Tensor:
        table = data.new_zeros((self.size, *data.shape))
        table[self.rank] = data
        return self.sum(table).amax(0)

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        sums = self.sum(torch.stack([total, count]))
        return sums[0] / sums[1].clamp(min=1)

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        accumulate(optimizer.flat, loss_sum, count, self.stop)
        self.reduce(optimizer.flat.reduction)
        divide(optimizer.flat, scale)
        norm, self.stop, stepped = step(optimizer, max_norm)
        self.taken, self.dropped = self.taken + stepped, self.dropped + (not norm < inf)
        return norm

    def check_identical(self, tensors: Sequence[Tensor]) -> None:
        table = torch.zeros((self.size, 2 * len(tensors)), dtype=torch.int64)
        table[self.rank] = to_device(np.array([x for data in tensors for x in _checksums(data)], np.int64), "cpu")
        self.reduce(table)
        for rank, sums in enumerate(table.tolist()):
            if sums != table[0].tolist():
                raise RuntimeError(
                    f"parameters of rank {self.members[rank]} differ from those of rank {self.members[0]}"
                )


def _checksums(data: Tensor) -> tuple[int, int]:
    """Two sums over the bits of float32 numbers: of their values, and of their values times their places."""
    bits = to_host(data).reshape(-1).view(np.int32).astype(np.int64)
    return int(bits.sum()), int((bits * np.arange(1, bits.size + 1)).sum() % (1 << 40))


def over_link(ports: Ports, members: Sequence[int]) -> Reduce:
    """Reductions over the link, by way of the host for what lies on a GPU."""

    def reduce(data: Tensor) -> None:
        host = to_host(data)
        ports.reduce(host, members)
        write_back(host, data)

    return reduce


def learners(
    ports: Ports, members: Sequence[int], reduction: str, device: str, token: str, alive: Callable[[], bool] = no_stop
) -> Group:
    """The group of these ranks: `Alone` for one. ``reduction`` as in the job; ``token`` is the attempt's.

    ``alive`` is what `Group.alive` calls during long updates.

    Raises:
        Deadline: a member did not come.
        NoBackend: ``reduction`` cannot be had here.
    """
    if len(members) == 1:
        return Alone(alive)
    if reduction == "mpi":
        return AllReduce(ports, members, None, alive)
    from hpc_rl.transport.torch_group import TorchReduce  # most runs need no second network

    return AllReduce(ports, members, TorchReduce(ports, members, reduction, device, token), alive)
