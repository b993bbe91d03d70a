"""AllReduce: the `Group` of learners that sum their gradients over a link."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms.base import Alone, Group, Optimizer, accumulate, finish
from hpc_rl.transport.ports import Ports


class AllReduce:
    """Every learner holds the same parameters and steps the same optimiser on the same reduced gradient."""

    def __init__(self, ports: Ports, members: Sequence[int]) -> None:
        self.ports, self.members = ports, list(members)
        self.rank, self.size = self.members.index(ports.link.rank), len(members)
        self.skipped, self.stop = 0, False

    def broadcast_(self, data: Tensor) -> None:
        if self.rank:
            data.zero_()
        data.copy_(self.sum(data))

    def sum(self, data: Tensor) -> Tensor:
        copy = np.array(data.detach().cpu().numpy(), copy=True)
        self.ports.reduce(copy, "sum", self.members)
        return torch.from_numpy(copy).to(data.device).reshape(data.shape)

    def mean(self, total: Tensor, count: Tensor) -> Tensor:
        both = self.sum(torch.stack([total, count]))
        return both[0] / both[1].clamp(min=1)

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        accumulate(optimizer.flat, loss_sum, count, self.stop)
        reduction = optimizer.flat.reduction
        if reduction.device.type == "cpu":
            self.ports.reduce(reduction.numpy(), "sum", self.members)
        else:
            reduction.copy_(self.sum(reduction))
        norm, self.stop, self.skipped = finish(optimizer, max_norm, scale, self.skipped)
        return norm

    def check_identical(self, data: Tensor) -> None:
        bits = data.detach().cpu().numpy().view(np.int32).astype(np.int64)
        mine = np.array([int(bits.sum()), int((bits * np.arange(1, bits.size + 1)).sum() % (1 << 40))], np.int64)
        table = np.zeros((self.size, 2), np.int64)
        table[self.rank] = mine
        self.ports.reduce(table, "sum", self.members)
        for rank, sums in enumerate(table):
            if (sums != table[0]).any():
                raise RuntimeError(
                    f"parameters of rank {self.members[rank]} differ from those of rank {self.members[0]}"
                )


def learners(ports: Ports, members: Sequence[int]) -> Group:
    """The group of these ranks: `Alone` for one."""
    return AllReduce(ports, members) if len(members) > 1 else Alone()
