"""Weights on their way from the learner to every actor: one message per node, then node-shared memory.

A node's lowest rank is its relay. Where that is the learner itself, no message is needed and it writes the memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_rl.algorithms.base import Flat
from hpc_rl.roles.base import Seat
from hpc_rl.roles.messages import WEIGHTS, parameters_layout
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.weights import Weights, shared_path


class Publisher:
    """Sends each version to the relay of every node; a relay that is still busy with an older one misses this one."""

    def __init__(self, seat: Seat, parameter: Any) -> None:
        link, rank = seat.ports.link, seat.place.rank
        self.parameter = parameter.data
        nbytes = self.parameter.numel() * 4
        self.weights: Weights | None = None
        if seat.nodes[rank] == rank:  # this rank is its node's relay: no message needed there
            self.weights = Weights(shared_path(seat.token, rank), nbytes, create=True)
        others = sorted(set(seat.nodes) - {rank})
        self.relays = [Outbox(link, r, WEIGHTS, parameters_layout(nbytes), seat.ports.waiting, slots=1) for r in others]
        seat.ports.barrier(range(link.size))  # every node's file exists

    def publish(self, version: int) -> None:
        """Make ``version`` the newest; never waits."""
        data = self.parameter.detach().cpu().numpy().view(np.uint8)
        if self.weights is not None:
            self.weights.write(data, version)
        for relay in self.relays:
            if relay.ready():
                relay.put({"parameters": data[None]}, version)

    def close(self) -> None:
        if self.weights is not None:
            self.weights.close(remove=True)


class Relay:
    """Where this actor's weights come from; the node's lowest rank also brings them to the node."""

    def __init__(self, seat: Seat, flat: Flat) -> None:
        link, rank = seat.ports.link, seat.place.rank
        learner = seat.place.peers[0]
        self.bytes = flat.parameter.data.numpy().view(np.uint8)
        node = seat.nodes[rank]
        self.mine = node == rank
        self.inbox, self.version = None, -1
        path = shared_path(seat.token, node)
        if self.mine:
            self.weights = Weights(path, self.bytes.nbytes, create=True)
            layout = parameters_layout(self.bytes.nbytes)
            self.inbox = Inbox(link, [learner], WEIGHTS, layout, seat.ports.waiting, credits=1)
        seat.ports.barrier(range(link.size))  # every node's file exists
        if not self.mine:
            self.weights = Weights(path, self.bytes.nbytes, create=False)

    def work(self) -> None:
        """Pass on what the learner sent, if this rank is the node's relay."""
        if self.inbox is not None and (message := self.inbox.newest()) is not None:
            self.weights.write(message.tree["parameters"][0], message.version)
            self.inbox.release(message)

    def newest(self) -> int:
        """Put the newest weights into the policy; the version it now holds, -1 before the first."""
        self.version = self.weights.read(self.bytes, self.version)
        return self.version

    def close(self) -> None:
        self.weights.close(remove=self.mine)
