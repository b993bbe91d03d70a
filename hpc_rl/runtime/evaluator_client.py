"""Rank 0's side of an evaluator rank: weights go there, judgements come back. roles/evaluator.py is the other one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from torch import Tensor

from hpc_rl.devices import to_host
from hpc_rl.runtime.evaluation import Judgement, RemoteJudge
from hpc_rl.runtime.messages import ALIVE, SCORES, WEIGHTS, ControlServer, FinalReport, score_layout, weights_layout
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Done, Heartbeat, Stopped, Waiting


class EvaluatorClient:
    """Rank 0's side of the evaluator: weights go there, judgements come back, and signs of life go both ways.

    ``parameters`` is the number of those that act, ``sets`` that of the sets of arguments. Nothing waits for the
    evaluator while the run goes on.
    """

    def __init__(self, link: Link, waiting: Waiting, peer: int, parameters: int, sets: int) -> None:
        self.waiting = waiting
        self.weights = Outbox(link, peer, WEIGHTS, weights_layout(4 * parameters), waiting, slots=1)
        self.scores = Inbox(link, [peer], SCORES, score_layout(sets), waiting)
        self.control, self.beat = ControlServer(link, waiting, [peer]), Heartbeat(waiting.deadline_s / 4)
        pulse = waiting.pulse

        def and_alive() -> None:
            pulse()
            self._alive()

        waiting.pulse = and_alive  # also while rank 0 waits for others

    def ready(self) -> bool:
        """It has taken the last weights, and could take new ones without a wait."""
        return self.weights.ready()

    def begin(self, weights: Tensor, env_steps: int) -> None:
        tree = {"parameters": to_host(weights).view(np.uint8)[None], "env_steps": np.array([env_steps])}
        self.weights.put(tree, env_steps)

    def poll(self) -> Judgement | None:
        """A judgement that has arrived. Raises Deadline: the evaluator has been silent for too long."""
        self._alive()
        judgement = None
        while (message := self.scores.poll()) is not None:
            if message.version != ALIVE:
                judgement = Judgement(*(tuple(message.tree[name][0].tolist()) for name in ("returns", "success")))
            self.scores.release(message)
        self.scores.check_peers()
        return judgement

    def wait(self, give_up: Done) -> None:
        """Return once `poll` finds something, be it a sign of life, or ``give_up()``. Raises Deadline."""
        with suppress(Stopped):
            self.waiting.until(self.scores.ready, "the evaluator's judgement", give_up)

    def release(self) -> Sequence[FinalReport]:
        """Have it leave; its final report."""
        self.control.order(0, stop=True)
        return self.control.final_reports(self.scores)

    def remote(self) -> RemoteJudge:
        """These messages as an evaluation uses them."""
        return RemoteJudge(self.ready, self.begin, self.poll, self.wait, self.release)

    def _alive(self) -> None:
        if self.beat.due() and self.control.control[0].ready():
            self.control.order(0)
