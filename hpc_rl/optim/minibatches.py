"""Global minibatches: parts of the batch that all learners of a group hold together, each taking what it has.

They are drawn over the columns of all members from a stream that the members share, so results do not depend on how
many members there are. A member may have nothing of a minibatch, and still joins its reduction.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor

from hpc_rl.devices import to_device
from hpc_rl.optim.group import Group


def shuffled_moves(group: Group, draw: np.random.Generator, steps: int, columns: int, count: int) -> list[Tensor]:
    """``count`` minibatches of (time, column) pairs: of each, this member's indices into its flattened [T·b].

    Every column is permuted in time and gives each minibatch the same number of moves, so that members have equal
    work in every step: a reduction waits for the one with the most. Where moves are left over, columns take turns.
    """
    low, width = group.rank * columns, group.size * columns
    order = draw.permuted(np.tile(np.arange(steps), (width, 1)), axis=1)[low : low + columns]
    parts = [np.array_split(times * columns + column, count) for column, times in enumerate(order)]
    turns = [[part[(k + low + column) % count] for column, part in enumerate(parts)] for k in range(count)]
    return [to_device(np.concatenate(turn), "cpu") for turn in turns]


def shuffled_columns(group: Group, draw: np.random.Generator, columns: int, count: int) -> list[Tensor]:
    """``count`` minibatches of whole columns: of each, the numbers of this member's own columns."""
    low = group.rank * columns
    chunks = np.array_split(draw.permutation(group.size * columns), count)
    return [to_device(chunk[(chunk >= low) & (chunk < low + columns)] - low, "cpu") for chunk in chunks]


def consecutive_columns(group: Group, columns: int, count: int) -> list[slice]:
    """``count`` equal minibatches of all members' columns in their order: of each, this member's own, maybe none."""
    low, total = group.rank * columns, group.size * columns
    edges = [min(max(total * k // count - low, 0), columns) for k in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
