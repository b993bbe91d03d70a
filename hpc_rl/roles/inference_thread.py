"""An inference server in its learner's process: an actor in a thread, with messages to and from its own rank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from hpc_rl.runtime.context import RankContext
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting


class InferenceThread:
    """Runs ``actor`` until the learner tells its actors to stop; ``taker`` is the rank
    that takes its fragments, if another. While the learner waits, what it raised is raised."""

    def __init__(self, context: RankContext, actor: Callable[[RankContext], None], taker: int | None = None) -> None:
        rank, waiting = context.rank_spec.rank, context.ports.waiting
        served = [p for p in context.plan.ranks if p.role == "env_worker" and p.peers[0] == rank]
        columns = range(served[0].columns.start, served[-1].columns.stop)
        peers = (rank,) if taker is None else (taker, rank)
        rank_spec = replace(context.rank_spec, role="actor", columns=columns, learns=False, device="cpu", peers=peers)
        ports = Ports(context.ports.link, Waiting(waiting.deadline_s, hosts=waiting.hosts))
        self.error: BaseException | None = None
        self.actor, self.context = actor, context.in_role(rank_spec, ports)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        waiting.pulse = self.check

    def _run(self) -> None:
        try:
            self.actor(self.context)
        except BaseException as error:  # the learner raises it, in whatever it waits for
            self.error = error

    def check(self) -> None:
        """Raise what was raised in the thread."""
        if self.error is not None:
            raise self.error

    def join(self) -> None:
        """Wait for the end of the thread, which has sent its final report already."""
        self.thread.join(self.context.ports.waiting.deadline_s)
        self.check()
