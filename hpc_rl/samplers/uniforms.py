"""Uniforms of b columns on a device, each a hash of (seed, column, row of the column, purpose, number)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpc_rl.formulas.counter_hash import mixed, uniforms
from hpc_rl.samplers.base import PURPOSES
from hpc_rl.types import Array

ACT, BEGIN, MOVE, FRAGMENT = range(4)  # what uniforms of a row are for
TOGETHER = 1 << 16  # numbers that are drawn at once: a call for several rows of few columns, and what a cache holds
AHEAD = 32  # rows at most


def keys_of(seed: int, purpose: str, columns: Array, attempt: int) -> Array:
    """The key int64 [b] of each column; see `streams`, which is keyed alike."""
    key = mixed(np.array([seed], np.int64), PURPOSES[purpose])
    keys: Array = mixed(mixed(key, attempt), columns.astype(np.int64))
    return keys


class Uniforms:
    """``count`` uniforms of each column for a purpose, in one row after the other from ``rows`` int64 [b] on."""

    def __init__(self, keys: Tensor, rows: Tensor, purpose: int, count: int, double: bool = False) -> None:
        self.keys, self.rows, self.count, self.double = mixed(keys, purpose), rows, count, double
        self.drawn, self.next = torch.zeros(0), 0
        self.none = torch.zeros(len(keys), 0, device=keys.device)

    def row(self) -> Tensor:
        """[b, count] of the next row."""
        if not self.count:
            return self.none
        if self.next == len(self.drawn):
            ahead = min(AHEAD, max(1, TOGETHER // (len(self.keys) * self.count)))
            rows = self.rows + torch.arange(ahead, device=self.rows.device)[:, None]
            self.drawn, self.next = uniforms(torch, mixed(self.keys, rows), self.count, self.double), 0
            self.rows = self.rows + ahead
        self.next += 1
        row: Tensor = self.drawn[self.next - 1]
        return row
