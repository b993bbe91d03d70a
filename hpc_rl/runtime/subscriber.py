"""Where an actor's weights come from; weights.py has the learner's end."""

from __future__ import annotations

from hpc_rl.devices import to_host, write_back
from hpc_rl.optim.flat import Flat
from hpc_rl.plan import WeightRoutes
from hpc_rl.runtime.messages import WEIGHTS, weights_layout
from hpc_rl.transport.base import Inbox
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Waiting
from hpc_rl.transport.weights import SharedWeights, is_complete, shared_path
from hpc_rl.types import Clock


class WeightSubscriber:
    """Where this rank's weights come from; a node's relay also brings them to the node."""

    def __init__(self, link: Link, waiting: Waiting, flat: Flat, routes: WeightRoutes) -> None:
        self.parameter = flat.data
        self.host = to_host(self.parameter)  # the policy's own memory, unless it acts on a GPU
        self.bytes = self.host.view("uint8")
        self.inbox: Inbox | None = None
        self.clock = Clock(-1, 0)
        source = routes.source(link.rank)
        self.relaying = source == link.rank and link.rank not in routes.learners
        path, nbytes = shared_path(routes.token, source), self.bytes.nbytes
        if self.relaying or (link.rank in routes.heirs and source not in routes.learners):
            self.inbox = Inbox(link, [routes.learners[0]], WEIGHTS, weights_layout(nbytes), waiting, credits=1)
        if not self.relaying:
            room = lambda: is_complete(path, nbytes) or (self.inbox is not None and self.inbox.ready())  # noqa: E731
            waiting.until(room, f"{waiting.who([source])} to make room for weights")
        self.shared = SharedWeights(path, nbytes, create=self.relaying or not is_complete(path, nbytes))

    def relay(self) -> None:
        """Pass on what the learner sent, if this rank is the node's relay; what it sends to another makes it one."""
        if self.inbox is not None and (message := self.inbox.newest()) is not None:
            if not self.relaying:
                self.relaying = True
                self.shared.take_over()
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
