"""The replay rank: takes fragments of its actors, answers its learners, and blocks on neither.

While its rate limiter says that learners are behind, fragments stay where they are and their senders get no credit.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress

from hpc_rl.replay.base import ARRIVALS, ReplayRank
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.messages import TRAJECTORIES, ControlClient, schemas
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.samplers.base import Timings
from hpc_rl.transport.base import Inbox, Message, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import DOZE_S, Stopped


def replay_server(context: RankContext) -> None:
    """Serve until the first learner says stop; then send it what is kept."""
    link, waiting, plan, spec = context.ports.link, context.ports.waiting, context.plan, context.method.spec
    recorded, sent = schemas(context.method.make_policy(), spec)
    in_turn, timings = context.job.schedule == "deterministic", Timings()
    replay = context.make_replay(recorded, sent)
    layout = Layout(sent, plan.steps, plan.fragment_columns, spec.stack)
    intake = _Intake(
        Inbox(link, context.rank_spec.peers, TRAJECTORIES, layout, waiting),
        Outbox(link, plan.learners[0], ARRIVALS, replay.arrivals, waiting, slots=8),
        replay,
        in_turn,
    )
    chief = plan.learners[0]
    control = ControlClient(link, waiting, chief)
    reporter = Reporter(context.files, timings, context.limits.started)

    def send_state() -> None:
        while in_turn and (replay.answer() or intake.take()):
            pass  # what has come by now belongs to the state, however late this rank looks
        context.gather({"stores": replay.state()}, [chief, *plan.of("replay_server")])

    while not control.stopping():
        now = time.perf_counter()
        if control.due():
            send_state()
        answered = replay.answer()
        now = timings.timed("send", now)
        took = intake.take()
        now = timings.timed("record", now)
        if not answered and not took:
            with suppress(Stopped):
                ready, awaited = lambda: replay.waits() or intake.ready(), "requests and fragments"
                waiting.until(ready, awaited, control.called, longest_sleep_s=DOZE_S)
        timings.timed("wait", now)
        if reporter.due():
            reporter.report(0, replay.figures())
    send_state()
    replay.flush()
    intake.arrivals.flush()
    reporter.report(0, replay.figures())
    control.send_final_report(timings, reporter.peak)
    context.flush_replay()
    reporter.close()


class _Intake:
    """Fragments on their way into the replay: as they come, or one of each sender in their order where ``in_turn``."""

    def __init__(self, inbox: Inbox, arrivals: Outbox, replay: ReplayRank, in_turn: bool) -> None:
        self.inbox, self.arrivals, self.replay, self.in_turn = inbox, arrivals, replay, in_turn
        self.early: dict[int, deque[Message]] = {peer: deque() for peer in inbox.peers}
        self.turn = deque(inbox.peers)

    def ready(self) -> bool:
        """`take` would take a fragment, as far as the learners and the limiter go."""
        return self.arrivals.ready() and self.replay.open() and self._next(peek=True)

    def take(self) -> bool:
        """Take the next fragment, if it is here and may be; whether there was one. Raises Deadline."""
        if not self.arrivals.ready() or not self.replay.open() or not self._next():
            return False
        message = self.early[self.turn[0]].popleft()
        self.turn.rotate(-1)
        self.replay.insert(message.tree)
        self.arrivals.put(message.tree, message.version)
        self.inbox.release(message)
        return True

    def _next(self, peek: bool = False) -> bool:
        """Whether the first in ``turn`` has sent; where they need not wait for each other, one that has comes first."""
        self.inbox.check_peers()
        if peek:
            return self.inbox.ready() or bool(self.early[self.turn[0]])
        for message in iter(self.inbox.poll, None):
            self.early[message.peer].append(message)
        senders = [peer for peer in self.turn if self.early[peer]]
        if not self.in_turn and senders:
            self.turn.remove(senders[0])
            self.turn.appendleft(senders[0])
        return bool(self.early[self.turn[0]])
