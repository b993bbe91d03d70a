"""Weights reach every node, whichever rank is the first to be there.

Mutations seen to fail: the first version sent only to relays that are ready (a resumed run on several nodes waited for
ever: its learner was there before its actors, which then waited for weights and it for their fragments).
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from hpc_rl.optim.flat import flatten
from hpc_rl.runtime.weights import WeightPublisher, WeightSubscriber
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Clock


def seat_of(link: LocalLink) -> Any:
    """A learner and two actors, each on a node of its own."""
    ranks = [SimpleNamespace(rank=r, role="learner" if r == 0 else "actor", peers=()) for r in range(3)]
    plan = SimpleNamespace(learners=[0], ranks=ranks)
    ports = Ports(link, Waiting(10.0))
    return cast(
        Any, SimpleNamespace(ports=ports, rank_spec=ranks[link.rank], plan=plan, nodes=[0, 1, 2], token="t-relay")
    )


@pytest.mark.parametrize("late", [0, 1, 2])
def test_the_first_weights_wait_for_every_node(late: int) -> None:
    found = {}

    def rank(link: LocalLink) -> None:
        context, net = seat_of(link), nn.Linear(3, 1)
        if link.rank == late:
            time.sleep(0.3)
        if link.rank == 0:
            nn.init.constant_(net.weight, 7.0)
            publisher = WeightPublisher(context, flatten(net).parameter)
            publisher.publish(Clock(5, 60))
            context.ports.barrier(range(3))
            publisher.close()
            return
        flat = flatten(net)
        relay = WeightSubscriber(context, flat)

        def here() -> bool:
            relay.work()
            return relay.pull().version >= 0

        context.ports.waiting.until(here, "the first weights")
        found[link.rank] = relay.clock == Clock(5, 60) and torch.equal(net.weight, torch.full((1, 3), 7.0))
        context.ports.barrier(range(3))
        relay.close()

    run_threads(3, rank, 20.0)
    assert found == {1: True, 2: True}
