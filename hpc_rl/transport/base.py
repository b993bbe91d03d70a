"""Channels with credits over whatever can send bytes; local.py and mpi.py are the two that can.

Nothing here blocks in the transport itself: every wait is `Waiting.until`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_rl.transport.layout import Layout
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Deadline, Done, Waiting
from hpc_rl.types import Array, Tree


@dataclass
class Message:
    """One received fragment: views into the slot's memory, valid until `Inbox.release`."""

    tree: Tree
    version: int
    peer: int
    slot: int


class Outbox:
    """The sending end of a channel: a message leaves only with a credit in hand.

    A credit is one receive that the peer has already posted for this sender, granted in a message of 8 bytes. So a
    receiver that stalls holds exactly the messages it granted, whatever their size.
    """

    def __init__(self, link: Link, peer: int, tag: int, layout: Layout, waiting: Waiting, slots: int = 2) -> None:
        self.link, self.peer, self.tag, self.layout, self.waiting = link, peer, tag, layout, waiting
        self.buffers = [layout.buffer() for _ in range(slots)]
        self.sending: list[Done] = [lambda: True] * slots
        self.turn = 0
        self.credits = 0
        self.sent = 0
        self.grant = np.zeros(1, np.int64)
        self.granted = link.irecv(self.grant, peer, tag + 1)

    def ready(self) -> bool:
        """A message could leave now: with a credit, once the next slot's last one has left; or the peer is lost."""
        while self.granted():
            self.credits += int(self.grant[0])
            self.granted = self.link.irecv(self.grant, self.peer, self.tag + 1)
        return (self.credits > 0 and self.sending[self.turn]()) or self.peer in self.waiting.lost()

    def reserve(self, columns: int = 0) -> Tree:
        """Views of the next slot, to be filled in place; waits only until its last message has left. ``columns``: see
        `put`, which must get the same."""
        self.waiting.until(self.sending[self.turn], f"{self.waiting.who([self.peer])} to take an earlier message")
        return self.layout.views(self.buffers[self.turn], columns)

    def wait(self, give_up: Done = lambda: False) -> None:
        """Return once a message could leave. Raises Stopped, Deadline: see `Waiting.until`."""
        self.waiting.until(self.ready, f"{self.waiting.who([self.peer])} to grant a message", give_up)

    def put(self, tree: Tree, version: int, give_up: Done = lambda: False, columns: int = 0) -> None:
        """Send ``tree`` (copied unless it is the lent one), unless the peer is lost; waits for a credit.

        Raises Stopped, Deadline.
        """
        self.wait(give_up)
        if self.peer in self.waiting.lost():
            return
        buffer = self.layout.pack(tree, version, self.buffers[self.turn], columns)
        self.sending[self.turn] = self.link.isend(buffer, self.peer, self.tag)
        self.turn = (self.turn + 1) % len(self.buffers)
        self.credits -= 1
        self.sent += 1

    def flush(self) -> None:
        """Wait until everything put has left this rank."""
        self.waiting.until(
            lambda: all(done() for done in self.sending), f"{self.waiting.who([self.peer])} to take the last messages"
        )


class Inbox:
    """The receiving end, from one or many peers: ``credits`` posted receives for each, first come first served."""

    def __init__(
        self, link: Link, peers: Sequence[int], tag: int, layout: Layout, waiting: Waiting, credits: int = 2
    ) -> None:
        self.link, self.peers, self.tag, self.layout, self.waiting = link, list(peers), tag, layout, waiting
        self.buffers: list[Array] = []
        self.arrived: list[Done] = []  # one for each buffer's posted receive
        self.queues: dict[int, deque[int]] = {peer: deque() for peer in peers}
        self.grants: deque[tuple[Array, Done]] = deque()
        self.looked = time.monotonic()
        self.received_at = dict.fromkeys(self.peers, self.looked)
        for peer in self.peers:
            self._open(peer, credits)
        self.order = deque(self.peers)  # without those that are lost

    def poll(self) -> Message | None:
        """The next complete message, taking peers in turn, or None."""
        now = self._look()
        for _ in range(len(self.order)):
            peer = self.order[0]
            self.order.rotate(-1)
            queue = self.queues[peer]
            if queue and self.arrived[queue[0]]():
                index = queue.popleft()
                self.received_at[peer] = now
                tree, version = self.layout.unpack(self.buffers[index])
                return Message(tree, version, peer, index)
        return None

    def ready(self) -> bool:
        """`poll` would find a message."""
        self._look()
        return any(queue and self.arrived[queue[0]]() for queue in self.queues.values())

    def get(self, give_up: Done = lambda: False) -> Message:
        """Wait for the next message. Raises Stopped, Deadline: see `Waiting.until`."""
        messages: list[Message] = []

        def arrived() -> bool:
            messages.extend(message for message in [self.poll()] if message is not None)
            return bool(messages)

        self.waiting.until(arrived, lambda: f"a message from {self.waiting.who(self.peers)}", give_up)
        self.check_peers()
        return messages[0]

    def newest(self) -> Message | None:
        """The last of all messages that have arrived; older ones are released."""
        latest = None
        while (message := self.poll()) is not None:
            if latest is not None:
                self.release(latest)
            latest = message
        return latest

    def release(self, message: Message) -> None:
        """Give the slot back: post its receive again, then grant the sender one more message."""
        if message.peer not in self.order:  # lost meanwhile
            if not self.order:
                return
            message.peer = self.order[0]
        if not self.queues[message.peer]:  # it had no credit, so its silence begins now
            self.received_at[message.peer] = time.monotonic()
        self._post(message.slot, message.peer)
        self._grant(message.peer, 1)

    def check_peers(self) -> None:
        """Raise Deadline naming peers with a credit that sent nothing for so long: the others would hide their loss."""
        now, limit = self._look(), self.waiting.deadline_s
        quiet = [p for p in self.order if now - self.received_at[p] > limit and self.queues[p]]
        silent = [p for p in quiet if not self.arrived[self.queues[p][0]]()]
        if silent:
            raise Deadline(f"waited {limit:.0f} s for a message from {self.waiting.who(silent)}; is that rank alive?")

    def watch(self) -> bool:
        """`check_peers`, as the ``give_up`` of another wait: silence does not begin anew with it. Always False."""
        self.check_peers()
        return False

    def _look(self) -> float:
        """The present; a long pause of this rank is not its peers' silence."""
        now = time.monotonic()
        if (pause := now - self.looked) > self.waiting.deadline_s / 4:
            self.received_at = {peer: time_s + pause for peer, time_s in self.received_at.items()}
        self.looked = now
        for peer in [peer for peer in self.waiting.lost() if peer in self.order]:
            self._bequeath(peer)
        return now

    def _bequeath(self, peer: int) -> None:
        """Drop a lost peer; as many messages as it still might have sent may be sent by those that are left."""
        self.order.remove(peer)
        posted = self.queues.pop(peer)
        for _ in posted if self.order else ():
            self._open(self.order[0], 1)
            self.order.rotate(-1)

    def _open(self, peer: int, credits: int) -> None:
        """Post ``credits`` more receives for a peer, and let it send as many messages."""
        for _ in range(credits):
            self.buffers.append(self.layout.buffer())
            self.arrived.append(lambda: False)
            self._post(len(self.buffers) - 1, peer)
        self._grant(peer, credits)

    def _post(self, index: int, peer: int) -> None:
        self.arrived[index] = self.link.irecv(self.buffers[index], peer, self.tag)
        self.queues[peer].append(index)

    def _grant(self, peer: int, count: int) -> None:
        while self.grants and self.grants[0][1]():
            self.grants.popleft()
        data = np.array([count], np.int64)
        self.grants.append((data, self.link.isend(data, peer, self.tag + 1)))
