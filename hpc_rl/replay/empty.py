"""The store of a rank without columns, where a method has work for one: always due, with batches that hold no item."""

from __future__ import annotations

import numpy as np

from hpc_rl.experience import Experience
from hpc_rl.fragments import allocate
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import Batches
from hpc_rl.replay.rows import Annotate, blank_items
from hpc_rl.types import Array, Schema, Spec, Tree

ANY_NUMBER = 1 << 40  # of updates; the least over all learners is made


class Empty:
    """Stands beside `Ring` and `Episodes` of the ranks that have columns, and gives batches of their leaves."""

    def __init__(self, experience: Experience, schema: Schema, spec: Spec, annotate: Annotate | None = None) -> None:
        self.batches: Batches = {}
        self.inserted: list[Tree] = []
        for items in experience.items:
            steps = items.length or experience.unroll
            tree = allocate(schema, steps, 0, spec.stack)
            notes = annotate(blank_items(schema, items, steps, 0, spec.stack)) if annotate else None
            for name, x in (notes or {}).items():
                tree[f"extras/{name}"] = np.tile(x, (steps, 1))
            self.batches[items.name] = ([tree], None)

    def insert(self, tree: Tree) -> None:
        self.inserted.append(tree)

    def due(self) -> int:
        """As many as the others' experience allows."""
        return ANY_NUMBER

    def sample(self, update: int) -> Batches:
        return dict(self.batches)

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Nothing: there are no items."""

    def figures(self) -> dict[str, float]:
        return {}

    def arrivals(self) -> list[Tree]:
        return list(self.inserted)

    def release(self) -> None:
        self.inserted.clear()

    def state(self) -> StateDict:
        return {}

    def load(self, parts: list[StateDict]) -> None:
        """Nothing is kept."""
