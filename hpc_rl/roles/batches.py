"""Which fragments make a learner's batch."""

from __future__ import annotations

from hpc_rl.transport.base import Inbox, Message
from hpc_rl.transport.waiting import Done, Stopped


def next_ones(inbox: Inbox, count: int, give_up: Done) -> list[Message]:
    """The next ``count`` fragments, or none if the run is asked to stop while waiting."""
    try:
        return [inbox.get(give_up) for _ in range(count)]
    except Stopped:
        return []


def one_of_each(inbox: Inbox, early: list[Message], give_up: Done) -> list[Message]:
    """One fragment of every actor, in their order; who is ahead of the others waits in ``early``."""
    found: dict[int, Message] = {}
    ahead, early[:] = list(early), []
    while len(found) < len(inbox.peers):
        try:
            message = ahead.pop(0) if ahead else inbox.get(give_up)
        except Stopped:
            return []
        if message.peer in found:
            early.append(message)
        else:
            found[message.peer] = message
    early += ahead
    return [found[peer] for peer in inbox.peers]
