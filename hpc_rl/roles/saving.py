"""Checkpoints of a run: when one is due, what it says of itself, which one is the best."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from hpc_rl.optim.flat import StateDict
from hpc_rl.roles.base import Seat
from hpc_rl.runtime.tally import Tally
from hpc_rl.storage import checkpoint
from hpc_rl.storage.states import NonFinite


class Superseded(RuntimeError):
    """The controller gave this attempt up, for its node was out of reach, and another one has begun."""


@dataclass
class Saver:
    """Writes checkpoints for one seat and remembers how long that blocked the learner."""

    seat: Seat
    tally: Tally
    last: float = field(default_factory=time.monotonic)
    longest_s: float = 0.0
    written: int = 0
    marked: float = -math.inf  # score of best.h5
    newest: int = -1  # updates behind the newest checkpoint written

    def __post_init__(self) -> None:
        self.marked = self.tally.best = checkpoint.best_score(self.seat.run)

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.seat.job.checkpoint.interval_s

    def meta(self) -> dict[str, Any]:
        """What a checkpoint that is taken now says of itself. If it is the best, later ones must beat it already."""
        score = self.tally.score(self.seat.job)
        self.tally.best = max(self.tally.best, -math.inf if score is None else score)
        return self.tally.meta(self.seat)

    def save(self, state: StateDict, meta: dict[str, Any], last: bool = False) -> None:
        """Write, mark the best, prune. A state that is not finite is never written: warns, or raises if ``last``."""
        begin = time.monotonic()
        run = self.seat.run
        if (newest := run.read_state()["attempt"]) > self.seat.attempt:
            raise Superseded(f"attempt {newest} of {run.path} has begun; attempt {self.seat.attempt} writes no more")
        score = meta["score"]
        try:
            path = checkpoint.save(run, meta["updates"], state, meta)
        except NonFinite as error:
            if last:
                raise
            print(f"warning: {error}", flush=True)
            self.tally.best, self.last = self.marked, time.monotonic()  # the next try comes after the usual interval
            return
        if score is not None and score > self.marked:
            checkpoint.mark_best(run, path, score)
            self.marked = score
        checkpoint.prune(run, self.seat.job.checkpoint.keep)
        self.written += 1
        self.longest_s = self.seat.save_s = max(self.longest_s, time.monotonic() - begin)
        if meta["updates"] < self.newest:  # the best policy was judged while the run went on
            return
        run.write_state(
            state="running", env_steps=meta["env_steps"], updates=meta["updates"], attempt=self.seat.attempt
        )
        self.last, self.newest = time.monotonic(), meta["updates"]
