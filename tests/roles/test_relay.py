"""Weights reach every node, whichever rank is the first to be there.

Mutations seen to fail: the first version sent only to relays that are ready (a resumed run on several nodes waited for
ever: its learner was there before its actors, which then waited for weights and it for their fragments).
"""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from hpc_rl.optim.flat import flatten
from hpc_rl.plan import Plan, RankSpec, WeightRoutes, weight_routes
from hpc_rl.runtime.subscriber import WeightSubscriber
from hpc_rl.runtime.weights import WeightPublisher
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Clock


def routes() -> WeightRoutes:
    """A learner and two actors, each on a node of its own."""
    ranks = [RankSpec(r, "learner" if r == 0 else "actor", r, range(0), 1, learns=r == 0) for r in range(3)]
    return weight_routes(Plan("actor_learner", tuple(ranks), 1, 1, 1), [0, 1, 2], "t-relay")


@pytest.mark.parametrize("late", [0, 1, 2])
def test_the_first_weights_wait_for_every_node(late: int) -> None:
    versions = {}

    def rank(link: LocalLink) -> None:
        ports, net = Ports(link, Waiting(10.0)), nn.Linear(3, 1)
        if link.rank == late:
            time.sleep(0.3)
        if link.rank == 0:
            nn.init.constant_(net.weight, 7.0)
            publisher = WeightPublisher(link, ports.waiting, flatten(net), routes())
            publisher.publish(Clock(5, 60))
            ports.barrier(range(3))
            publisher.close()
            return
        flat = flatten(net)
        relay = WeightSubscriber(link, ports.waiting, flat, routes())

        def here() -> bool:
            relay.relay()
            return relay.pull().version >= 0

        ports.waiting.until(here, "the first weights")
        versions[link.rank] = relay.clock == Clock(5, 60) and torch.equal(net.weight, torch.full((1, 3), 7.0))
        ports.barrier(range(3))
        relay.close()

    run_threads(3, rank, 20.0)
    assert versions == {1: True, 2: True}
