"""Batches of learners that share parameters: how they share one out as minibatches.

A global minibatch is a part of the batch that all members hold together, drawn over the columns of all from a stream
that they share: results do not depend on how many members there are. A reduction waits for the member with the most, so
all have equal shares as far as columns go round; one that has nothing of a minibatch still joins its reduction.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hpc_rl.devices import to_device
from hpc_rl.optim.group import Group


def shuffled_moves(group: Group, draw: np.random.Generator, steps: int, columns: int, count: int) -> list[Tensor]:
    """``count`` minibatches of (time, column) pairs: of each, this member's indices into its flattened [T·b].

    Every column is permuted in time and gives each minibatch the same number of moves. Where moves are left over,
    columns take turns.
    """
    low, width = group.rank * columns, group.size * columns
    order = draw.permuted(np.tile(np.arange(steps), (width, 1)), axis=1)[low : low + columns]
    parts = [np.array_split(times * columns + column, count) for column, times in enumerate(order)]
    turns = [[part[(k + low + column) % count] for column, part in enumerate(parts)] for k in range(count)]
    return [to_device(np.concatenate(turn), "cpu") for turn in turns]


def shuffled_columns(group: Group, draw: np.random.Generator, columns: int, count: int) -> list[Tensor]:
    """``count`` minibatches of whole columns: of each, the numbers of this member's own columns.

    Every ``count`` neighbours are dealt to the minibatches at random, one to each.
    """
    low, total = group.rank * columns, group.size * columns
    deals = [draw.permutation(count) for _ in range(0, total, count)]
    minibatch = np.concatenate(deals)[low : low + columns]
    return [to_device(np.flatnonzero(minibatch == k), "cpu") for k in range(count)]
