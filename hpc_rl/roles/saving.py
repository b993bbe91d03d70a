"""Checkpoints of a run: when one is due, what it holds, which one is the best."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_rl.algorithms.base import Learner, State
from hpc_rl.roles.base import Seat
from hpc_rl.roles.tally import Tally
from hpc_rl.storage import checkpoint
from hpc_rl.storage.checkpoint import NonFinite


@dataclass
class Saver:
    """Writes checkpoints for one seat and remembers how long that blocked the learner."""

    seat: Seat
    last: float = field(default_factory=time.monotonic)
    longest_s: float = 0.0
    written: int = 0

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.seat.job.checkpoint.interval_s

    def save(self, state: State, tally: Tally, meta: dict[str, Any]) -> None:
        """Write, mark the best, prune. A state that is not finite is never written; the run goes on to say why."""
        begin = time.monotonic()
        run = self.seat.run
        score = tally.mean_return if tally.evaluated is None else tally.evaluated
        better = np.isfinite(score) and score > tally.best and (len(tally.recent) == 100 or tally.evaluated is not None)
        if better:
            tally.best = meta["best"] = float(score)
        try:
            path = checkpoint.save(run, meta["updates"], state, meta)
        except NonFinite as error:
            print(f"checkpoint not written: {error}", flush=True)
            return
        if better:
            checkpoint.mark_best(run, path, float(score))
        checkpoint.prune(run, self.seat.job.checkpoint.keep)
        run.write_state(
            state="running", env_steps=meta["env_steps"], updates=meta["updates"], attempt=self.seat.attempt
        )
        self.last, self.written = time.monotonic(), self.written + 1
        self.longest_s = max(self.longest_s, self.last - begin)


def learner_state(learner: Learner) -> State:
    """The learner's part of a checkpoint: a copy, so that training may go on while it waits to be written."""
    return {"learner": learner.state()}


@dataclass
class Pending:
    """A snapshot that becomes a checkpoint once its steps lie in closed segments of every column."""

    state: State
    meta: dict[str, Any]
    asked: float = field(default_factory=time.monotonic)

    def covered(self, closed: dict[int, int]) -> bool:
        return all(closed.get(int(column), 0) >= step for column, step in self.meta["steps"].items())
