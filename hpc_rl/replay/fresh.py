"""Fresh experience: every fragment is learned from once, in the update after it came, and then forgotten.

A worker inserts its own fragment; a learner those that its actors send.
"""

from __future__ import annotations

from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import Batches
from hpc_rl.transport.base import Inbox, Message
from hpc_rl.transport.waiting import Done, Stopped
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


class Arriving:
    """Fills a `Fresh` store with ``count`` messages at a time, and gives their slots back once they are learned from.

    ``in_turn`` takes one fragment of each actor in their order, for a schedule that repeats itself; an actor's further
    fragments wait in ``early``.
    """

    def __init__(self, inbox: Inbox, count: int, in_turn: bool) -> None:
        self.inbox, self.count, self.in_turn = inbox, count, in_turn
        self.early: list[Message] = []
        self.messages: list[Message] = []

    def receive(self, store: Fresh, give_up: Done) -> bool:
        """Wait for a batch and insert it; False where a stop of the run was requested first. Raises Deadline."""
        try:
            self.messages = self._one_of_each(give_up) if self.in_turn else self._next(give_up)
        except Stopped:
            return False
        for message in self.messages:
            store.insert(message.tree)
        return True

    def release(self) -> None:
        """Let the senders use the memory of the last batch."""
        for message in self.messages:
            self.inbox.release(message)
        self.messages = []

    def _next(self, give_up: Done) -> list[Message]:
        return [self.inbox.get(give_up) for _ in range(self.count)]

    def _one_of_each(self, give_up: Done) -> list[Message]:
        batch: dict[int, Message] = {}
        waiting, self.early = self.early, []
        while len(batch) < len(self.inbox.peers):
            message = waiting.pop(0) if waiting else self.inbox.get(give_up)
            if message.peer in batch:
                self.early.append(message)
            else:
                batch[message.peer] = message
        self.early += waiting
        return [batch[peer] for peer in self.inbox.peers]
