"""Weights on their way from the learner to every actor: one message per node, then node-shared memory.

A node's lowest rank with weights is its relay. Where that is the learner itself, it writes the memory and no message is
needed; nor is one for an inference server in the learner's own process.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_rl.devices import to_host, write_back
from hpc_rl.optim.flat import Flat
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.messages import WEIGHTS, weights_layout
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.weights import SharedWeights, made, shared_path
from hpc_rl.types import Clock


def relays(context: RankContext) -> dict[int, int]:
    """Node (its lowest rank) -> the rank that brings weights to it: the first learner or an actor."""
    chief, found = context.plan.learners[0], dict[int, int]()
    for rank in context.plan.ranks:
        if rank.rank == chief or rank.role == "actor":
            found.setdefault(context.nodes[rank.rank], rank.rank)
    return found


class WeightPublisher:
    """Gives each version to its own node or process, and the first learner's to every relay.

    Newest wins: a relay that is still busy with an older one misses this one, unless ``every`` says to wait for it. The
    first one is waited for in any case: without it no actor moves, and no later one would come.
    """

    def __init__(self, context: RankContext, parameter: Any, every: bool = False) -> None:
        link, rank = context.ports.link, context.rank_spec.rank
        self.parameter, self.every, self.weights, self.begun = parameter.data, every, None, False
        nbytes = self.parameter.numel() * 4
        others = set(relays(context).values()) if rank == context.plan.learners[0] else set()
        if rank in others or rank in context.rank_spec.peers:
            self.weights = SharedWeights(shared_path(context.token, rank), nbytes, create=True)
        layout, waiting = weights_layout(nbytes), context.ports.waiting
        self.relays = [Outbox(link, r, WEIGHTS, layout, waiting, slots=1) for r in sorted(others - {rank})]

    def publish(self, clock: Clock) -> None:
        """Make the present weights the newest. Raises Deadline where a relay does not come for the first."""
        data = to_host(self.parameter).view(np.uint8)
        if self.weights is not None:
            self.weights.write(data, clock)
        for relay in self.relays:
            if self.every or not self.begun or relay.ready():
                relay.put({"parameters": data[None], "env_steps": np.array([clock.env_steps])}, clock.version)
        self.begun = True

    def close(self) -> None:
        if self.weights is not None:
            self.weights.close(remove=True)


class WeightSubscriber:
    """Where this actor's weights come from; a node's relay also brings them to the node."""

    def __init__(self, context: RankContext, flat: Flat) -> None:
        link, rank, waiting = context.ports.link, context.rank_spec.rank, context.ports.waiting
        self.parameter = flat.parameter.data
        self.host = to_host(self.parameter)  # the policy's own memory, unless it acts on a GPU
        self.bytes = self.host.view(np.uint8)
        source = rank if rank in context.plan.learners else relays(context)[context.nodes[rank]]
        self.mine = source == rank and rank not in context.plan.learners
        self.inbox, self.clock = None, Clock(-1, 0)
        path, nbytes = shared_path(context.token, source), self.bytes.nbytes
        if self.mine:
            layout = weights_layout(nbytes)
            self.inbox = Inbox(link, [context.plan.learners[0]], WEIGHTS, layout, waiting, credits=1)
        else:
            waiting.until(lambda: made(path, nbytes), f"{waiting.who([source])} to make room for weights")
        self.weights = SharedWeights(path, nbytes, create=self.mine)

    def work(self) -> None:
        """Pass on what the learner sent, if this rank is the node's relay."""
        if self.inbox is not None and (message := self.inbox.newest()) is not None:
            clock = Clock(message.version, int(message.tree["env_steps"][0]))
            self.weights.write(message.tree["parameters"][0], clock)
            self.inbox.release(message)

    def pull(self, exactly: int | None = None) -> Clock:
        """Put the newest weights (or ``exactly`` a version) into the policy; their clock, of version -1 at first."""
        clock = self.weights.read(self.bytes, self.clock, exactly)
        if clock.version != self.clock.version:
            write_back(self.host, self.parameter)
        self.clock = clock
        return clock

    def close(self) -> None:
        self.weights.close(remove=self.mine)
