"""How a learner's `Fresh` store is filled: with the messages of its actors, as they come or one of each."""

from __future__ import annotations

from hpc_rl.replay.fresh import Fresh
from hpc_rl.transport.base import Inbox, Message
from hpc_rl.transport.waiting import Done, Stopped


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
