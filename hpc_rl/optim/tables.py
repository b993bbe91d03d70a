"""Rows and results of all learners as one table that each of them holds. Every function is collective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpc_rl.optim.group import Group


def joined(group: Group, own_rows: Tensor) -> tuple[Tensor, slice]:
    """The rows [n, k] float64 of all learners one below the other, and which of them are this one's."""
    counts = torch.zeros(group.size, dtype=torch.float64)
    counts[group.rank] = len(own_rows)
    counts = group.sum(counts)
    low = int(counts[: group.rank].sum())
    rows = slice(low, low + len(own_rows))
    table = torch.zeros(int(counts.sum()), own_rows.shape[1], dtype=torch.float64)
    table[rows] = own_rows
    return group.sum(table), rows


def shared_out(group: Group, tasks: int, width: int, solve: Callable[[int], Tensor]) -> Tensor:
    """[tasks, width] float64 of ``solve(task) -> [width]``; of W learners number r solves the tasks r, r + W, …

    What a task gives must not depend on who solves it, nor on those before it.
    """
    table = torch.zeros(tasks, width, dtype=torch.float64)
    for task in range(group.rank, tasks, group.size):
        table[task] = solve(task)
    return group.sum(table)
