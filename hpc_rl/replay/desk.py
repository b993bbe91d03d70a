"""Where a replay rank takes the requests of its learners, and sends what they ask for; remote.py has the other end."""

from __future__ import annotations

from hpc_rl.replay.base import ReplayRank
from hpc_rl.replay.remote import ALIVE, BATCHES, REQUESTS, SUMMARIES, ReplayLayouts
from hpc_rl.replay.rings import Rings
from hpc_rl.transport.base import Inbox, Message, Outbox
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Heartbeat, Waiting
from hpc_rl.types import Tree


class Desk:
    """Answers the learners' requests on a replay rank, in their order where ``in_turn``. Never waits."""

    def __init__(
        self, link: Link, waiting: Waiting, learners: list[int], layouts: ReplayLayouts, rings: Rings, in_turn: bool
    ) -> None:
        self.learners, self.rings, self.in_turn = learners, rings, in_turn
        self.requests = Inbox(link, learners, REQUESTS, layouts.request, waiting, credits=1)
        self.summaries = {r: Outbox(link, r, SUMMARIES, layouts.summary, waiting) for r in learners}
        self.batches = {
            r: [Outbox(link, r, BATCHES + 2 * k, x, waiting, slots=1) for k, x in enumerate(layouts.items)]
            for r in learners
        }
        self.pending: dict[int, Message] = {}  # requests that wait for the limiter
        self.beats = {r: Heartbeat(waiting.deadline_s / 4) for r in learners}

        self.arrivals = layouts.arrivals

    def replay(self) -> ReplayRank:
        """As the program of its rank sees it."""
        rings = self.rings
        return ReplayRank(
            rings.insert, rings.open, self.answer, self.waits, self.flush, rings.state, rings.figures, self.arrivals
        )

    def answer(self) -> bool:
        """Take new requests and answer those that may be; whether there was one."""
        for message in iter(self.requests.poll, None):
            self.pending[message.peer] = message
        self.requests.check_peers()
        ready = [r for r in self.learners if r in self.pending and self._may_answer(r)]
        if self.in_turn and len(ready) < len(self.learners):
            ready = []
        for r in ready:
            self._take_priorities(self.pending[r].tree)
        for r in ready:
            self._send(r, self.pending.pop(r))
        for r in self.pending:
            if self.beats[r].due() and self.summaries[r].ready():
                self.summaries[r].put(self.rings.summary(), ALIVE)
        return bool(ready)

    def waits(self) -> bool:
        """A request could be taken or answered now."""
        return self.requests.ready() or any(self._may_answer(r) for r in self.pending)

    def flush(self) -> None:
        """Wait until all answers have left."""
        for r in self.learners:
            for outbox in (self.summaries[r], *self.batches[r]):
                outbox.flush()

    def _may_answer(self, r: int) -> bool:
        outboxes = (self.summaries[r], *self.batches[r])
        return self.rings.due(self.learners.index(r)) and all([outbox.ready() for outbox in outboxes])

    def _take_priorities(self, request: Tree) -> None:
        if returned := int(request["returned"][0]):
            self.rings.reprioritize(request["key"][0, :returned], request["priority"][0, :returned])

    def _send(self, r: int, request: Message) -> None:
        counts, update = request.tree["counts"][0].tolist(), request.version
        self.requests.release(request)
        messages = [outbox.reserve(count) for outbox, count in zip(self.batches[r], counts, strict=True)]
        trees = self.rings.answer(counts, update, self.learners.index(r), messages)
        for outbox, tree, count in zip(self.batches[r], trees, counts, strict=True):
            if tree is not None:
                outbox.put(tree, update, columns=count)
        self.summaries[r].put(self.rings.summary(), update)
