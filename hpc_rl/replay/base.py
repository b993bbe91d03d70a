"""The store: where a rank that learns puts new experience, and takes its batches from."""

from __future__ import annotations

from typing import Protocol

from hpc_rl.optim.flat import StateDict
from hpc_rl.types import Array, Tree

Batches = dict[str, tuple[list[Tree], Array | None]]
"""Items name -> (fragments or items side by side on the column axis, their keys [n] where they may be drawn again)."""


class Store(Protocol):
    """Experience of one rank that learns."""

    def insert(self, tree: Tree) -> None:
        """Take a new fragment; its memory may be reused by the caller after the next ``release``."""
        ...

    def due(self) -> int:
        """How many updates may be made now, by this rank's share of the experience."""
        ...

    def sample(self, update: int) -> Batches:
        """The batches of update number ``update``: every draw depends on that number alone."""
        ...

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Set the priorities [n] >= 0 of items that `sample` gave; keys that were evicted since are passed over."""
        ...

    def figures(self) -> dict[str, float]:
        """What this store adds to its rank's metrics."""
        ...

    def arrivals(self) -> list[Tree]:
        """Fragments inserted since the last ``release``: each counts its env steps once."""
        ...

    def release(self) -> None:
        """Forget the arrivals; messages that they came by may be reused."""
        ...

    def state(self) -> StateDict:
        """Everything `load` needs to give the same batches; {} where nothing is kept from round to round."""
        ...

    def load(self, parts: list[StateDict]) -> None:
        """Take up what ranks saved of this one's columns, whatever columns each of them had. Raises ValueError."""
        ...
