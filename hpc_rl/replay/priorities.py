"""Priorities of the items of a ring: P(i) = p_i^α / Σ_k p_k^α (Schaul et al. 2016, arXiv 1511.05952, equation 1).

Priorities come from other ranks and from networks that may have diverged: what is not a finite number >= 0 is refused,
counted, and named once. p is at least `FLOOR`, the paper's ε: an item whose error is 0 may be drawn again.

The first p of an item is what the method's ``annotate`` returns as "priority" once it is complete, else the largest so
far; then what `UpdateResult.priorities` of the last batch with it says.
"""

from __future__ import annotations

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.sum_tree import SumTree
from hpc_rl.types import Array

FLOOR = 1e-6


class Priorities:
    """p^α at the position where an item begins, 0 where none does. ``name`` is that of the kind of items."""

    def __init__(self, name: str, alpha: float, slots: int, width: int) -> None:
        self.name, self.alpha, self.tree = name, alpha, SumTree(slots * width)
        self.shape = (slots, width)
        self.largest = 1.0  # priority so far: that of items which nobody has given one
        self.rejected = 0

    def begin(self, at: Array, priorities: Array | None) -> None:
        """Let items that were just completed at ``at`` [n] be drawn, with these priorities or the largest so far."""
        p = np.full(len(at), self.largest)
        if priorities is not None:
            good = self._good(priorities)
            p[good] = priorities[good]
        self._set(at, p)

    def end(self, at: Array) -> None:
        """Let no item at ``at`` [n] be drawn."""
        self.tree.set(at, np.zeros(len(at)))

    def update(self, at: Array, priorities: Array) -> None:
        """Set priorities [n] of items at ``at`` [n], the last one of an item that is named twice; refused ones stay."""
        good = self._good(priorities)
        if not good.all():
            at, priorities = at[good], priorities[good]
        self._set(at, priorities)

    def draw(self, count: int, generator: np.random.Generator) -> Array:
        """Positions [count] int64, one of each count-th of the mass."""
        return self.tree.draw((np.arange(count) + generator.random(count)) / count)

    def chance(self, at: Array) -> Array:
        """P(i) / smallest P, [n] float32."""
        ratio = self.tree.leaves.take(at) / self.tree.smallest
        return np.minimum(ratio, np.finfo(np.float32).max).astype(np.float32)

    def of(self, at: Array) -> Array:
        """p [n]."""
        p: Array = self.tree.leaves.take(at) ** (1 / self.alpha)
        return p

    def _set(self, at: Array, priorities: Array) -> None:
        if len(at):
            p = np.maximum(priorities, FLOOR, dtype=np.float64)
            self.largest = max(self.largest, float(p.max()))
            self.tree.set(at, p**self.alpha)

    def _good(self, priorities: Array) -> Array:
        """[n] bool: finite as float32 and not negative."""
        good: Array = (priorities >= 0) & (priorities <= np.finfo(np.float32).max)
        if not good.all():
            if not self.rejected:
                value = float(priorities[~good][0])
                print(
                    f"warning: a priority of {value} of the {self.name} is refused, and its item keeps the one it has; "
                    "further ones are counted as replay/rejected. Look at the losses, and at annotate of the method",
                    flush=True,
                )
            self.rejected += int((~good).sum())
        return good

    def state(self) -> StateDict:
        """p^α [slots, b], from which all of the tree follows."""
        return {"mass": self.tree.leaves.reshape(self.shape).copy(), "largest": self.largest}

    def load(self, state: StateDict) -> None:
        self.tree.load(np.asarray(state["mass"]).reshape(-1))
        self.largest = float(state["largest"])
