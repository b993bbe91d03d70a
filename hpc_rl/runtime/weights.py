"""Weights on their way from the learner to every actor: one message per node, then node-shared memory.

A node's lowest rank with weights is its relay. Where that is the learner itself, it writes the memory and no message is
needed; nor is one for an inference server in the learner's own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_rl.devices import to_host, write_back
from hpc_rl.optim.flat import Flat
from hpc_rl.plan import Plan
from hpc_rl.runtime.messages import WEIGHTS, weights_layout
from hpc_rl.transport.base import Inbox, Link, Outbox
from hpc_rl.transport.waiting import Waiting
from hpc_rl.transport.weights import SharedWeights, is_complete, shared_path
from hpc_rl.types import Clock


@dataclass(frozen=True)
class WeightRoutes:
    """How one version reaches the ranks that act. ``relays`` maps each node (its lowest rank) to its relay."""

    token: str  # of the attempt, part of the names of shared memory
    learners: Sequence[int]  # the first one sends to the relays
    relays: dict[int, int]
    nodes: Sequence[int]  # for each rank its node

    def source(self, rank: int) -> int:
        """The rank whose shared memory ``rank`` reads: its own where it is a relay, or acts in a learner's process."""
        return rank if rank in self.learners else self.relays[self.nodes[rank]]

    def path(self, rank: int) -> Path:
        """The shared memory that ``rank`` writes."""
        return shared_path(self.token, rank)


def weight_routes(plan: Plan, nodes: Sequence[int], token: str) -> WeightRoutes:
    """Every node's relay is its lowest rank with weights: the first learner or an actor."""
    relays: dict[int, int] = {}
    for spec in plan.ranks:
        if spec.rank == plan.learners[0] or spec.role == "actor":
            relays.setdefault(nodes[spec.rank], spec.rank)
    return WeightRoutes(token, plan.learners, relays, nodes)


class WeightPublisher:
    """Gives each version to its own node or process, and the first learner's to every relay.

    Newest wins: a relay that is still busy with an older one misses this one, unless ``every`` says to wait for it. The
    first one is waited for in any case: without it no actor moves, and no later one would come. ``serves`` is true
    where an inference server in this process reads the shared memory.
    """

    def __init__(
        self, link: Link, waiting: Waiting, flat: Flat, routes: WeightRoutes, serves: bool = False, every: bool = False
    ) -> None:
        self.flat, self.every, self.begun = flat, every, False
        nbytes = flat.data.numel() * 4
        relays = set(routes.relays.values()) if link.rank == routes.learners[0] else set()
        shares = serves or link.rank in relays
        self.shared = SharedWeights(routes.path(link.rank), nbytes, create=True) if shares else None
        layout, others = weights_layout(nbytes), sorted(relays - {link.rank})
        self.relays = [Outbox(link, rank, WEIGHTS, layout, waiting, slots=1) for rank in others]

    def publish(self, clock: Clock) -> None:
        """Make the present weights the newest. Raises Deadline where a relay does not come for the first."""
        data = to_host(self.flat.data).view(np.uint8)
        if self.shared is not None:
            self.shared.write(data, clock)
        for relay in self.relays:
            if self.every or not self.begun or relay.ready():
                relay.put({"parameters": data[None], "env_steps": np.array([clock.env_steps])}, clock.version)
        self.begun = True

    def close(self) -> None:
        if self.shared is not None:
            self.shared.close(remove=True)


class WeightSubscriber:
    """Where this rank's weights come from; a node's relay also brings them to the node."""

    def __init__(self, link: Link, waiting: Waiting, flat: Flat, routes: WeightRoutes) -> None:
        self.parameter = flat.data
        self.host = to_host(self.parameter)  # the policy's own memory, unless it acts on a GPU
        self.bytes = self.host.view(np.uint8)
        self.inbox, self.clock = None, Clock(-1, 0)
        source = routes.source(link.rank)
        self.relaying = source == link.rank and link.rank not in routes.learners
        path, nbytes = routes.path(source), self.bytes.nbytes
        if self.relaying:
            self.inbox = Inbox(link, [routes.learners[0]], WEIGHTS, weights_layout(nbytes), waiting, credits=1)
        else:
            waiting.until(lambda: is_complete(path, nbytes), f"{waiting.who([source])} to make room for weights")
        self.shared = SharedWeights(path, nbytes, create=self.relaying)

    def relay(self) -> None:
        """Pass on what the learner sent, if this rank is the node's relay."""
        if self.inbox is not None and (message := self.inbox.newest()) is not None:
            clock = Clock(message.version, int(message.tree["env_steps"][0]))
            self.shared.write(message.tree["parameters"][0], clock)
            self.inbox.release(message)

    def pull(self, exactly: int | None = None) -> Clock:
        """Put the newest weights (or ``exactly`` a version) into the policy; their clock, of version -1 at first."""
        clock = self.shared.read(self.bytes, self.clock, exactly)
        if clock.version != self.clock.version:
            write_back(self.host, self.parameter)
        self.clock = clock
        return clock

    def close(self) -> None:
        self.shared.close(remove=self.relaying)
