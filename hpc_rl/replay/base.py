"""The store: where a rank that learns puts new experience, and takes its batches from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hpc_rl.optim.flat import StateDict
from hpc_rl.transport.layout import Layout
from hpc_rl.types import Array, Tree

ARRIVALS = 80  # tag of what the first learner gets of every fragment
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


@dataclass(frozen=True)
class ReplayRank:
    """The replay of a replay rank, as its program sees it: rings.py, and the learners' requests of desk.py."""

    insert: Callable[[Tree], None]  # a fragment of some columns that step together
    open: Callable[[], bool]  # a fragment may be taken
    answer: Callable[[], bool]  # the requests that may be; whether there was one
    waits: Callable[[], bool]  # there is one
    flush: Callable[[], None]  # wait until all answers have left
    state: Callable[[], list[StateDict]]
    figures: Callable[[], dict[str, float]]
    arrivals: Layout  # what the first learner gets of every fragment


@dataclass(frozen=True)
class RemoteReplay:
    """The replay on other ranks, as a learner sees it: remote.py."""

    store: Store
    open: Callable[[int], None]  # ask for the batch of the first update
    receive: Callable[[float, Callable[[], bool]], None]  # wait for the next one, for so many s or until given up
