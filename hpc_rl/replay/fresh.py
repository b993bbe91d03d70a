"""Fresh experience: every fragment is learned from once, in the update after it came, and then forgotten.

A worker inserts its own fragment; a learner those that its actors send.
"""

from __future__ import annotations

from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import Batches
from hpc_rl.types import Array, Tree


class Fresh:
    """A batch is what was inserted since the last one: a worker's own fragment, or messages of actors side by side."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.trees: list[Tree] = []

    def insert(self, tree: Tree) -> None:
        self.trees.append(tree)

    def due(self) -> int:
        return 1 if self.trees else 0

    def sample(self, update: int) -> Batches:
        return {self.name: (list(self.trees), None)}

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Nothing: no fragment is drawn twice."""

    def figures(self) -> dict[str, float]:
        return {}

    def arrivals(self) -> list[Tree]:
        return list(self.trees)

    def release(self) -> None:
        self.trees.clear()

    def state(self) -> StateDict:
        return {}

    def load(self, parts: list[StateDict]) -> None:
        """Nothing is kept."""
