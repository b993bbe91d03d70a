"""Rank 0's side of the evaluator: weights go there, judgements come back, and signs of life both ways."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.devices import to_host
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.control import ControlServer
from hpc_rl.runtime.judge import Judgement
from hpc_rl.runtime.messages import ALIVE, SCORES, WEIGHTS, score_layout, weights_layout
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.waiting import Heartbeat, Stopped


class EvaluatorClient:
    """The evaluator as rank 0 has it at hand. Nothing waits for it while the run goes on."""

    def __init__(self, context: RankContext, policy: Policy) -> None:
        link, self.waiting, peer = context.ports.link, context.ports.waiting, context.plan.of("evaluator")[0]
        sets = max(1, len(context.job.evaluate.arguments))
        numbers = sum(p.numel() for p in policy.net.parameters() if p.requires_grad)
        self.weights = Outbox(link, peer, WEIGHTS, weights_layout(4 * numbers), self.waiting, slots=1)
        self.scores = Inbox(link, [peer], SCORES, score_layout(sets), self.waiting)
        self.command, self.beat = ControlServer(context, [peer]), Heartbeat(self.waiting.deadline_s / 4)
        pulse = self.waiting.pulse

        def and_alive() -> None:
            pulse()
            self._alive()

        self.waiting.pulse = and_alive  # also while rank 0 waits for others

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

    def wait(self, give_up: Callable[[], bool]) -> None:
        """Return once `poll` finds something, be it a sign of life, or ``give_up()``. Raises Deadline."""
        with suppress(Stopped):
            self.waiting.until(self.scores.ready, "the evaluator's judgement", give_up)

    def release(self) -> list[dict[str, Any]]:
        """Have it leave; its last words."""
        self.command.order(0, stop=True)
        return self.command.final_reports(self.scores)

    def _alive(self) -> None:
        if self.beat.due() and self.command.control[0].ready():
            self.command.order(0)
