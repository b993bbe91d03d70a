"""Weights on their way from the learner to every actor: one message per node, then node-shared memory.

A node's lowest rank with weights is its relay. Where that is the learner itself, it writes the memory and no message is
needed; nor is one for an inference server in the learner's own process. subscriber.py has the other end.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from hpc_rl.devices import to_host
from hpc_rl.optim.flat import Flat
from hpc_rl.plan import WeightRoutes
from hpc_rl.runtime.messages import WEIGHTS, weights_layout
from hpc_rl.transport.base import Outbox
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Waiting
from hpc_rl.transport.weights import SharedWeights, shared_path
from hpc_rl.types import Clock, Tree


class WeightPublisher:
    """Gives each version to its own node or process, and the first learner's to every relay.

    Newest wins: a relay that is still busy with an older one misses this one, unless ``every`` says to wait for it. The
    first one is waited for in any case: without it no actor moves, and no later one would come. ``serves`` is true
    where an inference server in this process reads the shared memory.
    """

    def __init__(
        self, link: Link, waiting: Waiting, flat: Flat, routes: WeightRoutes, serves: bool = False, every: bool = False
    ) -> None:
        self.flat, self.every, self.begun, self.routes = flat, every, False, routes
        nbytes = flat.data.numel() * 4
        relays = set(routes.relays.values()) if link.rank == routes.learners[0] else set()
        shares = serves or link.rank in relays
        self.shared = SharedWeights(shared_path(routes.token, link.rank), nbytes, create=True) if shares else None
        self.waiting, layout = waiting, weights_layout(nbytes)
        self.outbox = partial(Outbox, link, tag=WEIGHTS, layout=layout, waiting=waiting, slots=1)
        self.relays = [self.outbox(rank) for rank in sorted(relays - {link.rank})]

    def publish(self, clock: Clock) -> None:
        """Make the present weights the newest. Raises Deadline where a relay does not come for the first."""
        data = to_host(self.flat.data).view(np.uint8)
        if self.shared is not None:
            self.shared.write(data, clock)
        tree = {"parameters": data[None], "env_steps": np.array([clock.env_steps])}
        for k in range(len(self.relays)):
            self._send(k, tree, clock)
        self.begun = True

    def _send(self, k: int, tree: Tree, clock: Clock) -> None:
        """To the k-th relay, or where it is lost to its heir, which learns by this that it is one."""
        relay = self.relays[k]
        if self.every or not self.begun or relay.ready():
            relay.put(tree, clock.version)
        lost = self.waiting.lost()
        if relay.peer in lost and (heir := self.routes.heir(relay.peer, lost)) is not None:
            self.relays[k] = self.outbox(heir)
            self._send(k, tree, clock)

    def close(self) -> None:
        if self.shared is not None:
            self.shared.close(remove=True)
