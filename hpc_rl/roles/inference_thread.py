"""An inference server in its learner's process: an actor in a thread, with messages to and from its own rank."""

from __future__ import annotations

import threading
from dataclasses import replace

from hpc_rl.roles.actor import actor
from hpc_rl.runtime.context import RankContext
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting


class InferenceThread:
    """Runs until the learner tells its actors to stop. ``check`` raises here what was raised there."""

    def __init__(self, context: RankContext) -> None:
        rank, waiting = context.rank_spec.rank, context.ports.waiting
        served = [p for p in context.plan.ranks if p.role == "env_worker" and p.peers[0] == rank]
        columns = range(served[0].columns.start, served[-1].columns.stop)
        rank_spec = replace(context.rank_spec, role="actor", columns=columns, learns=False, device="cpu", peers=(rank,))
        ports = Ports(context.ports.link, Waiting(waiting.deadline_s, hosts=waiting.hosts))
        self.error: BaseException | None = None
        self.context = replace(context, rank_spec=rank_spec, ports=ports)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            actor(self.context)
        except BaseException as error:  # the learner raises it, in whatever it waits for
            self.error = error

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def join(self) -> None:
        """Wait for the end of the thread, which has said its last word already."""
        self.thread.join(self.context.ports.waiting.deadline_s)
        self.check()
